// Rows of f32 whatever the element type, eight at a time, and the largest of a block. It follows prelude.cuh.

#define LOG2_E 1.4426950408889634f

// p is 16-byte aligned.
__device__ __forceinline__ void load_floats(const float* p, float v[PACK]) {
    const float4 lo = *(const float4*)p, hi = *((const float4*)p + 1);
    v[0] = lo.x; v[1] = lo.y; v[2] = lo.z; v[3] = lo.w;
    v[4] = hi.x; v[5] = hi.y; v[6] = hi.z; v[7] = hi.w;
}

__device__ __forceinline__ void store_floats(float* p, const float v[PACK]) {
    *(float4*)p = make_float4(v[0], v[1], v[2], v[3]);
    *((float4*)p + 1) = make_float4(v[4], v[5], v[6], v[7]);
}

// Elements of a pack that are inside the row: all but at its end.
__device__ __forceinline__ int inside(int column, int V) { return min(V - column, PACK); }

__device__ __forceinline__ float block_max(float x, float* scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
#pragma unroll
    for (int other = WARP / 2; other > 0; other /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, other));
    __syncthreads();
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = lane < warps ? scratch[lane] : scratch[0];
#pragma unroll
    for (int other = WARP / 2; other > 0; other /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, other));
    return x;
}
