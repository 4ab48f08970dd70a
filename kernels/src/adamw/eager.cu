// The operators of `clip_grad_norm_`'s scaling and of `torch.optim.AdamW(foreach=True)`, over one arena; cuda_eager.rs has them
// in order. Each is there for a state in f32 and for one in the element type, whose results are rounded to nearest.

// As MAP and MAP2; EXPR may also be of h, the hyper-parameters.
#define MAP_H(NAME, S, EXPR)                                                                                            \
    extern "C" __global__ void NAME(VIEW(S, dst), VIEW(const S, a), u32 vectors, const Hyper* hyper) {                  \
        const Hyper h = *hyper;                                                                                         \
        map<width<S>()>(Target<S>{dst, VIEW_OF(dst)}, Source<S>{a, VIEW_OF(a)}, vectors,                                \
                        [=](float x) { return EXPR; });                                                                 \
    }

#define MAP2_H(NAME, S, EXPR)                                                                                           \
    extern "C" __global__ void NAME(VIEW(S, dst), VIEW(const S, a), VIEW(const S, b), u32 vectors, const Hyper* hyper) { \
        const Hyper h = *hyper;                                                                                         \
        map<width<S>()>(Target<S>{dst, VIEW_OF(dst)}, Source<S>{a, VIEW_OF(a)}, Source<S>{b, VIEW_OF(b)}, vectors,      \
                        [=](float x, float y) { return EXPR; });                                                        \
    }

// g *= the clip factor.
#define CLIP(NAME, S)                                                                                                   \
    extern "C" __global__ void NAME(VIEW(S, dst), VIEW(const S, a), u32 vectors, const Clip* clip) {                    \
        const float factor = clip->factor;                                                                              \
        map<width<S>()>(Target<S>{dst, VIEW_OF(dst)}, Source<S>{a, VIEW_OF(a)}, vectors,                                \
                        [=](float x) { return x * factor; });                                                           \
    }

// p *= 1 - lr * wd, of the groups that decay: PyTorch leaves the others out. A vector lies in one group.
template <class S>
__device__ __forceinline__ void decay(S* p, u32 vectors, const Hyper* hyper, int groups) {
    const int W = width<S>();
    typedef typename Bits<S, W>::type Raw;
    Raw raw[ITEMS];
    float factor[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const i64 at = (i64)vector_index(i) * W;
        factor[i] = vector_index(i) < vectors ? group_of(hyper, groups, at).decay : 1.0f;
        if (factor[i] != 1.0f) raw[i] = *(const Raw*)(p + at);
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (factor[i] == 1.0f) continue;
        float x[W];
        widen(raw[i], x);
#pragma unroll
        for (int j = 0; j < W; j++) x[j] *= factor[i];
        narrow(x, raw[i]);
        __stcg((Raw*)(p + (i64)vector_index(i) * W), raw[i]);
    }
}

// p -= step_size * m / d.
template <class S>
__device__ __forceinline__ void addcdiv(S* p, const S* m, const S* d, u32 vectors, const Hyper* hyper, int groups) {
    const int W = width<S>();
    typedef typename Bits<S, W>::type Raw;
    Raw raw[ITEMS][3];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (vector_index(i) >= vectors) continue;
        const i64 at = (i64)vector_index(i) * W;
        raw[i][0] = *(const Raw*)(p + at);
        raw[i][1] = *(const Raw*)(m + at);
        raw[i][2] = *(const Raw*)(d + at);
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (vector_index(i) >= vectors) continue;
        const i64 at = (i64)vector_index(i) * W;
        const float step_size = group_of(hyper, groups, at).step_size;
        float x[W], y[W], z[W];
        widen(raw[i][0], x);
        widen(raw[i][1], y);
        widen(raw[i][2], z);
#pragma unroll
        for (int j = 0; j < W; j++) x[j] -= step_size * (y[j] / z[j]);
        narrow(x, raw[i][0]);
        __stcg((Raw*)(p + at), raw[i][0]);
    }
}

#define DECAY(NAME, S)                                                                                                  \
    extern "C" __global__ void NAME(VIEW(S, dst), VIEW(const S, a), u32 vectors, const Hyper* hyper, int groups) {      \
        decay(dst, vectors, hyper, groups);                                                                             \
    }

#define ADDCDIV(NAME, S)                                                                                                \
    extern "C" __global__ void NAME(VIEW(S, dst), VIEW(const S, a), VIEW(const S, m), VIEW(const S, d), u32 vectors,    \
                                    const Hyper* hyper, int groups) {                                                   \
        addcdiv(dst, m, d, vectors, hyper, groups);                                                                     \
    }

#define OPERATORS(S, SUFFIX)                                                                                            \
    CLIP(adamw_eager_clip_##SUFFIX, S)                                                                                  \
    DECAY(adamw_eager_decay_##SUFFIX, S)                                                                                \
    MAP2_H(adamw_eager_lerp_##SUFFIX, S, x + h.one_minus_beta1 * (y - x))                                               \
    MAP_H(adamw_eager_mul_##SUFFIX, S, x * h.beta2)                                                                     \
    MAP2_H(adamw_eager_addcmul_##SUFFIX, S, x + h.one_minus_beta2 * (y * y))                                            \
    MAP(adamw_eager_sqrt_##SUFFIX, S, S, sqrtf(x))                                                                      \
    MAP_H(adamw_eager_div_##SUFFIX, S, x * h.inverse_bias_correction2_sqrt)                                             \
    MAP_H(adamw_eager_add_##SUFFIX, S, x + h.eps)                                                                       \
    ADDCDIV(adamw_eager_addcdiv_##SUFFIX, S)

MAP(adamw_eager_to_f32, float, elem, x)
MAP(adamw_eager_to_elem, elem, float, x)
OPERATORS(float, f32)
OPERATORS(elem, elem)
