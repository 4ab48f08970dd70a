// SwiGLU whose operands are short of the updates of low-rank adapters, which it adds on the way: gate and up those of the layer
// before, the gradient of the activation that of the layer behind. It moves what swiglu_forward and swiglu_backward move, and the
// narrow factors; written by themselves, the updates move each operand twice more. F is a multiple of 8. It follows mma.cuh.
//
// A block has STRIP columns and up to `tiles` tiles of rows; a warp takes every WARPS-th tile, alone. The right factors lie in shared
// memory as the products read them. Lane 4 g + t has rows g and g + 8 of a tile, and of every 32 columns the pack 8 t .. 8 t + 7: column
// c of product j is column 8 (c / 2) + 2 j + c % 2 of these. The order of the summed-up ranks is free too: of 32, the lane reads
// 8 t .. 8 t + 7, the first four for the first product.

#define WARPS 8
#define TILE 16
#define GROUP 32
#define GROUPS 4
#define STRIP (GROUP * GROUPS)
// Products of 16 ranks over 32.
#define STEPS 2
// Products of 8 columns over a group.
#define PRODUCTS 4

// Bytes of `blocks` times 32 ranks of a right factor are FACTOR * blocks.
#define FACTOR (STEPS * GROUPS * PRODUCTS * WARP * 8)

// An update of rows of `ranks` columns, from column `first` of the left factor on, which has rows of `stride`.
struct Update {
    const u16* left;
    int stride, first, ranks;
};

// Columns are read in packs, so from a multiple of 8 on.
__device__ __forceinline__ int begin_of(const Update& u) { return u.first & ~(PACK - 1); }
__device__ __forceinline__ int blocks_of(const Update& u) {
    return u.ranks == 0 ? 0 : (u.first + u.ranks - begin_of(u) + GROUP - 1) / GROUP;
}

// The right factor's columns from `strip` on, by the whole block; `at(n, k)` is its element of column n and rank k.
template <class At>
__device__ __forceinline__ void stage(uint2* to, const Update& u, int strip, int columns, At at) {
    const auto value = [&](int n, int k) -> u32 {
        return n < columns && k >= 0 && k < u.ranks ? (u32)at(n, k) : 0u;
    };
    const int count = blocks_of(u) * STEPS * GROUPS * PRODUCTS * WARP;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const int lane = i % WARP, j = i / WARP % PRODUCTS, group = i / (WARP * PRODUCTS) % GROUPS;
        const int step = i / (WARP * PRODUCTS * GROUPS) % STEPS, block = i / (WARP * PRODUCTS * GROUPS * STEPS);
        const int c = lane / 4, t = lane % 4;
        const int n = strip + group * GROUP + c / 2 * PACK + 2 * j + c % 2;
        const int k = begin_of(u) + block * GROUP + t * PACK + 4 * step - u.first;
        to[i] = make_uint2(value(n, k) | value(n, k + 1) << 16, value(n, k + 2) | value(n, k + 3) << 16);
    }
}

// Rows g and g + 8 of a tile, a pack of each, as the products' sums.
__device__ __forceinline__ void sums_of(const Pack pack[2], float c[PRODUCTS][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float v[PACK];
        unpack(pack[half], v);
#pragma unroll
        for (int i = 0; i < PACK; i++) c[i / 2][2 * half + i % 2] = v[i];
    }
}

__device__ __forceinline__ Pack pack_of_sums(const float c[PRODUCTS][4], int half) {
    float v[PACK];
#pragma unroll
    for (int i = 0; i < PACK; i++) v[i] = c[i / 2][2 * half + i % 2];
    return pack_of(v);
}

// c += the update of a group's columns, for rows `row` and `row` + 8 of this lane.
__device__ __forceinline__ void add_update(float c[PRODUCTS][4], const Update& u, const uint2* right, int group, int row,
                                           int tokens) {
    const int lane = threadIdx.x % WARP;
    const int blocks = blocks_of(u);
    for (int block = 0; block < blocks; block++) {
        const int column = begin_of(u) + block * GROUP + lane % 4 * PACK;
        uint4 left[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            left[half] = make_uint4(0, 0, 0, 0);
            if (row + 8 * half < tokens && column < u.stride)
                left[half] = *(const uint4*)(u.left + (i64)(row + 8 * half) * u.stride + column);
        }
        const u32 a[STEPS][4] = {{left[0].x, left[1].x, left[0].y, left[1].y}, {left[0].z, left[1].z, left[0].w, left[1].w}};
#pragma unroll
        for (int step = 0; step < STEPS; step++)
#pragma unroll
            for (int j = 0; j < PRODUCTS; j++) {
                const uint2 pair = right[(((block * STEPS + step) * GROUPS + group) * PRODUCTS + j) * WARP + lane];
                const u32 b[2] = {pair.x, pair.y};
                mma_m16n8k16_bf16(c[j], a[step], b);
            }
    }
}

// 0 and 1 at the extremes: where the exponential overflows, its inverse is 0.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// The updates of gate and up: b is scale * B, columns by ranks.
struct Layer {
    Update gate, up;
    const uint2 *gate_right, *up_right;
};

__device__ __forceinline__ Layer stage_layer(uint2* shared, const u16* xa_TS, int S, const u16* b_gate, int s_gate, int r_gate,
                                             const u16* b_up, int s_up, int r_up, float scale, int strip, int F) {
    Layer l;
    l.gate = Update{xa_TS, S, s_gate, r_gate};
    l.up = Update{xa_TS, S, s_up, r_up};
    l.gate_right = shared;
    l.up_right = shared + blocks_of(l.gate) * (FACTOR / 8);
    const auto scaled = [=](const u16* b, int r, int n, int k) { return to_elem(scale * to_float(b[(i64)n * r + k])); };
    stage(shared, l.gate, strip, F, [=](int n, int k) { return scaled(b_gate, r_gate, n, k); });
    stage((uint2*)l.up_right, l.up, strip, F, [=](int n, int k) { return scaled(b_up, r_up, n, k); });
    return l;
}

