// Tensor cores of sm_80 and newer: a warp's products of bf16 tiles, and tiles of bf16 in shared memory. It follows prelude.cuh.
//
// Fragments, as the PTX manual lays them out, with g = lane / 4 and t = lane % 4:
//   a  16 x 16   a[0]: row g, columns 2t, 2t+1; a[1]: row g+8; a[2], a[3]: the same, 8 columns on
//   b  16 x 8    b[0]: rows 2t, 2t+1 of column g; b[1]: 8 rows on
//   c  16 x 8    c[0], c[1]: row g, columns 2t, 2t+1; c[2], c[3]: row g+8
// So two c side by side, rounded, are an a.

#ifdef __CUDACC_RTC__
// c += a b. Not volatile: the compiler orders products among loads as it likes.
__device__ __forceinline__ void mma_m16n8k16_bf16(float c[4], const u32 a[4], const u32 b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 tiles; lane 8 i + j gives the address of row j of tile i.
__device__ __forceinline__ void ldmatrix_x4(u32 r[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}

// The same, each tile transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(u32 r[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}
#endif

// Over the four lanes that share a row of c; each gets it.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// M N tiles c, rounded to bf16, as a.
template <int M, int N>
__device__ __forceinline__ void round_to_a(u32 a[M][N / 2][4], const float c[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                a[m][n / 2][n % 2 * 2 + half] = pair_of(c[m][n][2 * half], c[m][n][2 * half + 1]);
}

// Tiles in shared memory are rows of K elements, a multiple of 64. Chunk c of 16 bytes of row r lies at c ^ (r % 8), so that
// eight rows of one chunk, which an ldmatrix reads, lie in different banks.
template <int K>
__device__ __forceinline__ int chunk_at(int row, int chunk) {
    return row * (2 * K) + ((chunk ^ (row & 7)) << 4);
}

// Where this lane's row of an ldmatrix lies, in bytes. `rows`: 16 rows by two chunks, an a, or two b whose columns are the
// tile's (transposed). `columns`: two b whose columns are the tile's rows.
struct Lane {
    u32 rows, columns;
};

template <int K>
__device__ __forceinline__ Lane lane_of() {
    const u32 lane = threadIdx.x % WARP;
    return Lane{(u32)chunk_at<K>(lane % 16, lane / 16), (u32)chunk_at<K>(lane / 16 * 8 + lane % 8, lane / 8 % 2)};
}

// Address for this lane with the corner at `row`, a multiple of 8, and column 16 k.
template <int K>
__device__ __forceinline__ const char* corner(const char* tile, u32 lane, int row, int k) {
    return tile + row * (2 * K) + (lane ^ (u32)(k << 5));
}

// ROWS rows of K elements, `stride` apart, by a block of THREADS; zeros from row `valid` on. Wait by cp_async_wait.
template <int K, int ROWS, int THREADS>
__device__ __forceinline__ void copy_tile(char* tile, const u16* from, int stride, int valid) {
    constexpr int CHUNKS = K / PACK, TOGETHER = THREADS / CHUNKS;
    const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const u16* source = from + row * stride + chunk * PACK;
    char* const to = tile + chunk_at<K>(row, chunk);
#pragma unroll
    for (int i = 0; i < ROWS; i += TOGETHER) {
        cp_async_16(to + i * (2 * K), source, row + i < valid);
        source += TOGETHER * stride;
    }
}

// Below, a warp has M tiles of 16 rows. They are the rows of `tile` from `row` on.
template <int K, int M>
__device__ __forceinline__ void load_rows(u32 a[M][K / 16][4], const char* tile, int row, Lane lane) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int k = 0; k < K / 16; k++) ldmatrix_x4(a[m][k], corner<K>(tile, lane.rows, row + 16 * m, k));
}

// c += a times the transpose of 8 N rows of `other` from `from` on, over columns 16 k .. 16 k + 15.
template <int K, int M, int N>
__device__ __forceinline__ void multiply_transposed(float c[M][N][4], const u32* const a[M], const char* other, int from, int k,
                                                    Lane lane) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        u32 b[4];
        ldmatrix_x4(b, corner<K>(other, lane.columns, from + 8 * n, k));
#pragma unroll
        for (int m = 0; m < M; m++) {
            mma_m16n8k16_bf16(c[m][n], a[m], b);
            mma_m16n8k16_bf16(c[m][n + 1], a[m], b + 2);
        }
    }
}

// c += a times the transpose of 8 N rows of `other` from `from` on; a: held in registers, or rows of `tile` from `row` on.
template <int K, int M, int N>
__device__ __forceinline__ void multiply_held(float c[M][N][4], const u32 a[M][K / 16][4], const char* other, int from,
                                              Lane lane) {
#pragma unroll
    for (int k = 0; k < K / 16; k++) {
        const u32* left[M];
#pragma unroll
        for (int m = 0; m < M; m++) left[m] = a[m][k];
        multiply_transposed<K, M, N>(c, left, other, from, k, lane);
    }
}

template <int K, int M, int N>
__device__ __forceinline__ void multiply_rows(float c[M][N][4], const char* tile, int row, const char* other, int from,
                                              Lane lane) {
#pragma unroll
    for (int k = 0; k < K / 16; k++) {
        u32 a[M][4];
        const u32* left[M];
#pragma unroll
        for (int m = 0; m < M; m++) {
            ldmatrix_x4(a[m], corner<K>(tile, lane.rows, row + 16 * m, k));
            left[m] = a[m];
        }
        multiply_transposed<K, M, N>(c, left, other, from, k, lane);
    }
}

// c += a, S of its 16 columns, times 16 S rows of `other` from `from` on.
template <int K, int M, int S>
__device__ __forceinline__ void multiply(float c[M][K / 8][4], const u32 a[M][S][4], const char* other, int from, Lane lane) {
#pragma unroll
    for (int s = 0; s < S; s++)
#pragma unroll
        for (int n = 0; n < K / 16; n++) {
            u32 b[4];
            ldmatrix_x4_trans(b, corner<K>(other, lane.rows, from + 16 * s, n));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16_bf16(c[m][2 * n], a[m][s], b);
                mma_m16n8k16_bf16(c[m][2 * n + 1], a[m][s], b + 2);
            }
        }
}

// c, each row times its factor (rows g and g + 8 of each tile), rounded, through the warp's own rows of `tile` to memory in
// whole sectors; rows from `valid` on are left out.
template <int K, int M>
__device__ __forceinline__ void store_rows(const float c[M][K / 8][4], const float factor[2 * M], char* tile, int row, u16* to,
                                           i64 stride, int valid) {
    constexpr int CHUNKS = K / PACK, TOGETHER = WARP / CHUNKS;
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    __syncwarp();
#pragma unroll
    for (int r = 0; r < 2 * M; r++)
#pragma unroll
        for (int n = 0; n < K / 8; n++) {
            const float* const x = c[r / 2][n] + r % 2 * 2;
            *(u32*)(tile + chunk_at<K>(row + 8 * r + g, n) + 4 * t) = pair_of(x[0] * factor[r], x[1] * factor[r]);
        }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 * M; i += TOGETHER) {
        const int r = lane / CHUNKS + i, chunk = lane % CHUNKS;
        const uint4 bits = *(const uint4*)(tile + chunk_at<K>(row + r, chunk));
        if (r < valid) __stcg((uint4*)(to + r * stride + chunk * PACK), bits);
    }
}
