// QKV bias, QK-norm and rotation; the contract is in mod.rs. K is a multiple of 16, at most 512.
//
// A lane holds a pack of the first half of a head and its partner of the second. `lanes` lanes, a power of two, have a
// head, so that its sums stay in a warp. A thread does this for two heads of the same side (q, k or v) and token: a slot.
// They share cosines and sines, and four packs are on the way before one is used. A block has `rows` tokens times `slots`
// slots; the slots of wide rows are spread over blockIdx.y.

#define HEADS 2
#define THREADS 256
// A row of shared memory by element of a pack: off by four banks from the next, so that packs are read without conflicts.
#define SHARED_ROW (THREADS + 4)

struct Extent {
    i64 T;
    int H, G, K, lanes, slots, rows;
};

// What a thread does, the same for every token.
struct Place {
    int row;          // of the block's tokens
    int side;         // 0 q, 1 k, 2 v
    int lane;         // first element in either half of a head
    int head[HEADS];  // in a packed row; -1 where there is none
};

// Cosines and sines [positions, K/2], and the position of every token.
struct Rotation {
    const float *cos, *sin;
    const u32* positions_T;
};

// What every entry point has: launches pass no structs.
#define EXTENT_PARAMS i64 T, int H, int G, int K, int lanes, int slots, int rows
#define EXTENT Extent{T, H, G, K, lanes, slots, rows}
#define ANGLE_PARAMS const float *__restrict__ cos, const float *__restrict__ sin, const u32 *__restrict__ positions_T
#define ANGLES Rotation{cos, sin, positions_T}

__device__ __forceinline__ int packed(const Extent& e) { return (e.H + 2 * e.G) * e.K; }

// `sides` is 3 where v takes part.
__device__ __forceinline__ Place place(const Extent& e, int sides) {
    const int q_slots = (e.H + HEADS - 1) / HEADS, kv_slots = (e.G + HEADS - 1) / HEADS;
    const int group = (int)threadIdx.x / e.lanes;
    Place at;
    at.row = group / e.slots;
    at.lane = ((int)threadIdx.x - group * e.lanes) * PACK;
    int slot = (int)blockIdx.y * e.slots + (group - at.row * e.slots);
    int base = 0, heads = e.H, step = q_slots;
    at.side = 0;
    if (slot >= q_slots) {
        slot -= q_slots;
        base = e.H, heads = e.G, step = kv_slots;
        at.side = 1;
        if (slot >= kv_slots) {
            slot -= kv_slots;
            base += e.G;
            at.side = 2;
        }
    }
    const bool live = at.row < e.rows && at.lane < e.K / 2 && at.side < sides && slot < step;
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
        // A step apart: neighbouring groups have neighbouring heads.
        const int h = slot + i * step;
        at.head[i] = live && h < heads ? base + h : -1;
    }
    return at;
}

// Element of a packed row where this lane's pack of a half begins.
__device__ __forceinline__ int column(const Extent& e, const Place& at, int head, int half) {
    return head * e.K + half * (e.K / 2) + at.lane;
}

__device__ __forceinline__ void load_floats(const float* p, float v[PACK]) {
    const float4 lo = *(const float4*)p, hi = *((const float4*)p + 1);
    v[0] = lo.x; v[1] = lo.y; v[2] = lo.z; v[3] = lo.w;
    v[4] = hi.x; v[5] = hi.y; v[6] = hi.z; v[7] = hi.w;
}

__device__ __forceinline__ void load_angles(const Rotation& r, const Extent& e, const Place& at, u32 position,
                                            float cos[PACK], float sin[PACK]) {
    const i64 row = (i64)position * (e.K / 2) + at.lane;
    load_floats(r.cos + row, cos);
    load_floats(r.sin + row, sin);
}

// Both packs of the thread's heads in a packed row.
__device__ __forceinline__ void load_heads(const elem* row, const Extent& e, const Place& at, Pack u[HEADS][2]) {
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
        if (at.head[i] < 0) continue;
        u[i][0] = load_pack(row + column(e, at, at.head[i], 0));
        u[i][1] = load_pack(row + column(e, at, at.head[i], 1));
    }
}

