// Attention by wgmma and TMA: the backward pass; it follows forward.cu. Two kernels, as in mma/backward.cu, and no atomics:
//
//   dq    a block has BLOCK queries of a head, 64 for each of two warpgroups, and walks over their keys
//   dkv   a block has 64 keys of a key/value head and walks over the queries of all heads that share it, or of a part of them, as
//         in mma/backward.cu

// Dot products of a thread's two rows of `out` and `dout`, which its quad reads together.
template <int D>
__device__ __forceinline__ void dots(float (&dot)[2], const u16* out, const u16* dout, i64 stride, int row, int T) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        dot[r] = 0.0f;
        if (row + 8 * r < T) {
#pragma unroll
            for (int c = 0; c < D / 32; c++) {
                const i64 at = (row + 8 * r) * stride + (c * 4 + threadIdx.x % 4) * PACK;
                float a[PACK], b[PACK];
                unpack(load_pack(out + at), a);
                unpack(load_pack(dout + at), b);
#pragma unroll
                for (int j = 0; j < PACK; j++) dot[r] += a[j] * b[j];
            }
        }
        dot[r] += __shfl_xor_sync(ALL_LANES, dot[r], 1);
        dot[r] += __shfl_xor_sync(ALL_LANES, dot[r], 2);
    }
}

// Dynamic shared memory: queries, gradients of the output, a ring of keys and values, barriers.
template <int D, int KEYS, int STAGES, bool HELD>
__device__ __forceinline__ void dq(const TensorMap& map, const TensorMap& dout_map, const u16* dout_T, const u16* out_T,
                                   const float* lse_HT, const u32* tiles, const u32* begin_T, float* delta_HT, u16* dqkv_TQ, int T,
                                   int H, int G) {
    extern __shared__ __align__(1024) unsigned char shared[];
    constexpr u32 TILE = BLOCK * D * 2, STEP = KEYS * D * 2;
    const int h = blockIdx.x, g = h / (H / G);
    const Walk<KEYS> walk(tiles, begin_T, T);
    const u32 queries = shared_address(shared), douts = queries + TILE, steps = douts + TILE;
    const u32 queries_came = steps + STAGES * 2 * STEP;
    const Ring<STAGES, STAGES / 2, 8> ring{queries_came + 8, walk.count};
    auto fetch = [&](int i) {
        const u32 to = steps + i % STAGES * 2 * STEP, came = ring.came(i);
        barrier_expect(came, 2 * STEP);
        load_tile<D, KEYS>(to, map, (H + g) * D, walk.start + i * KEYS, came);
        load_tile<D, KEYS>(to + STEP, map, (H + G + g) * D, walk.start + i * KEYS, came);
    };
    if (threadIdx.x == 0) {
        barrier_init(queries_came, 1);
        ring.init();
        barrier_expect(queries_came, 2 * TILE);
        load_tile<D, BLOCK>(queries, map, h * D, walk.first, queries_came);
        load_tile<D, BLOCK>(douts, dout_map, h * D, walk.first, queries_came);
        ring.start(fetch);
    }
    __syncthreads();
    const Slab<KEYS> slab(walk, begin_T, T);
    float delta[2], lse[2];
    dots<D>(delta, out_T + h * D, dout_T + h * D, (i64)H * D, slab.row, T);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = slab.row + 8 * r;
        lse[r] = row < T ? LOG2_E * lse_HT[(i64)h * T + row] : 0.0f;
        if (threadIdx.x % 4 == 0 && row < T) delta_HT[(i64)h * T + row] = delta[r];
    }
    const u32 own = slab.group * 64 * ROW_BYTES;
    constexpr float scale_log2 = SCALE<D> * LOG2_E;
    // In registers where there is room: two operands from shared memory take all its bandwidth.
    u32 q[D / 16][4], d[D / 16][4];
    float sum[D / 2], s[KEYS / 2], dp[KEYS / 2];
    u32 ds[KEYS / 16][4];
