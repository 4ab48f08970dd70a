// Attention in f32, for debugging: a warp for each query, or key, one product of two rows at a time. No tensor cores and no
// tiles, so that little can be wrong. The contract is in mod.rs. It follows
// tiles.cuh.

// Elements of a row of at most 128 that a lane has: every 32nd.
#define HELD 4

struct Row {
    float x[HELD];
};

__device__ __forceinline__ Row row_at(const elem* p, int K) {
    Row row;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const int c = i * WARP + threadIdx.x % WARP;
        row.x[i] = c < K ? to_float(p[c]) : 0.0f;
    }
    return row;
}

__device__ __forceinline__ void store_row(const Row& row, float factor, elem* p, int K) {
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const int c = i * WARP + threadIdx.x % WARP;
        if (c < K) p[c] = to_elem(factor * row.x[i]);
    }
}

__device__ __forceinline__ float dot(const Row& a, const Row& b) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < HELD; i++) sum += a.x[i] * b.x[i];
    return warp_sum(sum);
}

__device__ __forceinline__ void add(Row& to, float factor, const Row& row) {
#pragma unroll
    for (int i = 0; i < HELD; i++) to.x[i] += factor * row.x[i];
}

// Rows of a document: of the packed operands, or of `out`.
struct Document {
    i64 begin, len, first;
    int H, G, K;
    __device__ __forceinline__ i64 packed(i64 t, int head) const { return ((begin + t) * (H + 2 * G) + head) * K; }
    __device__ __forceinline__ i64 out(i64 t, int h) const { return ((begin + t) * H + h) * K; }
    __device__ __forceinline__ i64 end() const { return min(first + BLOCK, len); }
};

__device__ __forceinline__ Document document(const u32* tiles, int i, int H, int G, int K) {
    const Tile tile = tile_at(tiles, i);
    return Document{tile.begin, tile.len, (i64)tile.block * BLOCK, H, G, K};
}

extern "C" __global__ void attention_plain_forward(const elem* __restrict__ qkv_TQ, const u32* __restrict__ tiles,
                                                   elem* __restrict__ out_T, float* __restrict__ lse_HT, i64 T, int H, int G,
                                                   int K, float scale) {
    const Document at = document(tiles, blockIdx.x / H, H, G, K);
    const int h = blockIdx.x % H, g = h / (H / G), warps = blockDim.x / WARP;
    for (i64 t = at.first + threadIdx.x / WARP; t < at.end(); t += warps) {
        const Row q = row_at(qkv_TQ + at.packed(t, h), K);
        float max = MINUS_INFINITY, sum = 0.0f;
        Row out = {};
        for (i64 j = 0; j <= t; j++) {
            const float s = scale * dot(q, row_at(qkv_TQ + at.packed(j, H + g), K));
            const float top = fmaxf(max, s), shrink = expf(max - top), p = expf(s - top);
            sum = sum * shrink + p;
            max = top;
#pragma unroll
            for (int i = 0; i < HELD; i++) out.x[i] *= shrink;
            add(out, p, row_at(qkv_TQ + at.packed(j, H + G + g), K));
        }
        store_row(out, 1.0f / sum, out_T + at.out(t, h), K);
        if (threadIdx.x % WARP == 0) lse_HT[h * T + at.begin + t] = max + logf(sum);
    }
}

extern "C" __global__ void attention_plain_dq(const elem* __restrict__ dout_T, const elem* __restrict__ qkv_TQ,
                                              const elem* __restrict__ out_T, const float* __restrict__ lse_HT,
                                              const u32* __restrict__ tiles, float* __restrict__ delta_HT,
                                              elem* __restrict__ dqkv_TQ, i64 T, int H, int G, int K, float scale) {
    const Document at = document(tiles, blockIdx.x / H, H, G, K);
    const int h = blockIdx.x % H, g = h / (H / G), warps = blockDim.x / WARP;
    for (i64 t = at.first + threadIdx.x / WARP; t < at.end(); t += warps) {
        const Row q = row_at(qkv_TQ + at.packed(t, h), K), dout = row_at(dout_T + at.out(t, h), K);
        const float delta = dot(dout, row_at(out_T + at.out(t, h), K)), lse = lse_HT[h * T + at.begin + t];
        if (threadIdx.x % WARP == 0) delta_HT[h * T + at.begin + t] = delta;
        Row dq = {};
        for (i64 j = 0; j <= t; j++) {
            const Row k = row_at(qkv_TQ + at.packed(j, H + g), K);
            const float p = expf(scale * dot(q, k) - lse);
            add(dq, p * (dot(dout, row_at(qkv_TQ + at.packed(j, H + G + g), K)) - delta), k);
        }
        store_row(dq, scale, dqkv_TQ + at.packed(t, h), K);
    }
}

extern "C" __global__ void attention_plain_dkv(const elem* __restrict__ dout_T, const elem* __restrict__ qkv_TQ,
                                               const float* __restrict__ lse_HT, const float* __restrict__ delta_HT,
                                               const u32* __restrict__ tiles, elem* __restrict__ dqkv_TQ, i64 T, int H, int G,
                                               int K, float scale) {
    const Document at = document(tiles, blockIdx.x / G, H, G, K);
    const int g = blockIdx.x % G, group = H / G, warps = blockDim.x / WARP;
    for (i64 j = at.first + threadIdx.x / WARP; j < at.end(); j += warps) {
        const Row k = row_at(qkv_TQ + at.packed(j, H + g), K), v = row_at(qkv_TQ + at.packed(j, H + G + g), K);
        Row dk = {}, dv = {};
        for (int h = g * group; h < (g + 1) * group; h++)
            for (i64 t = j; t < at.len; t++) {
                const Row q = row_at(qkv_TQ + at.packed(t, h), K), dout = row_at(dout_T + at.out(t, h), K);
                const float p = expf(scale * dot(q, k) - lse_HT[h * T + at.begin + t]);
                add(dv, p, dout);
                add(dk, p * (dot(dout, v) - delta_HT[h * T + at.begin + t]), q);
            }
        store_row(dk, scale, dqkv_TQ + at.packed(j, H + g), K);
        store_row(dv, 1.0f, dqkv_TQ + at.packed(j, H + G + g), K);
    }
}
