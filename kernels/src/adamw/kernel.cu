// Norm of the gradients, clip factor and AdamW over one arena; the contract is in mod.rs, memory layouts in cuda.rs. Lengths
// and ends of groups are multiples of 8.

// Elements of a warp, eight a lane: two quads, 128 elements apart, so that every access of a warp is contiguous. Also the
// block of the 8-bit moments, which share a scale.
#define CHUNK 256
#define QUAD 4
#define QUADS 2
#define OCTET (QUAD * QUADS)

typedef unsigned char u8;

__device__ __forceinline__ void load_quad(const float* x, float v[QUAD]) {
    const float4 quad = *(const float4*)x;
    v[0] = quad.x; v[1] = quad.y; v[2] = quad.z; v[3] = quad.w;
}

__device__ __forceinline__ void load_quad(const u16* x, float v[QUAD]) {
    const uint2 quad = *(const uint2*)x;
    v[0] = bf16_to_float((u16)quad.x); v[1] = bf16_to_float((u16)(quad.x >> 16));
    v[2] = bf16_to_float((u16)quad.y); v[3] = bf16_to_float((u16)(quad.y >> 16));
}

// ---- Norm ----

// Sum of squares of 16 bytes.
__device__ __forceinline__ float squares(const float4& x, const float*) {
    return (x.x * x.x + x.y * x.y) + (x.z * x.z + x.w * x.w);
}

__device__ __forceinline__ float squares_of_pair(float bits) {
    const u32 pair = __float_as_uint(bits);
    const float lo = bf16_to_float((u16)pair), hi = bf16_to_float((u16)(pair >> 16));
    return lo * lo + hi * hi;
}

__device__ __forceinline__ float squares(const float4& x, const u16*) {
    return (squares_of_pair(x.x) + squares_of_pair(x.y)) + (squares_of_pair(x.z) + squares_of_pair(x.w));
}

#define NORM_LOADS 4

// Where the groups of an arena end whose norms are told apart: multiples of 8, as many as the grid has rows.
struct Ends {
    i64 end[3];
};

// part_GB[group][block] = its sum of squares, in an order that depends on the grid alone. A thread adds a few thousand squares at
// most, in four sums, which f32 does to 1e-6.
template <class T>
__device__ __forceinline__ void norm_partial(const T* g, float* part_GB, const Ends& ends) {
    __shared__ float scratch[WARP];
    const int group = blockIdx.y;
    const i64 begin = group == 0 ? 0 : group == 1 ? ends.end[0] : ends.end[1];
    const i64 end = group == 0 ? ends.end[0] : group == 1 ? ends.end[1] : ends.end[2];
    const float4* packs = (const float4*)(g + begin);
    const i64 count = (end - begin) / (16 / (int)sizeof(T)), stride = (i64)gridDim.x * blockDim.x;
    float sum[NORM_LOADS] = {};
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + (NORM_LOADS - 1) * stride < count; i += NORM_LOADS * stride) {
        float4 x[NORM_LOADS];
#pragma unroll
        for (int k = 0; k < NORM_LOADS; k++) x[k] = packs[i + k * stride];
#pragma unroll
        for (int k = 0; k < NORM_LOADS; k++) sum[k] += squares(x[k], g);
    }
    for (; i < count; i += stride) sum[0] += squares(packs[i], g);
    const float total = block_sum((sum[0] + sum[1]) + (sum[2] + sum[3]), scratch);
    if (threadIdx.x == 0) part_GB[(i64)group * gridDim.x + blockIdx.x] = total;
}

extern "C" __global__ void adamw_norm_f32(const float* __restrict__ g, float* __restrict__ part_GB, i64 end0, i64 end1,
                                          i64 end2) {
    norm_partial(g, part_GB, Ends{{end0, end1, end2}});
}

extern "C" __global__ void adamw_norm_elem(const elem* __restrict__ g, float* __restrict__ part_GB, i64 end0, i64 end1,
                                           i64 end2) {
    norm_partial(g, part_GB, Ends{{end0, end1, end2}});
}

#define CLIP_THREADS 256