// By the angle times `sign`.
__device__ __forceinline__ void rotate(float a[PACK], float b[PACK], const float cos[PACK], const float sin[PACK], float sign) {
#pragma unroll
    for (int j = 0; j < PACK; j++) {
        const float x = a[j], y = b[j], s = sign * sin[j];
        a[j] = x * cos[j] - y * s;
        b[j] = y * cos[j] + x * s;
    }
}

__device__ __forceinline__ void add_pack(float v[PACK], const Pack& pack) {
    float d[PACK];
    unpack(pack, d);
#pragma unroll
    for (int j = 0; j < PACK; j++) v[j] += d[j];
}

// Sum over the lanes of a head; all of the warp come here.
__device__ __forceinline__ float head_sum(float x, int lanes) {
    for (int lane = lanes / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}

// What the forward pass of QK-norm has besides the packed rows.
struct Norm {
    const elem *q_weight_K, *k_weight_K;
    elem* pre_norm;  // T x (H+G)K
    float* rstd;     // T x (H+G)
    float eps;
};

// Norm of a head (a, b), which is saved as it is stored. head < 0: only the lane's part in the sums.
__device__ __forceinline__ void norm_head(float a[PACK], float b[PACK], const Norm& n, const Extent& e, const Place& at,
                                          int head, i64 t) {
    const bool live = head >= 0 && at.side < 2;
    float squares = 0.0f;
    if (live) {
        elem* saved = n.pre_norm + t * (e.H + e.G) * e.K;
        const Pack first = pack_of(a), second = pack_of(b);
        store_pack(saved + column(e, at, head, 0), first);
        store_pack(saved + column(e, at, head, 1), second);
        unpack(first, a);
        unpack(second, b);
#pragma unroll
        for (int j = 0; j < PACK; j++) squares += a[j] * a[j] + b[j] * b[j];
    }
    const float rstd = rsqrtf(head_sum(squares, e.lanes) / (float)e.K + n.eps);
    if (!live) return;
    if (at.lane == 0) n.rstd[t * (e.H + e.G) + head] = rstd;
    const elem* weight = at.side == 0 ? n.q_weight_K : n.k_weight_K;
    float w[PACK];
    unpack(load_pack(weight + at.lane), w);
#pragma unroll
    for (int j = 0; j < PACK; j++) a[j] = a[j] * rstd * w[j];
    unpack(load_pack(weight + e.K / 2 + at.lane), w);
#pragma unroll
    for (int j = 0; j < PACK; j++) b[j] = b[j] * rstd * w[j];
}

// One token a thread. v takes part where there is a bias.
template <bool BIAS, bool NORM>
__device__ __forceinline__ void forward(elem* qkv_TQ, const elem* bias_Q, const Norm& norm, const Rotation& rotation,
                                        float sign, const Extent& e) {
    const Place at = place(e, BIAS ? 3 : 2);
    const i64 t = (i64)blockIdx.x * e.rows + at.row;
    // Threads that have nothing stay: the sums of a norm need whole warps.
    const bool inside = t < e.T, rotates = inside && at.head[0] >= 0 && at.side < 2;
    elem* row = qkv_TQ + t * packed(e);
    Pack u[HEADS][2], bias[HEADS][2];
    float cos[PACK], sin[PACK];
    if (inside) load_heads(row, e, at, u);
    if (BIAS) load_heads(bias_Q, e, at, bias);
    if (rotates) load_angles(rotation, e, at, rotation.positions_T[t], cos, sin);
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
        const int head = inside ? at.head[i] : -1;
        float a[PACK], b[PACK];
        if (head >= 0) {
            unpack(u[i][0], a);
            unpack(u[i][1], b);
            if (BIAS) {
                add_pack(a, bias[i][0]);
                add_pack(b, bias[i][1]);
            }
        }
        if (NORM) norm_head(a, b, norm, e, at, head, t);
        if (head < 0) continue;
        if (rotates) rotate(a, b, cos, sin, sign);
        store_pack(row + column(e, at, head, 0), pack_of(a));
        store_pack(row + column(e, at, head, 1), pack_of(b));
    }
}

