// CUDA's words on a CPU, so that the kernels' own source runs in a test without a GPU. The threads of a block are fibres,
// run one after the other from barrier to barrier, in either order: a barrier that is missing shows as a result that
// depends on the order or is wrong, one that not all threads reach is reported. Blocks run one after the other. What it
// cannot show is anything of speed, memory ordering, or races between blocks.

#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __device__
#define __global__ static
#define __shared__ static
#define __launch_bounds__(...)

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};
static Dim threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

constexpr unsigned LANES = 32;
constexpr size_t STACK_BYTES = 64 * 1024, SHARED_BYTES = 227 * 1024;

struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    bool done = false;
};

struct Barrier {
    unsigned members = 0, arrived = 0, generation = 0;
    void wait();
};

struct Warp {
    Barrier barrier;
    unsigned char values[LANES][16];
};

static std::vector<Fibre> fibres;
static std::vector<Warp> warps;
static Barrier block_barrier;
static ucontext_t scheduler;
static unsigned current;
static unsigned long steps;  // what shows that not all fibres wait
static std::function<void()> body;
alignas(16) static unsigned shared[SHARED_BYTES / sizeof(unsigned)];

void Barrier::wait() {
    const unsigned mine = generation;
    ++steps;
    if (++arrived == members) {
        arrived = 0;
        ++generation;
    }
    while (generation == mine) swapcontext(&fibres[current].context, &scheduler);
}

static void enter() {
    body();
    fibres[current].done = true;
    ++steps;
}

// Whether all threads of the block came to their end.
static bool run_block(unsigned threads, bool reversed) {
    block_barrier = {threads};
    warps.assign((threads + LANES - 1) / LANES, {});
    for (unsigned i = 0; i < warps.size(); ++i) warps[i].barrier.members = std::min(LANES, threads - i * LANES);
    for (unsigned i = 0; i < threads; ++i) {
        fibres[i].done = false;
        getcontext(&fibres[i].context);
        fibres[i].context.uc_stack.ss_sp = fibres[i].stack.get();
        fibres[i].context.uc_stack.ss_size = STACK_BYTES;
        fibres[i].context.uc_link = &scheduler;
        makecontext(&fibres[i].context, enter, 0);
    }
    for (unsigned left = threads; left > 0;) {
        const unsigned long before = steps;
        left = 0;
        for (unsigned i = 0; i < threads; ++i) {
            current = reversed ? threads - 1 - i : i;
            threadIdx.x = current;
            if (!fibres[current].done) swapcontext(&scheduler, &fibres[current].context);
            left += !fibres[current].done;
        }
        if (steps == before) return false;
    }
    return true;
}

enum Outcome { FINE, STUCK, TOO_MUCH_SHARED, WRONG_ARGUMENT };

template <typename... A, size_t... I>
int launch(void (*kernel)(A...), std::index_sequence<I...>, const unsigned* grid, unsigned threads, unsigned shared_bytes,
           bool reversed, void** arguments, const unsigned* sizes, unsigned count) {
    if (count != sizeof...(A) || !((sizes[I] == sizeof(A)) && ...)) return WRONG_ARGUMENT;
    if (shared_bytes > SHARED_BYTES) return TOO_MUCH_SHARED;
    body = [=] { kernel(*static_cast<A*>(arguments[I])...); };
    if (fibres.size() < threads) fibres.resize(threads);
    gridDim = {grid[0], grid[1]};
    blockDim = {threads};
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
            std::memset(shared, 0xa5, SHARED_BYTES);
            if (!run_block(threads, reversed)) return STUCK;
        }
    }
    return FINE;
}

template <typename... A, typename... Rest>
int run(void (*kernel)(A...), Rest... rest) {
    return launch(kernel, std::index_sequence_for<A...>(), rest...);
}

}  // namespace cuda_on_cpu

static inline void __syncthreads() { cuda_on_cpu::block_barrier.wait(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int offset) {
    auto& warp = cuda_on_cpu::warps[threadIdx.x / cuda_on_cpu::LANES];
    const unsigned lane = threadIdx.x % cuda_on_cpu::LANES;
    std::memcpy(warp.values[lane], &value, sizeof value);
    warp.barrier.wait();
    std::memcpy(&value, warp.values[lane ^ offset], sizeof value);
    warp.barrier.wait();
    return value;
}

template <typename T>
T atomicAdd(T* place, T value) {
    const T before = *place;
    *place += value;
    return before;
}

static inline unsigned* dynamic_shared_memory() { return cuda_on_cpu::shared; }

template <typename To, typename From>
static To bits_as(From value) {
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}

static inline float __int_as_float(int bits) { return bits_as<float>(bits); }

static inline float half_to_float(unsigned short half) {
    const unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return bits_as<float>(sign | 0x7f800000u | fraction << 13);
    const float size = std::ldexp(exponent ? fraction + 1024.0f : fraction, exponent ? int(exponent) - 25 : -24);
    return sign ? -size : size;
}

static inline unsigned short float_to_half(float value) {
    const unsigned bits = bits_as<unsigned>(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return sign | 0x7e00u;
    if (size >= 0x47800000u) return sign | 0x7c00u;
    if (size < 0x38800000u) return sign | unsigned(std::nearbyint(std::ldexp(bits_as<float>(size), 24)));
    return sign | (size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13;
}
