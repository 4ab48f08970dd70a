// Backward pass; it follows kernel.cu.
#line 3 "qk_rope/backward.cu"

// What the backward pass of QK-norm has besides the packed rows.
struct NormBackward {
    const elem *q_weight_K, *k_weight_K;
    const elem* pre_norm;
    const float* rstd;
};

// Gradient (da, db) of a head before the norm from that after it; dw is added to. head < 0: only the part in the sums.
__device__ __forceinline__ void norm_head_backward(float da[PACK], float db[PACK], const Pack u[2], const Pack w[2],
                                                   float rstd, float dw[2][PACK], const Extent& e, bool live) {
    float dot = 0.0f;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (!live) continue;
        float* d = half == 0 ? da : db;
        float v[PACK], scale[PACK];
        unpack(u[half], v);
        unpack(w[half], scale);
#pragma unroll
        for (int j = 0; j < PACK; j++) {
            dw[half][j] += d[j] * rstd * v[j];
            d[j] *= scale[j];
            dot += d[j] * v[j];
        }
    }
    const float shrink = head_sum(dot, e.lanes) * rstd * rstd * rstd / (float)e.K;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (!live) continue;
        float* d = half == 0 ? da : db;
        float v[PACK];
        unpack(u[half], v);
#pragma unroll
        for (int j = 0; j < PACK; j++) d[j] = rstd * d[j] - v[j] * shrink;
    }
}

// part_Q, a row of a block: sums over its tokens, in order. Every thread of the block takes a share of the sums.
__device__ __forceinline__ void store_bias(const float db[HEADS][2][PACK], float* part_Q, const Extent& e, const Place& at,
                                           float4 quads[HEADS * 4][THREADS], int columns[HEADS][THREADS]) {
    const int width = e.slots * e.lanes;
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
        columns[i][threadIdx.x] = at.head[i] < 0 ? -1 : column(e, at, at.head[i], 0);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float* d = db[i][half];
            quads[i * 4 + half * 2][threadIdx.x] = make_float4(d[0], d[1], d[2], d[3]);
            quads[i * 4 + half * 2 + 1][threadIdx.x] = make_float4(d[4], d[5], d[6], d[7]);
        }
    }
    __syncthreads();
    for (int o = threadIdx.x; o < HEADS * 4 * width; o += blockDim.x) {
        const int quad = o / width, thread = o - quad * width, c = columns[quad / 4][thread];
        if (c < 0) continue;
        float4 sum = quads[quad][thread];
#pragma unroll 4
        for (int row = 1; row < e.rows; row++) sum = plus(sum, quads[quad][row * width + thread]);
        *(float4*)(part_Q + c + quad / 2 % 2 * (e.K / 2) + quad % 2 * 4) = sum;
    }
}

// part_2K, a row of a block: q's sums over its tokens and slots, in order, then k's.
__device__ __forceinline__ void store_weights(const float dw[2][PACK], float* part_2K, const Extent& e,
                                              float shared[PACK][SHARED_ROW]) {
    const int q_slots = (e.H + HEADS - 1) / HEADS, kv_slots = (e.G + HEADS - 1) / HEADS;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < PACK; j++) shared[j][threadIdx.x] = dw[half][j];
        __syncthreads();
#pragma unroll 1
        for (int o = threadIdx.x; o < e.K; o += blockDim.x) {
            const int side = o / (e.K / 2), c = o % (e.K / 2);
            // The block's slots of that side.
            const int before = (int)blockIdx.y * e.slots;
            const int begin = max(side == 0 ? -before : q_slots - before, 0);
            const int end = min((side == 0 ? q_slots : q_slots + kv_slots) - before, e.slots);
            float sum = 0.0f;
            for (int row = 0; row < e.rows; row++) {
#pragma unroll 4
                for (int slot = begin; slot < end; slot++)
                    sum += shared[c % PACK][(row * e.slots + slot) * e.lanes + c / PACK];
            }
            part_2K[side * e.K + half * (e.K / 2) + c] = sum;
        }
    }
}

// What was normalised: both packs of the thread's heads, and their rstd.
__device__ __forceinline__ void load_saved(const NormBackward& n, const Extent& e, const Place& at, i64 t, Pack u[HEADS][2],
                                           float rstd[HEADS]) {
    load_heads(n.pre_norm + t * (e.H + e.G) * e.K, e, at, u);
#pragma unroll
    for (int i = 0; i < HEADS; i++)
        if (at.head[i] >= 0) rstd[i] = n.rstd[t * (e.H + e.G) + at.head[i]];
}

