// Rows of f32 whatever the element type, and the largest of a block. It follows prelude.cuh.

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
