// The operators of the bias, of Hugging Face's `apply_rotary_pos_emb`, and of their autograd backward passes; cuda_eager.rs has
// them in order. A head is whole vectors in either half.

// Cosines or sines of the positions of tokens. `token` and `head` are vectors of a token and of a head, `half` elements of a
// row of the table.
template <int N>
struct Floats {
    float v[N];
};

template <int N>
__device__ __forceinline__ void widen(const Floats<N>& from, float (&v)[N]) {
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = from.v[j];
}

struct Angles {
    const float* table;
    const u32* positions_T;
    u32 token, head, half;

    template <int W>
    using Raw = Floats<W>;
    template <int W>
    __device__ __forceinline__ Floats<W> load(u32 p) const {
        u32 c = p % head * W;
        if (c >= half) c -= half;
        const float* at = table + (i64)positions_T[p / token] * half + c;
        Floats<W> raw;
#pragma unroll
        for (int j = 0; j < W; j += 4) {
            const float4 quad = *(const float4*)(at + j);
            raw.v[j] = quad.x; raw.v[j + 1] = quad.y; raw.v[j + 2] = quad.z; raw.v[j + 3] = quad.w;
        }
        return raw;
    }
};

MAP2(qk_rope_eager_add_bias, elem, elem, elem, x + y)

extern "C" __global__ void qk_rope_eager_mul_angle(VIEW(elem, dst), VIEW(const elem, a), u32 vectors, const float* table,
                                                   const u32* positions_T, u32 token, u32 head, u32 half) {
    map<width<elem>()>(Target<elem>{dst, VIEW_OF(dst)}, Source<elem>{a, VIEW_OF(a)},
                       Angles{table, positions_T, token, head, half}, vectors, [](float x, float y) { return x * y; });
}

MAP(qk_rope_eager_neg, elem, elem, -x)

// Heads whose first half is a, and whose second is b.
struct Halves {
    Source<elem> a, b;
    u32 half;

    template <int W>
    using Raw = Source<elem>::Raw<W>;
    template <int W>
    __device__ __forceinline__ Raw<W> load(u32 p) const {
        const u32 r = p / (2 * half), c = p - r * 2 * half;
        return c < half ? a.load<W>(r * half + c) : b.load<W>(r * half + c - half);
    }
};

extern "C" __global__ void qk_rope_eager_cat(VIEW(elem, dst), VIEW(const elem, a), VIEW(const elem, b), u32 vectors,
                                             u32 half) {
    map<width<elem>()>(Target<elem>{dst, VIEW_OF(dst)},
                       Halves{Source<elem>{a, VIEW_OF(a)}, Source<elem>{b, VIEW_OF(b)}, half}, vectors,
                       [](float x) { return x; });
}

MAP2(qk_rope_eager_add, elem, elem, elem, x + y)

// Backward.
extern "C" __global__ void qk_rope_eager_zeros(VIEW(elem, dst), u32 vectors, float c) {
    const int W = width<elem>();
    float v[W];
    widen(c, v);
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
        if (vector_index(i) < vectors) Target<elem>{dst, VIEW_OF(dst)}.store<W>(vector_index(i), v);
}

MAP(qk_rope_eager_copy, elem, elem, x)
COLUMN_SUM(qk_rope_eager_sum_rows, qk_rope_eager_sum_rows_end)
MAP2(qk_rope_eager_accumulate, float, float, elem, x + y)
