// What every kernel starts with: element type, 16-byte access, sums over warps and blocks.
//
// `elem` is bf16 (kept as its bits) or, with ELEM_F32, float. Arithmetic is float in either. Shape suffixes are those of
// the crate: T tokens, D hidden, F feed-forward, V vocabulary, Q packed QKV width, K head dimension.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define WARP 32
#define ALL_LANES 0xffffffffu
#define MINUS_INFINITY __uint_as_float(0xff800000u)
#define LOG2_E 1.4426950408889634f

__device__ __forceinline__ float bf16_to_float(u16 bits) { return __uint_as_float((u32)bits << 16); }

// Rounds to nearest even; NaN stays NaN.
__device__ __forceinline__ u16 float_to_bf16(float x) {
#ifdef __CUDACC_RTC__
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

#ifdef ELEM_F32
typedef float elem;
__device__ __forceinline__ float to_float(elem x) { return x; }
__device__ __forceinline__ elem to_elem(float x) { return x; }
#else
typedef u16 elem;
__device__ __forceinline__ float to_float(elem x) { return bf16_to_float(x); }
__device__ __forceinline__ elem to_elem(float x) { return float_to_bf16(x); }
#endif

// Eight elements as they lie in memory: the unit of access, 16 bytes of bf16. Rows are multiples of it.
struct Pack {
#ifdef ELEM_F32
    float4 lo, hi;
#else
    uint4 bits;
#endif
};

#define PACK 8

// p is 16-byte aligned.
__device__ __forceinline__ Pack load_pack(const elem* p) {
    Pack pack;
#ifdef ELEM_F32
    pack.lo = *(const float4*)p;
    pack.hi = *((const float4*)p + 1);
#else
    pack.bits = *(const uint4*)p;
#endif
    return pack;
}

// As load_pack, but here: the compiler does not move it to where registers are short. Where `fetch_pack` came before, it finds
// the pack in L2.
__device__ __forceinline__ Pack load_pack_late(const elem* p) {
#if defined(__CUDACC_RTC__) && !defined(ELEM_F32)
    Pack pack;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pack.bits.x), "=r"(pack.bits.y), "=r"(pack.bits.z), "=r"(pack.bits.w)
                 : "l"(p)
                 : "memory");
    return pack;
#else
    return load_pack(p);
#endif
}

// Brings a pack from memory to L2.
__device__ __forceinline__ void fetch_pack(const elem* p) {
#ifdef __CUDACC_RTC__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
    (void)p;
#endif
}

// Brings `n` elements, a multiple of PACK, to L2; one thread calls it. What has no instruction for it does without.
__device__ __forceinline__ void fetch_span(const elem* p, int n) {
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(n * (int)sizeof(elem)) : "memory");
#else
    (void)p, (void)n;
#endif
}

__device__ __forceinline__ void store_pack(elem* p, const Pack& pack) {
#ifdef ELEM_F32
    *(float4*)p = pack.lo;
    *((float4*)p + 1) = pack.hi;
#else
    // Past L1. As a plain store the compiler splits it into four of 32 bits.
    __stcg((uint4*)p, pack.bits);
#endif
}

#ifndef ELEM_F32
__device__ __forceinline__ float low_half(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ u32 pair_of(float lo, float hi) {
    return (u32)float_to_bf16(lo) | ((u32)float_to_bf16(hi) << 16);
}
#endif

__device__ __forceinline__ void unpack(const Pack& pack, float v[PACK]) {
#ifdef ELEM_F32
    v[0] = pack.lo.x; v[1] = pack.lo.y; v[2] = pack.lo.z; v[3] = pack.lo.w;
    v[4] = pack.hi.x; v[5] = pack.hi.y; v[6] = pack.hi.z; v[7] = pack.hi.w;
#else
    v[0] = low_half(pack.bits.x); v[1] = high_half(pack.bits.x);
    v[2] = low_half(pack.bits.y); v[3] = high_half(pack.bits.y);
    v[4] = low_half(pack.bits.z); v[5] = high_half(pack.bits.z);
    v[6] = low_half(pack.bits.w); v[7] = high_half(pack.bits.w);
#endif
}

__device__ __forceinline__ Pack pack_of(const float v[PACK]) {
    Pack pack;
#ifdef ELEM_F32
    pack.lo.x = v[0]; pack.lo.y = v[1]; pack.lo.z = v[2]; pack.lo.w = v[3];
    pack.hi.x = v[4]; pack.hi.y = v[5]; pack.hi.z = v[6]; pack.hi.w = v[7];
#else
    pack.bits.x = pair_of(v[0], v[1]);
    pack.bits.y = pair_of(v[2], v[3]);
    pack.bits.z = pair_of(v[4], v[5]);
    pack.bits.w = pair_of(v[6], v[7]);
#endif
    return pack;
}

// Eight floats whatever the element type; p is 16-byte aligned.
__device__ __forceinline__ void load_floats(const float* p, float v[PACK]) {
    const float4 lo = *(const float4*)p, hi = *((const float4*)p + 1);
    v[0] = lo.x; v[1] = lo.y; v[2] = lo.z; v[3] = lo.w;
    v[4] = hi.x; v[5] = hi.y; v[6] = hi.z; v[7] = hi.w;
}

__device__ __forceinline__ void add_floats(const float* p, float sum[PACK]) {
    const float4 lo = *(const float4*)p, hi = *((const float4*)p + 1);
    sum[0] += lo.x; sum[1] += lo.y; sum[2] += lo.z; sum[3] += lo.w;
    sum[4] += hi.x; sum[5] += hi.y; sum[6] += hi.z; sum[7] += hi.w;
}

__device__ __forceinline__ void store_floats(float* p, const float v[PACK]) {
    *(float4*)p = make_float4(v[0], v[1], v[2], v[3]);
    *((float4*)p + 1) = make_float4(v[4], v[5], v[6], v[7]);
}

__device__ __forceinline__ float4 plus(const float4& a, const float4& b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// Sum over a warp; every lane gets it.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}

// Sum over a block of at most 32 whole warps; every thread gets it. `scratch` holds 32 floats and may be used again at once.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : 0.0f);
}

// 2^x.
__device__ __forceinline__ float power_of_2(float x) {
#ifdef __CUDACC_RTC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// 1 / (1 + exp(-x)): 0 and 1 at the extremes, as where the power overflows its inverse is 0.
__device__ __forceinline__ float sigmoid(float x) {
    const float y = 1.0f + power_of_2(-LOG2_E * x);
#ifdef __CUDACC_RTC__
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(y));
    return inverse;
#else
    return 1.0f / y;
#endif
}

#ifdef __CUDACC_RTC__
// 16 bytes of global to shared memory, past the registers; zeros where not `valid`. They are there, for this thread, after
// the wait for their group; all but the last N groups are waited for.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#endif

// A pack to shared memory, by cp_async_16.
__device__ __forceinline__ void copy_pack(Pack* shared, const elem* p) {
#pragma unroll
    for (int i = 0; i < (int)sizeof(Pack) / 16; i++) cp_async_16((uint4*)shared + i, (const uint4*)p + i);
}

// A kernel that a launch lets begin before the one ahead of it has ended (`Launcher::launch_early`): what that one writes is
// there after this call.
__device__ __forceinline__ void wait_for_predecessor() {
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets such a kernel begin once every block has come here or ended.
__device__ __forceinline__ void release_successor() {
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