// Of the rows of this block, those of this warp's i-th tile begin here.
__device__ __forceinline__ int tile_row(int i, int tiles) {
    return (blockIdx.y * tiles + i * WARPS + threadIdx.x / WARP) * TILE;
}

// act_TF = silu(gate + xa_gate scale B_gateᵀ) * (up + xa_up scale B_upᵀ).
extern "C" __global__ void __launch_bounds__(WARPS* WARP, 2)
    swiglu_adapted_forward(const elem* __restrict__ gate_up_T2F, elem* __restrict__ act_TF, int tokens, int F, int tiles,
                           const elem* __restrict__ xa_TS, int S, const elem* __restrict__ b_gate, int s_gate, int r_gate,
                           const elem* __restrict__ b_up, int s_up, int r_up, float scale) {
    extern __shared__ __align__(16) uint2 factors[];
    const int strip = blockIdx.x * STRIP, lane = threadIdx.x % WARP;
    const Layer layer = stage_layer(factors, xa_TS, S, b_gate, s_gate, r_gate, b_up, s_up, r_up, scale, strip, F);
    __syncthreads();
    for (int i = 0; i * WARPS < tiles; i++) {
        const int row = tile_row(i, tiles) + lane / 4;
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const int column = strip + group * GROUP + lane % 4 * PACK;
            Pack gate[2] = {}, up[2] = {};
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (row + 8 * half < tokens && column < F) {
                    const elem* at = gate_up_T2F + (i64)(row + 8 * half) * (2 * F) + column;
                    gate[half] = load_pack(at);
                    up[half] = load_pack(at + F);
                }
            float g[PRODUCTS][4], u[PRODUCTS][4];
            sums_of(gate, g);
            sums_of(up, u);
            add_update(g, layer.gate, layer.gate_right, group, row, tokens);
            add_update(u, layer.up, layer.up_right, group, row, tokens);
#pragma unroll
            for (int j = 0; j < PRODUCTS; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) g[j][e] = g[j][e] * sigmoid(g[j][e]) * u[j][e];
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (row + 8 * half < tokens && column < F)
                    store_pack(act_TF + (i64)(row + 8 * half) * F + column, pack_of_sums(g, half));
        }
    }
}

// Replaces gate_up_T2F, short of the updates as forward, by its gradient, given that of the activation short of dxa A.
extern "C" __global__ void __launch_bounds__(WARPS* WARP, 2)
    swiglu_adapted_backward(elem* __restrict__ gate_up_T2F, const elem* __restrict__ dact_TF, int tokens, int F, int tiles,
                            const elem* __restrict__ xa_TS, int S, const elem* __restrict__ b_gate, int s_gate, int r_gate,
                            const elem* __restrict__ b_up, int s_up, int r_up, float scale,
                            const elem* __restrict__ dxa_TR, int R, const elem* __restrict__ a_RF, int ranks) {
    extern __shared__ __align__(16) uint2 factors[];
    const int strip = blockIdx.x * STRIP, lane = threadIdx.x % WARP;
    const Layer layer = stage_layer(factors, xa_TS, S, b_gate, s_gate, r_gate, b_up, s_up, r_up, scale, strip, F);
    const Update behind = Update{dxa_TR, R, 0, ranks};
    uint2* const behind_right = (uint2*)layer.up_right + blocks_of(layer.up) * (FACTOR / 8);
    stage(behind_right, behind, strip, F, [=](int n, int k) { return a_RF[(i64)k * F + n]; });
    __syncthreads();
    for (int i = 0; i * WARPS < tiles; i++) {
        const int row = tile_row(i, tiles) + lane / 4;
#pragma unroll 1
        for (int group = 0; group < GROUPS; group++) {
            const int column = strip + group * GROUP + lane % 4 * PACK;
            Pack gate[2] = {}, up[2] = {}, dact[2] = {};
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (row + 8 * half < tokens && column < F) {
                    const elem* at = gate_up_T2F + (i64)(row + 8 * half) * (2 * F) + column;
                    gate[half] = load_pack(at);
                    up[half] = load_pack(at + F);
                    dact[half] = load_pack(dact_TF + (i64)(row + 8 * half) * F + column);
                }
            float g[PRODUCTS][4], u[PRODUCTS][4], da[PRODUCTS][4];
            sums_of(gate, g);
            sums_of(up, u);
            sums_of(dact, da);
            add_update(g, layer.gate, layer.gate_right, group, row, tokens);
            add_update(u, layer.up, layer.up_right, group, row, tokens);
            add_update(da, behind, behind_right, group, row, tokens);
#pragma unroll
            for (int j = 0; j < PRODUCTS; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const float s = sigmoid(g[j][e]), silu = g[j][e] * s;
                    // s (1 + g (1 - s)) = s + silu (1 - s)
                    g[j][e] = da[j][e] * u[j][e] * (s + silu * (1.0f - s));
                    u[j][e] = da[j][e] * silu;
                }
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (row + 8 * half < tokens && column < F) {
                    elem* at = gate_up_T2F + (i64)(row + 8 * half) * (2 * F) + column;
                    store_pack(at, pack_of_sums(g, half));
                    store_pack(at + F, pack_of_sums(u, half));
                }
        }
    }
}
