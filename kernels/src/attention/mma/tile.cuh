// Attention by mma.sync: what the passes share; the contract is in attention/mod.rs. It follows mma.cuh.
//
// Tokens of a batch lie one behind the other, and a block takes 128 or 64 of them, whatever documents they are of. Query i
// sees key j iff begin[i] <= j <= i, which is j <= i < end[j]. Blocks begin at multiples of STREAM and so do the steps that
// they walk in: the diagonal falls on the edges of steps. A warp leaves out what none of its rows sees, and asks for each
// score only where documents or the diagonal cut through. A score that is not seen is given its value (-inf, or a gradient
// of 0) in the end, whatever it was: what other documents hold leaves no trace, as long as it is finite.

#define WARPS 4
#define THREADS (WARPS * WARP)
// Rows of a step: keys where queries are kept, queries where keys are.
#define STREAM 64
#define BEHIND_ALL 0x7fffffff
// The lowest finite float.
#define LOWEST (-3.402823466e38f)

// Packed rows [q | k | v] of H and twice G heads of K.
struct Packed {
    int H, G;
    template <int K>
    __device__ __forceinline__ int stride() const { return (H + 2 * G) * K; }
    __device__ __forceinline__ int group() const { return H / G; }
};

// The lane, as if it were not known before: what follows from it is not held in registers from one use to the next.
__device__ __forceinline__ int lane_anew() {
    int lane = threadIdx.x % WARP;
#ifdef __CUDACC_RTC__
    asm volatile("" : "+r"(lane));
#endif
    return lane;
}

// s, of a warp's 16 M queries from `first` on and 8 N keys from `key` on, becomes `value` where the query does not see the key.
template <int M, int N>
__device__ __forceinline__ void hide_keys(float s[M][N][4], const u32* begin, int T, int first, int key, float value) {
    const int lane = lane_anew(), query = first + lane / 4, column = key + lane % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        const int high = query + 8 * r - column, low = (int)begin[min(query + 8 * r, T - 1)] - column;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (8 * n + i < low || 8 * n + i > high) s[r / 2][n][r % 2 * 2 + i] = value;
    }
}

// x and y, of a warp's 16 M keys from `first` on and 8 N queries from `query` on, become 0 where the query does not see the key.
template <int M, int N>
__device__ __forceinline__ void hide_queries(float x[M][N][4], float y[M][N][4], const u32* end, int T, int first, int query) {
    const int lane = lane_anew(), key = first + lane / 4, column = query + lane % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        const int low = key + 8 * r - column, high = (int)end[min(key + 8 * r, T - 1)] - column;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (8 * n + i < low || 8 * n + i >= high)
                    x[r / 2][n][r % 2 * 2 + i] = y[r / 2][n][r % 2 * 2 + i] = 0.0f;
    }
}