#pragma unroll
    for (int i = 0; i < D / 2; i++) sum[i] = 0.0f;
    auto keys_of = [&](int i) { return steps + i % STAGES * 2 * STEP; };
    auto score = [&](int i) {
        if constexpr (HELD) multiply_rows<D, KEYS>(s, q, keys_of(i));
        else multiply_rows<D, BLOCK, KEYS>(s, queries + own, keys_of(i));
        products_commit();
    };
    auto weigh = [&](int i) {
        if constexpr (HELD) multiply_rows<D, KEYS>(dp, d, keys_of(i) + STEP);
        else multiply_rows<D, BLOCK, KEYS>(dp, douts + own, keys_of(i) + STEP);
        products_commit();
    };
    // Scores become probabilities, then, as `dp` is there, their gradients but for `scale`.
    auto exponentiate = [&](int i) {
        const bool masked = slab.hide(s, i);
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++) s[e] = power_of_2(fmaf(s[e], scale_log2, -lse[e / 2 % 2]));
        return masked;
    };
    auto differentiate = [&](bool masked) {
        // What a row does not see may be infinite.
        if (masked) {
#pragma unroll
            for (int e = 0; e < KEYS / 2; e++)
                if (s[e] == 0.0f) dp[e] = 0.0f;
        }
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++) s[e] *= dp[e] - delta[e / 2 % 2];
        round_to<KEYS>(ds, s);
    };
    // Not before they came: an arrival must not count for an earlier step in the same place.
    for (int i = 0; i < slab.from; i++) ring.wait(i), ring.leave(i);
    if (slab.from < slab.to) {
        barrier_wait(queries_came, 0);
        if constexpr (HELD) hold_rows<D, BLOCK>(q, shared + own), hold_rows<D, BLOCK>(d, shared + TILE + own);
        ring.wait(slab.from);
        products_begin();
        score(slab.from);
        weigh(slab.from);
        products_wait<0>();
        settled(s);
        settled(dp);
        differentiate(exponentiate(slab.from));
    }
    for (int i = slab.from; i + 1 < slab.to; i++) {
        if (threadIdx.x == 0) ring.refill(i, fetch);
        __syncwarp();
        products_begin();
        multiply<D, KEYS>(sum, ds, keys_of(i));
        products_commit();
        ring.wait(i + 1);
        products_begin();
        score(i + 1);
        // The registers of `ds` are free for `dp` then.
        products_wait<1>();
        settled(sum);
        ring.leave(i);
        products_begin();
        weigh(i + 1);
        products_wait<1>();
        settled(s);
        const bool masked = exponentiate(i + 1);
        products_wait<0>();
        settled(dp);
        differentiate(masked);
    }
    if (slab.from < slab.to) {
        products_begin();
        multiply<D, KEYS>(sum, ds, keys_of(slab.to - 1));
        products_commit();
        products_wait<0>();
        settled(sum);
    }
    if (slab.first >= T) return;
#pragma unroll
    for (int e = 0; e < D / 2; e++) sum[e] *= SCALE<D>;
    const i64 stride = (i64)(H + 2 * G) * D;
    u16* const to = dqkv_TQ + slab.first * stride + h * D;
    store_product<D, BLOCK>(sum, slab.group, shared + own, to, stride, T - slab.first);
}

// The highest finite float.
#define HIGHEST 3.402823466e38f

// lse and delta of a step's queries, which a warp keeps for itself in shared memory.
struct Statistics {
    float lse[2], delta[2];

    // Of queries `query` + lane and + lane + 32; those beyond T have no share in anything: 2^-huge.
    __device__ __forceinline__ void read(const float* lse_T, const float* delta_T, int query, int T) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int at = query + r * WARP + threadIdx.x % WARP;
            lse[r] = at < T ? LOG2_E * lse_T[at] : 1e30f;
            // Finite, so that it is nothing times the probability 0 of a key of another document.
            delta[r] = at < T ? fminf(fmaxf(delta_T[at], -HIGHEST), HIGHEST) : 0.0f;
        }
    }
    __device__ __forceinline__ void keep(float* to) const {
        // The step before the last is done with them.
        __syncwarp();
#pragma unroll
        for (int r = 0; r < 2; r++) to[r * WARP + threadIdx.x % WARP] = lse[r], to[(2 + r) * WARP + threadIdx.x % WARP] = delta[r];
        __syncwarp();
    }
};

// A step of queries of a head.
struct Place {
    int head, query;
    __device__ __forceinline__ void advance(int queries, int first, int end) {
        query += queries;
        if (query >= end) query = first, head++;
    }
};

