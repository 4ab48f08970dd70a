// Threads of a block as fibers of one thread of the CPU: a fiber runs until it waits for others. All state is plain static,
// for one launch at a time; AddressSanitizer then guards `__shared__` arrays as it guards any global.

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };

// Set at each switch.
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulated {

#ifdef __x86_64__
struct Context { void* stack; };
// Keeps what a call must keep on the stack that it leaves, and takes it from the one that it enters.
extern "C" __attribute__((visibility("hidden"))) void emulated_swap(void** left, void* entered);
asm(".pushsection .text\n.hidden emulated_swap\n.globl emulated_swap\n.type emulated_swap,@function\nemulated_swap:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n.popsection\n");
inline void swap(Context& left, Context& entered) { emulated_swap(&left.stack, entered.stack); }
inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    // From the top: an end for unwinders, which also aligns; where `ret` goes; six registers.
    void** top = (void**)(stack + bytes) - 8;
    std::fill(top, top + 8, nullptr);
    top[6] = (void*)entry;
    context.stack = top;
}
#else
struct Context { ucontext_t at; };
inline void swap(Context& left, Context& entered) { swapcontext(&left.at, &entered.at); }
inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context.at);
    context.at.uc_stack.ss_sp = stack;
    context.at.uc_stack.ss_size = bytes;
    context.at.uc_link = nullptr;
    makecontext(&context.at, entry, 0);
}
#endif

const unsigned LANES = 32;
const size_t STACK = 256 << 10, GUARD = 64 << 10;

// cp.async: what is still to be copied.
struct Copy { void* to; const void* from; unsigned group; };

// What the last lane to arrive does for all; lanes that take no part are null.
typedef void (*Operation)(void** lanes);

struct Fiber {
    Context context;
    char* mapping;
    void* fake_stack;
    unsigned thread;
    bool exited, at_barrier;
    const char* waits;  // at what; null while it can run
    unsigned mask;
    void* data;
    Operation operation;
    std::vector<Copy> copies;
    unsigned groups;
    char* stack() const { return mapping + GUARD; }
};

struct Warp { unsigned live, waiting; };
struct Votes { unsigned arrived, set; };

static std::vector<Fiber*> fibers;
static std::vector<Warp> warps;
static std::vector<Fiber*> ready;  // the last of them runs first
static bool turned;                // the order in which threads become ready
static Fiber* current;
static Context scheduler;
static void* scheduler_fake_stack;
static const void* scheduler_bottom;
static size_t scheduler_size;
static unsigned threads, live;
static Votes votes, verdict;
static const char* barrier_name;
static void (*body)(void** args);
static void** arguments;
static const char* kernel;
static std::string error;

inline void before_switch(void** fake, const void* bottom, size_t size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(fake, bottom, size);
#else
    (void)fake, (void)bottom, (void)size;
#endif
}

inline void after_switch(void* fake, const void** bottom, size_t* size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, bottom, size);
#else
    (void)fake, (void)bottom, (void)size;
#endif
}

inline void enter(Fiber& fiber) {
    current = &fiber;
    threadIdx.x = fiber.thread;
    before_switch(&scheduler_fake_stack, fiber.stack(), STACK);
    swap(scheduler, fiber.context);
    after_switch(scheduler_fake_stack, nullptr, nullptr);
}

inline void leave(Fiber& fiber) {
    before_switch(&fiber.fake_stack, scheduler_bottom, scheduler_size);
    swap(fiber.context, scheduler);
    after_switch(fiber.fake_stack, &scheduler_bottom, &scheduler_size);
}

// Ends the launch, from within a fiber.
[[noreturn]] inline void fail(const std::string& what) {
    error = what + ", thread " + std::to_string(current->thread);
    leave(*current);
    abort();
}

inline void wake(Fiber& fiber) {
    fiber.waits = nullptr;
    fiber.at_barrier = false;
    if (&fiber != current) ready.push_back(&fiber);
}

inline void end_barrier() {
    verdict = votes;
    votes = {0, 0};
    barrier_name = nullptr;
    turned = !turned;
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = *fibers[turned ? threads - 1 - i : i];
        if (fiber.at_barrier) wake(fiber);
    }
}

// Every thread of the block that has not exited comes here; how many did, and how many with a set vote.
inline Votes barrier(const char* name, bool vote) {
    Fiber& self = *current;
    if (barrier_name && strcmp(barrier_name, name)) fail(std::string(name) + " meets " + barrier_name);
    barrier_name = self.waits = name;
    self.at_barrier = true;
    votes.arrived++;
    votes.set += vote;
    if (votes.arrived == live) end_barrier();
    else leave(self);
    return verdict;
}

