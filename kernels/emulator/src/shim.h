// What the CUDA compiler and the device give to a kernel. It follows fibers.h and goes before prelude.cuh, whose type names
// are not yet known here.
//
// The inline PTX of kernels stands behind functions: under __CUDACC_RTC__ prelude.cuh, or a kernel's own text, defines those
// that are marked (PTX) below by the instruction; here they are emulated.
//
// Not emulated: memory order between threads, blocks that wait for other blocks (they run one after another), clusters, TMA,
// wgmma and named barriers.

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__

namespace emulated {

// What a device may have: shared memory declared in a kernel, and in all.
const size_t STATIC_LIMIT = 48 << 10, SHARED_LIMIT = 227 << 10;

static unsigned long long block_number;  // over all launches
static char* dynamic;
static size_t dynamic_bytes, static_bytes;

// Each block finds NaN of any width. `filled` is the last block for which it was done.
inline void undefined(void* shared, size_t bytes, unsigned long long& filled) {
    if (filled == block_number) return;
    filled = block_number;
    memset(shared, 0xff, bytes);
    static_bytes += bytes;
    if (static_bytes > STATIC_LIMIT || static_bytes + dynamic_bytes > SHARED_LIMIT) fail("too much shared memory");
}

inline void need_warp(void** lanes, const char* name) {
    for (unsigned lane = 0; lane < LANES; lane++)
        if (!lanes[lane]) fail(std::string(name) + " without a whole warp");
}

template <class T> struct Shuffle { T value; unsigned source; T result; };

template <class T> void shuffle_lanes(void** lanes) {
    for (unsigned lane = 0; lane < LANES; lane++) {
        if (!lanes[lane]) continue;
        Shuffle<T>& to = *(Shuffle<T>*)lanes[lane];
        // A lane that takes no part has no defined value.
        if (lanes[to.source]) to.result = ((Shuffle<T>*)lanes[to.source])->value;
        else memset(&to.result, 0xff, sizeof(T));
    }
}

template <class T> T shuffle(const char* name, unsigned mask, T value, unsigned source) {
    Shuffle<T> data{value, source % LANES, value};
    collective(name, mask, &data, shuffle_lanes<T>);
    return data.result;
}

struct Ballot { bool vote; unsigned set, present; };

inline void count_votes(void** lanes) {
    unsigned set = 0, present = 0;
    for (unsigned lane = 0; lane < LANES; lane++)
        if (lanes[lane]) present |= 1u << lane, set |= (unsigned)((Ballot*)lanes[lane])->vote << lane;
    for (unsigned lane = 0; lane < LANES; lane++)
        if (lanes[lane]) *(Ballot*)lanes[lane] = {false, set, present};
}

inline Ballot ballot(const char* name, unsigned mask, bool vote) {
    Ballot data{vote, 0, 0};
    collective(name, mask, &data, count_votes);
    return data;
}

inline unsigned lane() { return threadIdx.x % LANES; }

}  // namespace emulated

// Barriers of the block. Threads that have exited do not count.
inline void __syncthreads() { emulated::barrier("__syncthreads", false); }
inline int __syncthreads_count(int vote) { return emulated::barrier("__syncthreads_count", vote).set; }
inline int __syncthreads_or(int vote) { return emulated::barrier("__syncthreads_or", vote).set > 0; }
inline int __syncthreads_and(int vote) {
    const emulated::Votes votes = emulated::barrier("__syncthreads_and", vote);
    return votes.set == votes.arrived;
}

// Collectives of the warp.
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulated::ballot("__syncwarp", mask, false); }
inline unsigned __ballot_sync(unsigned mask, int vote) { return emulated::ballot("__ballot_sync", mask, vote).set; }
inline int __any_sync(unsigned mask, int vote) { return emulated::ballot("__any_sync", mask, vote).set != 0; }
inline int __all_sync(unsigned mask, int vote) {
    const emulated::Ballot all = emulated::ballot("__all_sync", mask, vote);
    return all.set == all.present;
}

