// Attention by wgmma and TMA: the forward pass; the contract is in attention/mod.rs. It follows hopper.cuh and documents.cuh.
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

// Scores of keys that a row does not see become minus infinity.
template <int N>
__device__ __forceinline__ void mask_keys(float (&s)[N], int key, const int (&begin)[2], int row) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int k = key + product_column(i), r = i / 2 % 2;
        if (k > row + 8 * r || k < begin[r]) s[i] = MINUS_INFINITY;
    }
}

// Dynamic shared memory: queries, a ring of keys and values, barriers.
template <int D, int KEYS, int STAGES>
__device__ __forceinline__ void forward(const TensorMap& map, const u32* tiles, const u32* begin_T, u16* out_T, float* lse_HT, int T,
                                        int H, int G) {
    extern __shared__ __align__(1024) unsigned char shared[];
    constexpr u32 TILE = BLOCK * D * 2, STEP = KEYS * D * 2;
    constexpr float scale_log2 = SCALE<D> * LOG2_E;
    const int h = blockIdx.x, g = h / (H / G), first = tiles[blockIdx.y] * BLOCK, end = min(first + BLOCK, T);
    const int start = first - (first - (int)begin_T[first] + KEYS - 1) / KEYS * KEYS;
    const u32 queries = shared_address(shared), steps = queries + TILE, queries_came = steps + STAGES * 2 * STEP;
    const Ring<STAGES, STAGES / 2, 8> ring{queries_came + 8, (end - start + KEYS - 1) / KEYS};
    auto fetch = [&](int i) {
        const u32 to = steps + i % STAGES * 2 * STEP, came = ring.came(i);
        barrier_expect(came, 2 * STEP);
        load_tile<D, KEYS>(to, map, (H + g) * D, start + i * KEYS, came);
        load_tile<D, KEYS>(to + STEP, map, (H + G + g) * D, start + i * KEYS, came);
    };
    if (threadIdx.x == 0) {
        barrier_init(queries_came, 1);
        ring.init();
        barrier_expect(queries_came, TILE);
        load_tile<D, BLOCK>(queries, map, h * D, first, queries_came);
        ring.start(fetch);
    }
    __syncthreads();
    const int group = uniform(threadIdx.x / 128), slab = first + 64 * group, row = slab + product_row(0);
    const int begin[2] = {row < T ? (int)begin_T[row] : row, row + 8 < T ? (int)begin_T[row + 8] : row + 8};
    // Steps of which the warpgroup sees anything.
    const int slab_end = min(slab + 64, T), slab_begin = slab < T ? (int)begin_T[slab] : T, last_begin = slab < T ? (int)begin_T[slab_end - 1] : T;
    const int from = slab < T ? (slab_begin - start) / KEYS : ring.count, to = slab < T ? (slab_end - 1 - start) / KEYS + 1 : ring.count;
    unsigned char* const own = shared + group * 64 * ROW_BYTES;
    // From registers: both operands from shared memory would take all its bandwidth.
    u32 q[D / 16][4];
    float out[D / 2], s[KEYS / 2];
    u32 p[KEYS / 16][4];
    Softmax softmax{{MINUS_INFINITY, MINUS_INFINITY}, {0.0f, 0.0f}, {0.0f, 0.0f}};
#pragma unroll
    for (int i = 0; i < D / 2; i++) out[i] = 0.0f;
    auto hide = [&](int i) {
        const int key = start + i * KEYS;
        if (key + KEYS - 1 > slab || key < last_begin) mask_keys(s, key, begin, row);
    };
    // Not before they came: an arrival must not count for an earlier step in the same place.
    for (int i = 0; i < from; i++) ring.wait(i), ring.leave(i);
    if (from < to) {
        barrier_wait(queries_came, 0);
        hold_rows<D, BLOCK>(q, own);
        ring.wait(from);
        products_begin();
        multiply_rows<D, KEYS>(s, q, steps + from % STAGES * 2 * STEP);
        products_commit();
        products_wait<0>();
        settled(s);
        hide(from);
        softmax.absorb(s, scale_log2);
        round_to<KEYS>(p, s);
    }
    for (int i = from; i + 1 < to; i++) {
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
        hide(i + 1);
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
    if (from < to) {
        products_begin();
        multiply<D, KEYS>(out, p, steps + (to - 1) % STAGES * 2 * STEP + STEP);
        products_commit();
        products_wait<0>();
        settled(out);
    }
    if (slab >= T) return;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = softmax.sum[r];
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        if (threadIdx.x % 4 == 0 && row + 8 * r < T) lse_HT[(i64)h * T + row + 8 * r] = LN_2 * (softmax.top[r] * scale_log2 + __log2f(sum));
        softmax.sum[r] = 1.0f / sum;
    }
#pragma unroll
    for (int e = 0; e < D / 2; e++) out[e] *= softmax.sum[e / 2 % 2];
    store_product<D, BLOCK>(out, group, own, out_T + (i64)slab * (H * D) + h * D, (i64)H * D, T - slab);
}

#define FORWARD(D, KEYS, STAGES, PER_SM) \
    extern "C" __global__ void __launch_bounds__(256, PER_SM) attention_hopper_forward_##D( \
        const __grid_constant__ TensorMap map, const u32* __restrict__ tiles, const u32* __restrict__ begin_T, \
        u16* __restrict__ out_T, float* __restrict__ lse_HT, int T, int H, int G) { \
        forward<D, KEYS, STAGES>(map, tiles, begin_T, out_T, lse_HT, T, H, G); \
    }

FORWARD(64, 64, 4, 2)
FORWARD(128, 128, 3, 1)