// One block of CLIP_THREADS: the norms of G groups of B parts each, the norm of all, and the factor of PyTorch's clip_grad_norm_,
// which is 1 where the norm is NaN.
extern "C" __global__ void adamw_clip(const float* __restrict__ part_GB, Clip* __restrict__ clip, float* __restrict__ norm_G,
                                      int G, int B, float max_norm) {
    __shared__ double partial[CLIP_THREADS];
    double all = 0.0;
    for (int group = 0; group < G; group++) {
        double sum = 0.0;
        for (int i = threadIdx.x; i < B; i += CLIP_THREADS) sum += (double)part_GB[group * B + i];
        __syncthreads();  // the group before is added up
        partial[threadIdx.x] = sum;
        for (int half = CLIP_THREADS / 2; half > 0; half /= 2) {
            __syncthreads();
            if ((int)threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        }
        if (threadIdx.x != 0) continue;
        norm_G[group] = (float)sqrt(partial[0]);
        all += partial[0];
    }
    if (threadIdx.x != 0) return;
    const double norm = sqrt(all), factor = (double)max_norm / (norm + 1e-6);
    clip->norm = (float)norm;
    clip->factor = max_norm > 0.0f && factor < 1.0 ? (float)factor : 1.0f;
}

// ---- Arithmetic ----

// Root and quotient within 2 units in the last place; subnormals are zero, which beside eps they are anyway. Denominators
// are far below 2^126, from where on the instruction gives 0.
__device__ __forceinline__ float root(float x) {
#ifdef __CUDACC_RTC__
    float y;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return sqrtf(x);
#endif
}

__device__ __forceinline__ float quotient(float x, float y) {
#ifdef __CUDACC_RTC__
    float z;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
#else
    return x / y;
#endif
}

// ---- Random bits ----

// 16 bits for each element of a lane. Philox4x32-7 (Salmon et al., SC 2011; seven rounds pass BigCrush) of a counter that
// names octet, step and array, so that a run is reproduced whatever the grid.
struct Random {
    u32 word[4];
    __device__ __forceinline__ u32 half(int j) const { return word[j / 2] >> (16 * (j % 2)) & 0xffffu; }
};

#define RANDOM_M 0
#define RANDOM_V 1
#define RANDOM_P 2

__device__ __forceinline__ Random random_of(i64 octet, u32 array, const Hyper& hyper) {
    u32 a = (u32)octet, b = (u32)((u64)octet >> 32), c = array, d = hyper.step;
    u32 key0 = hyper.seed, key1 = 0x41646d57u;
#pragma unroll
    for (int round = 0; round < 7; round++) {
        const u64 x = (u64)0xd2511f53u * a, y = (u64)0xcd9e8d57u * c;
        a = (u32)(y >> 32) ^ b ^ key0;
        b = (u32)y;
        c = (u32)(x >> 32) ^ d ^ key1;
        d = (u32)x;
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    Random random;
    random.word[0] = a; random.word[1] = b; random.word[2] = c; random.word[3] = d;
    return random;
}

// ---- Arrays of a lane ----

// Where a lane's elements are. Reads past the end go to the last quad instead, which the same warp owns, so that all loads
// are issued without a branch; what they bring is not used.
struct Place {
    i64 chunk, octet, at[QUADS];
    bool inside[QUADS];
};

__device__ __forceinline__ Place place_of(i64 chunk, i64 n) {
    const int lane = threadIdx.x % WARP;
    Place place;
    place.chunk = chunk;
    place.octet = chunk * WARP + lane;
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        const i64 at = chunk * CHUNK + (k * WARP + lane) * QUAD;
        place.inside[k] = at < n;
        place.at[k] = at < n ? at : n - QUAD;
    }
    return place;
}

template <class T>
__device__ __forceinline__ void load(const T* x, const Place& place, float v[OCTET]) {
#pragma unroll
    for (int k = 0; k < QUADS; k++) load_quad(x + place.at[k], v + k * QUAD);
}

__device__ __forceinline__ void store(float* x, const Place& place, const float v[OCTET]) {
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        const float4 quad = {v[k * QUAD], v[k * QUAD + 1], v[k * QUAD + 2], v[k * QUAD + 3]};
        if (place.inside[k]) *(float4*)(x + place.at[k]) = quad;
    }
}

