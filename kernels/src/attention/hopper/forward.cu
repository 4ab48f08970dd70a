// Attention by wgmma and TMA: the forward pass; the contract is in attention/mod.rs. It follows hopper.cuh and common.cuh.
//
// A block has BLOCK queries of one head, 64 for each of two warpgroups, and walks over their keys (FlashAttention-2, arXiv
// 2307.08691). While the probabilities of a step weigh its values, the scores of the next step are made (FlashAttention-3, arXiv
// 2407.08608); what else hides the softmax are the other warpgroups of the multiprocessor.

// Running maximum and sum of a thread's two rows; the sum is the thread's own part until the end.
struct Softmax {
    float top[2], sum[2], shrink[2];

    // Scores become probabilities, but for the factor that the output gets in the end; earlier sums are to shrink by `shrink`.
    template <int N>
    __device__ __forceinline__ void absorb(float (&s)[N], float scale_log2) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float most = top[r];
#pragma unroll
            for (int i = 0; i < N; i++)
                if (i / 2 % 2 == r) most = fmaxf(most, s[i]);
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
            // As long as probabilities stay below 2^8, the earlier maximum serves.
            const bool grown = (most - top[r]) * scale_log2 > 8.0f;
            shrink[r] = grown ? power_of_2((top[r] - most) * scale_log2) : 1.0f;
            top[r] = grown ? most : top[r];
            // A row that has seen no key of its document yet: all its scores are minus infinity.
            const float shift = top[r] == MINUS_INFINITY ? 0.0f : top[r] * scale_log2;
            float total = sum[r] * shrink[r];
#pragma unroll
            for (int i = 0; i < N; i++)
                if (i / 2 % 2 == r) total += s[i] = power_of_2(fmaf(s[i], scale_log2, -shift));
            sum[r] = total;
        }
    }
};

// The keys that a block of queries walks over in steps: from the beginning of its first row's document to its last row, begun so
// that the diagonal falls on the edges of steps. `start` may lie before the batch, where keys read as zeros.
template <int KEYS>
struct Walk {
    int first, start, count;

    __device__ __forceinline__ Walk(const u32* tiles, const u32* begin_T, int T) {
        first = tiles[blockIdx.y] * BLOCK;
        start = first - (first - (int)begin_T[first] + KEYS - 1) / KEYS * KEYS;
        count = (min(first + BLOCK, T) - start + KEYS - 1) / KEYS;
    }
};

// A warpgroup's 64 queries of a block, of which the thread has rows `row` and `row` + 8.
template <int KEYS>
struct Slab {
    int group, first, row;
    int begin[2];        // of the documents of the thread's rows
    int last_begin;      // of that of the last row
    int start, from, to; // steps of which any row sees a key; none beyond T

    __device__ __forceinline__ Slab(const Walk<KEYS>& walk, const u32* begin_T, int T) {
        group = uniform(threadIdx.x / 128);
        first = walk.first + 64 * group;
        row = first + product_row(0);
        for (int r = 0; r < 2; r++) begin[r] = row + 8 * r < T ? (int)begin_T[row + 8 * r] : row + 8 * r;
        start = walk.start;
        from = to = walk.count;
        if (first >= T) return;
        const int last = min(first + 64, T) - 1;
        last_begin = begin_T[last];
        from = ((int)begin_T[first] - start) / KEYS;
        to = (last - start) / KEYS + 1;
    }

    // Scores of a step become minus infinity where a row does not see the key; returns whether any may have.
    __device__ __forceinline__ bool hide(float (&s)[KEYS / 2], int step) const {
        const int key = start + step * KEYS;
        if (key + KEYS - 1 <= first && key >= last_begin) return false;
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) {
            const int k = key + product_column(i), r = i / 2 % 2;
            if (k > row + 8 * r || k < begin[r]) s[i] = MINUS_INFINITY;
        }
        return true;
    }
};

