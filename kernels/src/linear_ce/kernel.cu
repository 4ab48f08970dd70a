// The part of linear cross-entropy between its products; the contract is in mod.rs, the layout of memory in cuda.rs.
//
// A row of logits is read once: a block keeps the first packs in registers, the next in shared memory. A row longer than
// both is read again beyond them. Each element is exponentiated twice, once for the sum and once for its gradient, since a
// probability kept in bf16 in between would be rounded twice.
//
// A block stays for several rows. Where a pack has become its gradient, the pack of the next row takes its place at once, and
// some packs later is added to that row's sums: reading, arithmetic and writing go on together, and between two rows no more is
// left than the last few sums.

#define LN_2 0.6931471805599453f

// Packs that a thread keeps in registers.
#ifdef ELEM_F32
#define HELD 8
#else
#define HELD 16
#endif

// Packs from where a pack is loaded to where it is added up: as many loads of each thread are under way.
#define BEHIND 6

struct Loss {
    float label_smoothing, z_loss;
};

// A row's packs, spread over the block: pack i is thread i % threads's. `shared` has room for in_shared packs of each
// thread.
struct Row {
    elem* z;
    int packs, V, in_shared;
    Pack* shared;

    // Calls f(pack, first column) for this thread's packs, which those of `next`, where it is, replace. BEHIND packs later these
    // are handed to g(pack, first column), also where there is no such pack: then the column is beyond V.
    template <class F, class G>
    __device__ __forceinline__ void replace(Pack held[HELD], const elem* next, F f, G g) const {
        const int step = blockDim.x, hop = step * PACK;
        int c = threadIdx.x * PACK, late = c;
        // Of several loads to registers a thread cannot wait for the first alone: it has too few scoreboards. Packs are brought
        // to L2, and loaded when the sums are one pack away.
        auto in_register = [&](const Pack& pack) {
            if (c < V) {
                f(pack, c);
                if (next) fetch_pack(next + c);
            }
            c += hop;
        };
        auto in_shared_memory = [&](Pack* home) {
            if (c < V) {
                f(*home, c);
                if (next) copy_pack(home, next + c);
            }
            c += hop;
        };
        auto sum = [&](const Pack& pack) {
            g(pack, late);
            late += hop;
        };
        auto load = [&](Pack& pack) {
            if (next && late < V) pack = load_pack_late(next + late);
        };
        // Each k has a group of copies, if an empty one, so that all but the last BEHIND can be waited for.
        Pack* home = shared + threadIdx.x;
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            in_register(held[k]);
            if (k >= BEHIND) sum(held[k - BEHIND]);
            if (k + 1 >= BEHIND) load(held[k + 1 - BEHIND]);
        }
#pragma unroll
        for (int k = 0; k < BEHIND; k++) {
            if (k < in_shared) in_shared_memory(home + k * step);
            cp_async_commit();
            sum(held[HELD - BEHIND + k]);
            if (k + 1 < BEHIND) load(held[HELD - BEHIND + k + 1]);
        }
#pragma unroll 1
        for (int k = 0; k < in_shared; k++, home += step) {
            if (k + BEHIND < in_shared) in_shared_memory(home + BEHIND * step);
            cp_async_commit();
            cp_async_wait<BEHIND>();
            sum(*home);
        }
        for (; c < V; c += hop) {
            if (next) fetch_pack(next + c);
            if (z) f(load_pack(z + c), c);
            if (next) g(load_pack(next + c), c);
        }
    }
};

// Elements of a pack from the n-th on become `x`: those beyond V, which only a row's last pack has, so that others pay no more
// than a branch.
__device__ __forceinline__ void pad(float v[PACK], int n, float x) {
    if (__builtin_expect(n >= PACK, 1)) return;
#pragma unroll
    for (int j = 0; j < PACK; j++)
        if (j >= n) v[j] = x;
}

// v[0] + ... + v[7], or what f is instead of the sum, by halves.
template <class F>
__device__ __forceinline__ float fold(const float v[PACK], F f) {
    return f(f(f(v[0], v[1]), f(v[2], v[3])), f(f(v[4], v[5]), f(v[6], v[7])));
}

__device__ __forceinline__ float add(float a, float b) { return a + b; }

// What a row's logits add up to; every thread gets it. total = sum of 2^(z * log2(e) - shift): what rounding makes of the
// shift, which is much where logits are large, is in every term and so not in their ratios.
struct Sums {
    float shift, total, lse, mean;
};

// A thread's part of them. One pass, so that packs are used as they come: the sum is relative to the largest logit so far.
struct Part {
    // Packs of fewer elements take more than the sum of their powers of 2: all of them where a mean is wanted.
    int plain;
    float max = MINUS_INFINITY, shift = MINUS_INFINITY, total = 0.0f, sum = 0.0f;

    __device__ __forceinline__ explicit Part(bool mean) : plain(mean ? 0x7fffffff : PACK) {}

