// The part of linear cross-entropy between its products; the contract is in mod.rs, the layout of memory in cuda.rs.
//
// A row of logits is read once: a block keeps the first packs in registers, the next in shared memory. A row longer than
// both is read again beyond them. Each element is exponentiated twice, once for the sum and once for its gradient, since a
// probability kept in bf16 in between would be rounded twice.
//
// A block stays for several rows. Where a pack has become its gradient, the pack of the next row takes its place at once, so that
// reading, arithmetic and writing go on together.

#define LN_2 0.6931471805599453f

// Packs that a thread keeps in registers.
#ifdef ELEM_F32
#define HELD 8
#else
#define HELD 16
#endif

struct Loss {
    float label_smoothing, z_loss;
};

// A row's packs, spread over the block: pack i is thread i % threads's. `shared` has room for SHARED packs of each thread.
struct Row {
    elem* z;
    int packs, V, in_shared;
    Pack* shared;

    // Calls f(pack, first column) for this thread's packs; f may change the pack. Packs of `next`, where it is, replace them.
    template <class F>
    __device__ __forceinline__ void each(Pack held[HELD], const elem* next, F f) {
        const int step = blockDim.x;
        int i = threadIdx.x;
#pragma unroll
        for (int k = 0; k < HELD; k++, i += step) {
            if (i >= packs) continue;
            f(held[k], i * PACK);
            if (next) held[k] = load_pack(next + (i64)i * PACK);
        }
        for (int k = 0; k < in_shared && i < packs; k++, i += step) {
            Pack* const home = &shared[k * step + threadIdx.x];
            Pack pack = *home;
            f(pack, i * PACK);
            if (next) copy_pack(home, next + (i64)i * PACK);
        }
        for (; i < packs; i += step) {
            Pack pack = load_pack(z + (i64)i * PACK);
            f(pack, i * PACK);
        }
        cp_async_commit();
    }
};

// What a row's logits add up to; every thread gets it. total = sum of 2^(z * log2(e) - shift): what rounding makes of the
// shift, which is much where logits are large, is in every term and so not in their ratios.
struct Sums {
    float shift, total, lse, mean;
};

// One pass, so that packs are used as they come: a thread's sum is relative to its largest logit so far.
__device__ __forceinline__ Sums sums_of(Row& row, Pack held[HELD], bool mean, float* scratch) {
    float max = MINUS_INFINITY, shift = MINUS_INFINITY, total = 0.0f, sum = 0.0f;
    cp_async_wait<0>();
    row.each(held, nullptr, [&](Pack& pack, int c) {
        float v[PACK];
        unpack(pack, v);
        const int n = inside(c, row.V);
#pragma unroll
        for (int j = 0; j < PACK; j++)
            if (j < n) max = fmaxf(max, v[j]);
        // Rounded by itself: two shifts differ by what their terms differ by.
        const float higher = __fmul_rn(max, LOG2_E);
        total *= power_of_2(shift - higher);
        shift = higher;
#pragma unroll
        for (int j = 0; j < PACK; j++) {
            if (j >= n) continue;
            total += power_of_2(fmaf(v[j], LOG2_E, -shift));
            if (mean) sum += v[j];
        }
    });
    max = block_max(max, scratch);
    // No exponential of anything above 0.
    const float highest = __fmul_rn(max, LOG2_E);
    total = block_sum(total * power_of_2(shift - highest), scratch);
    if (mean) sum = block_sum(sum, scratch);
    return Sums{highest, total, max + LN_2 * __log2f(total), sum / (float)row.V};
}

// Logits of a row become scale * dloss/dz, with zeros beyond V, and those of the next row, where there is one, take their place.
__device__ __forceinline__ void differentiate(Row& row, Pack held[HELD], const elem* next, const Sums& sums, int label, float scale,
                                              const Loss& terms) {
    const float epsilon = terms.label_smoothing, rise = scale * (1.0f + 2.0f * terms.z_loss * sums.lse) / sums.total;
    const float floor = scale * epsilon / (float)row.V, peak = scale * (1.0f - epsilon);
    row.each(held, next, [&](Pack& pack, int c) {
        float v[PACK];
        unpack(pack, v);
        const int n = inside(c, row.V), at = label - c;
#pragma unroll
        for (int j = 0; j < PACK; j++) {
            v[j] = fmaf(rise, power_of_2(fmaf(v[j], LOG2_E, -sums.shift)), -floor);
            if (j == at) v[j] -= peak;
            if (j >= n) v[j] = 0.0f;
        }
        store_pack(row.z + c, pack_of(v));
    });
}

