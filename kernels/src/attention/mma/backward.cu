// The backward pass by mma.sync; it follows forward.cu. Two kernels without atomics, so that sums have one order:
//
//   attention_dq    a block has 128 queries of a head and walks over their keys, as the forward pass does
//   attention_dkv   a block has 128 keys of a key/value head and walks over the queries of all heads that share it
//
// Each computes scores and their gradients anew: seven products in place of five, and no partial sums in memory.

// x times `factor`, as store_rows.
template <int D, int M>
__device__ __forceinline__ void store_scaled(float x[M][D / 8][4], float factor, u16* tile, int row, u16* to, i64 stride,
                                             int valid) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) x[m][n][e] *= factor;
    store_rows<D, M>(x, tile, row, to, stride, valid);
}

// Dynamic shared memory: queries, gradients of the output, two steps of keys and values, delta and lse of the
// queries.
template <int D, int M, int KEYS>
__device__ __forceinline__ void dq(const u16* dout_T, const u16* qkv_TQ, const u16* out_T, const float* lse_HT,
                                   const u32* tiles, float* delta_HT, u16* dqkv_TQ, i64 T, int H, int G, float scale) {
    constexpr int N = KEYS / 8;
    extern __shared__ __align__(128) u16 shared[];
    const Tile tile = tile_at(tiles, blockIdx.x / H);
    if (tile.len == 0) return;
    const int h = blockIdx.x % H, first = tile.block * BLOCK, valid = min((int)tile.len - first, BLOCK);
    const Packed<D> packed{H, G};
    const i64 stride = packed.stride(), out_stride = (i64)H * D;
    const u16* rows = qkv_TQ + tile.begin * stride;
    const u16 *k = rows + packed.k(h / (H / G)), *v = rows + packed.v(h / (H / G));
    const i64 out_at = (tile.begin + first) * out_stride + h * D;
    u16 *queries = shared, *douts = shared + BLOCK * D, *steps = shared + 2 * BLOCK * D;
    const int count = (first + valid + KEYS - 1) / KEYS, warp_row = threadIdx.x / WARP * 16 * M;
    auto fetch = [&](int i) {
        u16* to = steps + i % 2 * 2 * KEYS * D;
        copy_tile<D, KEYS>(to, k + (i64)i * KEYS * stride, stride, (int)tile.len - i * KEYS);
        copy_tile<D, KEYS>(to + KEYS * D, v + (i64)i * KEYS * stride, stride, (int)tile.len - i * KEYS);
    };
    copy_tile<D, BLOCK>(queries, rows + first * stride + packed.q(h), stride, valid);
    copy_tile<D, BLOCK>(douts, dout_T + out_at, out_stride, valid);
    fetch(0);
    cp_async_commit();
    // delta of row threadIdx.x: what the softmax takes off every gradient of its scores.
    float *deltas = (float*)(steps + 4 * KEYS * D), *lse = deltas + BLOCK;
    float delta = 0.0f;
    const int own = threadIdx.x;  // of at least BLOCK threads
    if (own < valid) {
#pragma unroll
        for (int c = 0; c < D; c += PACK) {
            float a[PACK], b[PACK];
            unpack(load_pack(out_T + out_at + own * out_stride + c), a);
            unpack(load_pack(dout_T + out_at + own * out_stride + c), b);
#pragma unroll
            for (int j = 0; j < PACK; j++) delta += a[j] * b[j];
        }
        delta_HT[h * T + tile.begin + first + own] = delta;
    }
    if (own < BLOCK) deltas[own] = delta;
    if (own < BLOCK) lse[own] = own < valid ? LOG2_E * lse_HT[h * T + tile.begin + first + own] : 0.0f;
    float out[M][D / 8][4] = {};
    for (int i = 0; i < count; i++) {
        cp_async_wait<0>();
        __syncthreads();
        if (i + 1 < count) fetch(i + 1);
        cp_async_commit();
        const u16* step = steps + i % 2 * 2 * KEYS * D;
        const int last_key = i * KEYS + KEYS - 1, first_query = first + warp_row;
        if (i * KEYS < first_query + 16 * M) {
            float p[M][N][4], ds[M][N][4];
            scores<D, M, N>(p, queries, warp_row, step);
            scores<D, M, N>(ds, douts, warp_row, step + KEYS * D);
            const bool masked = last_key > first_query;
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int row = row_of(m, 2 * half);
                    const float shift = lse[warp_row + row], mean = deltas[warp_row + row];
#pragma unroll
                    for (int n = 0; n < N; n++)
#pragma unroll
                        for (int e = 2 * half; e < 2 * half + 2; e++) {
                            const float share = power_of_2(fmaf(p[m][n][e], scale * LOG2_E, -shift));
                            const bool seen = !masked || i * KEYS + column_of(n, e) <= first_query + row;
                            ds[m][n][e] = seen ? share * (ds[m][n][e] - mean) : 0.0f;
                        }
                }
            weigh<D, M, N>(out, ds, step);
        }
    }
    u16* to = dqkv_TQ + (tile.begin + first) * stride + packed.q(h);
    store_scaled<D, M>(out, scale, queries, warp_row, to, stride, valid);
}

