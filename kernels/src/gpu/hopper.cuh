// Hopper (sm_90a): copies by the tensor memory accelerator (TMA), barriers in shared memory, and products of a warpgroup (wgmma),
// by PTX. It follows prelude.cuh.
//
// A tile in shared memory is made of boxes of BOX rows and 64 columns of bf16, a row 128 bytes, in the 128-byte swizzle, each box
// at a multiple of 1024 bytes: boxes of the same columns one after another, then those of the next 64 columns.

// A matrix in global memory, as the driver describes it (cuTensorMapEncodeTiled).
struct alignas(64) TensorMap {
    u64 words[16];
};

#define BOX 64
#define ROW_BYTES 128

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// A barrier's phase ends when `count` threads have arrived and all bytes that were expected have come.
__device__ __forceinline__ void barrier_init(u32 barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// After the last barrier_init, by the same thread: the TMA sees them.
__device__ __forceinline__ void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and expects so many bytes.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Waits for the end of a phase of this parity; phases count from 0.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    u32 done;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (!done);
}

// A box at (column, row) of a matrix; what lies outside the matrix comes as zeros.
__device__ __forceinline__ void load_box(u32 to, const TensorMap& map, int column, int row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(&map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}

// A tile of ROWS rows and D columns.
template <int D, int ROWS>
__device__ __forceinline__ void load_tile(u32 to, const TensorMap& map, int column, int row, u32 barrier) {
#pragma unroll
    for (int c = 0; c < D / 64; c++)
#pragma unroll
        for (int r = 0; r < ROWS; r += BOX)
            load_box(to + (c * ROWS + r) * ROW_BYTES, map, column + 64 * c, row + r, barrier);
}

// Of the threads of one warpgroup; the numbers are constants, since a barrier whose number is not takes all sixteen.
__device__ __forceinline__ void warpgroup_sync(int group) {
    if (group == 0) asm volatile("bar.sync 1, 128;" ::: "memory");
    else asm volatile("bar.sync 2, 128;" ::: "memory");
}

// Before a product: registers are as written. Products run on until they are committed and waited for.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// All but the last N committed groups have ended. What they wrote must go through `settled` before it is read.
template <int N>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// The compiler reads these after the wait before, not earlier.
template <int N>
__device__ __forceinline__ void settled(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// An operand in shared memory: the low word of its descriptor says where, the high word that 8 rows lie every 1024 bytes and that
// they are swizzled. `leading`: bytes between boxes of neighbouring columns, where columns are the operand's rows.
__device__ __forceinline__ u32 operand(u32 at, u32 leading = 16) { return (at & 0x3ffff) >> 4 | (leading >> 4) << 16; }
__device__ __forceinline__ u64 descriptor(u32 operand) { return (u64)operand | 64ull << 32 | 1ull << 62; }

// The same in all lanes, which the compiler is to know.
__device__ __forceinline__ u32 uniform(u32 x) { return __shfl_sync(ALL_LANES, x, 0); }

#define LIST_16(d, i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7]), \
        "+f"(d[i + 8]), "+f"(d[i + 9]), "+f"(d[i + 10]), "+f"(d[i + 11]), "+f"(d[i + 12]), "+f"(d[i + 13]), "+f"(d[i + 14]), \
        "+f"(d[i + 15])
#define NAMES_32 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES_64 \
    NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59," \
             "%60,%61,%62,%63"

// Sixteen columns of a sum over columns: d (+)= a bT, both in shared memory. 64 rows; N = 64 or 128 of b.
__device__ __forceinline__ void product_of_rows(float (&d)[32], u64 a, u64 b, int add) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, %32, %33, p, 1, 1, 0, 0;}"
                 : LIST_16(d, 0), LIST_16(d, 16)
                 : "l"(a), "l"(b), "r"(add));
}
__device__ __forceinline__ void product_of_rows(float (&d)[64], u64 a, u64 b, int add) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64 "}, %64, %65, p, 1, 1, 0, 0;}"
                 : LIST_16(d, 0), LIST_16(d, 16), LIST_16(d, 32), LIST_16(d, 48)
                 : "l"(a), "l"(b), "r"(add));
}

