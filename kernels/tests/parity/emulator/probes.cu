// Kernels that use all that the emulator emulates.

// out_I: what each of the 32 lanes gets from each collective.
extern "C" __global__ void collectives(int* out) {
    const int lane = threadIdx.x;
    int* at = out + lane * 10;
    at[0] = __shfl_xor_sync(ALL_LANES, lane, 5);
    at[1] = __shfl_sync(ALL_LANES, lane, 7, 16);
    at[2] = __shfl_up_sync(ALL_LANES, lane, 3, 8);
    at[3] = __shfl_down_sync(ALL_LANES, lane, 3);
    at[4] = (int)__ballot_sync(ALL_LANES, lane % 3 == 0);
    at[5] = __any_sync(ALL_LANES, lane == 9);
    at[6] = __all_sync(ALL_LANES, lane != 9);
    // Halves that go ways of their own.
    if (lane < 16) {
        at[7] = __shfl_sync(0x0000ffffu, lane, 3);
        at[7] += __shfl_xor_sync(0x0000ffffu, lane, 1);
    } else {
        at[7] = (int)__ballot_sync(0xffff0000u, lane % 2);
    }
    __syncwarp();
    if (lane >= 20) return;
    at[8] = (int)__ballot_sync(ALL_LANES, 1);
    at[9] = __all_sync(0x000fffffu, 1);
}

// Threads leave one by one; those that remain meet at barriers. out_I[i]: how many met at barrier i.
extern "C" __global__ void leaving(int* out, int barriers) {
    for (int i = 0; i < barriers; i++) {
        if ((int)threadIdx.x == i * 7) return;
        const int met = __syncthreads_count(1);
        const int any = __syncthreads_or(threadIdx.x == 1), all = __syncthreads_and(threadIdx.x == 1);
        if (threadIdx.x == blockDim.x - 1) out[i] = met * 4 + any * 2 + all;
    }
}

// out_B[block]: whether shared memory was NaN when the block began, and the sum over the block.
extern "C" __global__ void shared_memory(float* out) {
    __shared__ float sums[WARP];
    extern __shared__ __align__(16) float dynamic[];
    const bool fresh = isnan(sums[threadIdx.x % WARP]) && isnan(dynamic[threadIdx.x]);
    const int all = __syncthreads_and(fresh);
    dynamic[threadIdx.x] = threadIdx.x;
    __syncthreads();
    const float sum = block_sum(dynamic[blockDim.x - 1 - threadIdx.x], sums);
    if (threadIdx.x == 0) out[blockIdx.y * gridDim.x + blockIdx.x] = all ? sum : -1.0f;
}

// out_C[0..4]: each 16 bytes of `in`, read before and after the wait for its group.
extern "C" __global__ void copies(const float* in, float* out) {
    __shared__ __align__(16) float tile[12];
    cp_async_16(tile, in);
    cp_async_commit();
    cp_async_16(tile + 4, in + 4);
    cp_async_16(tile + 8, in, false);
    cp_async_commit();
    out[0] = tile[0];
    cp_async_wait<1>();
    out[1] = tile[0], out[2] = tile[4];
    cp_async_wait<0>();
    out[3] = tile[4], out[4] = tile[8];
}

// c_MN = a_MK b_NK', all 16 x 8 x K, by one warp. b goes through shared memory, as b_NK or, `transposed`, as b_KN.
extern "C" __global__ void product(const u16* a_MK, const u16* b, float* c_MN, int K, int transposed) {
    __shared__ __align__(16) u16 tile_a[16][24];
    __shared__ __align__(16) u16 tile_b[16][24];
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4 * 2;
    float c[4] = {};
    for (int k = 0; k < K; k += 16) {
        __syncwarp();
        for (int i = lane; i < 256; i += WARP) {
            tile_a[i / 16][i % 16] = a_MK[i / 16 * K + k + i % 16];
            if (transposed && i % 16 < 8) tile_b[i / 16][i % 16] = b[(k + i / 16) * 8 + i % 16];
            if (!transposed && i / 16 < 8) tile_b[i / 16][i % 16] = b[i / 16 * K + k + i % 16];
        }
        __syncwarp();
        u32 a[4], both[4];
        // Matrices in the order of the registers: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15.
        ldmatrix_x4(a, &tile_a[lane % 16][lane / 16 * 8]);
        if (transposed) ldmatrix_x4_trans(both, &tile_b[lane % 16][0]);
        else ldmatrix_x4(both, &tile_b[lane % 8][lane / 8 % 2 * 8]);
        mma_m16n8k16_bf16(c, a, both);
    }
    for (int r = 0; r < 4; r++) c_MN[(g + r / 2 * 8) * 8 + t + r % 2] = c[r];
}

// The faults.

extern "C" __global__ void write_at(float* to, int i) {
    to[i] = 1.0f;
}

extern "C" __global__ void write_shared(float* out, int i, int j) {
    __shared__ float fixed[8];
    extern __shared__ float dynamic[];
    fixed[i] = 1.0f;
    dynamic[j] = 2.0f;
    out[0] = fixed[i] + dynamic[j];
}

extern "C" __global__ void misaligned(const float* in, float* out) {
    out[0] = ((const float4*)(in + 1))->x;
}

// Half of the block waits for the other half, which waits for its warp's first lane, which waits with the first half.
extern "C" __global__ void deadlock(float* out) {
    if (threadIdx.x % WARP < 16) __syncthreads();
    else out[0] = __shfl_sync(ALL_LANES, 1.0f, 0);
}

extern "C" __global__ void mixed(int* out) {
    if (threadIdx.x % 2) out[0] = __any_sync(ALL_LANES, 1);
    else out[0] = __all_sync(ALL_LANES, 1);
}

// out_B[block] += what each of two warps gets: 1 + 2 times the sum of 0 to 63, if all have read before one writes again.
extern "C" __global__ void hasty(float* out, int barrier) {
    __shared__ float sums[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float total = 0.0f;
    for (int round = 0; round < 2; round++) {
        const float sum = warp_sum(threadIdx.x) * (1 + round);
        if (lane == 0) sums[warp] = sum;
        __syncthreads();
        total += sums[0] + sums[1];
        if (barrier) __syncthreads();
    }
    if (lane == 0) atomicAdd(out + blockIdx.x, total);
}
