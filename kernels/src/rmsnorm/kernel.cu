// RMSNorm; the contract is in mod.rs. D is a multiple of 8.
//
// A row lies in the registers of one warp (D <= 1024) or of one block, PACKS packs a lane, so that it is read once.

#define PACKS 4

// Column of pack i of this lane in a row that `warps` warps share; consecutive lanes have consecutive packs.
__device__ __forceinline__ int column(int i, int warps) {
    const int lane = threadIdx.x % WARP, warp = warps == 1 ? 0 : threadIdx.x / WARP;
    return ((i * warps + warp) * WARP + lane) * PACK;
}

__device__ __forceinline__ float row_sum(float x, int warps, float* scratch) {
    return warps == 1 ? warp_sum(x) : block_sum(x, scratch);
}

// Rows of a block are its warps (warps == 1) or the block itself.
__device__ __forceinline__ i64 first_row(int warps) {
    return warps == 1 ? (i64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP : blockIdx.x;
}

// sum_TD = x_TD + delta_TD where ADD, else x itself; y_TD = norm(sum) * w_D.
template <bool ADD>
__device__ __forceinline__ void forward(const elem* x_TD, const elem* delta_TD, elem* sum_TD, const elem* w_D, elem* y_TD,
                                        float* rstd_T, i64 T, int D, int warps, float eps) {
    __shared__ float scratch[WARP];
    const i64 t = first_row(warps);
    if (t >= T) return;  // whole warps, and whole blocks where a row has several
    const i64 row = t * D;
    Pack x[PACKS], delta[PACKS];
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const int c = column(i, warps);
        if (c < D) {
            x[i] = load_pack(x_TD + row + c);
            if (ADD) delta[i] = load_pack(delta_TD + row + c);
        }
    }
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const int c = column(i, warps);
        if (c >= D) continue;
        float v[PACK];
        unpack(x[i], v);
        if (ADD) {
            float d[PACK];
            unpack(delta[i], d);
#pragma unroll
            for (int j = 0; j < PACK; j++) v[j] += d[j];
            // What is normalised is the sum as it is stored.
            x[i] = pack_of(v);
            store_pack(sum_TD + row + c, x[i]);
            unpack(x[i], v);
        }
#pragma unroll
        for (int j = 0; j < PACK; j++) squares += v[j] * v[j];
    }
    const float rstd = rsqrtf(row_sum(squares, warps, scratch) / (float)D + eps);
    if (column(0, warps) == 0) rstd_T[t] = rstd;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const int c = column(i, warps);
        if (c >= D) continue;
        float v[PACK], w[PACK];
        unpack(x[i], v);
        unpack(load_pack(w_D + c), w);
#pragma unroll
        for (int j = 0; j < PACK; j++) v[j] = v[j] * rstd * w[j];
        store_pack(y_TD + row + c, pack_of(v));
    }
}

extern "C" __global__ void rmsnorm_forward(const elem* __restrict__ x_TD, const elem* __restrict__ w_D, elem* __restrict__ y_TD,
                                           float* __restrict__ rstd_T, i64 T, int D, int warps, float eps) {
    forward<false>(x_TD, nullptr, nullptr, w_D, y_TD, rstd_T, T, D, warps, eps);
}

// sum_TD may be x_TD: a lane reads what it overwrites.
extern "C" __global__ void rmsnorm_add_forward(const elem* x_TD, const elem* __restrict__ delta_TD, elem* sum_TD,
                                               const elem* __restrict__ w_D, elem* __restrict__ y_TD,
                                               float* __restrict__ rstd_T, i64 T, int D, int warps, float eps) {
    forward<true>(x_TD, delta_TD, sum_TD, w_D, y_TD, rstd_T, T, D, warps, eps);
}

// 512 threads of the backward pass on a multiprocessor: fewer leave memory idle. In f32 the packs alone take the registers.
#ifdef ELEM_F32
#define BACKWARD_BOUNDS __launch_bounds__(256)
#else
#define BACKWARD_BOUNDS __launch_bounds__(256, 2)
#endif