// Dynamic shared memory: keys, values, two steps of queries and gradients of the output, and their lse and delta. PART of a
// step's queries have their scores in registers at a time.
template <int D, int QUERIES, int PART>
__device__ __forceinline__ void dkv(const u16* dout_T, const u16* qkv_TQ, const float* lse_HT, const float* delta_HT,
                                    const u32* tiles, u16* dqkv_TQ, i64 T, int H, int G, float scale) {
    constexpr int N = PART / 8;
    extern __shared__ __align__(128) u16 shared[];
    const Tile tile = tile_at(tiles, blockIdx.x / G);
    if (tile.len == 0) return;
    const int g = blockIdx.x % G, group = H / G, first = tile.block * BLOCK, valid = min((int)tile.len - first, BLOCK);
    const Packed<D> packed{H, G};
    const i64 stride = packed.stride(), out_stride = (i64)H * D;
    const u16 *rows = qkv_TQ + tile.begin * stride, *dout = dout_T + tile.begin * out_stride;
    u16 *keys = shared, *values = shared + BLOCK * D, *steps = shared + 2 * BLOCK * D;
    float* statistics = (float*)(steps + 4 * QUERIES * D);
    // From the first query that sees a key of the block.
    const int from = first / QUERIES, steps_of_head = ((int)tile.len + QUERIES - 1) / QUERIES - from;
    const int count = group * steps_of_head;
    auto fetch = [&](int i) {
        const int h = g * group + i / steps_of_head, query = (from + i % steps_of_head) * QUERIES;
        const int left = (int)tile.len - query;
        u16* to = steps + i % 2 * 2 * QUERIES * D;
        copy_tile<D, QUERIES>(to, rows + query * stride + packed.q(h), stride, left);
        copy_tile<D, QUERIES>(to + QUERIES * D, dout + query * out_stride + h * D, out_stride, left);
        float* to_lse = statistics + i % 2 * 2 * QUERIES;
        if (threadIdx.x < QUERIES) {
            const i64 at = h * T + tile.begin + query + threadIdx.x;
            const bool inside = (int)threadIdx.x < left;
            // Rows past the end have no share in anything: 2^-huge.
            to_lse[threadIdx.x] = inside ? LOG2_E * lse_HT[at] : 1e30f;
            to_lse[QUERIES + threadIdx.x] = inside ? delta_HT[at] : 0.0f;
        }
    };
    copy_tile<D, BLOCK>(keys, rows + first * stride + packed.k(g), stride, valid);
    copy_tile<D, BLOCK>(values, rows + first * stride + packed.v(g), stride, valid);
    fetch(0);
    cp_async_commit();
    const int warp_row = threadIdx.x / WARP * 16, first_key = first + warp_row;
    float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
    for (int i = 0; i < count; i++) {
        cp_async_wait<0>();
        __syncthreads();
        if (i + 1 < count) fetch(i + 1);
        cp_async_commit();
        const u16 *queries = steps + i % 2 * 2 * QUERIES * D, *douts = queries + QUERIES * D;
        const float* lse = statistics + i % 2 * 2 * QUERIES;
        const int query = (from + i % steps_of_head) * QUERIES;
#pragma unroll
        for (int part = 0; part < QUERIES; part += PART) {
            if (first_key >= query + part + PART) continue;
            // Rows are keys here, columns queries: probabilities and gradients are then what the products below take.
            float p[1][N][4], ds[1][N][4];
            scores<D, 1, N>(p, keys, warp_row, queries + part * D);
            scores<D, 1, N>(ds, values, warp_row, douts + part * D);
            const bool masked = first_key + 15 > query + part;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int column = part + column_of(n, e);
                    const float share = power_of_2(fmaf(p[0][n][e], scale * LOG2_E, -lse[column]));
                    p[0][n][e] = !masked || first_key + row_of(0, e) <= query + column ? share : 0.0f;
                    ds[0][n][e] = p[0][n][e] * (ds[0][n][e] - lse[QUERIES + column]);
                }
            weigh<D, 1, N>(dv, p, douts + part * D);
            weigh<D, 1, N>(dk, ds, queries + part * D);
        }
    }
    u16* to = dqkv_TQ + (tile.begin + first) * stride;
    store_scaled<D, 1>(dk, scale, keys, warp_row, to + packed.k(g), stride, valid);
    store_rows<D, 1>(dv, values, warp_row, to + packed.v(g), stride, valid);
}

#define KEY_BOUNDS __launch_bounds__(256, 1)

#define BACKWARD_ENTRIES(D, M, KEYS, QUERIES, PART) \
    extern "C" __global__ void BLOCK_BOUNDS attention_dq_##D( \
        const u16* __restrict__ dout_T, const u16* __restrict__ qkv_TQ, const u16* __restrict__ out_T, \
        const float* __restrict__ lse_HT, const u32* __restrict__ tiles, float* __restrict__ delta_HT, \
        u16* __restrict__ dqkv_TQ, i64 T, int H, int G, float scale) { \
        dq<D, M, KEYS>(dout_T, qkv_TQ, out_T, lse_HT, tiles, delta_HT, dqkv_TQ, T, H, G, scale); \
    } \
    extern "C" __global__ void KEY_BOUNDS attention_dkv_##D( \
        const u16* __restrict__ dout_T, const u16* __restrict__ qkv_TQ, const float* __restrict__ lse_HT, \
        const float* __restrict__ delta_HT, const u32* __restrict__ tiles, u16* __restrict__ dqkv_TQ, i64 T, int H, int G, \
        float scale) { \
        dkv<D, QUERIES, PART>(dout_T, qkv_TQ, lse_HT, delta_HT, tiles, dqkv_TQ, T, H, G, scale); \
    }

BACKWARD_ENTRIES(64, 2, 32, 128, 64)
BACKWARD_ENTRIES(128, 2, 16, 64, 32)
