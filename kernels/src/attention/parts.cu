// Gradients of keys and values from the sums of several blocks, as `Part` in common.cuh has them: in the order of the parts, and
// rounded once. A thread has eight of them.

template <int K>
__device__ __forceinline__ void dkv_sum(const float* part_PTG, u16* dqkv_TQ, int T, int H, int G, int parts) {
    wait_for_predecessor();
    const u32 packs = G * 2 * K / PACK, i = blockIdx.x * blockDim.x + threadIdx.x, t = i / packs;
    if (t >= T) return;
    const int c = (i - t * packs) * PACK, g = c / (2 * K), is_v = c / K % 2;
    const i64 at = (i64)i * PACK, all = (i64)T * packs * PACK;
    float sum[PACK] = {};
    for (int p = 0; p < parts; p++) add_floats(part_PTG + p * all + at, sum);
#pragma unroll
    for (int j = 0; j < PACK; j++) sum[j] *= is_v ? 1.0f : SCALE<K>;
    store_pack(dqkv_TQ + (i64)t * (H + 2 * G) * K + (H + is_v * G + g) * K + c % K, pack_of(sum));
}

#define DKV_SUM(K) \
    extern "C" __global__ void attention_dkv_sum_##K(const float* __restrict__ part_PTG, u16* __restrict__ dqkv_TQ, int T, \
                                                     int H, int G, int parts) { \
        dkv_sum<K>(part_PTG, dqkv_TQ, T, H, G, parts); \
    }

DKV_SUM(64)
DKV_SUM(128)
