// Attention by mma.sync: what the passes share; the contract is in attention/mod.rs. It follows mma.cuh.
//
// Tokens of a batch lie one behind the other, and a block takes 128 or 64 of them, whatever documents they are of. Query i
// sees key j iff begin[i] <= j <= i, which is j <= i < end[j]. Blocks begin at multiples of STREAM and so do the steps that
// they walk in: the diagonal falls on the edges of steps. A warp leaves out what none of its rows sees, and asks for each
// score only where documents or the diagonal cut through. A score that is not seen is given its value (-inf, or a gradient
// of 0) in the end, whatever it was: what other documents hold leaves no trace, as long as it is finite.
//
// blockIdx.x is the head and blockIdx.y the place in the list of tiles, whose halves come one after the other where a block is
// half a tile: with neither a division nor a register that holds what it gives.

#define WARPS 4
#define THREADS (WARPS * WARP)
// Rows of a step: keys where queries are kept, queries where keys are.
#define STREAM 64
// Behind every token.
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

// Copies a step to its place: STREAM rows of two operands, zeros from row `valid` on.
template <int K>
__device__ __forceinline__ void fetch_step(char* place, const u16* a, int a_stride, const u16* b, int b_stride, int valid) {
    copy_tile<K, STREAM, THREADS>(place, a, a_stride, valid);
    copy_tile<K, STREAM, THREADS>(place + STREAM * 2 * K, b, b_stride, valid);
    cp_async_commit();
}

// s = a warp's rows, held in registers or in a tile from `row` on, times the transpose of 8 N rows of `other` from `from` on.
template <int K, bool HELD, int M, int N>
__device__ __forceinline__ void scores(float s[M][N][4], const u32 (*held)[K / 16][4], const char* tile, int row,
                                       const char* other, int from, Lane lane) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[m][n][i] = 0.0f;
    if constexpr (HELD) multiply_held<K, M, N>(s, held, other, from, lane);
    else multiply_rows<K, M, N>(s, tile, row, other, from, lane);
}

// Adds a warp's x, rounded, times the rows of `other` from `from` on.
template <int K, int M, int N>
__device__ __forceinline__ void weigh(float sum[M][K / 8][4], const float x[M][N][4], const char* other, int from, Lane lane) {
    u32 a[M][N / 2][4];
    round_to_a<M, N>(a, x);
    multiply<K, M, N / 2>(sum, a, other, from, lane);
}

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