// Parts of `width` lanes, a power of two; beyond a part's ends a lane gets its own value.
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const unsigned first = emulated::lane() & ~(width - 1u);
    return emulated::shuffle("__shfl_sync", mask, value, first | (source & (width - 1u)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const unsigned lane = emulated::lane(), source = lane ^ (unsigned)bits, last = lane | (width - 1u);
    return emulated::shuffle("__shfl_xor_sync", mask, value, source > last ? lane : source);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const unsigned lane = emulated::lane();
    return emulated::shuffle("__shfl_up_sync", mask, value, lane % width < by ? lane : lane - by);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const unsigned lane = emulated::lane();
    return emulated::shuffle("__shfl_down_sync", mask, value, lane % width + by >= (unsigned)width ? lane : lane + by);
}

// Vectors, aligned as on the device: UndefinedBehaviorSanitizer sees those that are not.
#define EMULATED_VECTOR2(V, T) \
    struct __align__(2 * sizeof(T)) V { T x, y; }; \
    inline V make_##V(T x, T y) { return {x, y}; }
#define EMULATED_VECTOR4(V, T) \
    struct __align__(4 * sizeof(T)) V { T x, y, z, w; }; \
    inline V make_##V(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTOR2(int2, int)
EMULATED_VECTOR2(uint2, unsigned)
EMULATED_VECTOR2(float2, float)
EMULATED_VECTOR4(int4, int)
EMULATED_VECTOR4(uint4, unsigned)
EMULATED_VECTOR4(float4, float)
EMULATED_VECTOR4(ushort4, unsigned short)
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

// Bits and conversions.
namespace emulated {
template <class T, class F> T bits_as(F from) {
    static_assert(sizeof(T) == sizeof(F), "of one size");
    T to;
    memcpy(&to, &from, sizeof to);
    return to;
}
}  // namespace emulated
inline float __uint_as_float(unsigned x) { return emulated::bits_as<float>(x); }
inline unsigned __float_as_uint(float x) { return emulated::bits_as<unsigned>(x); }
inline float __int_as_float(int x) { return emulated::bits_as<float>(x); }
inline int __float_as_int(float x) { return emulated::bits_as<int>(x); }
inline int __float2int_rn(float x) { return (int)rintf(x); }
inline int __float2int_rz(float x) { return (int)x; }
inline int __float2int_rd(float x) { return (int)floorf(x); }
inline unsigned __float2uint_rn(float x) { return (unsigned)rintf(x); }
inline unsigned __float2uint_rz(float x) { return (unsigned)x; }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}
inline long long __mul64hi(long long a, long long b) { return (__int128)a * b >> 64; }

// Arithmetic. Macros, where the C library has or may get the name for itself.
#define rsqrtf(x) (1.0f / sqrtf(x))
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __fmul_rn(a, b) ((a) * (b))
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)
#define __sincosf(x, s, c) (*(s) = sinf(x), (void)(*(c) = cosf(x)))
#define __fdividef(x, y) ((x) / (y))
#define __fmaf_rn(x, y, z) fmaf(x, y, z)
#define __fadd_rn(x, y) ((x) + (y))
#define __fdiv_rn(x, y) ((x) / (y))
#define __fsqrt_rn(x) sqrtf(x)
#define __frcp_rn(x) (1.0f / (x))
#define EMULATED_ORDER(T) \
    inline T min(T a, T b) { return b < a ? b : a; } \
    inline T max(T a, T b) { return a < b ? b : a; }
EMULATED_ORDER(int)
EMULATED_ORDER(unsigned)
EMULATED_ORDER(long)
EMULATED_ORDER(unsigned long)
EMULATED_ORDER(long long)
EMULATED_ORDER(unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

// Memory. Threads change places only where they wait, so plain access is atomic.
template <class T> T __ldg(const T* from) { return *from; }
template <class T> T __ldcs(const T* from) { return *from; }
template <class T> T __ldcg(const T* from) { return *from; }
template <class T> void __stcs(T* to, T value) { *to = value; }
template <class T> void __stcg(T* to, T value) { *to = value; }
inline void __threadfence() {}
inline void __threadfence_block() {}
namespace emulated {
template <class T> struct Same { typedef T type; };
template <class T> using Plain = typename Same<T>::type;  // takes no part in deduction
}  // namespace emulated
template <class T> T atomicExch(T* at, emulated::Plain<T> value) { return std::exchange(*at, value); }
template <class T> T atomicAdd(T* at, emulated::Plain<T> value) { return std::exchange(*at, *at + value); }
template <class T> T atomicMin(T* at, emulated::Plain<T> value) { return std::exchange(*at, min(*at, value)); }
template <class T> T atomicMax(T* at, emulated::Plain<T> value) { return std::exchange(*at, max(*at, value)); }
template <class T> T atomicCAS(T* at, emulated::Plain<T> expected, emulated::Plain<T> value) {
    return std::exchange(*at, *at == expected ? value : *at);
}
inline void __trap() { emulated::fail("__trap"); }

// (PTX) 16 bytes of global to shared memory, or zeros where not `valid`. Nothing is copied before the wait that makes it
// visible: a wait that is missing shows.
inline void cp_async_16(void* shared, const void* global, bool valid = true) {
    if ((size_t)shared % 16 || (valid && (size_t)global % 16)) emulated::fail("cp.async off its alignment");
    emulated::Fiber& self = *emulated::current;
    self.copies.push_back({shared, valid ? global : nullptr, self.groups});
}
inline void cp_async_commit() { emulated::current->groups++; }
// All but the last N groups of this thread.
template <int N> void cp_async_wait() {
    emulated::Fiber& self = *emulated::current;
    size_t done = 0;
    for (; done < self.copies.size() && self.copies[done].group + N < self.groups; done++) {
        const emulated::Copy& copy = self.copies[done];
        if (copy.from) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
    }
    self.copies.erase(self.copies.begin(), self.copies.begin() + done);
}
