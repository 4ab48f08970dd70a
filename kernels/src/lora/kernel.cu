// What the products of LoRA need besides; the contract is in mod.rs, the table of segments in cuda.rs.

struct Segment {
    int offset, width, r, s, b;
};

__device__ __forceinline__ Segment segment_at(const int* segments, int i) {
    const int* at = segments + 5 * i;
    return Segment{at[0], at[1], at[2], at[3], at[4]};
}

// The B of a group as one matrix: wide_NS[offset_i + n][s_i + k] = scale * B_i[n][k], and zeros elsewhere. A block for each row.
extern "C" __global__ void lora_widen(const elem* __restrict__ b, const int* __restrict__ segments, elem* __restrict__ wide_NS,
                                      int count, int S, float scale) {
    const int n = blockIdx.x;
    for (int s = threadIdx.x; s < S; s += blockDim.x) {
        float value = 0.0f;
        for (int i = 0; i < count; i++) {
            const Segment at = segment_at(segments, i);
            const int row = n - at.offset, k = s - at.s;
            if (row >= 0 && row < at.width && k >= 0 && k < at.r) value = scale * to_float(b[(i64)at.b + (i64)row * at.r + k]);
        }
        wide_NS[(i64)n * S + s] = to_elem(value);
    }
}

// db += scale * the blocks of dwide_NS that belong to adapters. A block for each row.
extern "C" __global__ void lora_collect(const float* __restrict__ dwide_NS, const int* __restrict__ segments,
                                        float* __restrict__ db, int count, int S, float scale) {
    const int n = blockIdx.x;
    for (int i = 0; i < count; i++) {
        const Segment at = segment_at(segments, i);
        const int row = n - at.offset;
        if (row < 0 || row >= at.width) continue;
        for (int k = threadIdx.x; k < at.r; k += blockDim.x)
            db[(i64)at.b + (i64)row * at.r + k] += scale * dwide_NS[(i64)n * S + at.s + k];
    }
}
