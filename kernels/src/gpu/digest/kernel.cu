// Digest of memory; the contract is in mod.rs.

// A word and its place, mixed so that neither exchanged nor changed words leave the sum as it was.
__device__ __forceinline__ u64 mixed(u32 word, i64 place) {
    u64 z = ((u64)word + 1) * 0x9e3779b97f4a7c15ull ^ (u64)(place + 1) * 0xd1342543de82ef95ull;
    z = (z ^ (z >> 32)) * 0xbf58476d1ce4e5b9ull;
    return z ^ (z >> 29);
}

// Thread i of the grid leaves the sum over its words in part[2i], and in part[2i + 1] how many of them are all ones.
extern "C" __global__ void digest_words(const u32* __restrict__ words, i64 count, u64* __restrict__ part) {
    const i64 thread = (i64)blockIdx.x * blockDim.x + threadIdx.x, step = (i64)gridDim.x * blockDim.x;
    u64 sum = 0, ones = 0;
    for (i64 i = thread; i < count; i += step) {
        const u32 word = words[i];
        sum += mixed(word, i);
        ones += word == 0xffffffffu;
    }
    part[2 * thread] = sum;
    part[2 * thread + 1] = ones;
}