// dx_TD (=, or += where `accumulate`) and the block's part of dw: part_GD[blockIdx.x], summed over its rows in order. The
// grid strides over the rows. Dynamic shared memory: D floats for each row of a block that has several.
extern "C" __global__ void BACKWARD_BOUNDS rmsnorm_backward(const elem* __restrict__ dy_TD, const elem* __restrict__ x_TD,
                                            const float* __restrict__ rstd_T, const elem* __restrict__ w_D,
                                            elem* __restrict__ dx_TD, float* __restrict__ part_GD, i64 T, int D, int warps,
                                            int accumulate) {
    __shared__ float scratch[WARP];
    extern __shared__ __align__(16) float shared[];
    const int rows = warps == 1 ? blockDim.x / WARP : 1;
    float dw[PACKS][PACK] = {};
    for (i64 t = first_row(warps); t < T; t += (i64)gridDim.x * rows) {
        const i64 row = t * D;
        Pack x[PACKS], dy[PACKS], old[PACKS];
#pragma unroll
        for (int i = 0; i < PACKS; i++) {
            const int c = column(i, warps);
            if (c < D) {
                x[i] = load_pack(x_TD + row + c);
                dy[i] = load_pack(dy_TD + row + c);
                if (accumulate) old[i] = load_pack(dx_TD + row + c);
            }
        }
        const float rstd = rstd_T[t];
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < PACKS; i++) {
            const int c = column(i, warps);
            if (c >= D) continue;
            float v[PACK], g[PACK], w[PACK];
            unpack(x[i], v);
            unpack(dy[i], g);
            unpack(load_pack(w_D + c), w);
#pragma unroll
            for (int j = 0; j < PACK; j++) {
                dot += g[j] * w[j] * v[j];
                dw[i][j] += g[j] * v[j] * rstd;
            }
        }
        const float shrink = row_sum(dot, warps, scratch) * rstd * rstd * rstd / (float)D;
#pragma unroll
        for (int i = 0; i < PACKS; i++) {
            const int c = column(i, warps);
            if (c >= D) continue;
            float v[PACK], g[PACK], w[PACK], dx[PACK];
            unpack(x[i], v);
            unpack(dy[i], g);
            unpack(load_pack(w_D + c), w);
#pragma unroll
            for (int j = 0; j < PACK; j++) dx[j] = rstd * g[j] * w[j] - v[j] * shrink;
            if (accumulate) {
                unpack(old[i], v);
#pragma unroll
                for (int j = 0; j < PACK; j++) dx[j] += v[j];
            }
            store_pack(dx_TD + row + c, pack_of(dx));
        }
    }
    if (!part_GD) return;
    float* const part_D = part_GD + (i64)blockIdx.x * D;
    // A row of several warps is the block's own. Rows of single warps meet in shared memory and are added in their order.
    float* const own_D = rows == 1 ? part_D : shared + threadIdx.x / WARP * D;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const int c = column(i, warps);
        if (c >= D) continue;
        *(float4*)(own_D + c) = make_float4(dw[i][0], dw[i][1], dw[i][2], dw[i][3]);
        *(float4*)(own_D + c + 4) = make_float4(dw[i][4], dw[i][5], dw[i][6], dw[i][7]);
    }
    if (rows == 1) return;
    __syncthreads();
    for (int c = 4 * threadIdx.x; c < D; c += 4 * blockDim.x) {
        float4 sum = *(const float4*)(shared + c);
        for (int other = 1; other < rows; other++) {
            const float4 more = *(const float4*)(shared + other * D + c);
            sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
        }
        *(float4*)(part_D + c) = sum;
    }
}

// dw_D += sum of the G rows of part_GD. A block has 32 columns; its warps take every warps-th row and then add up in order.
extern "C" __global__ void rmsnorm_dweight(const float* __restrict__ part_GD, float* __restrict__ dw_D, int G, int D) {
    __shared__ float partial[WARP][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int c = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (c < D) {
        // Four loads in flight: the additions wait for memory, not for each other's loads.
#pragma unroll 4
        for (int g = warp; g < G; g += warps) sum += part_GD[(i64)g * D + c];
    }
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || c >= D) return;
    for (int other = 1; other < warps; other++) sum += partial[other][lane];
    dw_D[c] += sum;
}
