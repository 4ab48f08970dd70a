// Kernels of tests only, each with a fault that the tests must see. They follow the prelude.

// An array with an index that is not known: memory of a thread's own.
extern "C" __global__ void local_array(int* out, int at) {
    int values[64];
    for (int i = 0; i < 64; i++) values[i] = out[i];
    values[at] = at;
    for (int i = 0; i < 64; i++) out[i] = values[(i + at) & 63];
}

// Its sums are read before they are waited for, so the assembler waits after each product.
extern "C" __global__ void serialised(float* out, u64 a, u64 b) {
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int i = 0; i < 2; i++) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "l"(a), "l"(b));
        d[0] *= 2.0f;
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    out[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}

// The number of threads of a block is not known, so registers cannot be moved between warps.
extern "C" __global__ void registers_ignored(int* out) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    out[threadIdx.x] = 0;
}
