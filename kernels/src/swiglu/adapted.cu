// SwiGLU whose operands are short of the updates of low-rank adapters, which it adds on the way: gate and up those of the layer
// before, the gradient of the activation that of the layer behind. It moves what swiglu_forward and swiglu_backward move, and the
// narrow factors; written by themselves, the updates move each operand twice more. F is a multiple of 8. It follows mma.cuh.
//
// A block has STRIP columns, a warp 32 of them, and `tiles` tiles of rows. A tile's operands are on their way to registers while
// the one before it is computed. The left factors, which all warps read, come to shared memory for several tiles at a time, since
// a load would wait in L1 behind those from memory that other warps wait for; the right factors lie there as the products read
// them. What a tile takes is instructions, more than bytes: nothing that can be found before the loop is found in it.
//
// Lane 4 g + t has rows g and g + 8 of a tile, and of its warp's columns the pack 8 t .. 8 t + 7: column c of product j is column
// 8 (c / 2) + 2 j + c % 2 of these.

#define WARPS 8
#define TILE 16
#define GROUP 32
#define STRIP (GROUP * WARPS)
// Rows of left factors that come at a time, and their tiles.
#define ROWS 64
#define TILES (ROWS / TILE)
// Products of 8 columns over a group.
#define PRODUCTS 4

// uint4 of 32 ranks of a right factor: of every column, its 32 ranks. Of a lane and a product they are four pairs of ranks, two for
// each product of 16.
#define FACTOR (WARPS * PRODUCTS * WARP)

// An update of `ranks` columns of its left factor, from column `first` on. Its rows are `stride` long, and lie in a row of left
// factors from `offset` on.
struct Update {
    int offset, stride, first, ranks;
};

// Columns are read in packs, so from a multiple of 8 on.
__device__ __forceinline__ int begin_of(const Update& u) { return u.first & ~(PACK - 1); }
__device__ __forceinline__ int blocks_of(const Update& u) {
    return u.ranks == 0 ? 0 : (u.first + u.ranks - begin_of(u) + GROUP - 1) / GROUP;
}

// Rows of left factors in shared memory: an odd number of packs, so that eight rows lie in different banks.
__device__ __forceinline__ int width_of(int columns) { return (columns / PACK | 1) * PACK; }

// Rows from `row` on of two left factors, S and R columns, side by side; zeros beyond the end. Wait by cp_async_wait.
__device__ __forceinline__ void copy_left(u16* to, const u16* xa_TS, int S, const u16* dxa_TR, int R, int row, int tokens) {
    const int r = threadIdx.x / (WARPS * WARP / ROWS), width = width_of(S + R);
    const bool valid = row + r < tokens;
    const i64 at = valid ? row + r : 0;
    for (int c = threadIdx.x % (WARPS * WARP / ROWS) * PACK; c < S + R; c += WARPS * WARP / ROWS * PACK)
        cp_async_16(to + r * width + c, c < S ? xa_TS + at * S + c : dxa_TR + at * R + c - S, valid);
    cp_async_commit();
}