// The grid strides over the tokens. dbias and dw are the thread's sums.
template <bool BIAS, bool NORM>
__device__ __forceinline__ void backward_rows(elem* dqkv_TQ, const NormBackward& norm, const Rotation& rotation,
                                              const Extent& e, const Place& at, float dbias[HEADS][2][PACK],
                                              float dw[2][PACK]) {
    const bool turns = at.head[0] >= 0 && at.side < 2;
    Pack w[2];
    if (NORM && turns) {
        const elem* weight = at.side == 0 ? norm.q_weight_K : norm.k_weight_K;
        w[0] = load_pack(weight + at.lane);
        w[1] = load_pack(weight + e.K / 2 + at.lane);
    }
    const i64 stride = (i64)gridDim.x * e.rows;
    i64 t = (i64)blockIdx.x * e.rows + at.row;
    // A token ahead, so that its angles need not wait for it.
    u32 position = turns && t < e.T ? rotation.positions_T[t] : 0;
    for (i64 first = (i64)blockIdx.x * e.rows; first < e.T; first += stride, t += stride) {
        const bool inside = t < e.T, rotates = inside && turns;
        elem* row = dqkv_TQ + t * packed(e);
        Pack d[HEADS][2], u[HEADS][2];
        float rstd[HEADS] = {}, cos[PACK], sin[PACK];
        if (inside) load_heads(row, e, at, d);
        if (rotates) {
            if (NORM) load_saved(norm, e, at, t, u, rstd);
            load_angles(rotation, e, at, position, cos, sin);
        }
        if (turns && t + stride < e.T) position = rotation.positions_T[t + stride];
        fetch_tokens(dqkv_TQ, first + stride, e);
#pragma unroll
        for (int i = 0; i < HEADS; i++) {
            const int head = inside ? at.head[i] : -1;
            float da[PACK], db[PACK];
            if (head >= 0) {
                unpack(d[i][0], da);
                unpack(d[i][1], db);
                if (rotates) rotate(da, db, cos, sin, -1.0f);
            }
            if (NORM) norm_head_backward(da, db, u[i], w, rstd[i], dw, e, head >= 0 && rotates);
            if (head < 0) continue;
            if (BIAS) {
#pragma unroll
                for (int j = 0; j < PACK; j++) {
                    dbias[i][0][j] += da[j];
                    dbias[i][1][j] += db[j];
                }
            }
            if (!rotates) continue;
            store_pack(row + column(e, at, head, 0), pack_of(da));
            store_pack(row + column(e, at, head, 1), pack_of(db));
        }
    }
}

// part_GQ (BIAS) and part_G2K (NORM; may be null) get a row from each block.
template <bool BIAS, bool NORM>
__device__ __forceinline__ void backward(elem* dqkv_TQ, float* part_GQ, float* part_G2K, const NormBackward& norm,
                                         const Rotation& rotation, const Extent& e) {
    __shared__ float shared[PACK][SHARED_ROW];
    __shared__ float4 quads[BIAS ? HEADS * 4 : 1][THREADS];
    __shared__ int columns[HEADS][THREADS];
    release_successor();
    const Place at = place(e, BIAS ? 3 : 2);
    float dbias[HEADS][2][PACK] = {}, dw[2][PACK] = {};
    backward_rows<BIAS, NORM>(dqkv_TQ, norm, rotation, e, at, dbias, dw);
    if (BIAS) store_bias(dbias, part_GQ + (i64)blockIdx.x * packed(e), e, at, quads, columns);
    const i64 block = (i64)blockIdx.y * gridDim.x + blockIdx.x;
    if (NORM && part_G2K) store_weights(dw, part_G2K + block * 2 * e.K, e, shared);
}

extern "C" __global__ void qk_rope_bias_backward(elem* __restrict__ dqkv_TQ, float* __restrict__ part_GQ, ANGLE_PARAMS,
                                                 EXTENT_PARAMS) {
    backward<true, false>(dqkv_TQ, part_GQ, nullptr, NormBackward{}, ANGLES, EXTENT);
}

extern "C" __global__ void qk_rope_norm_backward(elem* __restrict__ dqkv_TQ, float* __restrict__ part_G2K,
                                                 const elem* __restrict__ q_weight_K, const elem* __restrict__ k_weight_K,
                                                 const elem* __restrict__ pre_norm, const float* __restrict__ rstd,
                                                 ANGLE_PARAMS, EXTENT_PARAMS) {
    backward<false, true>(dqkv_TQ, nullptr, part_G2K, NormBackward{q_weight_K, k_weight_K, pre_norm, rstd}, ANGLES, EXTENT);
}

extern "C" __global__ void qk_rope_bias_norm_backward(elem* __restrict__ dqkv_TQ, float* __restrict__ part_GQ,
                                                      float* __restrict__ part_G2K, const elem* __restrict__ q_weight_K,
                                                      const elem* __restrict__ k_weight_K, const elem* __restrict__ pre_norm,
                                                      const float* __restrict__ rstd, ANGLE_PARAMS, EXTENT_PARAMS) {
    backward<true, true>(dqkv_TQ, part_GQ, part_G2K, NormBackward{q_weight_K, k_weight_K, pre_norm, rstd}, ANGLES, EXTENT);
}

// out[c] += sum of part[g * stride + c] over g < G, c < columns. A block has 8 columns, each warp four rows of them at a
// time: few columns still keep many multiprocessors busy. The order of the sum depends on G and the block's size alone.
extern "C" __global__ void qk_rope_sum(const float* __restrict__ part, float* __restrict__ out, int G, int stride,
                                       int columns) {
    __shared__ float partial[WARP][8];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int c = blockIdx.x * 8 + lane % 8, step = blockDim.x / 8;
    // Nobody ahead writes it.
    const float old = threadIdx.x < 8 && c < columns ? out[c] : 0.0f;
    wait_for_predecessor();
    float sum = 0.0f;
    if (c < columns) {
#pragma unroll 4
        for (int g = threadIdx.x / 8; g < G; g += step) sum += __ldcg(part + (i64)g * stride + c);
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 8);
    sum += __shfl_xor_sync(ALL_LANES, sum, 16);
    if (lane < 8) partial[warp][lane] = sum;
    __syncthreads();
    if (threadIdx.x >= 8 || c >= columns) return;
#pragma unroll 8
    for (int other = 1; other < warps; other++) sum += partial[other][lane];
    out[c] = old + sum;
}
