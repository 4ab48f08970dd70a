// What the eager variants share: operators as PyTorch runs them, one kernel each, over views of memory. It follows prelude.cuh.
//
// Memory is taken in vectors of W elements, of which the widest of an operator's types fills 16 bytes. Vector p of a view lies
// in row r = p / row, which begins at (r / heads) * outer + (r % heads) * stride. A row of 0: the vectors lie one behind another.

#define THREADS 256
#define ITEMS 2  // vectors of a thread and operand, all on the way before one is used

struct View {
    u32 row, heads;
    i64 stride, outer;

    __device__ __forceinline__ i64 start(u32 r) const {
        if (heads == 1) return r * outer;
        const u32 t = r / heads;
        return t * outer + (r - t * heads) * stride;
    }
    template <int W>
    __device__ __forceinline__ i64 element(u32 p) const {
        if (row == 0) return (i64)p * W;
        const u32 r = p / row;
        return start(r) + (i64)(p - r * row) * W;
    }
};

// What every entry point has for a view: launches pass no structs.
#define VIEW(T, x) T *x, u32 x##_row, u32 x##_heads, i64 x##_stride, i64 x##_outer
#define VIEW_OF(x) View{x##_row, x##_heads, x##_stride, x##_outer}

// ---- Vectors ----

template <class T, int W>
struct Bits;
template <>
struct Bits<float, 4> {
    typedef float4 type;
};
template <>
struct Bits<u16, 4> {
    typedef uint2 type;
};
template <>
struct Bits<u16, 8> {
    typedef uint4 type;
};

template <class A, class B = A>
__device__ constexpr int width() {
    return 16 / (int)(sizeof(A) > sizeof(B) ? sizeof(A) : sizeof(B));
}

__device__ __forceinline__ void widen(const float4& bits, float (&v)[4]) {
    v[0] = bits.x; v[1] = bits.y; v[2] = bits.z; v[3] = bits.w;
}
__device__ __forceinline__ void narrow(const float (&v)[4], float4& bits) { bits = make_float4(v[0], v[1], v[2], v[3]); }

// A value that all elements share.
template <int W>
__device__ __forceinline__ void widen(float x, float (&v)[W]) {
#pragma unroll
    for (int j = 0; j < W; j++) v[j] = x;
}

#ifndef ELEM_F32
__device__ __forceinline__ void widen(const uint2& bits, float (&v)[4]) {
    v[0] = low_half(bits.x); v[1] = high_half(bits.x);
    v[2] = low_half(bits.y); v[3] = high_half(bits.y);
}
__device__ __forceinline__ void narrow(const float (&v)[4], uint2& bits) {
    bits = make_uint2(pair_of(v[0], v[1]), pair_of(v[2], v[3]));
}
__device__ __forceinline__ void widen(const uint4& bits, float (&v)[8]) {
    v[0] = low_half(bits.x); v[1] = high_half(bits.x);
    v[2] = low_half(bits.y); v[3] = high_half(bits.y);
    v[4] = low_half(bits.z); v[5] = high_half(bits.z);
    v[6] = low_half(bits.w); v[7] = high_half(bits.w);
}
__device__ __forceinline__ void narrow(const float (&v)[8], uint4& bits) {
    bits = make_uint4(pair_of(v[0], v[1]), pair_of(v[2], v[3]), pair_of(v[4], v[5]), pair_of(v[6], v[7]));
}
#endif

// ---- Operands ----

template <class T>
struct Source {
    const T* at;
    View view;
    template <int W>
    using Raw = typename Bits<T, W>::type;
    template <int W>
    __device__ __forceinline__ Raw<W> load(u32 p) const {
        return *(const Raw<W>*)(at + view.element<W>(p));
    }
};

// A float for each row.
struct PerRow {
    const float* at;
    View view;
    template <int W>
    using Raw = float;
    template <int W>
    __device__ __forceinline__ float load(u32 p) const {
        return at[view.start(p / view.row)];
    }
};

template <class T>
struct Target {
    T* at;
    View view;
    template <int W>
    __device__ __forceinline__ void store(u32 p, const float (&v)[W]) const {
        typedef typename Bits<T, W>::type Raw;
        Raw bits;
        narrow(v, bits);
        __stcg((Raw*)(at + view.element<W>(p)), bits);
    }
};

// ---- Maps ----

// Vector i of this thread.
__device__ __forceinline__ u32 vector_index(int i) { return (blockIdx.x * ITEMS + i) * blockDim.x + threadIdx.x; }

