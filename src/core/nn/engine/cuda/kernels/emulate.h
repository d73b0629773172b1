// Stands in for a GPU, so that the kernels run where there is none: blocks, threads, shared memory, barriers.
//
// Blocks run one after the other in random order, and so do a block's threads; between two barriers every thread runs
// before any goes on, again in random order. The order is drawn from a seed. Shared memory is a fresh block of the heap
// for each block of threads, filled with NaN, so that the address sanitizer sees what is read or written outside of it.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED
#endif
#endif

#if defined(SANITIZED)
#include <sanitizer/common_interface_defs.h>
#define FIBER_LEAVES(keep, stack, size) __sanitizer_start_switch_fiber(keep, stack, size)
#define FIBER_ARRIVES(kept, stack, size) __sanitizer_finish_switch_fiber(kept, stack, size)
#else
#define FIBER_LEAVES(keep, stack, size) (void)0
#define FIBER_ARRIVES(kept, stack, size) (void)0
#endif

#define KERNEL(name, ...) EMULATED(name, false, __VA_ARGS__)
#define BLOCK_KERNEL(name, ...) EMULATED(name, true, __VA_ARGS__)
#define EMULATED(name, barriers, ...)                                          \
    static void name(__VA_ARGS__);                                             \
    static const bool name##_known = emulated::know(#name, barriers, name);    \
    static void name(__VA_ARGS__)
#define DEVICE static inline
#define SHARED(type, name, count) type* name = emulated::shared<type>(__LINE__, count)
#define BARRIER() emulated::barrier()

struct Dimension {
    unsigned x = 1;
};
static Dimension threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

[[noreturn]] inline void fail(const std::string& what) {
    fprintf(stderr, "emulated card: %s\n", what.c_str());
    exit(1);
}

// One argument of a launch: 'p' an address (or none), 'i' a whole number, 'f' a float.
struct Argument {
    char kind;
    uint64_t word;
};

inline std::string running;

template <class T> T read(const Argument& a) {
    constexpr char want = std::is_pointer_v<T> ? 'p' : std::is_floating_point_v<T> ? 'f' : 'i';
    if (a.kind != want) fail(running + ": an argument is given as '" + a.kind + "' and wanted as '" + want + "'");
    T value;
    static_assert(sizeof(T) <= sizeof a.word);
    memcpy(&value, &a.word, sizeof value);
    return value;
}

struct Kernel {
    bool barriers;
    void (*call)(const Kernel&, const std::vector<Argument>&, unsigned blocks, unsigned threads);
    void (*function)();
};

inline std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

// Numbers from 0 to below n, xorshift.
inline uint64_t chance = 88172645463325252ull;
inline unsigned below(unsigned n) {
    chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17;
    return (unsigned)((chance >> 32) * n >> 32);
}

inline std::vector<unsigned> order(unsigned n) {
    std::vector<unsigned> all(n);
    for (unsigned i = 0; i < n; i++) all[i] = i;
    for (unsigned i = n; i > 1; i--) std::swap(all[i - 1], all[below(i)]);
    return all;
}

inline std::map<int, std::unique_ptr<char[]>> of_block;

template <class T> T* shared(int line, size_t count) {
    auto& memory = of_block[line];
    if (!memory) {
        memory.reset(new char[count * sizeof(T)]);
        memset(memory.get(), 0xFF, count * sizeof(T));
    }
    return reinterpret_cast<T*>(memory.get());
}

// A thread that can wait at a barrier.
struct Fiber {
    static constexpr size_t STACK = 64 * 1024;
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    void* kept = nullptr;
    bool done = false;
};

inline ucontext_t scheduler;
inline const void* scheduler_stack;
inline size_t scheduler_size;
inline Fiber* current;
inline void (*body)(void*);
inline void* given;

inline void leave(bool last) {
    Fiber* own = current;
    FIBER_LEAVES(last ? nullptr : &own->kept, scheduler_stack, scheduler_size);
    swapcontext(&own->context, &scheduler);
    FIBER_ARRIVES(own->kept, nullptr, nullptr);
}

inline void barrier() {
    if (!current) fail(running + ": a barrier in a kernel that is not BLOCK_KERNEL");
    leave(false);
}

inline void enter() {
    FIBER_ARRIVES(nullptr, &scheduler_stack, &scheduler_size);
    body(given);
    current->done = true;
    leave(true);
}

// One block of threads that meet at barriers.
inline void run_block(unsigned threads) {
    static std::vector<std::unique_ptr<Fiber>> fibers;
    while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
    for (unsigned t = 0; t < threads; t++) {
        Fiber& fiber = *fibers[t];
        fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = Fiber::STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
    }
    for (unsigned left = threads; left > 0;) {
        unsigned ended = 0;
        for (unsigned t : order(threads)) {
            current = fibers[t].get();
            threadIdx.x = t;
            [[maybe_unused]] void* kept = nullptr;
            FIBER_LEAVES(&kept, current->stack.get(), Fiber::STACK);
            swapcontext(&scheduler, &current->context);
            FIBER_ARRIVES(kept, nullptr, nullptr);
            ended += current->done;
        }
        current = nullptr;
        if (ended != 0 && ended != threads) fail(running + ": some threads ended while others wait at a barrier");
        left -= ended;
    }
}

template <class... A, size_t... I>
void call(const Kernel& kernel, const std::vector<Argument>& words, unsigned blocks, unsigned threads,
          std::index_sequence<I...>) {
    auto function = reinterpret_cast<void (*)(A...)>(kernel.function);
    auto once = [&] { function(read<A>(words[I])...); };
    gridDim.x = blocks, blockDim.x = threads;
    for (unsigned block : order(blocks)) {
        blockIdx.x = block;
        of_block.clear();
        if (kernel.barriers) {
            body = [](void* once_) { (*static_cast<decltype(once)*>(once_))(); };
            given = &once;
            run_block(threads);
            continue;
        }
        for (unsigned t : order(threads)) {
            threadIdx.x = t;
            once();
        }
    }
}

template <class... A>
void unpack(const Kernel& kernel, const std::vector<Argument>& words, unsigned blocks, unsigned threads) {
    if (words.size() != sizeof...(A))
        fail(running + ": " + std::to_string(words.size()) + " arguments, wanted " + std::to_string(sizeof...(A)));
    call<A...>(kernel, words, blocks, threads, std::index_sequence_for<A...>());
}

template <class... A> bool know(const char* name, bool barriers, void (*function)(A...)) {
    kernels()[name] = Kernel{barriers, unpack<A...>, reinterpret_cast<void (*)()>(function)};
    return true;
}

} // namespace emulated
