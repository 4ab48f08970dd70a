// The operators of Hugging Face's eager attention between its products; cuda_eager.rs has them in order. S slots of a row of the
// batch; rows of scores are `stride` elements apart, a multiple of 8, and what lies beyond S in them is nobody's until a softmax
// or its gradient writes zeros there.

MAP(attention_eager_float, float, elem, x)
MAP(attention_eager_to, elem, float, x)
MAP(attention_eager_mul, elem, elem, c * x)
MAP2(attention_eager_add, elem, elem, elem, x + y)

#ifdef ELEM_F32
#define LOWEST __uint_as_float(0xff7fffffu)
#else
#define LOWEST __uint_as_float(0xff7f0000u)
#endif

// 0 where a query sees a key, the lowest number elsewhere. A block for each query.
extern "C" __global__ void attention_eager_mask(const u32* __restrict__ begin_T, elem* __restrict__ mask_TS, int S, int stride) {
    const i64 t = blockIdx.x, first = t - t % S;
    const int from = (int)(begin_T[t] - first), to = (int)(t - first);
    for (int c = threadIdx.x * PACK; c < stride; c += blockDim.x * PACK) {
        float v[PACK];
#pragma unroll
        for (int j = 0; j < PACK; j++) v[j] = c + j >= from && c + j <= to ? 0.0f : LOWEST;
        store_pack(mask_TS + t * stride + c, pack_of(v));
    }
}

// A thread's eight elements of a head of K columns: of slot s in row b of the batch.
struct Place {
    u32 b, head, s, column;

    // `heads` of each row of the batch, one behind another; in a head the slots.
    __device__ __forceinline__ Place(u32 i, u32 heads, u32 S, u32 K) {
        const u32 columns = K / PACK, r = i / columns, h = r / S;
        column = (i - r * columns) * PACK;
        s = r - h * S;
        b = h / heads;
        head = h - b * heads;
    }
    // In rows of tokens, `stride` apart.
    __device__ __forceinline__ i64 packed(u32 of_head, u32 S, u32 K, i64 stride) const {
        return ((i64)b * S + s) * stride + (i64)of_head * K + column;
    }
    // In heads of slots.
    __device__ __forceinline__ i64 heads_first(u32 of_head, u32 heads, u32 S, u32 K) const {
        return (((i64)b * heads + of_head) * S + s) * K + column;
    }
};

// Heads of rows of tokens, each `group` times, as heads of slots.
extern "C" __global__ void attention_eager_gather(const elem* __restrict__ from, i64 stride, elem* __restrict__ to, u32 packs,
                                                  u32 heads, u32 group, u32 S, u32 K) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    const Place at(i, heads, S, K);
    store_pack(to + (i64)i * PACK, load_pack(from + at.packed(at.head / group, S, K, stride)));
}

// And back: sums of `group` heads of slots, in order, as one of `heads` in rows of tokens.
extern "C" __global__ void attention_eager_scatter(const elem* __restrict__ from, elem* __restrict__ to, i64 stride, u32 packs,
                                                   u32 heads, u32 group, u32 S, u32 K) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    const Place at(i, heads, S, K);
    float sum[PACK];
    unpack(load_pack(from + at.heads_first(at.head * group, heads * group, S, K)), sum);
#pragma unroll 4
    for (u32 g = 1; g < group; g++) {
        float v[PACK];
        unpack(load_pack(from + at.heads_first(at.head * group + g, heads * group, S, K)), v);
#pragma unroll
        for (int j = 0; j < PACK; j++) sum[j] += v[j];
    }
    store_pack(to + at.packed(at.head, S, K, stride), pack_of(sum));
}

// Packs of a row that a thread keeps in registers; a row longer than a block's is read again beyond them.
#define HELD 4

// Calls f(column, k) for this thread's packs; k is where it is held, or HELD.
template <class F>
__device__ __forceinline__ void each_pack(int stride, F f) {
    int c = threadIdx.x * PACK;
    const int step = blockDim.x * PACK;
#pragma unroll
    for (int k = 0; k < HELD; k++, c += step)
        if (c < stride) f(c, k);
    for (; c < stride; c += step) f(c, HELD);
}

extern "C" __global__ void __launch_bounds__(512)
    attention_eager_softmax(const float* __restrict__ x_RS, float* __restrict__ p_RS, int S, int stride) {
    __shared__ float scratch[WARP];
    const float* x = x_RS + (i64)blockIdx.x * stride;
    float* p = p_RS + (i64)blockIdx.x * stride;
    float held[HELD + 1][PACK], max = MINUS_INFINITY, sum = 0.0f;
    const auto load = [&](int c, int k) {
        load_floats(x + c, held[k]);
        const int n = inside(c, S);
#pragma unroll
        for (int j = 0; j < PACK; j++)
            if (j >= n) held[k][j] = MINUS_INFINITY;
    };
    each_pack(stride, [&](int c, int k) {
        load(c, k);
#pragma unroll
        for (int j = 0; j < PACK; j++) max = fmaxf(max, held[k][j]);
    });
    max = block_max(max, scratch);
    each_pack(stride, [&](int c, int k) {
        if (k == HELD) load(c, k);
#pragma unroll
        for (int j = 0; j < PACK; j++) sum += held[k][j] = power_of_2((held[k][j] - max) * LOG2_E);
    });
    const float factor = 1.0f / block_sum(sum, scratch);
    each_pack(stride, [&](int c, int k) {
        if (k == HELD) load(c, k);
#pragma unroll
        for (int j = 0; j < PACK; j++)
            held[k][j] = factor * (k == HELD ? power_of_2((held[k][j] - max) * LOG2_E) : held[k][j]);
        store_floats(p + c, held[k]);
    });
}

extern "C" __global__ void __launch_bounds__(512)
    attention_eager_dsoftmax(const float* __restrict__ dp_RS, const float* __restrict__ p_RS, float* __restrict__ dx_RS,
                                     int S, int stride) {
    __shared__ float scratch[WARP];
    const i64 first = (i64)blockIdx.x * stride;
    float d[HELD + 1][PACK], p[HELD + 1][PACK], sum = 0.0f;
    const auto load = [&](int c, int k) {
        load_floats(dp_RS + first + c, d[k]);
        load_floats(p_RS + first + c, p[k]);
        const int n = inside(c, S);
#pragma unroll
        for (int j = 0; j < PACK; j++)
            if (j >= n) d[k][j] = 0.0f;
    };
    each_pack(stride, [&](int c, int k) {
        load(c, k);
#pragma unroll
        for (int j = 0; j < PACK; j++) sum += d[k][j] * p[k][j];
    });
    sum = block_sum(sum, scratch);
    each_pack(stride, [&](int c, int k) {
        if (k == HELD) load(c, k);
#pragma unroll
        for (int j = 0; j < PACK; j++) d[k][j] = p[k][j] * (d[k][j] - sum);
        store_floats(dx_RS + first + c, d[k]);
    });
}
