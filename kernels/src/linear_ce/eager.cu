// The operators of cross-entropy over full logits, each alone; the contract is in mod.rs, their order in cuda_eager.rs. Rows
// are f32, `stride` elements apart, with zeros beyond V, and a block's each. Nothing of a row is kept from one look to the
// next: at a vocabulary of 150,000 neither registers nor shared memory hold it.

MAP(linear_ce_eager_float, float, elem, x)
MAP(linear_ce_eager_to, elem, float, x)

// Place of a token's label, as cuda.rs's index has it.
struct Labels {
    const int* labels_R;
    const int* places_T;
    // -1 where the token has no loss.
    __device__ __forceinline__ int of(i64 t) const {
        const int r = places_T[t];
        return r < 0 ? -1 : labels_R[r];
    }
};

// Columns of this thread's packs.
template <class F>
__device__ __forceinline__ void each_column(int stride, F f) {
    for (int c = threadIdx.x * PACK; c < stride; c += blockDim.x * PACK) f(c);
}

struct MaxSum {
    float max, sum;  // sum of exp(z - max)
};

// In one look: what is summed so far shrinks where a larger logit comes.
__device__ __forceinline__ MaxSum max_sum(const float* z, int V, int stride, float* scratch) {
    float max = MINUS_INFINITY, sum = 0.0f;
    each_column(stride, [&](int c) {
        float v[PACK], top = max;
        load_floats(z + c, v);
        const int n = inside(c, V);
#pragma unroll
        for (int j = 0; j < PACK; j++) {
            if (j >= n) v[j] = MINUS_INFINITY;
            top = fmaxf(top, v[j]);
        }
        sum *= power_of_2((max - top) * LOG2_E);
#pragma unroll
        for (int j = 0; j < PACK; j++) sum += power_of_2((v[j] - top) * LOG2_E);
        max = top;
    });
    const float top = block_max(max, scratch);
    return MaxSum{top, block_sum(sum * power_of_2((max - top) * LOG2_E), scratch)};
}

extern "C" __global__ void linear_ce_eager_log_softmax(const float* __restrict__ z_TV, float* __restrict__ log_p_TV, int V,
                                                       int stride) {
    __shared__ float scratch[WARP];
    const float* z = z_TV + (i64)blockIdx.x * stride;
    float* log_p = log_p_TV + (i64)blockIdx.x * stride;
    const MaxSum row = max_sum(z, V, stride, scratch);
    const float log_sum = logf(row.sum);
    each_column(stride, [&](int c) {
        float v[PACK];
        load_floats(z + c, v);
        const int n = inside(c, V);
        // The largest first: where logits are large, their difference is exact and their logarithm is not lost.
#pragma unroll
        for (int j = 0; j < PACK; j++) v[j] = j < n ? (v[j] - row.max) - log_sum : 0.0f;
        store_floats(log_p + c, v);
    });
}

extern "C" __global__ void linear_ce_eager_logsumexp(const float* __restrict__ z_TV, float* __restrict__ lse_T, int V,
                                                     int stride) {
    __shared__ float scratch[WARP];
    const MaxSum row = max_sum(z_TV + (i64)blockIdx.x * stride, V, stride, scratch);
    if (threadIdx.x == 0) lse_T[blockIdx.x] = row.max + logf(row.sum);
}

// Sum of a row, whose elements beyond V are zeros.
__device__ __forceinline__ float sum_of(const float* row, int stride, float* scratch) {
    float sum = 0.0f;
    each_column(stride, [&](int c) {
        float v[PACK];
        load_floats(row + c, v);
#pragma unroll
        for (int j = 0; j < PACK; j++) sum += v[j];
    });
    return block_sum(sum, scratch);
}

extern "C" __global__ void linear_ce_eager_sum(const float* __restrict__ log_p_TV, float* __restrict__ sums_T, int stride) {
    __shared__ float scratch[WARP];
    const float sum = sum_of(log_p_TV + (i64)blockIdx.x * stride, stride, scratch);
    if (threadIdx.x == 0) sums_T[blockIdx.x] = sum;
}