// Sixteen rows of a sum over rows: d += a b, a in registers, b in shared memory with N = 64 or 128 columns.
__device__ __forceinline__ void product(float (&d)[32], const u32 (&a)[4], u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
                 : LIST_16(d, 0), LIST_16(d, 16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ __forceinline__ void product(float (&d)[64], const u32 (&a)[4], u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64 "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
                 : LIST_16(d, 0), LIST_16(d, 16), LIST_16(d, 32), LIST_16(d, 48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Sixteen columns of a sum over columns: d (+)= a bT, a in registers.
__device__ __forceinline__ void product_of_rows(float (&d)[32], const u32 (&a)[4], u64 b, int add) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 0;}"
                 : LIST_16(d, 0), LIST_16(d, 16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
__device__ __forceinline__ void product_of_rows(float (&d)[64], const u32 (&a)[4], u64 b, int add) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64 "}, {%64,%65,%66,%67}, %68, p, 1, 1, 0;}"
                 : LIST_16(d, 0), LIST_16(d, 16), LIST_16(d, 32), LIST_16(d, 48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

// 64 rows of tile `a` in registers, as the left operand: a[k] has columns 16 k ...
template <int D, int A_ROWS>
__device__ __forceinline__ void hold_rows(u32 (&a)[D / 16][4], const unsigned char* tile) {
    const int row = threadIdx.x % 128 / WARP * 16 + threadIdx.x % 16, half = threadIdx.x % WARP / 16;
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        ldmatrix_x4(a[k], tile + (k / 4 * A_ROWS + row) * ROW_BYTES + ((2 * k + half) ^ row) % 8 * 16);
}

// d = a bT: 64 rows of D columns in registers by all N rows of tile `b`.
template <int D, int N>
__device__ __forceinline__ void multiply_rows(float (&d)[N / 2], const u32 (&a)[D / 16][4], u32 b) {
    const u32 right = operand(b);
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        product_of_rows(d, a[k], descriptor(right + (k / 4 * N * ROW_BYTES + k % 4 * 32) / 16), k > 0);
}

// d = a bT: 64 rows of tile `a` (of A_ROWS rows) by all N rows of tile `b`, over D columns.
template <int D, int A_ROWS, int N>
__device__ __forceinline__ void multiply_rows(float (&d)[N / 2], u32 a, u32 b) {
    const u32 left = operand(a), right = operand(b);
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        product_of_rows(d, descriptor(left + (k / 4 * A_ROWS * ROW_BYTES + k % 4 * 32) / 16),
                        descriptor(right + (k / 4 * N * ROW_BYTES + k % 4 * 32) / 16), k > 0);
}

// d += a b: 64 rows of 16 K columns in registers by the K rows of tile `b`, which has D columns.
template <int D, int K>
__device__ __forceinline__ void multiply(float (&d)[D / 2], const u32 (&a)[K / 16][4], u32 b) {
    const u32 right = operand(b, K * ROW_BYTES);
#pragma unroll
    for (int k = 0; k < K / 16; k++) product(d, a[k], descriptor(right + k * 16 * ROW_BYTES / 16));
}

// A product's elements, rounded, as the left operand of the next.
template <int N>
__device__ __forceinline__ void round_to(u32 (&a)[N / 16][4], const float (&d)[N / 2]) {
#pragma unroll
    for (int i = 0; i < N / 4; i++) a[i / 4][i % 4] = pair_of(d[2 * i], d[2 * i + 1]);
}

// Row, within a warpgroup's 64, and column of element i of a product in this thread.
__device__ __forceinline__ int product_row(int i) { return threadIdx.x % 128 / WARP * 16 + threadIdx.x % WARP / 4 + i / 2 % 2 * 8; }
__device__ __forceinline__ int product_column(int i) { return i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2; }

// Tiles of the steps of a loop on their way to shared memory: a ring of STAGES places, filled by thread 0. A place is filled again
// when all WARPS have left the step that was there, LAG steps after thread 0 itself did: with several warpgroups it does not wait
// for the others then.
template <int STAGES, int LAG, int WARPS>
struct Ring {
    u32 barriers;  // STAGES of steps that came, STAGES of steps that all warps have left
    int count;

    __device__ __forceinline__ void init() const {
        static_assert(STAGES - LAG >= 2, "a step is fetched while the one before it is at work");
        for (int i = 0; i < STAGES; i++) {
            barrier_init(barriers + 8 * i, 1);
            barrier_init(barriers + 8 * (STAGES + i), WARPS);
        }
        barriers_ready();
    }
    __device__ __forceinline__ u32 came(int step) const { return barriers + step % STAGES * 8; }
    __device__ __forceinline__ void wait(int step) const { barrier_wait(came(step), step / STAGES & 1); }
    __device__ __forceinline__ void leave(int step) const {
        if (threadIdx.x % WARP == 0) barrier_arrive(came(step) + 8 * STAGES);
    }
    // Thread 0: begins the first steps.
    template <typename Fetch>
    __device__ __forceinline__ void start(Fetch fetch) const {
        for (int i = 0; i < STAGES && i < count; i++) fetch(i);
    }
    // Thread 0, at step `step`: begins the step that takes the place of an earlier one.
    template <typename Fetch>
    __device__ __forceinline__ void refill(int step, Fetch fetch) const {
        const int left = step - LAG;
        if (left < 0 || left + STAGES >= count) return;
        barrier_wait(came(left) + 8 * STAGES, left / STAGES & 1);
        fetch(left + STAGES);
    }
};

// 64 rows of a warpgroup, in registers, to memory through its own rows of a tile in shared memory; rows from `valid` on are left
// out.
template <int D, int ROWS>
__device__ __forceinline__ void store_product(const float (&d)[D / 2], u32 group, unsigned char* tile, u16* to, i64 stride,
                                              int valid) {
    // No product reads the tile any more.
    warpgroup_sync(group);
    const int lane = threadIdx.x % WARP, warp_row = threadIdx.x % 128 / WARP * 16;
#pragma unroll
    for (int i = 0; i < D / 2; i += 2) {
        const int row = product_row(i), column = product_column(i);
        const int at = (column / 64 * ROWS + row) * ROW_BYTES + (column / 8 ^ row) % 8 * 16 + column % 8 * 2;
        *(u32*)(tile + at) = pair_of(d[i], d[i + 1]);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        const int at = i * WARP + lane, row = warp_row + at / (D / 8), chunk = at % (D / 8);
        if (row < valid)
            *(uint4*)(to + row * stride + chunk * 8) =
                *(const uint4*)(tile + (chunk / 8 * ROWS + row) * ROW_BYTES + (chunk ^ row) % 8 * 16);
    }
}
