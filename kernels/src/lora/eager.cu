// What PEFT does between the products of an adapter, each alone; the contract is in mod.rs, the order in cuda_eager.rs. A thread
// has eight elements of rows of `columns` packs, which lie `_stride` elements apart.

struct Place {
    u32 row, column;
    bool inside;
};

__device__ __forceinline__ Place own_place(u32 packs, u32 columns) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x, row = i / columns;
    return Place{row, (i - row * columns) * PACK, i < packs};
}

extern "C" __global__ void lora_eager_mul(const elem* __restrict__ from, i64 from_stride, elem* __restrict__ to, i64 to_stride,
                                          u32 packs, u32 columns, float factor) {
    const Place at = own_place(packs, columns);
    if (!at.inside) return;
    float v[PACK];
    unpack(load_pack(from + at.row * from_stride + at.column), v);
#pragma unroll
    for (int j = 0; j < PACK; j++) v[j] *= factor;
    store_pack(to + at.row * to_stride + at.column, pack_of(v));
}

extern "C" __global__ void lora_eager_add(const elem* __restrict__ from, i64 from_stride, elem* __restrict__ to, i64 to_stride,
                                          u32 packs, u32 columns) {
    const Place at = own_place(packs, columns);
    if (!at.inside) return;
    elem* sum = to + at.row * to_stride + at.column;
    float v[PACK], old[PACK];
    unpack(load_pack(from + at.row * from_stride + at.column), v);
    unpack(load_pack(sum), old);
#pragma unroll
    for (int j = 0; j < PACK; j++) v[j] += old[j];
    store_pack(sum, pack_of(v));
}
