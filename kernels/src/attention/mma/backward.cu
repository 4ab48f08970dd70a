// The backward pass by mma.sync; it follows forward.cu. Two kernels without atomics, so that sums have one order:
//
//   attention_dq    a block has queries of a head and walks over their keys, as the forward pass does
//   attention_dkv   a block has keys of a key/value head and walks over the queries of all heads that share it, or of a part of
//                   them, where one block a key/value head would leave multiprocessors idle; parts.cu adds up the parts
//
// Each computes scores and their gradients anew: seven products in place of the five of FlashAttention-2's algorithm 2, which
// adds up dq in memory in whatever order blocks arrive.

// delta = dout·out of a warp's rows, which lie in tiles: what the softmax takes off every gradient of its scores.
template <int K, int M>
__device__ __forceinline__ void find_delta(float delta[2 * M], const char* dout, const char* out, int row, Lane lane) {
#pragma unroll
    for (int r = 0; r < 2 * M; r++) delta[r] = 0.0f;
#pragma unroll
    for (int k = 0; k < K / 16; k++)
#pragma unroll
        for (int m = 0; m < M; m++) {
            u32 a[4], b[4];
            ldmatrix_x4(a, corner<K>(dout, lane.rows, row + 16 * m, k));
            ldmatrix_x4(b, corner<K>(out, lane.rows, row + 16 * m, k));
#pragma unroll
            for (int i = 0; i < 4; i++)
                delta[2 * m + i % 2] += low_half(a[i]) * low_half(b[i]) + high_half(a[i]) * high_half(b[i]);
        }
#pragma unroll
    for (int r = 0; r < 2 * M; r++) delta[r] = row_sum(delta[r]);
}

// Gradients of scores, in place of the scores: rows are queries. lse is times log2(e).
template <int M, int N>
__device__ __forceinline__ void query_slopes(float s[M][N][4], const float dp[M][N][4], const float lse[2 * M],
                                             const float delta[2 * M], float scale_log2) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int r = 2 * m + i / 2;
                s[m][n][i] = power_of_2(s[m][n][i] * scale_log2 - lse[r]) * (dp[m][n][i] - delta[r]);
            }
}

// dq and delta of the 64 M queries of a block. Dynamic shared memory: queries, gradients of the output, two steps of keys and
// values.
template <int K, bool HELD, int M, int KEYS>
__device__ __forceinline__ void dq(const u16* dout_T, const u16* qkv_TQ, const u16* out_T, const float* lse_HT, const u32* tiles,
                                   const u32* begin, float* delta_HT, u16* dqkv_TQ, int T, Packed packed) {
    extern __shared__ __align__(128) char shared[];
    constexpr int N = KEYS / 8, QUERIES = 16 * M * WARPS, PARTS = BLOCK / QUERIES, BYTES = STREAM * 2 * K;
    const int place = blockIdx.y, h = blockIdx.x;
    // The later part has more keys and goes first.
    const int first = (int)tiles[place / PARTS] * BLOCK + (PARTS - 1 - place % PARTS) * QUERIES;
    if (first >= T) return;
    const int stride = packed.stride<K>(), out_stride = packed.H * K;
    const i64 out_at = (i64)first * out_stride + h * K;
    const int warp_row = 16 * M * (threadIdx.x / WARP), own = first + warp_row;
    char* const queries = shared;
    char* const douts = shared + QUERIES * 2 * K;
    char* const steps = shared + 2 * QUERIES * 2 * K;
    const u16* const keys = qkv_TQ + (packed.H + h / packed.group()) * K;
    const auto fetch = [&](int step) {
        const u16* const from = keys + (i64)step * STREAM * stride;
        fetch_step<K>(steps + (step & 1) * 2 * BYTES, from, stride, from + packed.G * K, stride, T - step * STREAM);
    };
    const Lane lane = lane_of<K>();
    int step = (min(first + QUERIES, T) - 1) / STREAM;
    copy_tile<K, QUERIES, THREADS>(queries, qkv_TQ + (i64)first * stride + h * K, stride, T - first);
    copy_tile<K, QUERIES, THREADS>(douts, dout_T + out_at, out_stride, T - first);
    // The output takes the place of the step that comes after the first: it has at most as many bytes.
    char* const outs = steps + (~step & 1) * 2 * BYTES;
    copy_tile<K, QUERIES, THREADS>(outs, out_T + out_at, out_stride, T - first);
    fetch(step);
    const int last_step = (int)begin[first] / STREAM;
    // Of the warp's first and last row. A warp behind the last token sees nothing.
    const int lowest = own < T ? (int)begin[own] : BEHIND_ALL, highest = (int)begin[min(own + 16 * M, T) - 1];
    float lse[2 * M], delta[2 * M];
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        const int query = own + 8 * r + threadIdx.x % WARP / 4;
        lse[r] = query < T ? lse_HT[(i64)h * T + query] * LOG2_E : 0.0f;
    }
    cp_async_wait<0>();
    __syncthreads();
    find_delta<K, M>(delta, douts, outs, warp_row, lane);
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        const int query = own + 8 * r + threadIdx.x % WARP / 4;
        if (threadIdx.x % 4 == 0 && query < T) delta_HT[(i64)h * T + query] = delta[r];
    }
    u32 q[HELD ? M : 1][K / 16][4], dout[HELD ? M : 1][K / 16][4];
    if constexpr (HELD) {
        load_rows<K, M>(q, queries, warp_row, lane);
        load_rows<K, M>(dout, douts, warp_row, lane);
    }
    float dq[M][K / 8][4] = {};
    constexpr int UNROLL = M == 1 ? STREAM / KEYS : 1;  // as registers allow
    for (; step >= last_step; step--) {
        cp_async_wait<0>();
        __syncthreads();
        if (step > last_step) fetch(step - 1);
        const char* const at = steps + (step & 1) * 2 * BYTES;
#pragma unroll UNROLL
        for (int part = 0; part < STREAM; part += KEYS) {
            const int key = step * STREAM + part;
            if (key >= own + 16 * M || key + KEYS <= lowest) continue;
            float s[M][N][4], dp[M][N][4];
            scores<K, HELD, M, N>(s, q, queries, warp_row, at, part, lane);
            scores<K, HELD, M, N>(dp, dout, douts, warp_row, at + BYTES, part, lane);
            query_slopes<M, N>(s, dp, lse, delta, LOG2_E * SCALE<K>);
            if (key + KEYS - 1 > own || key < highest) hide_keys<M, N>(s, begin, T, own, key, 0.0f);
            weigh<K, M, N>(dq, s, at, part, lane);
        }
    }
    if (own >= T) return;
    float factor[2 * M];
