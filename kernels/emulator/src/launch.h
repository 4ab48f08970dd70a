// Calls by name. It follows the kernels, and EMULATED_ENTRIES, which names them.

namespace emulated {

// As in mod.rs.
template <class T> constexpr char kind() {
    if (std::is_pointer_v<T>) return 'p';
    if (std::is_same_v<T, int>) return 'i';
    if (std::is_same_v<T, long long>) return 'l';
    if (std::is_same_v<T, unsigned>) return 'u';
    if (std::is_same_v<T, float>) return 'f';
    return 0;
}

template <class T> T argument(const void* at) {
    static_assert(kind<T>() != 0, "a launch has no arguments of this type");
    T value;
    memcpy(&value, at, sizeof value);
    return value;
}

template <auto KERNEL, class = decltype(KERNEL)> struct Kernel;

template <auto KERNEL, class... P> struct Kernel<KERNEL, void (*)(P...)> {
    static constexpr char KINDS[] = {kind<P>()..., 0};
    template <size_t... I> static void unpack(void** args, std::index_sequence<I...>) {
        KERNEL(argument<P>(args[I])...);
    }
    static void call(void** args) { unpack(args, std::index_sequence_for<P...>()); }
};

struct Entry {
    const char* name;
    const char* kinds;
    void (*call)(void** args);
};

#define EMULATED_ENTRY(name) {#name, Kernel<name>::KINDS, Kernel<name>::call},
static const Entry ENTRIES[] = {EMULATED_ENTRIES};

inline bool run_grid() {
    for (unsigned y = 0; y < gridDim.y; y++)
        for (unsigned x = 0; x < gridDim.x; x++) {
            blockIdx = {x, y, 0};
            block_number++;
            static_bytes = 0;
            if (dynamic) memset(dynamic, 0xff, dynamic_bytes);
            if (run_block()) continue;
            error = std::string(kernel) + ", block (" + std::to_string(x) + ", " + std::to_string(y) + "): " + error;
            discard();
            return false;
        }
    return true;
}

inline const Entry* find(const char* name, const char* kinds) {
    for (const Entry& entry : ENTRIES) {
        if (strcmp(entry.name, name)) continue;
        if (!strcmp(entry.kinds, kinds)) return &entry;
        error = std::string(name) + " takes " + entry.kinds + ", not " + kinds;
        return nullptr;
    }
    error = std::string("no entry ") + name;
    return nullptr;
}

inline bool launch(const Entry& entry, dim3 grid, dim3 block, size_t shared_bytes, void** args) {
    kernel = entry.name;
    body = entry.call;
    arguments = args;
    gridDim = grid;
    blockDim = block;
    threads = block.x;
    dynamic_bytes = shared_bytes;
    dynamic = nullptr;
    // Memory of exactly this length, so that AddressSanitizer sees its end.
    void* memory = nullptr;
    if (shared_bytes && posix_memalign(&memory, 128, shared_bytes)) error = "no memory for shared memory";
    dynamic = (char*)memory;
    const bool well = error.empty() && need(threads) && run_grid();
    free(memory);
    return well;
}

}  // namespace emulated

// Why the last launch failed.
extern "C" __attribute__((visibility("default"))) const char* emulate_error() { return emulated::error.c_str(); }

// Runs a launch to its end; 0 if all went well. `kinds` has a letter for each argument.
extern "C" __attribute__((visibility("default"))) int emulate(const char* name, const char* kinds, unsigned blocks_x,
                                                              unsigned blocks_y, unsigned threads, unsigned shared_bytes,
                                                              void** args) {
    emulated::error.clear();
    const emulated::Entry* entry = emulated::find(name, kinds);
    return !(entry && emulated::launch(*entry, {blocks_x, blocks_y, 1}, {threads, 1, 1}, shared_bytes, args));
}
