// Copies in another element type, eight elements a thread, as PyTorch's `.float()` and `.to(bf16)` make them.

__device__ __forceinline__ i64 own_pack() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }

extern "C" __global__ void cast_to_f32(const elem* __restrict__ from, float* __restrict__ to, i64 packs) {
    const i64 i = own_pack();
    if (i >= packs) return;
    float v[PACK];
    unpack(load_pack(from + i * PACK), v);
    store_floats(to + i * PACK, v);
}

extern "C" __global__ void cast_to_elem(const float* __restrict__ from, elem* __restrict__ to, i64 packs) {
    const i64 i = own_pack();
    if (i >= packs) return;
    float v[PACK];
    load_floats(from + i * PACK, v);
    store_pack(to + i * PACK, pack_of(v));
}