// Dynamic shared memory: keys, values, a ring of queries and gradients of the output, statistics of each warp, barriers.
template <int D, int STAGES>
__device__ __forceinline__ void dkv(const TensorMap& map, const TensorMap& dout_map, const float* lse_HT, const float* delta_HT,
                                    const u32* tiles, const u32* end_T, u16* dqkv_TQ, float* part_PTG, int T, int H, int G) {
    extern __shared__ __align__(1024) unsigned char shared[];
    constexpr int KEYS = 64, QUERIES = 64, N = QUERIES / 2;
    constexpr u32 TILE = KEYS * D * 2, STEP = QUERIES * D * 2, STATISTICS = 4 * 2 * QUERIES * 4;
    const Part share = part_of(H, G);
    const int g = share.g, first = tiles[blockIdx.y / 2] * BLOCK + blockIdx.y % 2 * KEYS;
    if (first >= T) return;
    const int end = end_T[min(first + KEYS, T) - 1];
    const u32 keys = shared_address(shared), values = keys + TILE, steps = values + TILE;
    const u32 keys_came = steps + STAGES * 2 * STEP + STATISTICS;
    const Ring<STAGES, 0, 4> ring{keys_came + 8, share.heads * ((end - first + QUERIES - 1) / QUERIES)};
    auto queries = [&](int i) { return steps + i % STAGES * 2 * STEP; };
    // Of the step that is fetched next.
    Place ahead{share.head, first};
    auto fetch = [&](int i) {
        const u32 to = queries(i), came = ring.came(i);
        barrier_expect(came, 2 * STEP);
        load_tile<D, QUERIES>(to, map, ahead.head * D, ahead.query, came);
        load_tile<D, QUERIES>(to + STEP, dout_map, ahead.head * D, ahead.query, came);
        ahead.advance(QUERIES, first, end);
    };
    if (threadIdx.x == 0) {
        barrier_init(keys_came, 1);
        ring.init();
        barrier_expect(keys_came, 2 * TILE);
        load_tile<D, KEYS>(keys, map, (H + g) * D, first, keys_came);
        load_tile<D, KEYS>(values, map, (H + G + g) * D, first, keys_came);
        ring.start(fetch);
    }
    __syncthreads();
    const int row = first + product_row(0), first_end = end_T[first];
    const int ends[2] = {row < T ? (int)end_T[row] : 0, row + 8 < T ? (int)end_T[row + 8] : 0};
    constexpr float scale_log2 = SCALE<D> * LOG2_E;
    float* const statistics = (float*)(shared + 2 * TILE + STAGES * 2 * STEP) + threadIdx.x / WARP * 2 * QUERIES;
    float dk[D / 2], dv[D / 2], s[N], dp[N];
    u32 p[QUERIES / 16][4], ds[QUERIES / 16][4];
#pragma unroll
    for (int i = 0; i < D / 2; i++) dk[i] = 0.0f, dv[i] = 0.0f;
    Place place{share.head, first};
    // Rows are keys here, columns queries: probabilities and gradients are then what the products below take.
    auto exponentiate = [&] {
#pragma unroll
        for (int e = 0; e < N; e++) s[e] = power_of_2(fmaf(s[e], scale_log2, -statistics[product_column(e)]));
        const bool masked = place.query < first + KEYS - 1 || place.query + QUERIES > first_end;
        if (masked) {
#pragma unroll
            for (int e = 0; e < N; e++) {
                const int q = place.query + product_column(e), r = e / 2 % 2;
                if (q < row + 8 * r || q >= ends[r]) s[e] = 0.0f;
            }
        }
        return masked;
    };
    auto differentiate = [&](bool masked) {
        // Of a query that does not see the key it may be infinite.
        if (masked) {
#pragma unroll
            for (int e = 0; e < N; e++)
                if (s[e] == 0.0f) dp[e] = 0.0f;
        }
#pragma unroll
        for (int e = 0; e < N; e++) dp[e] = s[e] * (dp[e] - statistics[QUERIES + product_column(e)]);
        round_to<QUERIES>(p, s);
        round_to<QUERIES>(ds, dp);
    };
    Statistics of_step;
    auto look = [&] { of_step.read(lse_HT + (i64)place.head * T, delta_HT + (i64)place.head * T, place.query, T); };
    look();
    of_step.keep(statistics);
    barrier_wait(keys_came, 0);
    ring.wait(0);
    products_begin();
    multiply_rows<D, KEYS, QUERIES>(s, keys, queries(0));
    multiply_rows<D, KEYS, QUERIES>(dp, values, queries(0) + STEP);
    products_commit();
    products_wait<0>();
    settled(s);
    settled(dp);
    differentiate(exponentiate());
    for (int i = 0; i + 1 < ring.count; i++) {
        products_begin();
        multiply<D, QUERIES>(dv, p, queries(i) + STEP);
        multiply<D, QUERIES>(dk, ds, queries(i));
        products_commit();
        place.advance(QUERIES, first, end);
        look();
        ring.wait(i + 1);
        products_begin();
        multiply_rows<D, KEYS, QUERIES>(s, keys, queries(i + 1));
        products_commit();
        of_step.keep(statistics);
        // The registers of `p` and `ds` are free then.
        products_wait<1>();
        settled(dk);
        settled(dv);
        ring.leave(i);
        products_begin();
        multiply_rows<D, KEYS, QUERIES>(dp, values, queries(i + 1) + STEP);
        products_commit();
        if (threadIdx.x == 0) ring.refill(i, fetch);
        __syncwarp();
        products_wait<1>();
        settled(s);
        const bool masked = exponentiate();
        products_wait<0>();
        settled(dp);
        differentiate(masked);
    }
    products_begin();
    multiply<D, QUERIES>(dv, p, queries(ring.count - 1) + STEP);
    multiply<D, QUERIES>(dk, ds, queries(ring.count - 1));
    products_commit();
    products_wait<0>();
    settled(dk);
    settled(dv);
    if (share.all > 1) {
        const int own = first + threadIdx.x / WARP * 16;
        float* const to = part_PTG + share.offset<D>(T, G) + (i64)own * share.stride<D>(G);
        store_sums<D>(dk, to, share.stride<D>(G), T - own);
        store_sums<D>(dv, to + D, share.stride<D>(G), T - own);
        return;
    }
#pragma unroll
    for (int e = 0; e < D / 2; e++) dk[e] *= SCALE<D>;
    const i64 stride = (i64)(H + 2 * G) * D;
    u16* const to = dqkv_TQ + first * stride;
    store_product<D, KEYS>(dk, 0, shared, to + (H + g) * D, stride, T - first);
    store_product<D, KEYS>(dv, 0, shared + TILE, to + (H + G + g) * D, stride, T - first);
}

