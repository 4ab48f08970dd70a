// The part of linear cross-entropy between its products; the contract is in mod.rs, the layout of memory in cuda.rs.
//
// A row of logits is read once: a block keeps the first packs in registers, the next in shared memory. A row longer than
// both is read again beyond them. Each element is exponentiated twice, once for the sum and once for its gradient, since a
// probability kept in bf16 in between would be rounded twice.

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

    // Calls f(pack, first column, home) for this thread's packs; f may change the pack.
    template <class F>
    __device__ __forceinline__ void each(Pack held[HELD], F f) {
        const int step = blockDim.x;
        int i = threadIdx.x;
#pragma unroll
        for (int k = 0; k < HELD; k++, i += step)
            if (i < packs) f(held[k], i * PACK);
        for (int k = 0; k < in_shared && i < packs; k++, i += step) {
            Pack pack = shared[k * step + threadIdx.x];
            f(pack, i * PACK);
        }
        for (; i < packs; i += step) {
            Pack pack = load_pack(z + (i64)i * PACK);
            f(pack, i * PACK);
        }
    }

    __device__ __forceinline__ void load(Pack held[HELD]) {
        const int step = blockDim.x;
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            const int i = k * step + threadIdx.x;
            if (i < packs) held[k] = load_pack(z + (i64)i * PACK);
        }
        for (int k = 0, i = HELD * step + threadIdx.x; k < in_shared && i < packs; k++, i += step)
            copy_pack(&shared[k * step + threadIdx.x], z + (i64)i * PACK);
        cp_async_commit();
        cp_async_wait<0>();
    }
};

// What a row's logits add up to; every thread gets it. total = sum of 2^(z * log2(e) - shift): what rounding makes of the
// shift, which is much where logits are large, is in every term and so not in their ratios.
struct Sums {
    float shift, total, lse, mean;
};

__device__ __forceinline__ Sums sums_of(Row& row, Pack held[HELD], bool mean, float* scratch) {
    float max = MINUS_INFINITY, total = 0.0f, sum = 0.0f;
    row.each(held, [&](Pack& pack, int c) {
        float v[PACK];
        unpack(pack, v);
        const int n = inside(c, row.V);
#pragma unroll
        for (int j = 0; j < PACK; j++)
            if (j < n) max = fmaxf(max, v[j]);
    });
    max = block_max(max, scratch);
    // No exponential of anything above 0.
    const float shift = max * LOG2_E;
    row.each(held, [&](Pack& pack, int c) {
        float v[PACK];
        unpack(pack, v);
        const int n = inside(c, row.V);
#pragma unroll
        for (int j = 0; j < PACK; j++) {
            if (j >= n) continue;
            total += power_of_2(fmaf(v[j], LOG2_E, -shift));
            if (mean) sum += v[j];
        }
    });
    total = block_sum(total, scratch);
    if (mean) sum = block_sum(sum, scratch);
    return Sums{shift, total, max + LN_2 * __log2f(total), sum / (float)row.V};
}

// A block for each row of a chunk of logits z_RV, `stride` elements apart. losses_R[r] = its loss (0 where it has none), and
// where GRAD its logits become scale * dloss/dz, with zeros beyond V. Dynamic shared memory: `in_shared` packs a thread.
template <bool GRAD>
__device__ __forceinline__ void rows(elem* z_RV, const int* labels_R, const float* scale, float* losses_R, int V, int stride,
                                     int in_shared, const Loss& terms) {
    extern __shared__ __align__(16) Pack shared[];
    __shared__ float scratch[WARP];
    const int label = labels_R[blockIdx.x];
    Row row{z_RV + (i64)blockIdx.x * stride, stride / PACK, V, in_shared, shared};
    Pack held[HELD];
    if (label < 0) {
        const float zeros[PACK] = {};
        if (threadIdx.x == 0) losses_R[blockIdx.x] = 0.0f;
        if (GRAD) row.each(held, [&](Pack&, int c) { store_pack(row.z + c, pack_of(zeros)); });
        return;
    }
    // Before it is overwritten: the sums below wait for all threads.
    const float target = to_float(row.z[label]);
    row.load(held);
    const float epsilon = terms.label_smoothing;
    const Sums sums = sums_of(row, held, epsilon > 0.0f, scratch);
    if (threadIdx.x == 0) {
        const float nll = sums.lse - target, uniform = sums.lse - sums.mean;
        losses_R[blockIdx.x] = (1.0f - epsilon) * nll + (epsilon > 0.0f ? epsilon * uniform : 0.0f)
                               + terms.z_loss * sums.lse * sums.lse;
    }
    if (!GRAD) return;
    const float s = *scale, rise = s * (1.0f + 2.0f * terms.z_loss * sums.lse) / sums.total;
    const float floor = s * epsilon / (float)V, peak = s * (1.0f - epsilon);
    row.each(held, [&](Pack& pack, int c) {
        float v[PACK];
        unpack(pack, v);
        const int n = inside(c, V), at = label - c;
#pragma unroll
        for (int j = 0; j < PACK; j++) {
            v[j] = fmaf(rise, power_of_2(fmaf(v[j], LOG2_E, -sums.shift)), -floor);
            if (j == at) v[j] -= peak;
            if (j >= n) v[j] = 0.0f;
        }
        store_pack(row.z + c, pack_of(v));
    });
}

#define ROW_BOUNDS __launch_bounds__(512, 1)

extern "C" __global__ void ROW_BOUNDS linear_ce_gradient(elem* z_RV, const int* __restrict__ labels_R,
                                                         const float* __restrict__ scale, float* __restrict__ losses_R, int V,
                                                         int stride, int in_shared, float label_smoothing, float z_loss) {
    rows<true>(z_RV, labels_R, scale, losses_R, V, stride, in_shared, Loss{label_smoothing, z_loss});
}

extern "C" __global__ void ROW_BOUNDS linear_ce_loss(elem* z_RV, const int* __restrict__ labels_R,
                                                     float* __restrict__ losses_R, int V, int stride, int in_shared,
                                                     float label_smoothing, float z_loss) {
    rows<false>(z_RV, labels_R, nullptr, losses_R, V, stride, in_shared, Loss{label_smoothing, z_loss});
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
