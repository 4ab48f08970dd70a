// Attention in f32, for debugging: a warp for each query, or key, one product of two rows at a time. No tensor cores and no
// tiles, so that little can be wrong. The contract is in mod.rs. Token t sees keys from begin[t] to t, and is seen by queries
// from t to end[t].

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

// The token and head of a warp, and where rows of the packed operands and of `out` lie.
struct Place {
    int T, H, G, K, token, head;
    __device__ __forceinline__ i64 packed(int t, int of) const { return ((i64)t * (H + 2 * G) + of) * K; }
    __device__ __forceinline__ i64 out(int t, int h) const { return ((i64)t * H + h) * K; }
    __device__ __forceinline__ i64 statistic(int t, int h) const { return (i64)h * T + t; }
};

// A block has a head, of `heads`, and a token for each of its warps.
__device__ __forceinline__ Place place_of(int heads, int T, int H, int G, int K) {
    const int warps = blockDim.x / WARP;
    return Place{T, H, G, K, (int)(blockIdx.x / heads * warps + threadIdx.x / WARP), (int)(blockIdx.x % heads)};
}

extern "C" __global__ void attention_plain_forward(const elem* __restrict__ qkv_TQ, const u32* __restrict__ begin,
                                                   elem* __restrict__ out_T, float* __restrict__ lse_HT, int T, int H, int G,
                                                   int K, float scale) {
    const Place at = place_of(H, T, H, G, K);
    const int t = at.token, h = at.head, g = h / (H / G);
    if (t >= T) return;
    const Row q = row_at(qkv_TQ + at.packed(t, h), K);
    float max = MINUS_INFINITY, sum = 0.0f;
    Row out = {};
    for (int j = begin[t]; j <= t; j++) {
        const float s = scale * dot(q, row_at(qkv_TQ + at.packed(j, H + g), K));
        const float top = fmaxf(max, s), shrink = expf(max - top), p = expf(s - top);
        sum = sum * shrink + p;
        max = top;
#pragma unroll
        for (int i = 0; i < HELD; i++) out.x[i] *= shrink;
        add(out, p, row_at(qkv_TQ + at.packed(j, H + G + g), K));
    }
    store_row(out, 1.0f / sum, out_T + at.out(t, h), K);
    if (threadIdx.x % WARP == 0) lse_HT[at.statistic(t, h)] = max + logf(sum);
}

extern "C" __global__ void attention_plain_dq(const elem* __restrict__ dout_T, const elem* __restrict__ qkv_TQ,
                                              const elem* __restrict__ out_T, const float* __restrict__ lse_HT,
                                              const u32* __restrict__ begin, float* __restrict__ delta_HT,
                                              elem* __restrict__ dqkv_TQ, int T, int H, int G, int K, float scale) {
    const Place at = place_of(H, T, H, G, K);
    const int t = at.token, h = at.head, g = h / (H / G);
    if (t >= T) return;
    const Row q = row_at(qkv_TQ + at.packed(t, h), K), dout = row_at(dout_T + at.out(t, h), K);
    const float delta = dot(dout, row_at(out_T + at.out(t, h), K)), lse = lse_HT[at.statistic(t, h)];
    if (threadIdx.x % WARP == 0) delta_HT[at.statistic(t, h)] = delta;
    Row dq = {};
    for (int j = begin[t]; j <= t; j++) {
        const Row k = row_at(qkv_TQ + at.packed(j, H + g), K);
        const float p = expf(scale * dot(q, k) - lse);
        add(dq, p * (dot(dout, row_at(qkv_TQ + at.packed(j, H + G + g), K)) - delta), k);
    }
    store_row(dq, scale, dqkv_TQ + at.packed(t, h), K);
}

extern "C" __global__ void attention_plain_dkv(const elem* __restrict__ dout_T, const elem* __restrict__ qkv_TQ,
                                               const float* __restrict__ lse_HT, const float* __restrict__ delta_HT,
                                               const u32* __restrict__ end, elem* __restrict__ dqkv_TQ, int T, int H, int G,
                                               int K, float scale) {
    const Place at = place_of(G, T, H, G, K);
    const int j = at.token, g = at.head, group = H / G;
    if (j >= T) return;
    const Row k = row_at(qkv_TQ + at.packed(j, H + g), K), v = row_at(qkv_TQ + at.packed(j, H + G + g), K);
    Row dk = {}, dv = {};
    for (int h = g * group; h < (g + 1) * group; h++)
        for (int t = j; t < (int)end[j]; t++) {
            const Row q = row_at(qkv_TQ + at.packed(t, h), K), dout = row_at(dout_T + at.out(t, h), K);
            const float p = expf(scale * dot(q, k) - lse_HT[at.statistic(t, h)]);
            add(dv, p, dout);
            add(dk, p * (dot(dout, v) - delta_HT[at.statistic(t, h)]), q);
        }
    store_row(dk, scale, dqkv_TQ + at.packed(j, H + g), K);
    store_row(dv, 1.0f, dqkv_TQ + at.packed(j, H + G + g), K);
}