// Runs the operation of the lanes of `mask`, exited ones aside, if all of them wait for it.
inline void settle(unsigned index, unsigned mask) {
    Warp& warp = warps[index];
    const unsigned present = mask & warp.live;
    if (present & ~warp.waiting) return;
    void* lanes[LANES] = {};
    Fiber* first = nullptr;
    for (unsigned lane = 0; lane < LANES; lane++) {
        if (!(present >> lane & 1)) continue;
        Fiber& fiber = *fibers[index * LANES + lane];
        if (fiber.mask != mask) return;  // waits for others
        if (first && strcmp(first->waits, fiber.waits)) fail(std::string(first->waits) + " meets " + fiber.waits);
        if (!first) first = &fiber;
        lanes[lane] = fiber.data;
    }
    if (!first) return;
    first->operation(lanes);
    warp.waiting &= ~present;
    for (unsigned lane = 0; lane < LANES; lane++)
        if (present >> lane & 1) wake(*fibers[index * LANES + lane]);
}

// Every lane of `mask` that has not exited comes here with its data, on which `operation` then works.
inline void collective(const char* name, unsigned mask, void* data, Operation operation) {
    Fiber& self = *current;
    const unsigned bit = 1u << self.thread % LANES, index = self.thread / LANES;
    if (!(mask & bit)) fail(std::string(name) + " with a mask that lacks the lane itself");
    self.waits = name;
    self.mask = mask;
    self.data = data;
    self.operation = operation;
    warps[index].waiting |= bit;
    settle(index, mask);
    if (self.waits) leave(self);
}

inline void exited(Fiber& self) {
    const unsigned bit = 1u << self.thread % LANES, index = self.thread / LANES;
    self.exited = true;
    live--;
    warps[index].live &= ~bit;
    if (votes.arrived && votes.arrived == live) end_barrier();
    for (unsigned lane = 0; lane < LANES; lane++) {
        if (!(warps[index].waiting >> lane & 1)) continue;
        const unsigned mask = fibers[index * LANES + lane]->mask;
        if (mask & bit) settle(index, mask);
    }
}

// A fiber's whole life: one thread of each block. Its stack is in order again after each, so it is made once.
inline void live_on() {
    after_switch(nullptr, &scheduler_bottom, &scheduler_size);
    for (;;) {
        body(arguments);
        exited(*current);
        leave(*current);
    }
}

// A stack between pages that cannot be touched.
inline Fiber* make(unsigned thread) {
    void* mapping = mmap(nullptr, STACK + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    Fiber* fiber = new Fiber();
    fiber->mapping = (char*)mapping;
    fiber->thread = thread;
    if (mprotect(fiber->stack(), STACK, PROT_READ | PROT_WRITE)) abort();
#ifdef __SANITIZE_ADDRESS__
    // The address may have been that of a fiber that was cut off.
    ASAN_UNPOISON_MEMORY_REGION(fiber->stack(), STACK);
#endif
    prepare(fiber->context, fiber->stack(), STACK, live_on);
    return fiber;
}

inline bool need(unsigned count) {
    while (fibers.size() < count) {
        Fiber* fiber = make(fibers.size());
        if (!fiber) {
            error = "no memory for stacks";
            return false;
        }
        fibers.push_back(fiber);
    }
    return true;
}

// After a failure fibers stand anywhere in the kernel.
inline void discard() {
    for (Fiber* fiber : fibers) {
        munmap(fiber->mapping, STACK + 2 * GUARD);
        delete fiber;
    }
    fibers.clear();
    ready.clear();
    barrier_name = nullptr;
    votes = {0, 0};
}

inline void describe_deadlock() {
    std::map<std::string, std::pair<unsigned, unsigned>> places;  // threads there, the first of them
    for (unsigned i = 0; i < threads; i++)
        if (!fibers[i]->exited) places.insert({fibers[i]->waits, {0, i}}).first->second.first++;
    error = "deadlock:";
    for (auto& [name, place] : places)
        error += " " + std::to_string(place.first) + " threads wait at " + name + ", the first of them " +
                 std::to_string(place.second) + ";";
    error += " " + std::to_string(threads - live) + " have ended";
}

// Runs a block; false where it failed. A thread that may go on does so before all others: a warp that has what it waited for
// runs as far ahead of the rest as barriers let it. The order turns round from barrier to barrier, and starts the other way
// in every other block. So what needs a barrier that is missing goes wrong, in one of the two.
inline bool run_block() {
    warps.assign((threads + LANES - 1) / LANES, {0, 0});
    turned = (blockIdx.x + blockIdx.y) & 1;
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = *fibers[turned ? i : threads - 1 - i];
        fiber.exited = fiber.at_barrier = false;
        fiber.waits = nullptr;
        fiber.copies.clear();
        fiber.groups = 0;
        warps[fiber.thread / LANES].live |= 1u << fiber.thread % LANES;
        ready.push_back(&fiber);
    }
    live = threads;
    while (!ready.empty()) {
        Fiber* fiber = ready.back();
        ready.pop_back();
        enter(*fiber);
        if (!error.empty()) return false;
    }
    if (live) describe_deadlock();
    return !live;
}

}  // namespace emulated
