// SwiGLU; the contract is in mod.rs. F is a multiple of 8.
//
// A thread takes PACKS packs of the activation, a block's width apart, and has all their operands on the way before it
// uses one. Row ends mean nothing to it: a short row leaves no lane idle.

#define PACKS 2

// Pack i of this thread, counted over act_TF.
__device__ __forceinline__ u32 pack_index(int i) { return (blockIdx.x * PACKS + i) * blockDim.x + threadIdx.x; }

// Element of gate_up_T2F where the gate of pack p lies, `row` packs being a row of act_TF; its up is a row further.
__device__ __forceinline__ i64 gate_index(u32 p, u32 row) { return ((i64)p + (i64)(p / row) * row) * PACK; }

// act_TF = silu(gate) * up; `packs` in all.
extern "C" __global__ void swiglu_forward(const elem* __restrict__ gate_up_T2F, elem* __restrict__ act_TF, u32 packs, u32 row) {
    Pack gate[PACKS], up[PACKS];
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const u32 p = pack_index(i);
        if (p >= packs) continue;
        const elem* at = gate_up_T2F + gate_index(p, row);
        gate[i] = load_pack(at);
        up[i] = load_pack(at + (i64)row * PACK);
    }
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const u32 p = pack_index(i);
        if (p >= packs) continue;
        float g[PACK], u[PACK];
        unpack(gate[i], g);
        unpack(up[i], u);
#pragma unroll
        for (int j = 0; j < PACK; j++) g[j] = g[j] * sigmoid(g[j]) * u[j];
        store_pack(act_TF + (i64)p * PACK, pack_of(g));
    }
}

// Replaces gate_up_T2F by its gradient: a thread has read what it overwrites, and no other reads it.
extern "C" __global__ void swiglu_backward(elem* __restrict__ gate_up_T2F, const elem* __restrict__ dact_TF, u32 packs,
                                           u32 row) {
    Pack gate[PACKS], up[PACKS], dact[PACKS];
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const u32 p = pack_index(i);
        if (p >= packs) continue;
        const elem* at = gate_up_T2F + gate_index(p, row);
        gate[i] = load_pack(at);
        up[i] = load_pack(at + (i64)row * PACK);
        dact[i] = load_pack(dact_TF + (i64)p * PACK);
    }
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const u32 p = pack_index(i);
        if (p >= packs) continue;
        float g[PACK], u[PACK], da[PACK];
        unpack(gate[i], g);
        unpack(up[i], u);
        unpack(dact[i], da);
#pragma unroll
        for (int j = 0; j < PACK; j++) {
            const float s = sigmoid(g[j]), silu = g[j] * s;
            // s (1 + g (1 - s)) = s + silu (1 - s)
            g[j] = da[j] * u[j] * (s + silu * (1.0f - s));
            u[j] = da[j] * silu;
        }
        elem* at = gate_up_T2F + gate_index(p, row);
        store_pack(at, pack_of(g));
        store_pack(at + (i64)row * PACK, pack_of(u));
    }
}
