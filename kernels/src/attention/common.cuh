// What the kernels of attention on tensor cores share, whichever instructions they are made of.

#define LN_2 0.6931471805599453f
// Tokens of a tile of the host's lists (cuda/list.rs).
#define BLOCK 128

// Of the scores, 1 / sqrt(K).
template <int K>
constexpr float SCALE = K == 64 ? 0.125f : 0.08838834764831845f;

// A block's share of the query heads that have a key/value head in common, in the gradients of keys and values: gridDim.x has
// as many parts of each of the G. Their sums are f32, parts x T x G x (K of keys, K of values).
struct Part {
    int g, all, index;  // key/value head, its parts, which of them
    int head, heads;    // the first query head, and how many
    template <int K>
    __device__ __forceinline__ i64 stride(int G) const { return (i64)G * 2 * K; }
    template <int K>
    __device__ __forceinline__ i64 offset(int T, int G) const { return (i64)index * T * stride<K>(G) + g * 2 * K; }
};

__device__ __forceinline__ Part part_of(int H, int G) {
    Part part;
    part.all = gridDim.x / G;
    part.g = blockIdx.x / part.all;
    part.index = blockIdx.x % part.all;
    const int group = H / G, begin = part.index * group / part.all;
    part.head = part.g * group + begin;
    part.heads = (part.index + 1) * group / part.all - begin;
    return part;
}

// f32 sums of a warp's 16 rows, as products of tensor cores leave them, four for every eight columns; `rows` of them are there.
template <int K>
__device__ __forceinline__ void store_sums(const float* sums, float* to, i64 stride, int rows) {
    const int row = threadIdx.x % WARP / 4, column = 2 * (threadIdx.x % 4);
#pragma unroll
    for (int n = 0; n < K / 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (row + 8 * half < rows)
                *(float2*)(to + (row + 8 * half) * stride + 8 * n + column) = make_float2(sums[4 * n + 2 * half], sums[4 * n + 2 * half + 1]);
}
