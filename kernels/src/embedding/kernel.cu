// Embedding; the contract is in mod.rs, the index of a batch in cuda.rs. D is a multiple of 8.

// Packs of a thread, a block apart: as many rows in flight.
#define PACKS 4

// x_TD[t] = table_VD[ids_T[t]]. T * D / 8 fits an int.
extern "C" __global__ void embedding_gather(const int* __restrict__ ids_T, const elem* __restrict__ table_VD,
                                            elem* __restrict__ x_TD, int T, int D) {
    const u32 packs = D / PACK, count = (u32)T * packs;
    const u32 first = blockIdx.x * blockDim.x * PACKS + threadIdx.x;
    i64 from[PACKS];
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        const u32 i = first + k * blockDim.x;
        // Past the end the last pack is read, not written.
        const u32 at = i < count ? i : count - 1, t = at / packs;
        from[k] = (i64)ids_T[t] * D + (at - t * packs) * PACK;
    }
    Pack pack[PACKS];
#pragma unroll
    for (int k = 0; k < PACKS; k++) pack[k] = load_pack(table_VD + from[k]);
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        const u32 i = first + k * blockDim.x;
        if (i < count) store_pack(x_TD + (i64)i * PACK, pack[k]);
    }
}

// Rows in flight.
#define ROWS 8

// The batch's index: pieces, long ids, 0, 0; order_T; T pieces of three (begin and end in `order`, target); long ids of
// three (begin and end in part_GD, id). Block i sums the rows of piece i in order, into the row `target` of dtable_VD (+=)
// or, if it is negative, into the row -1 - target of part_GD (=).
extern "C" __global__ void embedding_scatter(const int* __restrict__ index, const elem* __restrict__ dx_TD,
                                             float* __restrict__ dtable_VD, float* __restrict__ part_GD, int T, int D) {
    if ((int)blockIdx.x >= index[0]) return;
    const int* order_T = index + 4;
    const int* piece = order_T + T + 3 * (i64)blockIdx.x;
    const int begin = piece[0], end = piece[1], target = piece[2];
    float* to = target >= 0 ? dtable_VD + (i64)target * D : part_GD + (i64)(-1 - target) * D;
    for (int c = threadIdx.x * PACK; c < D; c += blockDim.x * PACK) {
        float sum[PACK] = {};
        int i = begin;
        for (; i + ROWS <= end; i += ROWS) {
            Pack rows[ROWS];
#pragma unroll
            for (int k = 0; k < ROWS; k++) rows[k] = load_pack(dx_TD + (i64)order_T[i + k] * D + c);
#pragma unroll
            for (int k = 0; k < ROWS; k++) {
                float row[PACK];
                unpack(rows[k], row);
#pragma unroll
                for (int j = 0; j < PACK; j++) sum[j] += row[j];
            }
        }
        for (; i < end; i++) {
            float row[PACK];
            unpack(load_pack(dx_TD + (i64)order_T[i] * D + c), row);
#pragma unroll
            for (int j = 0; j < PACK; j++) sum[j] += row[j];
        }
        if (target >= 0) add_floats(to + c, sum);
        store_floats(to + c, sum);
    }
}

// dtable_VD[id] += its pieces, in order: block i for long id i.
extern "C" __global__ void embedding_combine(const int* __restrict__ index, const float* __restrict__ part_GD,
                                             float* __restrict__ dtable_VD, int T, int D) {
    if ((int)blockIdx.x >= index[1]) return;
    const int* span = index + 4 + 4 * (i64)T + 3 * (i64)blockIdx.x;
    const int begin = span[0], end = span[1];
    float* to = dtable_VD + (i64)span[2] * D;
    for (int c = threadIdx.x * PACK; c < D; c += blockDim.x * PACK) {
        float sum[PACK] = {};
#pragma unroll 8
        for (int i = begin; i < end; i++) add_floats(part_GD + (i64)i * D + c, sum);
        add_floats(to + c, sum);
        store_floats(to + c, sum);
    }
}