// dst = f(a). A target may be a source: a thread has read what it overwrites.
template <int W, class D, class A, class F>
__device__ __forceinline__ void map(const D& dst, const A& a, u32 vectors, const F& f) {
    typename A::template Raw<W> raw[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
        if (vector_index(i) < vectors) raw[i] = a.template load<W>(vector_index(i));
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (vector_index(i) >= vectors) continue;
        float x[W];
        widen(raw[i], x);
#pragma unroll
        for (int j = 0; j < W; j++) x[j] = f(x[j]);
        dst.template store<W>(vector_index(i), x);
    }
}

// dst = f(a, b).
template <int W, class D, class A, class B, class F>
__device__ __forceinline__ void map(const D& dst, const A& a, const B& b, u32 vectors, const F& f) {
    typename A::template Raw<W> raw_a[ITEMS];
    typename B::template Raw<W> raw_b[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (vector_index(i) >= vectors) continue;
        raw_a[i] = a.template load<W>(vector_index(i));
        raw_b[i] = b.template load<W>(vector_index(i));
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (vector_index(i) >= vectors) continue;
        float x[W], y[W];
        widen(raw_a[i], x);
        widen(raw_b[i], y);
#pragma unroll
        for (int j = 0; j < W; j++) x[j] = f(x[j], y[j]);
        dst.template store<W>(vector_index(i), x);
    }
}

// Entry points. EXPR is of x, an element of a; y, that of b; and c, a constant.
#define MAP(NAME, D, A, EXPR)                                                                                           \
    extern "C" __global__ void NAME(VIEW(D, dst), VIEW(const A, a), u32 vectors, float c) {                             \
        map<width<D, A>()>(Target<D>{dst, VIEW_OF(dst)}, Source<A>{a, VIEW_OF(a)}, vectors,                             \
                           [=](float x) { return EXPR; });                                                              \
    }

#define MAP2(NAME, D, A, B, EXPR)                                                                                       \
    extern "C" __global__ void NAME(VIEW(D, dst), VIEW(const A, a), VIEW(const B, b), u32 vectors, float c) {           \
        static_assert(sizeof(B) <= sizeof(A) || sizeof(B) <= sizeof(D), "the widest type is one of the first two");     \
        map<width<D, A>()>(Target<D>{dst, VIEW_OF(dst)}, Source<A>{a, VIEW_OF(a)}, Source<B>{b, VIEW_OF(b)}, vectors,   \
                           [=](float x, float y) { return EXPR; });                                                     \
    }

// y is one for each row.
#define MAP_BY_ROW(NAME, D, A, EXPR)                                                                                    \
    extern "C" __global__ void NAME(VIEW(D, dst), VIEW(const A, a), VIEW(const float, b), u32 vectors, float c) {       \
        map<width<D, A>()>(Target<D>{dst, VIEW_OF(dst)}, Source<A>{a, VIEW_OF(a)}, PerRow{b, VIEW_OF(b)}, vectors,      \
                           [=](float x, float y) { return EXPR; });                                                     \
    }

// x is one for each row.
#define EXPAND(NAME, D, EXPR)                                                                                           \
    extern "C" __global__ void NAME(VIEW(D, dst), VIEW(const float, a), u32 vectors, float c) {                         \
        map<width<D>()>(Target<D>{dst, VIEW_OF(dst)}, PerRow{a, VIEW_OF(a)}, vectors, [=](float x) { return EXPR; });   \
    }

// A float for each row, of others.
#define ROWS(NAME, EXPR)                                                                                                \
    extern "C" __global__ void NAME(VIEW(float, dst), VIEW(const float, a), u32 rows, float c) {                        \
        const u32 r = blockIdx.x * blockDim.x + threadIdx.x;                                                            \
        if (r >= rows) return;                                                                                          \
        const float x = a[VIEW_OF(a).start(r)];                                                                         \
        dst[VIEW_OF(dst).start(r)] = EXPR;                                                                              \
    }

#define ROWS2(NAME, EXPR)                                                                                               \
    extern "C" __global__ void NAME(VIEW(float, dst), VIEW(const float, a), VIEW(const float, b), u32 rows, float c) {  \
        const u32 r = blockIdx.x * blockDim.x + threadIdx.x;                                                            \
        if (r >= rows) return;                                                                                          \
        const float x = a[VIEW_OF(a).start(r)], y = b[VIEW_OF(b).start(r)];                                             \
        dst[VIEW_OF(dst).start(r)] = EXPR;                                                                              \
    }

// ---- Sums ----

#define SUM_LOADS 4

