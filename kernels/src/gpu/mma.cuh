// Tensor cores of sm_80 and newer: a warp's products of bf16 tiles, and tiles of bf16 in shared memory. It follows prelude.cuh.
//
// Fragments, as the PTX manual lays them out, with g = lane / 4 and t = lane % 4:
//   a  16 x 16   a[0]: row g, columns 2t, 2t+1; a[1]: row g+8; a[2], a[3]: the same, 8 columns on
//   b  16 x 8    b[0]: rows 2t, 2t+1 of column g; b[1]: 8 rows on
//   c  16 x 8    c[0], c[1]: row g, columns 2t, 2t+1; c[2], c[3]: row g+8

#ifdef __CUDACC_RTC__
// c += a b.
__device__ __forceinline__ void mma_m16n8k16_bf16(float c[4], const u32 a[4], const u32 b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
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

// Tiles in shared memory are rows of D elements whose 16-byte chunks are permuted by the row, so that eight rows of one chunk
// lie in different banks. D is a multiple of 64.
template <int D>
__device__ __forceinline__ int chunk_at(int row, int chunk) {
    return row * D + ((chunk ^ (row & 7)) * PACK);
}

// ROWS rows of D elements, `stride` apart, by the whole block; zeros from row `valid` on. It may be waited for by cp_async_wait.
template <int D, int ROWS>
__device__ __forceinline__ void copy_tile(u16* tile, const u16* from, i64 stride, int valid) {
    for (int i = threadIdx.x; i < ROWS * (D / PACK); i += blockDim.x) {
        const int row = i / (D / PACK), chunk = i % (D / PACK);
        const bool inside = row < valid;
        cp_async_16(tile + chunk_at<D>(row, chunk), from + (inside ? row * stride : 0) + chunk * PACK, inside);
    }
}

// a of rows row..row+15, columns 8 chunk .. 8 chunk + 15.
template <int D>
__device__ __forceinline__ void load_a(u32 a[4], const u16* tile, int row, int chunk) {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4(a, tile + chunk_at<D>(row + lane % 16, chunk + lane / 16));
}

// Two b of the transposed tile: its columns are the tile's rows column..column+7 (b[0], b[1]) and the next eight (b[2], b[3]),
// its rows the tile's columns 8 chunk .. 8 chunk + 15.
template <int D>
__device__ __forceinline__ void load_b_transposed(u32 b[4], const u16* tile, int column, int chunk) {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4(b, tile + chunk_at<D>(column + lane % 8 + lane / 16 * 8, chunk + lane / 8 % 2));
}

// Two b of the tile itself: rows row..row+15, columns 8 chunk .. 8 chunk + 7 (b[0], b[1]) and the next eight (b[2], b[3]).
template <int D>
__device__ __forceinline__ void load_b(u32 b[4], const u16* tile, int row, int chunk) {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4_trans(b, tile + chunk_at<D>(row + lane % 16, chunk + lane / 16));
}
