// The forward pass (FlashAttention-2, arXiv 2307.08691, algorithm 1): a block has 128 queries of a head, a warp 32 of them, so
// that what it loads of keys and values serves two products. It walks over the keys from the diagonal down, two steps of keys
// and values deep. Scores stay in registers.

// A warp's state over the keys seen so far: of each row the largest score, times log2(e)/sqrt(K), this lane's part of the sum
// of exponentials, and their mix of values.
template <int K, int M>
struct Softmax {
    float top[2 * M], sum[2 * M], out[M][K / 8][4];
};

// Scores to exponentials, by the maxima of all steps so far; earlier results are scaled down to these.
template <int K, int M, int N>
__device__ __forceinline__ void absorb(Softmax<K, M>& soft, float s[M][N][4], float scale_log2) {
    float shrink[2 * M];
    bool shrinks = false;
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        float(*const row)[4] = s[r / 2];
        const int half = r % 2 * 2;
        float top = row[0][half];
#pragma unroll
        for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(row[n][half], row[n][half + 1]));
        top = fmaxf(soft.top[r], row_max(top) * scale_log2);
        shrink[r] = power_of_2(soft.top[r] - top);
        shrinks |= shrink[r] != 1.0f;
        soft.top[r] = top;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = half; i < half + 2; i++) {
                row[n][i] = power_of_2(row[n][i] * scale_log2 - top);
                sum += row[n][i];
            }
        soft.sum[r] = soft.sum[r] * shrink[r] + sum;
    }
    // Maxima seldom move after the first steps.
    if (!__any_sync(ALL_LANES, shrinks)) return;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < K / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) soft.out[m][n][i] *= shrink[2 * m + i / 2];
}

// Dynamic shared memory: queries, then two steps of keys and values. KEYS of a step have their scores in registers at a time;
// queries do too where HELD.
template <int K, bool HELD, int M, int KEYS>
__device__ __forceinline__ void forward(const u16* qkv_TQ, const u32* tiles, const u32* begin, u16* out_T, float* lse_HT, int T,
                                        Packed packed) {
    extern __shared__ __align__(128) char shared[];
    static_assert(16 * M * WARPS == BLOCK, "a block is a tile");
    const int first = (int)tiles[blockIdx.y] * BLOCK, h = blockIdx.x;
    const int stride = packed.stride<K>(), out_stride = packed.H * K;
    const int warp_row = 16 * M * (threadIdx.x / WARP), own = first + warp_row;
    constexpr int N = KEYS / 8, BYTES = STREAM * 2 * K;
    char* const queries = shared;
    char* const steps = shared + BLOCK * 2 * K;
    const u16* const keys = qkv_TQ + (packed.H + h / packed.group()) * K;
    const auto fetch = [&](int step) {
        const u16* const from = keys + (i64)step * STREAM * stride;
        fetch_step<K>(steps + (step & 1) * 2 * BYTES, from, stride, from + packed.G * K, stride, T - step * STREAM);
    };
    const Lane lane = lane_of<K>();
    const float scale_log2 = LOG2_E * SCALE<K>;
    int step = (min(first + BLOCK, T) - 1) / STREAM;
    copy_tile<K, BLOCK, THREADS>(queries, qkv_TQ + (i64)first * stride + h * K, stride, T - first);
    fetch(step);
    const int last_step = (int)begin[first] / STREAM;
    // Of the warp's first and last row. A warp behind the last token sees nothing.
    const int lowest = own < T ? (int)begin[own] : BEHIND_ALL, highest = (int)begin[min(own + 16 * M, T) - 1];
    Softmax<K, M> soft = {};
    // Finite, so that a row that has seen nothing yet has exponentials of 0 and no difference of infinities.
#pragma unroll
    for (int r = 0; r < 2 * M; r++) soft.top[r] = LOWEST;
    u32 held[HELD ? M : 1][K / 16][4];
    if constexpr (HELD) {
        cp_async_wait<0>();
        __syncthreads();
        load_rows<K, M>(held, queries, warp_row, lane);
    }
    for (; step >= last_step; step--) {
        cp_async_wait<0>();
        // And everybody is done with the step before, whose place the next one takes.
        __syncthreads();
        if (step > last_step) fetch(step - 1);
        const char* const at = steps + (step & 1) * 2 * BYTES;
#pragma unroll
        for (int part = 0; part < STREAM; part += KEYS) {
            const int key = step * STREAM + part;
            if (key >= own + 16 * M || key + KEYS <= lowest) continue;
            float s[M][N][4];
            scores<K, HELD, M, N>(s, held, queries, warp_row, at, part, lane);
            if (key + KEYS - 1 > own || key < highest) hide_keys<M, N>(s, begin, T, own, key, MINUS_INFINITY);
            absorb<K, M, N>(soft, s, scale_log2);
            weigh<K, M, N>(soft.out, s, at + BYTES, part, lane);
        }
    }
    if (own >= T) return;
    float factor[2 * M];
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        const float sum = row_sum(soft.sum[r]);
        factor[r] = 1.0f / sum;
        const int query = own + 8 * r + threadIdx.x % WARP / 4;
        if (threadIdx.x % 4 == 0 && query < T) lse_HT[(i64)h * T + query] = (soft.top[r] + log2f(sum)) * LN_2;
    }
    store_rows<K, M>(soft.out, factor, queries, warp_row, out_T + (i64)own * out_stride + h * K, out_stride, T - own);
}

// Measured: more scores at a time are faster as long as no register spills.
#define FORWARD(K, HELD, M, KEYS) \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward_##K( \
        const u16* __restrict__ qkv_TQ, const u32* __restrict__ tiles, const u32* __restrict__ begin, u16* __restrict__ out_T, \
        float* __restrict__ lse_HT, int T, int H, int G) { \
        forward<K, HELD, M, KEYS>(qkv_TQ, tiles, begin, out_T, lse_HT, T, {H, G}); \
    }

FORWARD(64, true, 2, 64)
FORWARD(128, false, 2, 32)
