// Attention by mma.sync: what the passes share, and the forward pass; the contract is in attention/mod.rs. It follows mma.cuh and tiles.cuh.
//
// A block has BLOCK queries of one head of one document and walks over their keys (FlashAttention-2, arXiv 2307.08691): a warp
// has 32 of the queries, so that what it loads of keys and values serves two products. Scores stay in registers.

#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

// Packed rows [q | k | v] of heads of D.
template <int D>
struct Packed {
    int H, G;
    __device__ __forceinline__ i64 stride() const { return (i64)(H + 2 * G) * D; }
    __device__ __forceinline__ int q(int h) const { return h * D; }
    __device__ __forceinline__ int k(int g) const { return (H + g) * D; }
    __device__ __forceinline__ int v(int g) const { return (H + G + g) * D; }
};

// Below, a warp has M tiles of 16 rows. s = a tile's rows (from `row`) times the transposed rows of `other`: 16 M x 8 N.
template <int D, int M, int N>
__device__ __forceinline__ void scores(float s[M][N][4], const u16* tile, int row, const u16* other) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[m][n][i] = 0.0f;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_a<D>(a[m], tile, row + 16 * m, 2 * k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 b[4];
            load_b_transposed<D>(b, other, 8 * n, 2 * k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16_bf16(s[m][n], a[m], b);
                mma_m16n8k16_bf16(s[m][n + 1], a[m], b + 2);
            }
        }
    }
}

// out += p (32 x 8 N, rounded to bf16) times the rows of `tile`: 16 M x D.
template <int D, int M, int N>
__device__ __forceinline__ void weigh(float out[M][D / 8][4], const float p[M][N][4], const u16* tile) {
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        u32 a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) a[m][i] = pair_of(p[m][2 * k + i / 2][2 * (i % 2)], p[m][2 * k + i / 2][2 * (i % 2) + 1]);
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            u32 b[4];
            load_b<D>(b, tile, 16 * k, n);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16_bf16(out[m][n], a[m], b);
                mma_m16n8k16_bf16(out[m][n + 1], a[m], b + 2);
            }
        }
    }
}

// Row, within a warp's, of element i of tile m; column of element i of tile n.
__device__ __forceinline__ int row_of(int m, int i) { return 16 * m + threadIdx.x % WARP / 4 + 8 * (i / 2); }
__device__ __forceinline__ int column_of(int n, int i) { return 8 * n + 2 * (threadIdx.x % 4) + i % 2; }

// x of a warp's rows, through the warp's own rows of `tile`, to memory; rows from `valid` on are left out.
template <int D, int M>
__device__ __forceinline__ void store_rows(const float x[M][D / 8][4], u16* tile, int row, u16* to, i64 stride, int valid) {
    const int lane = threadIdx.x % WARP;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i += 2)
                *(u32*)(tile + chunk_at<D>(row + row_of(m, i), n) + column_of(0, 0)) = pair_of(x[m][n][i], x[m][n][i + 1]);
    __syncwarp();
    for (int i = lane; i < 16 * M * (D / PACK); i += WARP) {
        const int r = row + i / (D / PACK), chunk = i % (D / PACK);
        if (r < valid) *(uint4*)(to + r * stride + chunk * PACK) = *(const uint4*)(tile + chunk_at<D>(r, chunk));
    }
}

// Running maximum and sum of a thread's rows. The sum is the thread's own part until the end.
template <int M>
struct Softmax {
    float max[M][2], sum[M][2];

    // Scores become probabilities, but for the factor that `out` gets in the end.
    template <int N, int COLUMNS>
    __device__ __forceinline__ void absorb(float s[M][N][4], float out[M][COLUMNS][4], float scale_log2) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float top = max[m][half];
#pragma unroll
                for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
                top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
                const float shift = top * scale_log2, shrink = power_of_2(max[m][half] * scale_log2 - shift);
                max[m][half] = top;
                float total = sum[m][half] * shrink;
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; i++) {
                        s[m][n][i] = power_of_2(fmaf(s[m][n][i], scale_log2, -shift));
                        total += s[m][n][i];
                    }
                sum[m][half] = total;
#pragma unroll
                for (int n = 0; n < COLUMNS; n++)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; i++) out[m][n][i] *= shrink;
            }
    }
};