// out[r] = factor * sum of row r of x_RN. `lanes` lanes, a power of two up to 32, have a row.
__device__ __forceinline__ void row_sum(const float* x_RN, float* out_R, u32 rows, int columns, int lanes, float factor) {
    const u32 r = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
    const int n = columns / 4;
    float sum[SUM_LOADS] = {};
    if (r < rows) {
        const float4* row = (const float4*)(x_RN + (i64)r * columns);
        int i = threadIdx.x % lanes;
        for (; i + (SUM_LOADS - 1) * lanes < n; i += SUM_LOADS * lanes) {
            float4 x[SUM_LOADS];
#pragma unroll
            for (int k = 0; k < SUM_LOADS; k++) x[k] = row[i + k * lanes];
#pragma unroll
            for (int k = 0; k < SUM_LOADS; k++) sum[k] += (x[k].x + x[k].y) + (x[k].z + x[k].w);
        }
        for (; i < n; i += lanes) sum[0] += (row[i].x + row[i].y) + (row[i].z + row[i].w);
    }
    float total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (int lane = lanes / 2; lane > 0; lane /= 2) total += __shfl_xor_sync(ALL_LANES, total, lane);
    if (r < rows && threadIdx.x % lanes == 0) out_R[r] = total * factor;
}

// part_GN[blockIdx.y] = the sum over rows of x, `stride` elements apart, that are this block's. `lanes` threads, a power of two,
// have a row of lanes * W columns; the block's rows are added in order.
template <class T>
__device__ __forceinline__ void column_sum(const T* x, i64 stride, float* part_GN, u32 rows, int columns, int lanes) {
    const int W = 16 / (int)sizeof(T);
    __shared__ __align__(16) float partial[THREADS * 8];
    const int own = blockDim.x / lanes, first = blockIdx.x * lanes * W, c = first + threadIdx.x % lanes * W;
    float sum[W] = {};
    if (c < columns) {
#pragma unroll 4
        for (u32 r = blockIdx.y * own + threadIdx.x / lanes; r < rows; r += gridDim.y * own) {
            const typename Bits<T, W>::type bits = *(const typename Bits<T, W>::type*)(x + r * stride + c);
            float v[W];
            widen(bits, v);
#pragma unroll
            for (int j = 0; j < W; j++) sum[j] += v[j];
        }
    }
#pragma unroll
    for (int j = 0; j < W; j += 4)
        *(float4*)(partial + threadIdx.x * W + j) = make_float4(sum[j], sum[j + 1], sum[j + 2], sum[j + 3]);
    __syncthreads();
    for (int o = threadIdx.x; o < lanes * W; o += blockDim.x) {
        if (first + o >= columns) continue;
        float total = 0.0f;
        for (int row = 0; row < own; row++) total += partial[row * lanes * W + o];
        part_GN[(i64)blockIdx.y * columns + first + o] = total;
    }
}

// out_N = the sum of the G rows of part_GN, in an order that depends on G and the block's size alone. A block has 8 columns.
__device__ __forceinline__ void finish_column_sum(const float* part_GN, elem* out_N, int G, int columns) {
    __shared__ float partial[WARP][8];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int c = blockIdx.x * 8 + lane % 8;
    float sum = 0.0f;
#pragma unroll 4
    for (int g = threadIdx.x / 8; g < G; g += blockDim.x / 8) sum += part_GN[(i64)g * columns + c];
    sum += __shfl_xor_sync(ALL_LANES, sum, 8);
    sum += __shfl_xor_sync(ALL_LANES, sum, 16);
    if (lane < 8) partial[warp][lane] = sum;
    __syncthreads();
    if (threadIdx.x >= 8) return;
#pragma unroll 8
    for (int other = 1; other < warps; other++) sum += partial[other][lane];
    out_N[c] = to_elem(sum);
}

#define ROW_SUM(NAME)                                                                                                   \
    extern "C" __global__ void NAME(const float* x_RN, float* out_R, u32 rows, int columns, int lanes, float factor) {  \
        row_sum(x_RN, out_R, rows, columns, lanes, factor);                                                             \
    }

#define COLUMN_SUM(NAME, FINISH)                                                                                        \
    extern "C" __global__ void NAME(const elem* x, i64 stride, float* part_GN, u32 rows, int columns, int lanes) {      \
        column_sum(x, stride, part_GN, rows, columns, lanes);                                                           \
    }                                                                                                                   \
    extern "C" __global__ void FINISH(const float* part_GN, elem* out_N, int G, int columns) {                          \
        finish_column_sum(part_GN, out_N, G, columns);                                                                  \
    }