__device__ __forceinline__ void store(u16* x, const Place& place, const u32 v[OCTET]) {
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        const u32* q = v + k * QUAD;
        const uint2 quad = {q[0] | q[1] << 16, q[2] | q[3] << 16};
        if (place.inside[k]) *(uint2*)(x + place.at[k]) = quad;
    }
}

__device__ __forceinline__ void store_nearest(float* x, const Place& place, const float v[OCTET]) { store(x, place, v); }

__device__ __forceinline__ void store_nearest(u16* x, const Place& place, const float v[OCTET]) {
    u32 bits[OCTET];
#pragma unroll
    for (int j = 0; j < OCTET; j++) bits[j] = float_to_bf16(v[j]);
    store(x, place, bits);
}

__device__ __forceinline__ void store_rounded(float* x, const Place& place, const float v[OCTET], u32, const Hyper&) {
    store(x, place, v);
}

// Rounds up with a probability of what is cut off, in units of the last place: exactly unbiased. NaN stays NaN.
__device__ __forceinline__ void store_rounded(u16* x, const Place& place, const float v[OCTET], u32 array, const Hyper& hyper) {
    const Random random = random_of(place.octet, array, hyper);
    u32 bits[OCTET];
#pragma unroll
    for (int j = 0; j < OCTET; j++) {
        const u32 exact = __float_as_uint(v[j]);
        bits[j] = (exact & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (exact + random.half(j)) >> 16;
    }
    store(x, place, bits);
}

// ---- Moments ----

template <bool SIGNED>
__device__ __forceinline__ void load_moment(const float* x, const float*, const Place& place, float v[OCTET]) {
    load(x, place, v);
}

template <bool SIGNED>
__device__ __forceinline__ void load_moment(const u16* x, const float*, const Place& place, float v[OCTET]) {
    load(x, place, v);
}

// Codes are floats without sign or with few exponents, relative to the largest of the chunk: 3 bits of mantissa under 4 of
// exponent and a sign (SIGNED) or 5 of exponent, subnormals included. They are the top bits of an f32 whose largest value
// has the code's largest exponent; the cut is at bit 20.
#define CODE_SHIFT 20

template <bool SIGNED>
__device__ __forceinline__ void load_moment(const u8* x, const float* scale, const Place& place, float v[OCTET]) {
    u32 codes[QUADS];
#pragma unroll
    for (int k = 0; k < QUADS; k++) codes[k] = *(const u32*)(x + place.at[k]);
    const float largest = scale[place.chunk];
#pragma unroll
    for (int j = 0; j < OCTET; j++) {
        const u32 code = codes[j / QUAD] >> (8 * (j % QUAD)) & 0xffu;
        const u32 bits = SIGNED ? (code & 127u) << CODE_SHIFT | (code & 128u) << 24 : code << CODE_SHIFT;
        v[j] = __uint_as_float(bits) * (SIGNED ? 0x1p112f : 0x1p96f) * largest;
    }
}

template <bool SIGNED>
__device__ __forceinline__ void store_moment(float* x, float*, const Place& place, const float v[OCTET], const Hyper&) {
    store(x, place, v);
}

template <bool SIGNED>
__device__ __forceinline__ void store_moment(u16* x, float*, const Place& place, const float v[OCTET], const Hyper& hyper) {
    store_rounded(x, place, v, SIGNED ? RANDOM_M : RANDOM_V, hyper);
}

// Largest magnitude of the chunk, as its bits, which order like magnitudes with NaN above all: NaN spreads to the chunk.
__device__ __forceinline__ u32 largest_bits(const Place& place, const float v[OCTET]) {
    u32 largest = 0;
#pragma unroll
    for (int j = 0; j < OCTET; j++) {
        const u32 bits = __float_as_uint(v[j]) & 0x7fffffffu;
        largest = max(largest, place.inside[j / QUAD] ? bits : 0u);
    }
#pragma unroll
    for (int lane = WARP / 2; lane > 0; lane /= 2) largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, lane));
    return largest;
}

