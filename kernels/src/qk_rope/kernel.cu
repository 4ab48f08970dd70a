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

// The tokens from `first` on that a block takes next lie side by side: to L2, a share by each warp. `e.slots` is all of a token's
// unless rows are wide, and then the blocks that share them fetch them more than once: they are there then.
__device__ __forceinline__ void fetch_tokens(const elem* qkv_TQ, i64 first, const Extent& e) {
    if (threadIdx.x % WARP != 0 || first >= e.T) return;
    const int n = packed(e) * (int)min((i64)e.rows, e.T - first), warps = blockDim.x / WARP;
    const int share = (n / PACK + warps - 1) / warps * PACK, begin = threadIdx.x / WARP * share;
    if (begin < n) fetch_span(qkv_TQ + first * packed(e) + begin, min(share, n - begin));
}

// With a bias, which stays in registers, the grid strides over the tokens, and v takes part; else a thread has one token.
template <bool BIAS, bool NORM>
__device__ __forceinline__ void forward(elem* qkv_TQ, const elem* bias_Q, const Norm& norm, const Rotation& rotation,
                                        float sign, const Extent& e) {
    const Place at = place(e, BIAS ? 3 : 2);
    const bool turns = at.head[0] >= 0 && at.side < 2;
    const i64 stride = (i64)gridDim.x * e.rows;
    Pack bias[HEADS][2];
    if (BIAS) load_heads(bias_Q, e, at, bias);
    i64 t = (i64)blockIdx.x * e.rows + at.row;
    // A token ahead, so that its angles need not wait for it.
    u32 position = turns && t < e.T ? rotation.positions_T[t] : 0;
    // Threads that have nothing stay: the sums of a norm need whole warps.
    for (i64 first = (i64)blockIdx.x * e.rows; first < e.T; first += stride, t += stride) {
        const bool inside = t < e.T, rotates = inside && turns;
        elem* row = qkv_TQ + t * packed(e);
        Pack u[HEADS][2];
        float cos[PACK], sin[PACK];
        if (inside) load_heads(row, e, at, u);
        if (rotates) load_angles(rotation, e, at, position, cos, sin);
        if (BIAS) {
            if (turns && t + stride < e.T) position = rotation.positions_T[t + stride];
            fetch_tokens(qkv_TQ, first + stride, e);
        }
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
        if (!BIAS) return;
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
