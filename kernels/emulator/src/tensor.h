// Warp-wide instructions of the tensor cores, as the PTX manual lays out their fragments; marked (PTX) as in shim.h.

namespace emulated {

struct Product { float* c; const unsigned* a; const unsigned* b; };
struct Rows { const void* row; unsigned* registers; };

inline float half_of(unsigned pair, unsigned high) {
    return __uint_as_float(high ? pair & 0xffff0000u : pair << 16);
}

// Register r of a lane holds two elements of a 16 x 16 matrix: rows lane/4 + 8 (r&1), columns 2 (lane%4) + 8 (r>>1).
inline void product_of_warp(void** lanes) {
    need_warp(lanes, "mma");
    float a[16][16], b[16][8], c[16][8];
    for (unsigned lane = 0; lane < LANES; lane++) {
        const Product& mine = *(Product*)lanes[lane];
        const unsigned g = lane / 4, t = lane % 4 * 2;
        for (unsigned half = 0; half < 2; half++) {
            for (unsigned r = 0; r < 4; r++) a[g + r % 2 * 8][t + r / 2 * 8 + half] = half_of(mine.a[r], half);
            for (unsigned r = 0; r < 2; r++) b[t + r * 8 + half][g] = half_of(mine.b[r], half);
            for (unsigned r = 0; r < 2; r++) c[g + r * 8][t + half] = mine.c[r * 2 + half];
        }
    }
    for (unsigned m = 0; m < 16; m++)
        for (unsigned k = 0; k < 16; k++)
            for (unsigned n = 0; n < 8; n++) c[m][n] += a[m][k] * b[k][n];
    for (unsigned lane = 0; lane < LANES; lane++)
        for (unsigned r = 0; r < 4; r++)
            ((Product*)lanes[lane])->c[r] = c[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2];
}

// Lane 8 i + j has the address of row j of matrix i, 8 x 8 elements of 2 bytes; register i of each lane gets two of them.
template <bool TRANSPOSED> void load_matrices(void** lanes) {
    need_warp(lanes, "ldmatrix");
    for (unsigned i = 0; i < 4; i++) {
        unsigned short matrix[8][8];
        for (unsigned j = 0; j < 8; j++) {
            const void* row = ((Rows*)lanes[8 * i + j])->row;
            if ((size_t)row % 16) fail("ldmatrix off its alignment");
            memcpy(matrix[j], row, 16);
        }
        for (unsigned lane = 0; lane < LANES; lane++) {
            const unsigned g = lane / 4, t = lane % 4 * 2;
            const unsigned low = TRANSPOSED ? matrix[t][g] : matrix[g][t];
            const unsigned high = TRANSPOSED ? matrix[t + 1][g] : matrix[g][t + 1];
            ((Rows*)lanes[lane])->registers[i] = low | high << 16;
        }
    }
}

}  // namespace emulated

// (PTX) mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32: c += a b.
__device__ inline void mma_m16n8k16_bf16(float c[4], const unsigned a[4], const unsigned b[2]) {
    emulated::Product data{c, a, b};
    emulated::collective("mma", 0xffffffffu, &data, emulated::product_of_warp);
}

// (PTX) ldmatrix.sync.aligned.m8n8.x4.shared.b16
__device__ inline void ldmatrix_x4(unsigned r[4], const void* shared_row_ptr) {
    emulated::Rows data{shared_row_ptr, r};
    emulated::collective("ldmatrix", 0xffffffffu, &data, emulated::load_matrices<false>);
}

// (PTX) ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16
__device__ inline void ldmatrix_x4_trans(unsigned r[4], const void* shared_row_ptr) {
    emulated::Rows data{shared_row_ptr, r};
    emulated::collective("ldmatrix.trans", 0xffffffffu, &data, emulated::load_matrices<true>);
}