// Stochastic too: rounding to nearest would hold a second moment where 1 - beta2 moves it by less than half a code. One
// that is not zero never gets code 0, since the update divides by it.
template <bool SIGNED>
__device__ __forceinline__ void store_moment(u8* x, float* scale, const Place& place, const float v[OCTET],
                                             const Hyper& hyper) {
    const Random random = random_of(place.octet, SIGNED ? RANDOM_M : RANDOM_V, hyper);
    const u32 bits = largest_bits(place, v);
    // What is so small that its inverse might overflow is nothing, beside eps also as a root.
    const float largest = bits < 0x03800000u ? 0.0f : __uint_as_float(bits);
    const float inverse = largest == 0.0f ? 0.0f : quotient(1.0f, largest);
    if (threadIdx.x % WARP == 0) scale[place.chunk] = largest;
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        u32 codes = 0;
#pragma unroll
        for (int i = 0; i < QUAD; i++) {
            const int j = k * QUAD + i;
            const float y = fabsf(v[j]) * inverse * (SIGNED ? 0x1p-112f : 0x1p-96f);
            u32 code = (__float_as_uint(y) + (random.half(j) << (CODE_SHIFT - 16))) >> CODE_SHIFT;
            code = min(code, SIGNED ? 120u : 248u);
            if (SIGNED) code |= __float_as_uint(v[j]) >> 24 & 128u;
            else code = max(code, min(__float_as_uint(v[j]), 1u));
            codes |= code << (8 * i);
        }
        if (place.inside[k]) *(u32*)(x + place.at[k]) = codes;
    }
}

// ---- Update ----

// A warp updates a chunk. P is float or elem, M float, elem or u8; where P or M are bf16 they are rounded stochastically.
// The update is that of the exact moments, before they are rounded. `copy`, where wanted, is p rounded to nearest.
template <class P, class M, class G>
__device__ __forceinline__ void update(P* p, elem* copy, M* m, M* v, float* m_scale, float* v_scale, const G* g,
                                       const Hyper* shared, const Clip* clip, i64 n, int groups) {
    const i64 chunk = (i64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (chunk * CHUNK >= n) return;
    const Place place = place_of(chunk, n);
    float ps[OCTET], ms[OCTET], vs[OCTET], gs[OCTET];
    load(g, place, gs);
    load(p, place, ps);
    load_moment<true>(m, m_scale, place, ms);
    load_moment<false>(v, v_scale, place, vs);
    const Hyper hyper = *shared;
    const float factor = clip ? clip->factor : 1.0f;
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        const Group group = group_of(shared, groups, place.at[k]);
#pragma unroll
        for (int j = k * QUAD; j < (k + 1) * QUAD; j++) {
            const float x = gs[j] * factor;
            ms[j] = fmaf(hyper.beta1, ms[j], hyper.one_minus_beta1 * x);
            vs[j] = fmaf(hyper.beta2, vs[j], hyper.one_minus_beta2 * x * x);
            const float denominator = root(vs[j]) * hyper.inverse_bias_correction2_sqrt + hyper.eps;
            ps[j] = fmaf(group.decay, ps[j], -quotient(group.step_size * ms[j], denominator));
        }
    }
    store_moment<true>(m, m_scale, place, ms, hyper);
    store_moment<false>(v, v_scale, place, vs, hyper);
    store_rounded(p, place, ps, RANDOM_P, hyper);
    if (copy) store_nearest(copy, place, ps);
}

#define UPDATE_ENTRY(NAME, P, M, G) \
    extern "C" __global__ void NAME(P* p, elem* copy, M* m, M* v, float* m_scale, float* v_scale, const G* g, \
                                    const Hyper* hyper, const Clip* clip, i64 n, int groups) { \
        update(p, copy, m, v, m_scale, v_scale, g, hyper, clip, n, groups); \
    }

UPDATE_ENTRY(adamw_master_f32, float, float, float)
UPDATE_ENTRY(adamw_master_elem, float, float, elem)
UPDATE_ENTRY(adamw_rounded_f32, elem, elem, float)
UPDATE_ENTRY(adamw_rounded_elem, elem, elem, elem)
UPDATE_ENTRY(adamw_master_8bit_f32, float, u8, float)
UPDATE_ENTRY(adamw_master_8bit_elem, float, u8, elem)