// The right factor's columns from `strip` on, by the whole block. `read(v, n, k)` gives ranks k .. k + 7 of column n; those that
// are not the update's are zeros.
template <class Read>
__device__ __forceinline__ void stage(uint4* to, const Update& u, int strip, int columns, Read read) {
    const int chunks = blocks_of(u) * GROUP / PACK;
    for (int i = threadIdx.x; i < STRIP * chunks; i += blockDim.x) {
        const int column = i % STRIP, chunk = i / STRIP;
        const int n = strip + column, k = begin_of(u) + chunk * PACK - u.first;
        u16 v[PACK] = {};
        if (n < columns) read(v, n, k);
        // Pair t of ranks is lane t's.
        const int g = column % GROUP / PACK * 2 + column % 2, j = column % PACK / 2;
        u32* const pairs = (u32*)(to + ((chunk / 4 * WARPS + column / GROUP) * PRODUCTS + j) * WARP + 4 * g) + chunk % 4;
#pragma unroll
        for (int t = 0; t < 4; t++) pairs[4 * t] = (u32)v[2 * t] | (u32)v[2 * t + 1] << 16;
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

// What a warp adds: its columns of the right factor, and for each lane the row that it gives ldmatrix.
struct Adder {
    const uint4* right;
    int at, begin, last, blocks;

    __device__ __forceinline__ Adder(const Update& u, const uint4* factor, int width) {
        const int lane = threadIdx.x % WARP;
        right = factor + threadIdx.x / WARP * PRODUCTS * WARP + lane;
        at = lane % 16 * width + u.offset;
        begin = begin_of(u) + lane / 16 * PACK;
        // Beyond the ranks any column will do, as the right factor is zero there, but it must be one.
        last = u.stride - PACK;
        blocks = blocks_of(u);
    }

    // c += the update of this warp's columns; `left` is a tile of left factors.
    __device__ __forceinline__ void add(float c[PRODUCTS][4], const u16* left) const {
#pragma unroll 1
        for (int block = 0; block < blocks; block++) {
            const int column = begin + block * GROUP;
            u32 a[2][4];
            ldmatrix_x4(a[0], left + at + min(column, last));
            ldmatrix_x4(a[1], left + at + min(column + 2 * PACK, last));
#pragma unroll
            for (int j = 0; j < PRODUCTS; j++) {
                const uint4 pairs = right[block * FACTOR + j * WARP];
                const u32 b[2][2] = {{pairs.x, pairs.y}, {pairs.z, pairs.w}};
                mma_m16n8k16_bf16(c[j], a[0], b[0]);
                mma_m16n8k16_bf16(c[j], a[1], b[1]);
            }
        }
    }
};

// A thread's pack of rows g and g + 8 of one tile after another; nothing beyond the end.
template <class E>
struct Walk {
    E* at;
    i64 stride;

    __device__ __forceinline__ void load(Pack pack[2], const bool there[2]) const {
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (there[half]) pack[half] = load_pack(at + 8 * half * stride);
    }
    __device__ __forceinline__ void store(const float c[PRODUCTS][4], const bool there[2]) const {
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (there[half]) store_pack(at + 8 * half * stride, pack_of_sums(c, half));
    }
    __device__ __forceinline__ void advance() { at += TILE * stride; }
};

// Where a thread is: its column, and its rows of a tile.
struct Place {
    int strip, column, first, row, tokens;
    bool inside;

    __device__ __forceinline__ Place(int tiles, int T, int F) {
        const int lane = threadIdx.x % WARP;
        strip = blockIdx.x * STRIP;
        column = strip + threadIdx.x / WARP * GROUP + lane % 4 * PACK;
        first = blockIdx.y * tiles * TILE;
        row = first + lane / 4;
        tokens = T;
        inside = column < F;
    }
    template <class E>
    __device__ __forceinline__ Walk<E> walk(E* matrix, int stride) const {
        return Walk<E>{matrix + (i64)row * stride + column, stride};
    }
    __device__ __forceinline__ void look(bool there[2], int from) const {
        there[0] = inside && from < tokens;
        there[1] = inside && from + 8 < tokens;
    }
};

// Ranks k .. k + 7 of column n of scale * B, columns by r ranks.
__device__ __forceinline__ void read_scaled(u16 v[PACK], const u16* b_NR, int r, float scale, int n, int k) {
    const u16* const at = b_NR + (i64)n * r + k;
    if (k >= 0 && k + PACK <= r && (u64)at % 16 == 0) {
        float x[PACK];
        unpack(load_pack(at), x);
#pragma unroll
        for (int i = 0; i < PACK; i++) v[i] = to_elem(scale * x[i]);
    } else {
#pragma unroll
        for (int i = 0; i < PACK; i++)
            if (k + i >= 0 && k + i < r) v[i] = to_elem(scale * to_float(at[i]));
    }
}

// The updates of gate and up: b is scale * B, columns by ranks.
struct Layer {
    Update gate, up;
    const uint4 *gate_right, *up_right;
};

__device__ __forceinline__ Layer stage_layer(uint4* shared, int S, const u16* b_gate, int s_gate, int r_gate,
                                             const u16* b_up, int s_up, int r_up, float scale, int strip, int F) {
    Layer l;
    l.gate = Update{0, S, s_gate, r_gate};
    l.up = Update{0, S, s_up, r_up};
    l.gate_right = shared;
    l.up_right = shared + blocks_of(l.gate) * FACTOR;
    stage(shared, l.gate, strip, F, [=](u16 v[PACK], int n, int k) { read_scaled(v, b_gate, r_gate, scale, n, k); });
    stage((uint4*)l.up_right, l.up, strip, F, [=](u16 v[PACK], int n, int k) { read_scaled(v, b_up, r_up, scale, n, k); });
    return l;
}

// act_TF = silu(gate + xa_gate scale B_gateᵀ) * (up + xa_up scale B_upᵀ).
extern "C" __global__ void __launch_bounds__(WARPS* WARP, 2)
    swiglu_adapted_forward(const elem* __restrict__ gate_up_T2F, elem* __restrict__ act_TF, int tokens, int F, int tiles,
                           const elem* __restrict__ xa_TS, int S, const elem* __restrict__ b_gate, int s_gate, int r_gate,
                           const elem* __restrict__ b_up, int s_up, int r_up, float scale) {
    extern __shared__ __align__(16) uint4 factors[];
    const Place place(tiles, tokens, F);
    auto gate_at = place.walk(gate_up_T2F, 2 * F), up_at = place.walk(gate_up_T2F + F, 2 * F);
    auto act_at = place.walk(act_TF, F);
    bool here[2], next[2];
    place.look(next, place.row);
    Pack gate[2] = {}, up[2] = {};
    gate_at.load(gate, next);
    up_at.load(up, next);
    const Layer layer = stage_layer(factors, S, b_gate, s_gate, r_gate, b_up, s_up, r_up, scale, place.strip, F);
    u16* const lefts = (u16*)(layer.up_right + blocks_of(layer.up) * FACTOR);
    const int width = width_of(S);
    const Adder to_gate(layer.gate, layer.gate_right, width), to_up(layer.up, layer.up_right, width);
    copy_left(lefts, xa_TS, S, xa_TS, 0, place.first, tokens);
    for (int i = 0; i < tiles; i++) {
        u16* const now = lefts + i / TILES % 2 * ROWS * width;
        if (i % TILES == 0) {
            // These tiles' left factors are there, and nobody reads those before.
            cp_async_wait<0>();
            __syncthreads();
            u16* const other = lefts + (i / TILES + 1) % 2 * ROWS * width;
            if (i + TILES < tiles) copy_left(other, xa_TS, S, xa_TS, 0, place.first + i * TILE + ROWS, tokens);
        }
        float g[PRODUCTS][4], u[PRODUCTS][4];
        sums_of(gate, g);
        sums_of(up, u);
        here[0] = next[0], here[1] = next[1];
        if (i + 1 < tiles) {
            place.look(next, place.row + (i + 1) * TILE);
            gate_at.advance(), up_at.advance();
            gate_at.load(gate, next);
            up_at.load(up, next);
        }
        const u16* const left = now + i % TILES * TILE * width;
        to_gate.add(g, left);
        to_up.add(u, left);
#pragma unroll
        for (int j = 0; j < PRODUCTS; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) g[j][e] = g[j][e] * sigmoid(g[j][e]) * u[j][e];
        act_at.store(g, here);
        act_at.advance();
    }
}

// Replaces gate_up_T2F, short of the updates as forward, by its gradient, given that of the activation short of dxa A.
extern "C" __global__ void __launch_bounds__(WARPS* WARP, 2)
    swiglu_adapted_backward(elem* __restrict__ gate_up_T2F, const elem* __restrict__ dact_TF, int tokens, int F, int tiles,
                            const elem* __restrict__ xa_TS, int S, const elem* __restrict__ b_gate, int s_gate, int r_gate,
                            const elem* __restrict__ b_up, int s_up, int r_up, float scale,
                            const elem* __restrict__ dxa_TR, int R, const elem* __restrict__ a_RF, int ranks) {
    extern __shared__ __align__(16) uint4 factors[];
    const Place place(tiles, tokens, F);
    auto gate_at = place.walk(gate_up_T2F, 2 * F), up_at = place.walk(gate_up_T2F + F, 2 * F);
    auto dact_at = place.walk(dact_TF, F);
    bool here[2], next[2];
    place.look(next, place.row);
    Pack gate[2] = {}, up[2] = {}, dact[2] = {};
    gate_at.load(gate, next);
    up_at.load(up, next);
    dact_at.load(dact, next);
    const Layer layer = stage_layer(factors, S, b_gate, s_gate, r_gate, b_up, s_up, r_up, scale, place.strip, F);
    const Update behind = Update{S, R, 0, ranks};
    uint4* const behind_right = (uint4*)layer.up_right + blocks_of(layer.up) * FACTOR;
    stage(behind_right, behind, place.strip, F, [=](u16 v[PACK], int n, int k) {
#pragma unroll
        for (int i = 0; i < PACK; i++)
            if (k + i < ranks) v[i] = a_RF[(i64)(k + i) * F + n];
    });
    u16* const lefts = (u16*)(behind_right + blocks_of(behind) * FACTOR);
    const int width = width_of(S + R);
    const Adder to_gate(layer.gate, layer.gate_right, width), to_up(layer.up, layer.up_right, width);
    const Adder to_dact(behind, behind_right, width);
    copy_left(lefts, xa_TS, S, dxa_TR, R, place.first, tokens);
    for (int i = 0; i < tiles; i++) {
        u16* const now = lefts + i / TILES % 2 * ROWS * width;
        if (i % TILES == 0) {
            cp_async_wait<0>();
            __syncthreads();
            u16* const other = lefts + (i / TILES + 1) % 2 * ROWS * width;
            if (i + TILES < tiles) copy_left(other, xa_TS, S, dxa_TR, R, place.first + i * TILE + ROWS, tokens);
        }
        float g[PRODUCTS][4], u[PRODUCTS][4], da[PRODUCTS][4];
        sums_of(gate, g);
        sums_of(up, u);
        sums_of(dact, da);
        here[0] = next[0], here[1] = next[1];
        const auto gate_to = gate_at, up_to = up_at;
        if (i + 1 < tiles) {
            place.look(next, place.row + (i + 1) * TILE);
            gate_at.advance(), up_at.advance(), dact_at.advance();
            gate_at.load(gate, next);
            up_at.load(up, next);
            dact_at.load(dact, next);
        }
        const u16* const left = now + i % TILES * TILE * width;
        to_gate.add(g, left);
        to_up.add(u, left);
        to_dact.add(da, left);
#pragma unroll
        for (int j = 0; j < PRODUCTS; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float s = sigmoid(g[j][e]), silu = g[j][e] * s;
                // s (1 + g (1 - s)) = s + silu (1 - s)
                g[j][e] = da[j][e] * u[j][e] * (s + silu * (1.0f - s));
                u[j][e] = da[j][e] * silu;
            }
        gate_to.store(g, here);
        up_to.store(u, here);
    }
}