// *loss += the losses of T rows, in f64, in an order that depends on T alone. One block. sums_T is read where there is
// smoothing, lse_T where there is a z-loss.
extern "C" __global__ void linear_ce_eager_nll(const float* __restrict__ log_p_TV, const int* __restrict__ labels_R,
                                               const int* __restrict__ places_T, const float* __restrict__ sums_T,
                                               const float* __restrict__ lse_T, double* __restrict__ loss, i64 T, int V,
                                               int stride, float label_smoothing, float z_loss) {
    __shared__ double partial[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const Labels labels{labels_R, places_T};
    const double epsilon = label_smoothing;
    double sum = 0.0;
    for (i64 t = threadIdx.x; t < T; t += blockDim.x) {
        const int label = labels.of(t);
        if (label < 0) continue;
        sum -= (1.0 - epsilon) * log_p_TV[t * stride + label];
        if (label_smoothing > 0.0f) sum -= epsilon * sums_T[t] / V;
        if (z_loss > 0.0f) sum += (double)z_loss * lse_T[t] * lse_T[t];
    }
#pragma unroll
    for (int other = WARP / 2; other > 0; other /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, other);
    if (lane == 0) partial[warp] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < warps; i++) sum += partial[i];
    *loss += sum;
}

// Four zeros a vector.
extern "C" __global__ void linear_ce_eager_zeros(float* __restrict__ to, i64 vectors) {
    const i64 first = (i64)blockIdx.x * ITEMS * blockDim.x + threadIdx.x;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const i64 at = first + i * blockDim.x;
        if (at < vectors) *((float4*)to + at) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
}

// Into zeros: the gradient of a row's nll with respect to its log-probabilities. A thread for each row.
extern "C" __global__ void linear_ce_eager_nll_backward(const int* __restrict__ labels_R, const int* __restrict__ places_T,
                                                        const float* __restrict__ scale, float* __restrict__ dlog_p_TV, i64 T,
                                                        int stride, float label_smoothing) {
    const i64 t = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= T) return;
    const int label = Labels{labels_R, places_T}.of(t);
    if (label >= 0) dlog_p_TV[t * stride + label] = -*scale * (1.0f - label_smoothing);
}

// Adds that of the mean over the vocabulary.
extern "C" __global__ void linear_ce_eager_mean_backward(const int* __restrict__ labels_R, const int* __restrict__ places_T,
                                                         const float* __restrict__ scale, float* __restrict__ dlog_p_TV, int V,
                                                         int stride, float label_smoothing) {
    const int label = Labels{labels_R, places_T}.of(blockIdx.x);
    const float each = label < 0 ? 0.0f : *scale * label_smoothing / (float)V;
    float* row = dlog_p_TV + (i64)blockIdx.x * stride;
    each_column(stride, [&](int c) {
        float v[PACK];
        load_floats(row + c, v);
        const int n = inside(c, V);
#pragma unroll
        for (int j = 0; j < PACK; j++)
            if (j < n) v[j] -= each;
        store_floats(row + c, v);
    });
}

extern "C" __global__ void linear_ce_eager_dlog_softmax(const float* __restrict__ dlog_p_TV,
                                                                const float* __restrict__ log_p_TV,
                                                                float* __restrict__ dz_TV, int V, int stride) {
    __shared__ float scratch[WARP];
    const i64 first = (i64)blockIdx.x * stride;
    const float total = sum_of(dlog_p_TV + first, stride, scratch);
    each_column(stride, [&](int c) {
        float g[PACK], log_p[PACK];
        load_floats(dlog_p_TV + first + c, g);
        load_floats(log_p_TV + first + c, log_p);
        const int n = inside(c, V);
#pragma unroll
        for (int j = 0; j < PACK; j++) g[j] = j < n ? g[j] - power_of_2(log_p[j] * LOG2_E) * total : 0.0f;
        store_floats(dz_TV + first + c, g);
    });
}

// Adds the gradient of the z-loss.
extern "C" __global__ void linear_ce_eager_z_backward(const float* __restrict__ z_TV, const float* __restrict__ lse_T,
                                                      const int* __restrict__ labels_R, const int* __restrict__ places_T,
                                                      const float* __restrict__ scale, float* __restrict__ dz_TV, int V,
                                                      int stride, float z_loss) {
    const i64 first = (i64)blockIdx.x * stride;
    const float lse = lse_T[blockIdx.x];
    const int label = Labels{labels_R, places_T}.of(blockIdx.x);
    const float weight = label < 0 ? 0.0f : *scale * 2.0f * z_loss * lse;
    each_column(stride, [&](int c) {
        float z[PACK], dz[PACK];
        load_floats(z_TV + first + c, z);
        load_floats(dz_TV + first + c, dz);
        const int n = inside(c, V);
#pragma unroll
        for (int j = 0; j < PACK; j++)
            if (j < n) dz[j] += weight * power_of_2((z[j] - lse) * LOG2_E);
        store_floats(dz_TV + first + c, dz);
    });
}
