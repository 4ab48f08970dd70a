// RMSNorm; the contract is in mod.rs. D is a multiple of 8.
//
// A row lies in the registers of one warp (D <= 1024) or of one block, PACKS packs a lane, so that it is read once.

#define PACKS 4

// Column of pack i of this lane in a row that `warps` warps share; consecutive lanes have consecutive packs.
__device__ __forceinline__ int column(int i, int warps) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP % warps;
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

// Sum over the `warps` warps of a row; all threads of the block come here. `turn` alternates between two halves of the
// scratch, so that one barrier does.
__device__ __forceinline__ float rows_sum(float x, int warps, float scratch[2][WARP], int turn) {
    x = warp_sum(x);
    if (warps == 1) return x;
    const int warp = threadIdx.x / WARP, first = warp / warps * warps;
    if (threadIdx.x % WARP == 0) scratch[turn][warp] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < warps; i++) sum += scratch[turn][first + i];
    return sum;
}

// A block's part of dw: the sum over its rows, in order. `shared` has D floats for each row.
__device__ __forceinline__ void store_part(const float dw[PACKS][PACK], float* part_D, float* shared, int D, int warps) {
    const int first_column = column(0, warps), step = warps * WARP * PACK, rows = blockDim.x / WARP / warps;
    float* const own_D = shared + threadIdx.x / WARP / warps * D;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const int c = first_column + i * step;
        if (c >= D) continue;
        *(float4*)(own_D + c) = make_float4(dw[i][0], dw[i][1], dw[i][2], dw[i][3]);
        *(float4*)(own_D + c + 4) = make_float4(dw[i][4], dw[i][5], dw[i][6], dw[i][7]);
    }
    __syncthreads();
    for (int c = 4 * threadIdx.x; c < D; c += 4 * blockDim.x) {
        float4 sum = *(const float4*)(shared + c);
#pragma unroll 8
        for (int row = 1; row < rows; row++) sum = plus(sum, *(const float4*)(shared + row * D + c));
        *(float4*)(part_D + c) = sum;
    }
}

// dx_TD (=, or += where ADD) and the block's part of dw: part_GD[blockIdx.x]. The grid strides over the rows. Dynamic shared
// memory: D floats for each row of a block.
template <bool ADD>
__device__ __forceinline__ void backward(const elem* __restrict__ dy_TD, const elem* __restrict__ x_TD,
                                         const float* __restrict__ rstd_T, const elem* __restrict__ w_D,
                                         elem* __restrict__ dx_TD, float* __restrict__ part_GD, i64 T, int D, int warps) {
    __shared__ float scratch[2][WARP];
    extern __shared__ __align__(16) float shared[];
    const int first_column = column(0, warps), step = warps * WARP * PACK, rows = blockDim.x / WARP / warps;
    Pack w[PACKS];
#pragma unroll
    for (int i = 0; i < PACKS; i++)
        if (first_column + i * step < D) w[i] = load_pack(w_D + first_column + i * step);
    float dw[PACKS][PACK] = {};
    int turn = 0;
    for (i64 first = (i64)blockIdx.x * rows; first < T; first += (i64)gridDim.x * rows, turn ^= 1) {
        const i64 t = first + threadIdx.x / WARP / warps, row = t * D;
        const int end = t < T ? D : 0;
        Pack x[PACKS], dy[PACKS];
#pragma unroll
        for (int i = 0; i < PACKS; i++) {
            const int c = first_column + i * step;
            if (c < end) {
                x[i] = load_pack(x_TD + row + c);
                dy[i] = load_pack(dy_TD + row + c);
                if (ADD) fetch_pack(dx_TD + row + c);  // there are no registers for it yet
            }
        }
        const float rstd = t < T ? rstd_T[t] : 0.0f;
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < PACKS; i++) {
            const int c = first_column + i * step;
            if (c >= end) continue;
            float v[PACK], g[PACK], scale[PACK];
            unpack(x[i], v);
            unpack(dy[i], g);
            unpack(w[i], scale);
#pragma unroll
            for (int j = 0; j < PACK; j++) {
                const float product = g[j] * v[j];
                dot += product * scale[j];
                dw[i][j] += product * rstd;
            }
        }
        const float shrink = rows_sum(dot, warps, scratch, turn) * rstd * rstd * rstd / (float)D;
        // One pack ahead.
        Pack old, next;
        if (ADD && first_column < end) next = load_pack_late(dx_TD + row + first_column);
#pragma unroll
        for (int i = 0; i < PACKS; i++) {
            const int c = first_column + i * step;
            if (c >= end) continue;
            old = next;
            if (ADD && i + 1 < PACKS && c + step < end) next = load_pack_late(dx_TD + row + c + step);
            float v[PACK], g[PACK], scale[PACK], dx[PACK];
            unpack(x[i], v);
            unpack(dy[i], g);
            unpack(w[i], scale);
#pragma unroll
            for (int j = 0; j < PACK; j++) dx[j] = rstd * g[j] * scale[j] - v[j] * shrink;
            if (ADD) {
                unpack(old, v);
#pragma unroll
                for (int j = 0; j < PACK; j++) dx[j] += v[j];
            }
            store_pack(dx_TD + row + c, pack_of(dx));
        }
    }
    release_successor();
    if (part_GD) store_part(dw, part_GD + (i64)blockIdx.x * D, shared, D, warps);
}

extern "C" __global__ void BACKWARD_BOUNDS rmsnorm_backward(const elem* __restrict__ dy_TD, const elem* __restrict__ x_TD,
                                                            const float* __restrict__ rstd_T, const elem* __restrict__ w_D,
                                                            elem* __restrict__ dx_TD, float* __restrict__ part_GD, i64 T,
                                                            int D, int warps) {
    backward<false>(dy_TD, x_TD, rstd_T, w_D, dx_TD, part_GD, T, D, warps);
}

extern "C" __global__ void BACKWARD_BOUNDS rmsnorm_add_backward(const elem* __restrict__ dy_TD,
                                                                const elem* __restrict__ x_TD,
                                                                const float* __restrict__ rstd_T,
                                                                const elem* __restrict__ w_D, elem* __restrict__ dx_TD,
                                                                float* __restrict__ part_GD, i64 T, int D, int warps) {
    backward<true>(dy_TD, x_TD, rstd_T, w_D, dx_TD, part_GD, T, D, warps);
}

// dw_D += sum of the G rows of part_GD. A block has 8 columns, a sector of memory; its warps take four rows at a time. The
// order of the sum depends on G and the block's size alone.
extern "C" __global__ void rmsnorm_dweight(const float* __restrict__ part_GD, float* __restrict__ dw_D, int G, int D) {
    __shared__ float partial[WARP][PACK];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int c = blockIdx.x * PACK + lane % PACK;
    // Nobody ahead writes it.
    const float old = threadIdx.x < PACK ? dw_D[c] : 0.0f;
    wait_for_predecessor();
    float sum = 0.0f;
#pragma unroll 4
    for (int g = threadIdx.x / PACK; g < G; g += blockDim.x / PACK) sum += __ldcg(part_GD + (i64)g * D + c);
    sum += __shfl_xor_sync(ALL_LANES, sum, 8);
    sum += __shfl_xor_sync(ALL_LANES, sum, 16);
    if (lane < PACK) partial[warp][lane] = sum;
    __syncthreads();
    if (threadIdx.x >= PACK) return;
#pragma unroll 8
    for (int other = 1; other < warps; other++) sum += partial[other][lane];
    dw_D[c] = old + sum;
}
