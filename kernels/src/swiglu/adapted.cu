// SwiGLU whose operands are short of the updates of low-rank adapters, which it adds on the way: gate and up those of the layer
// before, the gradient of the activation that of the layer behind. It moves what swiglu_forward and swiglu_backward move, and the
// narrow factors; written by themselves, the updates move each operand twice more. F is a multiple of 8. It follows mma.cuh.
//
// A block has STRIP columns, a warp 32 of them, and `tiles` tiles of rows. The next tile is on its way while one is computed: its
// operands to registers, its rows of the left factors, which all warps read, to shared memory, since a load would wait in L1 behind
// those from memory that other warps wait for. The right factors lie in shared memory as the products read them.
//
// Lane 4 g + t has rows g and g + 8 of a tile, and of its warp's columns the pack 8 t .. 8 t + 7: column c of product j is column
// 8 (c / 2) + 2 j + c % 2 of these. The order of the summed-up ranks is free too: of 32, the lane reads 8 t .. 8 t + 7, the first four
// for the first product.

#define WARPS 8
#define TILE 16
#define GROUP 32
#define STRIP (GROUP * WARPS)
// Products of 16 ranks over 32.
#define STEPS 2
// Products of 8 columns over a group.
#define PRODUCTS 4

// Bytes of `blocks` times 32 ranks of a right factor are FACTOR * blocks.
#define FACTOR (STEPS * WARPS * PRODUCTS * WARP * 8)

// An update of `ranks` columns of its left factor, from column `first` on. Its rows are `stride` long, and lie in a row of the tile of
// left factors from `offset` on.
struct Update {
    int offset, stride, first, ranks;
};

// Columns are read in packs, so from a multiple of 8 on.
__device__ __forceinline__ int begin_of(const Update& u) { return u.first & ~(PACK - 1); }
__device__ __forceinline__ int blocks_of(const Update& u) {
    return u.ranks == 0 ? 0 : (u.first + u.ranks - begin_of(u) + GROUP - 1) / GROUP;
}

// Rows from `row` on of two left factors, S and R columns, side by side; zeros beyond the end. Wait by cp_async_wait.
__device__ __forceinline__ void copy_left(u16* to, const u16* xa_TS, int S, const u16* dxa_TR, int R, int row, int tokens) {
    const int chunks = (S + R) / PACK;
    for (int i = threadIdx.x; i < TILE * chunks; i += blockDim.x) {
        const int r = i / chunks, column = i % chunks * PACK;
        const bool valid = row + r < tokens;
        const i64 at = valid ? row + r : 0;
        cp_async_16(to + i * PACK, column < S ? xa_TS + at * S + column : dxa_TR + at * R + column - S, valid);
    }
    cp_async_commit();
}

// The right factor's columns from `strip` on, by the whole block; `at(n, k)` is its element of column n and rank k.
template <class At>
__device__ __forceinline__ void stage(uint2* to, const Update& u, int strip, int columns, At at) {
    const auto value = [&](int n, int k) -> u32 {
        return n < columns && k >= 0 && k < u.ranks ? (u32)at(n, k) : 0u;
    };
    const int count = blocks_of(u) * STEPS * WARPS * PRODUCTS * WARP;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const int lane = i % WARP, j = i / WARP % PRODUCTS, group = i / (WARP * PRODUCTS) % WARPS;
        const int step = i / (WARP * PRODUCTS * WARPS) % STEPS, block = i / (WARP * PRODUCTS * WARPS * STEPS);
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

// c += the update of this warp's columns; `left` is the tile of left factors, whose rows are `width` long.
__device__ __forceinline__ void add_update(float c[PRODUCTS][4], const Update& u, const uint2* right, const u16* left, int width) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int blocks = blocks_of(u);
    for (int block = 0; block < blocks; block++) {
        const int column = begin_of(u) + block * GROUP + lane % 4 * PACK;
        uint4 x[2] = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
        if (column < u.stride) {
            const u16* const at = left + lane / 4 * width + u.offset + column;
            x[0] = *(const uint4*)at;
            x[1] = *(const uint4*)(at + 8 * width);
        }
        const u32 a[STEPS][4] = {{x[0].x, x[1].x, x[0].y, x[1].y}, {x[0].z, x[1].z, x[0].w, x[1].w}};
#pragma unroll
        for (int step = 0; step < STEPS; step++)
#pragma unroll
            for (int j = 0; j < PRODUCTS; j++) {
                const uint2 pair = right[(((block * STEPS + step) * WARPS + warp) * PRODUCTS + j) * WARP + lane];
                const u32 b[2] = {pair.x, pair.y};
                mma_m16n8k16_bf16(c[j], a[step], b);
            }
    }
}