// The grid strides over the R rows of a chunk of logits z_RV, `stride` elements apart. losses_R[r] = a row's loss (0 where it has
// none), and where GRAD its logits become their gradient. Dynamic shared memory: `in_shared` packs a thread.
template <bool GRAD>
__device__ __forceinline__ void rows(elem* z_RV, const int* labels_R, const float* scale, float* losses_R, int R, int V, int stride,
                                     int in_shared, const Loss& terms) {
    extern __shared__ __align__(16) Pack shared[];
    __shared__ float scratch[WARP];
    const float epsilon = terms.label_smoothing, s = GRAD ? *scale : 0.0f;
    auto row_at = [&](int r) { return z_RV + (i64)r * stride; };
    auto target_of = [&](int r, int label) { return label < 0 ? 0.0f : to_float(row_at(r)[label]); };
    int r = blockIdx.x, label = labels_R[r];
    float target = target_of(r, label);
    Row row{row_at(r), stride / PACK, V, in_shared, shared};
    Pack held[HELD];
    row.each(held, row.z, [](Pack&, int) {});
    for (; r < R; r += gridDim.x) {
        row.z = row_at(r);
        const int after = r + gridDim.x;
        const elem* const next = after < R ? row_at(after) : nullptr;
        // Early, and before the block overwrites it, which the sums below wait for.
        const int next_label = next ? labels_R[after] : -1;
        const float next_target = next ? target_of(after, next_label) : 0.0f;
        float loss = 0.0f;
        if (label < 0) {
            const float zeros[PACK] = {};
            cp_async_wait<0>();
            row.each(held, next, [&](Pack&, int c) {
                if (GRAD) store_pack(row.z + c, pack_of(zeros));
            });
        } else {
            const Sums sums = sums_of(row, held, epsilon > 0.0f, scratch);
            const float nll = sums.lse - target, uniform = sums.lse - sums.mean;
            loss = (1.0f - epsilon) * nll + (epsilon > 0.0f ? epsilon * uniform : 0.0f) + terms.z_loss * sums.lse * sums.lse;
            if (GRAD) differentiate(row, held, next, sums, label, s, terms);
            else if (next) row.each(held, next, [](Pack&, int) {});
        }
        if (threadIdx.x == 0) losses_R[r] = loss;
        label = next_label;
        target = next_target;
    }
}

#define ROW_BOUNDS __launch_bounds__(512, 1)

extern "C" __global__ void ROW_BOUNDS linear_ce_gradient(elem* z_RV, const int* __restrict__ labels_R,
                                                         const float* __restrict__ scale, float* __restrict__ losses_R, int R, int V,
                                                         int stride, int in_shared, float label_smoothing, float z_loss) {
    rows<true>(z_RV, labels_R, scale, losses_R, R, V, stride, in_shared, Loss{label_smoothing, z_loss});
}

extern "C" __global__ void ROW_BOUNDS linear_ce_loss(elem* z_RV, const int* __restrict__ labels_R,
                                                     float* __restrict__ losses_R, int R, int V, int stride, int in_shared,
                                                     float label_smoothing, float z_loss) {
    rows<false>(z_RV, labels_R, nullptr, losses_R, R, V, stride, in_shared, Loss{label_smoothing, z_loss});
}

// *loss += the sum of R losses, in f64, in an order that depends on R alone. One block.
extern "C" __global__ void linear_ce_sum(const float* __restrict__ losses_R, double* __restrict__ loss, int R) {
    __shared__ double partial[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    double sum = 0.0;
    for (int i = threadIdx.x; i < R; i += blockDim.x) sum += (double)losses_R[i];
#pragma unroll
    for (int other = WARP / 2; other > 0; other /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, other);
    if (lane == 0) partial[warp] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < warps; i++) sum += partial[i];
    *loss += sum;
}

// Rows with a loss, one after another: x_RD[r] = x_TD[tokens_R[r]], or zeros where that is -1. A block for each row.
extern "C" __global__ void linear_ce_gather(const elem* __restrict__ x_TD, const int* __restrict__ tokens_R,
                                            elem* __restrict__ x_RD, int D) {
    const int t = tokens_R[blockIdx.x];
    const float zeros[PACK] = {};
    for (int c = threadIdx.x * PACK; c < D; c += blockDim.x * PACK)
        store_pack(x_RD + (i64)blockIdx.x * D + c, t < 0 ? pack_of(zeros) : load_pack(x_TD + (i64)t * D + c));
}

// And back: dx_TD[t] = dx_RD[places_T[t]], or zeros where that is -1. A block for each token.
extern "C" __global__ void linear_ce_scatter(const elem* __restrict__ dx_RD, const int* __restrict__ places_T,
                                             elem* __restrict__ dx_TD, int D) {
    const int r = places_T[blockIdx.x];
    const float zeros[PACK] = {};
    for (int c = threadIdx.x * PACK; c < D; c += blockDim.x * PACK)
        store_pack(dx_TD + (i64)blockIdx.x * D + c, r < 0 ? pack_of(zeros) : load_pack(dx_RD + (i64)r * D + c));
}