#pragma unroll
    for (int r = 0; r < 2 * M; r++) factor[r] = SCALE<K>;
    store_rows<K, M>(dq, factor, queries, warp_row, dqkv_TQ + (i64)own * stride + h * K, stride, T - own);
}

// Probabilities in place of scores, and gradients of scores in place of dout·v: rows are keys, columns queries, whose lse
// (times log2(e)) and delta lie in shared memory.
template <int M, int N>
__device__ __forceinline__ void key_slopes(float s[M][N][4], float dp[M][N][4], const float* lse, const float* delta,
                                           float scale_log2) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < N; n++) {
        const float2 l = *(const float2*)(lse + 8 * n + 2 * t), d = *(const float2*)(delta + 8 * n + 2 * t);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[m][n][i] = power_of_2(s[m][n][i] * scale_log2 - (i % 2 ? l.y : l.x));
                dp[m][n][i] = s[m][n][i] * (dp[m][n][i] - (i % 2 ? d.y : d.x));
            }
    }
}

// dk and dv of the 64 keys of a block. Dynamic shared memory: keys, values, two steps of queries and gradients of the output,
// lse and delta of either step. Of several parts of a key/value head each leaves its sums in part_PTG.
template <int K, bool HELD, int QUERIES>
__device__ __forceinline__ void dkv(const u16* dout_T, const u16* qkv_TQ, const float* lse_HT, const float* delta_HT,
                                    const u32* tiles, const u32* end, u16* dqkv_TQ, float* part_PTG, int T, Packed packed) {
    extern __shared__ __align__(128) char shared[];
    constexpr int M = 1, N = QUERIES / 8, KEYS = 16 * M * WARPS, PARTS = BLOCK / KEYS, BYTES = STREAM * 2 * K;
    static_assert(THREADS == 2 * STREAM, "a thread has an lse or a delta of a step");
    const int place = blockIdx.y;
    const Part share = part_of(packed.H, packed.G);
    const int g = share.g, first = (int)tiles[place / PARTS] * BLOCK + place % PARTS * KEYS;
    if (first >= T) return;
    const int stride = packed.stride<K>(), out_stride = packed.H * K;
    const int warp_row = 16 * M * (threadIdx.x / WARP), own = first + warp_row;
    char* const keys = shared;
    char* const values = shared + KEYS * 2 * K;
    char* const steps = values + KEYS * 2 * K;
    float* const statistics = (float*)(steps + 4 * BYTES);
    // For each head from the diagonal to the end of the last key's document. A step is its first query and its head.
    const int last = (int)end[min(first + KEYS, T) - 1];
    int left = (last - first + STREAM - 1) / STREAM * share.heads;
    const auto fetch = [&](int h, int query, int place) {
        const u16 *const q = qkv_TQ + (i64)query * stride + h * K, *const dout = dout_T + (i64)query * out_stride + h * K;
        fetch_step<K>(steps + place * 2 * BYTES, q, stride, dout, out_stride, T - query);
    };
    // Loaded before a step's products, stored after them.
    const auto statistic = [&](int h, int query) {
        query += threadIdx.x % STREAM;
        if (query >= T) return 0.0f;
        const i64 at = (i64)h * T + query;
        return threadIdx.x < STREAM ? lse_HT[at] * LOG2_E : delta_HT[at];
    };
    const Lane lane = lane_of<K>();
    const u16* const rows = qkv_TQ + (i64)first * stride + (packed.H + g) * K;
    copy_tile<K, KEYS, THREADS>(keys, rows, stride, T - first);
    copy_tile<K, KEYS, THREADS>(values, rows + packed.G * K, stride, T - first);
    int h = share.head, query = first;
    fetch(h, query, left & 1);
    statistics[(left & 1) * 2 * STREAM + threadIdx.x] = statistic(h, query);
    // Of the warp's last row. A warp behind the last token is seen by nothing.
    const int highest = own < T ? (int)end[min(own + 16 * M, T) - 1] : 0;
    u32 k[HELD ? M : 1][K / 16][4], v[HELD ? M : 1][K / 16][4];
    if constexpr (HELD) {
        cp_async_wait<0>();
        __syncthreads();
        load_rows<K, M>(k, keys, warp_row, lane);
        load_rows<K, M>(v, values, warp_row, lane);
    }
    float dk[M][K / 8][4] = {}, dv[M][K / 8][4] = {};
    for (; left > 0; left--) {
        cp_async_wait<0>();
        __syncthreads();
        const int step = query;
        query += STREAM;
        if (query >= last) query = first, h++;
        float next = 0.0f;
        if (left > 1) {
            fetch(h, query, ~left & 1);
            next = statistic(h, query);
        }
        const char* const at = steps + (left & 1) * 2 * BYTES;
        const float* const lse = statistics + (left & 1) * 2 * STREAM;
#pragma unroll
        for (int part = 0; part < STREAM; part += QUERIES) {
            const int from = step + part;
            if (own >= from + QUERIES || from >= highest) continue;
            float s[M][N][4], dp[M][N][4];
            scores<K, HELD, M, N>(s, k, keys, warp_row, at, part, lane);
            scores<K, HELD, M, N>(dp, v, values, warp_row, at + BYTES, part, lane);
            key_slopes<M, N>(s, dp, lse + part, lse + STREAM + part, LOG2_E * SCALE<K>);
            // Read anew each time: in a register it would make another spill.
            const int lowest = (int)end[own];
            if (own + 16 * M - 1 > from || from + QUERIES > lowest) hide_queries<M, N>(s, dp, end, T, own, from);
            weigh<K, M, N>(dv, s, at + BYTES, part, lane);
            weigh<K, M, N>(dk, dp, at, part, lane);
        }
        statistics[(~left & 1) * 2 * STREAM + threadIdx.x] = next;
    }
    if (own >= T) return;
    if (share.all > 1) {
        const i64 sums = share.stride<K>(packed.G);
        float* const to = part_PTG + share.offset<K>(T, packed.G) + own * sums;
        store_sums<K>(dk[0][0], to, sums, T - own);
        store_sums<K>(dv[0][0], to + K, sums, T - own);
        return;
    }
    float ones[2 * M], factor[2 * M];
#pragma unroll
    for (int r = 0; r < 2 * M; r++) ones[r] = 1.0f, factor[r] = SCALE<K>;
    u16* const to = dqkv_TQ + (i64)own * stride + (packed.H + g) * K;
    store_rows<K, M>(dk, factor, keys, warp_row, to, stride, T - own);
    store_rows<K, M>(dv, ones, values, warp_row, to + packed.G * K, stride, T - own);
}