#define BACKWARD(D, KEYS, STAGES, HELD, PER_SM, QUERY_STAGES, KEYS_PER_SM) \
    extern "C" __global__ void __launch_bounds__(256, PER_SM) attention_hopper_dq_##D( \
        const __grid_constant__ TensorMap map, const __grid_constant__ TensorMap dout_map, const u16* __restrict__ dout_T, \
        const u16* __restrict__ out_T, const float* __restrict__ lse_HT, const u32* __restrict__ tiles, \
        const u32* __restrict__ begin_T, float* __restrict__ delta_HT, u16* __restrict__ dqkv_TQ, int T, int H, int G) { \
        dq<D, KEYS, STAGES, HELD>(map, dout_map, dout_T, out_T, lse_HT, tiles, begin_T, delta_HT, dqkv_TQ, T, H, G); \
    } \
    extern "C" __global__ void __launch_bounds__(128, KEYS_PER_SM) attention_hopper_dkv_##D( \
        const __grid_constant__ TensorMap map, const __grid_constant__ TensorMap dout_map, const float* __restrict__ lse_HT, \
        const float* __restrict__ delta_HT, const u32* __restrict__ tiles, const u32* __restrict__ end_T, \
        u16* __restrict__ dqkv_TQ, float* __restrict__ part_PTG, int T, int H, int G) { \
        dkv<D, QUERY_STAGES>(map, dout_map, lse_HT, delta_HT, tiles, end_T, dqkv_TQ, part_PTG, T, H, G); \
    }

BACKWARD(64, 64, 4, false, 2, 3, 3)
BACKWARD(128, 64, 4, true, 1, 2, 2)