    // The first n elements of a pack.
    __device__ __forceinline__ void take(const Pack& pack, int n) {
        float v[PACK];
        unpack(pack, v);
        if (__builtin_expect(n < plain, 0)) {
            if (n <= 0) return;
            if (plain > PACK) {
                pad(v, n, 0.0f);
                sum += fold(v, add);
            }
            pad(v, n, MINUS_INFINITY);
        }
        max = fmaxf(max, fold(v, fmaxf));
        // Rounded by itself: two shifts differ by what their terms differ by.
        const float higher = __fmul_rn(max, LOG2_E);
#pragma unroll
        for (int j = 0; j < PACK; j++) v[j] = power_of_2(fmaf(v[j], LOG2_E, -higher));
        total = fmaf(total, power_of_2(shift - higher), fold(v, add));
        shift = higher;
    }

    __device__ __forceinline__ Sums of_block(int V, float* scratch) const {
        const float largest = block_max(max, scratch);
        // No exponential of anything above 0.
        const float highest = __fmul_rn(largest, LOG2_E);
        const float all = block_sum(total * power_of_2(shift - highest), scratch);
        return Sums{highest, all, largest + LN_2 * __log2f(all), plain > PACK ? block_sum(sum, scratch) / (float)V : 0.0f};
    }
};

// What makes logits of a row their gradient, scale * dloss/dz.
struct Slope {
    float shift, rise, floor, peak;

    __device__ __forceinline__ Slope(const Sums& sums, int V, float scale, const Loss& terms) {
        const float epsilon = terms.label_smoothing;
        shift = sums.shift;
        rise = scale * (1.0f + 2.0f * terms.z_loss * sums.lse) / sums.total;
        floor = scale * epsilon / (float)V;
        peak = scale * (1.0f - epsilon);
    }

    // Where z is not the label's.
    __device__ __forceinline__ float of(float z) const { return fmaf(rise, power_of_2(fmaf(z, LOG2_E, -shift)), -floor); }

    __device__ __forceinline__ void store(elem* to, const Pack& pack) const {
        float v[PACK];
        unpack(pack, v);
#pragma unroll
        for (int j = 0; j < PACK; j++) v[j] = of(v[j]);
        store_pack(to, pack_of(v));
    }
};

// The elements of a row's gradient that are unlike the others, each by the thread that has stored its pack: that of the label,
// whose logit was `target`, and zeros beyond V.
__device__ __forceinline__ void correct(const Row& row, const Slope& slope, int label, float target) {
    const int thread = threadIdx.x, threads = blockDim.x;
    if (label / PACK % threads == thread) row.z[label] = to_elem(slope.of(target) - slope.peak);
    if (row.V / PACK % threads != thread) return;
    for (int c = row.V; c < row.packs * PACK; c++) row.z[c] = to_elem(0.0f);
}

// The grid strides over the R rows of a chunk of logits z_RV, `stride` elements apart. losses_R[r] = a row's loss (0 where it has
// none), and where GRAD its logits become their gradient. Dynamic shared memory: `in_shared` packs a thread.
template <bool GRAD>
__device__ __forceinline__ void rows(elem* z_RV, const int* labels_R, const float* scale, float* losses_R, int R, int V, int stride,
                                     int in_shared, const Loss& terms) {
    extern __shared__ __align__(16) Pack shared[];
    __shared__ float scratch[WARP];
    const float epsilon = terms.label_smoothing, s = GRAD ? *scale : 0.0f, zeros[PACK] = {};
    const bool mean = epsilon > 0.0f;
    // Of no row, at first: the block's first row takes the place of nothing.
    Row row{nullptr, stride / PACK, V, in_shared, shared};
    Pack held[HELD];
    Sums sums{};
    int label = -1;
    float target = 0.0f;
    for (int r = blockIdx.x;; r += gridDim.x) {
        elem* const next = r < R ? z_RV + (i64)r * stride : nullptr;
        // Early, and before the block overwrites it, which the sums below wait for.
        const int next_label = next ? labels_R[r] : -1;
        const float next_target = next_label < 0 ? 0.0f : to_float(next[next_label]);
        const Slope slope(sums, V, s, terms);
        Part part(mean);
        const int summed = next_label < 0 ? 0 : V;
        auto leave = [&](const Pack& pack, int c) {
            if (!GRAD) return;
            if (label >= 0) slope.store(row.z + c, pack);
            else if (row.z) store_pack(row.z + c, pack_of(zeros));
        };
        row.replace(held, next, leave, [&](const Pack& pack, int c) { part.take(pack, summed - c); });
        if (GRAD && label >= 0) correct(row, slope, label, target);
        if (!next) return;
        float loss = 0.0f;
        if (next_label >= 0) {
            sums = part.of_block(V, scratch);
            const float nll = sums.lse - next_target, uniform = sums.lse - sums.mean;
            loss = (1.0f - epsilon) * nll + (mean ? epsilon * uniform : 0.0f) + terms.z_loss * sums.lse * sums.lse;
        }
        if (threadIdx.x == 0) losses_R[r] = loss;
        row.z = next;
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