// Measured: more scores at a time hide more of the products' latency, which is worth more than warps with more rows.
#define BACKWARD(K, DQ_HELD, M, KEYS, DKV_HELD, QUERIES) \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_dq_##K( \
        const u16* __restrict__ dout_T, const u16* __restrict__ qkv_TQ, const u16* __restrict__ out_T, \
        const float* __restrict__ lse_HT, const u32* __restrict__ tiles, const u32* __restrict__ begin, \
        float* __restrict__ delta_HT, u16* __restrict__ dqkv_TQ, int T, int H, int G) { \
        dq<K, DQ_HELD, M, KEYS>(dout_T, qkv_TQ, out_T, lse_HT, tiles, begin, delta_HT, dqkv_TQ, T, {H, G}); \
    } \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_dkv_##K( \
        const u16* __restrict__ dout_T, const u16* __restrict__ qkv_TQ, const float* __restrict__ lse_HT, \
        const float* __restrict__ delta_HT, const u32* __restrict__ tiles, const u32* __restrict__ end, \
        u16* __restrict__ dqkv_TQ, float* __restrict__ part_PTG, int T, int H, int G) { \
        dkv<K, DKV_HELD, QUERIES>(dout_T, qkv_TQ, lse_HT, delta_HT, tiles, end, dqkv_TQ, part_PTG, T, {H, G}); \
    }

BACKWARD(64, true, 2, 32, true, 64)
BACKWARD(128, true, 1, 32, false, 64)
