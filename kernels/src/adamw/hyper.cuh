// What a step reads from memory besides the arena; cuda.rs writes it.

// What all elements share; then one Group for each range of the arena, in order.
struct Hyper {
    float beta1, one_minus_beta1, beta2, one_minus_beta2;
    float inverse_bias_correction2_sqrt, eps;
    u32 step, seed;
};

struct Group {
    i64 end;
    float decay, step_size;
};

struct Clip {
    float norm, factor;
};

// The group of an element; there are a few.
__device__ __forceinline__ Group group_of(const Hyper* hyper, int groups, i64 at) {
    const Group* group = (const Group*)(hyper + 1);
    int i = 0;
    while (i + 1 < groups && at >= group[i].end) i++;
    return group[i];
}