// Rows `row` and `row` + 8 of one column's packs; nothing beyond the end.
__device__ __forceinline__ void load_rows(Pack pack[2], const elem* at, i64 stride, int row, int tokens, bool inside) {
#pragma unroll
    for (int half = 0; half < 2; half++)
        if (inside && row + 8 * half < tokens) pack[half] = load_pack(at + (row + 8 * half) * stride);
}

__device__ __forceinline__ void store_rows(elem* at, i64 stride, const float c[PRODUCTS][4], int row, int tokens, bool inside) {
#pragma unroll
    for (int half = 0; half < 2; half++)
        if (inside && row + 8 * half < tokens) store_pack(at + (row + 8 * half) * stride, pack_of_sums(c, half));
}

// 0 and 1 at the extremes: where the exponential overflows, its inverse is 0.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// The updates of gate and up: b is scale * B, columns by ranks.
struct Layer {
    Update gate, up;
    const uint2 *gate_right, *up_right;
};

__device__ __forceinline__ Layer stage_layer(uint2* shared, int S, const u16* b_gate, int s_gate, int r_gate,
                                             const u16* b_up, int s_up, int r_up, float scale, int strip, int F) {
    Layer l;
    l.gate = Update{0, S, s_gate, r_gate};
    l.up = Update{0, S, s_up, r_up};
    l.gate_right = shared;
    l.up_right = shared + blocks_of(l.gate) * (FACTOR / 8);
    const auto scaled = [=](const u16* b, int r, int n, int k) { return to_elem(scale * to_float(b[(i64)n * r + k])); };
    stage(shared, l.gate, strip, F, [=](int n, int k) { return scaled(b_gate, r_gate, n, k); });
    stage((uint2*)l.up_right, l.up, strip, F, [=](int n, int k) { return scaled(b_up, r_up, n, k); });
    return l;
}

