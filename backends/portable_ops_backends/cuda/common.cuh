// What the kernels have in common. The text of this file is put before that of each kernel file: NVRTC compiles both
// without any header, and so does a C++ compiler in the tests, where CUDA's words are given a meaning on the CPU.

#ifdef __CUDACC__
__device__ inline float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ inline unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ inline unsigned* dynamic_shared_memory() {
    extern __shared__ unsigned words[];
    return words;
}
#endif

using Address = decltype(sizeof(0));
using Index = long long;

struct Half {
    unsigned short bits;
};

// Elements that are read or written at once.
template <typename T, int LENGTH>
struct alignas(sizeof(T) * LENGTH) Vector {
    T items[LENGTH];
};

constexpr int VECTOR_BYTES = 16;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;

// Half precision is computed in float32; labels become whatever they are compared with.
__device__ inline float value_of(Half x) { return half_to_float(x.bits); }
template <typename T>
__device__ inline T value_of(T x) {
    return x;
}

template <typename T>
using Working = decltype(value_of(T()));

// A number in the dtype of an array.
template <typename T>
__device__ inline T stored(double x) {
    return static_cast<T>(x);
}
template <>
__device__ inline Half stored<Half>(double x) {
    return {float_to_half(static_cast<float>(x))};
}
template <typename T>
__device__ inline T stored(float x) {
    return static_cast<T>(x);
}
template <>
__device__ inline Half stored<Half>(float x) {
    return {float_to_half(x)};
}

__device__ inline float power_of_e(float x) { return expf(x); }
__device__ inline double power_of_e(double x) { return exp(x); }
__device__ inline float logarithm(float x) { return logf(x); }
__device__ inline double logarithm(double x) { return log(x); }
__device__ inline float logarithm_of_1_plus(float x) { return log1pf(x); }
__device__ inline double logarithm_of_1_plus(double x) { return log1p(x); }

__device__ inline float infinity() { return __int_as_float(0x7f800000); }
__device__ inline float not_a_number() { return __int_as_float(0x7fffffff); }

template <typename C>
__device__ inline bool is_infinite(C x) {
    return x == infinity() || x == -infinity();
}

// A label as a class, or num_classes or more if it names none. Negative labels of up to 32 bits become large.
template <typename L>
__device__ inline unsigned class_of(L label, unsigned num_classes) {
    if constexpr (sizeof(L) == 8) {
        return static_cast<unsigned long long>(label) < num_classes ? static_cast<unsigned>(label) : num_classes;
    }
    return static_cast<unsigned>(label);
}

struct Sum {
    template <typename C>
    __device__ C operator()(C a, C b) const {
        return a + b;
    }
};

// nan loses: it comes out of the sum of the exponentials.
struct Maximum {
    template <typename C>
    __device__ C operator()(C a, C b) const {
        return b > a ? b : a;
    }
};

// What `LANES` threads in a row make of their values, the same bits in each of them and in every run: lanes of one warp,
// or all threads of a block. Every thread of the warp, or of the block, must come here.
template <int LANES, typename C, typename Operation>
__device__ inline C over_lanes(C value, Operation combine) {
    constexpr int NEAR = LANES < WARP ? LANES : WARP;
#pragma unroll
    for (int offset = NEAR / 2; offset > 0; offset /= 2) {
        value = combine(value, __shfl_xor_sync(ALL_LANES, value, offset));
    }
    if constexpr (LANES > WARP) {
        constexpr int WARPS = LANES / WARP;
        __shared__ C of_warp[WARPS];
        __syncthreads();  // what an earlier call left may still be read
        if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = value;
        __syncthreads();
        value = of_warp[threadIdx.x % WARPS];
#pragma unroll
        for (int offset = WARPS / 2; offset > 0; offset /= 2) {
            value = combine(value, __shfl_xor_sync(ALL_LANES, value, offset));
        }
    }
    return value;
}

// The maximum of logits, how many are at it, and the sum of the exponentials of the others below it, in one pass. Those at it
// are 1, beside which a small sum would lose its digits. An infinite maximum is not subtracted from itself, so that the logarithm
// of the sum of the exponentials, peak + log_sum(), is right for infinities, too.
template <typename C>
struct Normalizer {
    C peak = -infinity();
    C ties = 0;
    C others = 0;

    __device__ void take(C z) {
        if (z > peak) {
            others = (others + ties) * power_of_e(peak - z);
            ties = 1;
            peak = z;
        } else {
            add(z);
        }
    }

    // Of a logit that is not above the maximum: its exponential.
    __device__ C add(C z) {
        const C power = power_below(z);
        const bool at_peak = z == peak;
        ties += at_peak ? C(1) : C(0);
        others += at_peak ? C(0) : power;
        return power;
    }

    __device__ C power_below(C z) const { return z == peak ? C(1) : power_of_e(z - peak); }

    __device__ C sum() const { return ties + others; }
    __device__ C log_sum() const { return logarithm_of_1_plus((ties - 1) + others); }

    // Of what `LANES` threads have taken.
    template <int LANES>
    __device__ Normalizer merged() const {
        Normalizer all;
        all.peak = over_lanes<LANES>(peak, Maximum());
        const bool at_peak = peak == all.peak;
        all.ties = over_lanes<LANES>(at_peak ? ties : C(0), Sum());
        all.others = over_lanes<LANES>(at_peak ? others : (ties + others) * power_of_e(peak - all.peak), Sum());
        return all;
    }
};