// Dynamic shared memory: queries, a ring of keys and values, barriers.
template <int D, int KEYS, int STAGES>
__device__ __forceinline__ void forward(const TensorMap& map, const u32* tiles, const u32* begin_T, u16* out_T, float* lse_HT,
                                        int T, int H, int G) {
    extern __shared__ __align__(1024) unsigned char shared[];
    constexpr u32 TILE = BLOCK * D * 2, STEP = KEYS * D * 2;
    constexpr float scale_log2 = SCALE<D> * LOG2_E;
    const int h = blockIdx.x, g = h / (H / G);
    const Walk<KEYS> walk(tiles, begin_T, T);
    const u32 queries = shared_address(shared), steps = queries + TILE, queries_came = steps + STAGES * 2 * STEP;
    const Ring<STAGES, STAGES / 2, 8> ring{queries_came + 8, walk.count};
    auto fetch = [&](int i) {
        const u32 to = steps + i % STAGES * 2 * STEP, came = ring.came(i);
        barrier_expect(came, 2 * STEP);
        load_tile<D, KEYS>(to, map, (H + g) * D, walk.start + i * KEYS, came);
        load_tile<D, KEYS>(to + STEP, map, (H + G + g) * D, walk.start + i * KEYS, came);
    };
    if (threadIdx.x == 0) {
        barrier_init(queries_came, 1);
        ring.init();
        barrier_expect(queries_came, TILE);
        load_tile<D, BLOCK>(queries, map, h * D, walk.first, queries_came);
        ring.start(fetch);
    }
    __syncthreads();
    const Slab<KEYS> slab(walk, begin_T, T);
    unsigned char* const own = shared + slab.group * 64 * ROW_BYTES;
    // From registers: both operands from shared memory would take all its bandwidth.
    u32 q[D / 16][4];
    float out[D / 2], s[KEYS / 2];
    u32 p[KEYS / 16][4];
    Softmax softmax{{MINUS_INFINITY, MINUS_INFINITY}, {0.0f, 0.0f}, {0.0f, 0.0f}};
#pragma unroll
    for (int i = 0; i < D / 2; i++) out[i] = 0.0f;
    // Not before they came: an arrival must not count for an earlier step in the same place.
    for (int i = 0; i < slab.from; i++) ring.wait(i), ring.leave(i);
    if (slab.from < slab.to) {
        barrier_wait(queries_came, 0);
        hold_rows<D, BLOCK>(q, own);
        ring.wait(slab.from);
        products_begin();
        multiply_rows<D, KEYS>(s, q, steps + slab.from % STAGES * 2 * STEP);
        products_commit();
        products_wait<0>();
        settled(s);
        slab.hide(s, slab.from);
        softmax.absorb(s, scale_log2);
        round_to<KEYS>(p, s);
    }
    for (int i = slab.from; i + 1 < slab.to; i++) {
        if (threadIdx.x == 0) ring.refill(i, fetch);
        __syncwarp();
        const u32 values = steps + i % STAGES * 2 * STEP + STEP;
        ring.wait(i + 1);
        products_begin();
        multiply_rows<D, KEYS>(s, q, steps + (i + 1) % STAGES * 2 * STEP);
        products_commit();
        multiply<D, KEYS>(out, p, values);
        products_commit();
        products_wait<1>();
        settled(s);
        slab.hide(s, i + 1);
        softmax.absorb(s, scale_log2);
        products_wait<0>();
        settled(out);
        ring.leave(i);
        if (__any_sync(ALL_LANES, softmax.shrink[0] != 1.0f || softmax.shrink[1] != 1.0f)) {
#pragma unroll
            for (int e = 0; e < D / 2; e++) out[e] *= softmax.shrink[e / 2 % 2];
        }
        round_to<KEYS>(p, s);
    }
    if (slab.from < slab.to) {
        products_begin();
        multiply<D, KEYS>(out, p, steps + (slab.to - 1) % STAGES * 2 * STEP + STEP);
        products_commit();
        products_wait<0>();
        settled(out);
    }
    if (slab.first >= T) return;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = softmax.sum[r];
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        const int row = slab.row + 8 * r;
        if (threadIdx.x % 4 == 0 && row < T) lse_HT[(i64)h * T + row] = LN_2 * (softmax.top[r] * scale_log2 + __log2f(sum));
        softmax.sum[r] = 1.0f / sum;
    }
#pragma unroll
    for (int e = 0; e < D / 2; e++) out[e] *= softmax.sum[e / 2 % 2];
    u16* const to = out_T + (i64)slab.first * (H * D) + h * D;
    store_product<D, BLOCK>(out, slab.group, own, to, (i64)H * D, T - slab.first);
}

#define FORWARD(D, KEYS, STAGES, PER_SM) \
    extern "C" __global__ void __launch_bounds__(256, PER_SM) attention_hopper_forward_##D( \
        const __grid_constant__ TensorMap map, const u32* __restrict__ tiles, const u32* __restrict__ begin_T, \
        u16* __restrict__ out_T, float* __restrict__ lse_HT, int T, int H, int G) { \
        forward<D, KEYS, STAGES>(map, tiles, begin_T, out_T, lse_HT, T, H, G); \
    }

FORWARD(64, 64, 4, 2)
FORWARD(128, 128, 3, 1)