// Also the backward pass of a rotation alone, with sign -1.
extern "C" __global__ void qk_rope_forward(elem* __restrict__ qkv_TQ, ANGLE_PARAMS, float sign, EXTENT_PARAMS) {
    forward<false, false>(qkv_TQ, nullptr, Norm{}, ANGLES, sign, EXTENT);
}

extern "C" __global__ void qk_rope_bias_forward(elem* __restrict__ qkv_TQ, const elem* __restrict__ bias_Q, ANGLE_PARAMS,
                                                EXTENT_PARAMS) {
    forward<true, false>(qkv_TQ, bias_Q, Norm{}, ANGLES, 1.0f, EXTENT);
}

extern "C" __global__ void qk_rope_norm_forward(elem* __restrict__ qkv_TQ, const elem* __restrict__ q_weight_K,
                                                const elem* __restrict__ k_weight_K, elem* __restrict__ pre_norm,
                                                float* __restrict__ rstd, float eps, ANGLE_PARAMS, EXTENT_PARAMS) {
    forward<false, true>(qkv_TQ, nullptr, Norm{q_weight_K, k_weight_K, pre_norm, rstd, eps}, ANGLES, 1.0f, EXTENT);
}

extern "C" __global__ void qk_rope_bias_norm_forward(elem* __restrict__ qkv_TQ, const elem* __restrict__ bias_Q,
                                                     const elem* __restrict__ q_weight_K,
                                                     const elem* __restrict__ k_weight_K, elem* __restrict__ pre_norm,
                                                     float* __restrict__ rstd, float eps, ANGLE_PARAMS, EXTENT_PARAMS) {
    forward<true, true>(qkv_TQ, bias_Q, Norm{q_weight_K, k_weight_K, pre_norm, rstd, eps}, ANGLES, 1.0f, EXTENT);
}

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
                                           float shared[PACK][SHARED_ROW], int columns[THREADS]) {
    const int width = e.slots * e.lanes;
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            __syncthreads();
#pragma unroll
            for (int j = 0; j < PACK; j++) shared[j][threadIdx.x] = db[i][half][j];
            columns[threadIdx.x] = at.head[i] < 0 ? -1 : column(e, at, at.head[i], half);
            __syncthreads();
#pragma unroll 1
            for (int o = threadIdx.x; o < width * PACK; o += blockDim.x) {
                const int thread = o / PACK, j = o % PACK;
                if (columns[thread] < 0) continue;
                float sum = 0.0f;
#pragma unroll 4
                for (int row = 0; row < e.rows; row++) sum += shared[j][row * width + thread];
                part_Q[columns[thread] + j] = sum;
            }
        }
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
    __shared__ int columns[THREADS];
    const Place at = place(e, BIAS ? 3 : 2);
    float dbias[HEADS][2][PACK] = {}, dw[2][PACK] = {};
    backward_rows<BIAS, NORM>(dqkv_TQ, norm, rotation, e, at, dbias, dw);
    if (BIAS) store_bias(dbias, part_GQ + (i64)blockIdx.x * packed(e), e, at, shared, columns);
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
    float sum = 0.0f;
    if (c < columns) {
#pragma unroll 4
        for (int g = threadIdx.x / 8; g < G; g += step) sum += part[(i64)g * stride + c];
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 8);
    sum += __shfl_xor_sync(ALL_LANES, sum, 16);
    if (lane < 8) partial[warp][lane] = sum;
    __syncthreads();
    if (threadIdx.x >= 8 || c >= columns) return;
#pragma unroll 8
    for (int other = 1; other < warps; other++) sum += partial[other][lane];
    out[c] += sum;
}