// Dynamic shared memory: queries, then two steps of keys and values.
template <int D, int M, int KEYS>
__device__ __forceinline__ void forward(const u16* qkv_TQ, const u32* tiles, u16* out_T, float* lse_HT, i64 T, int H, int G,
                                        float scale_log2) {
    extern __shared__ __align__(128) u16 shared[];
    const Tile tile = tile_at(tiles, blockIdx.x / H);
    if (tile.len == 0) return;
    const int h = blockIdx.x % H, first = tile.block * BLOCK, valid = min((int)tile.len - first, BLOCK);
    const Packed<D> packed{H, G};
    const i64 stride = packed.stride();
    const u16* rows = qkv_TQ + tile.begin * stride;
    const u16 *k = rows + packed.k(h / (H / G)), *v = rows + packed.v(h / (H / G));
    u16 *queries = shared, *steps = shared + BLOCK * D;
    const int count = (first + valid + KEYS - 1) / KEYS, warp_row = threadIdx.x / WARP * 16 * M;
    auto fetch = [&](int i) {
        u16* to = steps + i % 2 * 2 * KEYS * D;
        copy_tile<D, KEYS>(to, k + (i64)i * KEYS * stride, stride, (int)tile.len - i * KEYS);
        copy_tile<D, KEYS>(to + KEYS * D, v + (i64)i * KEYS * stride, stride, (int)tile.len - i * KEYS);
    };
    copy_tile<D, BLOCK>(queries, rows + first * stride + packed.q(h), stride, valid);
    fetch(0);
    cp_async_commit();
    float out[M][D / 8][4] = {};
    Softmax<M> softmax;
#pragma unroll
    for (int i = 0; i < 2 * M; i++) softmax.max[i / 2][i % 2] = MINUS_INFINITY, softmax.sum[i / 2][i % 2] = 0.0f;
    for (int i = 0; i < count; i++) {
        cp_async_wait<0>();
        // And everybody is done with the step before, whose place the next one takes.
        __syncthreads();
        if (i + 1 < count) fetch(i + 1);
        cp_async_commit();
        const u16* step = steps + i % 2 * 2 * KEYS * D;
        // Of the warp's queries the last sees the most keys, the first the fewest.
        const int last_key = i * KEYS + KEYS - 1, first_query = first + warp_row;
        if (i * KEYS < first_query + 16 * M) {
            float s[M][KEYS / 8][4];
            scores<D, M, KEYS / 8>(s, queries, warp_row, step);
            if (last_key > first_query) {
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            if (i * KEYS + column_of(n, e) > first_query + row_of(m, e)) s[m][n][e] = MINUS_INFINITY;
            }
            softmax.template absorb<KEYS / 8, D / 8>(s, out, scale_log2);
            weigh<D, M, KEYS / 8>(out, s, step + KEYS * D);
        }
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = softmax.sum[m][half];
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            const int row = warp_row + row_of(m, 2 * half);
            if (threadIdx.x % 4 == 0 && row < valid)
                lse_HT[h * T + tile.begin + first + row] = LN_2 * (softmax.max[m][half] * scale_log2 + __log2f(sum));
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) out[m][n][i] /= sum;
        }
    store_rows<D, M>(out, queries, warp_row, out_T + (tile.begin + first) * (i64)(H * D) + h * D, H * D, valid);
}

#define BLOCK_BOUNDS __launch_bounds__(128, 2)

extern "C" __global__ void BLOCK_BOUNDS attention_forward_64(const u16* __restrict__ qkv_TQ, const u32* __restrict__ tiles,
                                                             u16* __restrict__ out_T, float* __restrict__ lse_HT, i64 T, int H,
                                                             int G, float scale_log2) {
    forward<64, 2, 128>(qkv_TQ, tiles, out_T, lse_HT, T, H, G, scale_log2);
}

extern "C" __global__ void BLOCK_BOUNDS attention_forward_128(const u16* __restrict__ qkv_TQ, const u32* __restrict__ tiles,
                                                              u16* __restrict__ out_T, float* __restrict__ lse_HT, i64 T,
                                                              int H, int G, float scale_log2) {
    forward<128, 2, 32>(qkv_TQ, tiles, out_T, lse_HT, T, H, G, scale_log2);
}