// act_TF = silu(gate + xa_gate scale B_gateᵀ) * (up + xa_up scale B_upᵀ).
extern "C" __global__ void __launch_bounds__(WARPS* WARP, 2)
    swiglu_adapted_forward(const elem* __restrict__ gate_up_T2F, elem* __restrict__ act_TF, int tokens, int F, int tiles,
                           const elem* __restrict__ xa_TS, int S, const elem* __restrict__ b_gate, int s_gate, int r_gate,
                           const elem* __restrict__ b_up, int s_up, int r_up, float scale) {
    extern __shared__ __align__(16) uint2 factors[];
    const int strip = blockIdx.x * STRIP, lane = threadIdx.x % WARP;
    const int column = strip + threadIdx.x / WARP * GROUP + lane % 4 * PACK;
    const bool inside = column < F;
    const elem* const at = gate_up_T2F + column;
    const int first = blockIdx.y * tiles * TILE;
    int row = first + lane / 4;
    Pack gate[2] = {}, up[2] = {};
    load_rows(gate, at, 2 * F, row, tokens, inside);
    load_rows(up, at + F, 2 * F, row, tokens, inside);
    const Layer layer = stage_layer(factors, S, b_gate, s_gate, r_gate, b_up, s_up, r_up, scale, strip, F);
    u16* const left = (u16*)(layer.up_right + blocks_of(layer.up) * (FACTOR / 8));
    copy_left(left, xa_TS, S, xa_TS, 0, first, tokens);
    for (int i = 0; i < tiles; i++, row += TILE) {
        // This tile's left factors are there, and nobody reads those before.
        cp_async_wait<0>();
        __syncthreads();
        const u16* const now = left + i % 2 * TILE * S;
        if (i + 1 < tiles) copy_left(left + (i + 1) % 2 * TILE * S, xa_TS, S, xa_TS, 0, first + (i + 1) * TILE, tokens);
        float g[PRODUCTS][4], u[PRODUCTS][4];
        sums_of(gate, g);
        sums_of(up, u);
        if (i + 1 < tiles) {
            load_rows(gate, at, 2 * F, row + TILE, tokens, inside);
            load_rows(up, at + F, 2 * F, row + TILE, tokens, inside);
        }
        add_update(g, layer.gate, layer.gate_right, now, S);
        add_update(u, layer.up, layer.up_right, now, S);
#pragma unroll
        for (int j = 0; j < PRODUCTS; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) g[j][e] = g[j][e] * sigmoid(g[j][e]) * u[j][e];
        store_rows(act_TF + column, F, g, row, tokens, inside);
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
    const int column = strip + threadIdx.x / WARP * GROUP + lane % 4 * PACK;
    const bool inside = column < F;
    elem* const at = gate_up_T2F + column;
    const int first = blockIdx.y * tiles * TILE;
    int row = first + lane / 4;
    Pack gate[2] = {}, up[2] = {}, dact[2] = {};
    load_rows(gate, at, 2 * F, row, tokens, inside);
    load_rows(up, at + F, 2 * F, row, tokens, inside);
    load_rows(dact, dact_TF + column, F, row, tokens, inside);
    const Layer layer = stage_layer(factors, S, b_gate, s_gate, r_gate, b_up, s_up, r_up, scale, strip, F);
    const Update behind = Update{S, R, 0, ranks};
    uint2* const behind_right = (uint2*)layer.up_right + blocks_of(layer.up) * (FACTOR / 8);
    stage(behind_right, behind, strip, F, [=](int n, int k) { return a_RF[(i64)k * F + n]; });
    u16* const left = (u16*)(behind_right + blocks_of(behind) * (FACTOR / 8));
    const int width = S + R;
    copy_left(left, xa_TS, S, dxa_TR, R, first, tokens);
    for (int i = 0; i < tiles; i++, row += TILE) {
        cp_async_wait<0>();
        __syncthreads();
        const u16* const now = left + i % 2 * TILE * width;
        if (i + 1 < tiles) copy_left(left + (i + 1) % 2 * TILE * width, xa_TS, S, dxa_TR, R, first + (i + 1) * TILE, tokens);
        float g[PRODUCTS][4], u[PRODUCTS][4], da[PRODUCTS][4];
        sums_of(gate, g);
        sums_of(up, u);
        sums_of(dact, da);
        if (i + 1 < tiles) {
            load_rows(gate, at, 2 * F, row + TILE, tokens, inside);
            load_rows(up, at + F, 2 * F, row + TILE, tokens, inside);
            load_rows(dact, dact_TF + column, F, row + TILE, tokens, inside);
        }
        add_update(g, layer.gate, layer.gate_right, now, width);
        add_update(u, layer.up, layer.up_right, now, width);
        add_update(da, behind, behind_right, now, width);
#pragma unroll
        for (int j = 0; j < PRODUCTS; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float s = sigmoid(g[j][e]), silu = g[j][e] * s;
                // s (1 + g (1 - s)) = s + silu (1 - s)
                g[j][e] = da[j][e] * u[j][e] * (s + silu * (1.0f - s));
                u[j][e] = da[j][e] * silu;
            }
        store_rows(at, 2 * F, g, row, tokens, inside);
        store_rows(at + F, 2 * F, u, row, tokens, inside);
    }
}
