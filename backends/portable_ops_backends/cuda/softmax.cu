// Softmax, its logarithm, and the logarithm of the sum of exponentials, each reading its input once and writing its result
// once; and the sigmoid. A line is what sums to one: a row where its elements are neighbours in memory, a column where
// the elements of many lines alternate. Sums are taken in a fixed order.

// WEIGHTS are those of attention: a softmax in which a row of -inf, where there is nothing to attend to, is 0.
enum Result { SOFTMAX, WEIGHTS, LOG_SOFTMAX, LOGSUMEXP };

constexpr int ROW_THREADS = 128;
constexpr int COLUMN_THREADS = 256;

// A line whose maximum is infinite is nan.
template <int RESULT, typename C>
__device__ inline C normalized(C power, C z, const Normalizer<C>& line) {
    if (RESULT == WEIGHTS && line.peak == -infinity() && line.others == line.others) return 0;
    if (is_infinite(line.peak)) return not_a_number();
    return RESULT == SOFTMAX || RESULT == WEIGHTS ? power / line.sum() : (z - line.peak) - line.log_sum();
}

// Rows of up to LANES * CHUNKS * WIDTH elements, held in registers; LANES threads share a row, and each reads WIDTH elements
// at once. A block of up to a warp's lanes per row has several rows.
template <typename T, int RESULT, int LANES, int CHUNKS, int WIDTH>
__global__ void __launch_bounds__(LANES > WARP ? LANES : ROW_THREADS)
    softmax_rows(const T* __restrict__ x, T* __restrict__ out, Index rows, int size) {
    using C = Working<T>;
    const Index row = (static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x) / LANES;
    const int lane = threadIdx.x % LANES;
    const bool exists = row < rows;  // threads beyond the last row take part in the reductions
    const T* from = x + row * size;
    C items[CHUNKS][WIDTH];
    Normalizer<C> line;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        const int start = (chunk * LANES + lane) * WIDTH;
        const bool inside = exists && start < size;
        Vector<T, WIDTH> loaded;
        if (inside) loaded = *reinterpret_cast<const Vector<T, WIDTH>*>(from + start);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) items[chunk][i] = inside ? value_of(loaded.items[i]) : C(-infinity());
    }
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) line.peak = Maximum()(line.peak, items[chunk][i]);
    }
    line.peak = over_lanes<LANES>(line.peak, Maximum());
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        const bool inside = exists && (chunk * LANES + lane) * WIDTH < size;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            const C power = inside ? line.add(items[chunk][i]) : C(0);
            if (RESULT != LOG_SOFTMAX) items[chunk][i] = power;
        }
    }
    line.ties = over_lanes<LANES>(line.ties, Sum());
    line.others = over_lanes<LANES>(line.others, Sum());
    if (!exists) return;
    if constexpr (RESULT == LOGSUMEXP) {
        if (lane == 0) out[row] = stored<T>(line.peak + line.log_sum());
        return;
    }
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        const int start = (chunk * LANES + lane) * WIDTH;
        Vector<T, WIDTH> result;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            result.items[i] = stored<T>(normalized<RESULT>(items[chunk][i], items[chunk][i], line));
        }
        if (start < size) *reinterpret_cast<Vector<T, WIDTH>*>(out + row * size + start) = result;
    }
}

// Rows too long for registers, a block for each. They are read twice, the second time from the cache if they fit there.
template <typename T, int RESULT, int LANES>
__global__ void __launch_bounds__(LANES)
    softmax_long_rows(const T* __restrict__ x, T* __restrict__ out, Index rows, Index size) {
    using C = Working<T>;
    const Index row = blockIdx.x;
    const T* from = x + row * size;
    Normalizer<C> own;
    for (Index i = threadIdx.x; i < size; i += LANES) own.take(value_of(from[i]));
    const Normalizer<C> line = own.template merged<LANES>();
    if constexpr (RESULT == LOGSUMEXP) {
        if (threadIdx.x == 0) out[row] = stored<T>(line.peak + line.log_sum());
        return;
    }
    for (Index i = threadIdx.x; i < size; i += LANES) {
        const C z = value_of(from[i]);
        out[row * size + i] = stored<T>(normalized<RESULT>(line.power_below(z), z, line));
    }
}

// What the threads of a block that share a column, a warp apart, make of their values.
template <int HEIGHT, typename C, typename Operation>
__device__ inline C over_heights(C value, Operation combine) {
    if constexpr (HEIGHT > 1) {
        __shared__ C of_height[HEIGHT][WARP];
        const int lane = threadIdx.x % WARP;
        __syncthreads();  // what an earlier call left may still be read
        of_height[threadIdx.x / WARP][lane] = value;
        __syncthreads();
        value = of_height[0][lane];
        for (int i = 1; i < HEIGHT; ++i) value = combine(value, of_height[i][lane]);
    }
    return value;
}

// Columns of up to HEIGHT * ITEMS elements that lie `inner` apart, held in registers. A warp has 32 columns side by side, and
// HEIGHT warps of a block share them.
template <typename T, int RESULT, int HEIGHT, int ITEMS>
__global__ void __launch_bounds__(HEIGHT * WARP > COLUMN_THREADS ? HEIGHT * WARP : COLUMN_THREADS)
    softmax_columns(const T* __restrict__ x, T* __restrict__ out, Index columns, int size, Index inner) {
    using C = Working<T>;
    const int lane = threadIdx.x % WARP, height = HEIGHT == 1 ? 0 : threadIdx.x / WARP;
    const Index column = HEIGHT == 1 ? static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x
                                     : static_cast<Index>(blockIdx.x) * WARP + lane;
    const bool exists = column < columns;
    const Index start = column / inner * inner * size + column % inner;
    C items[ITEMS];
    Normalizer<C> line;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int row = i * HEIGHT + height;
        items[i] = exists && row < size ? value_of(x[start + row * inner]) : C(-infinity());
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) line.peak = Maximum()(line.peak, items[i]);
    line.peak = over_heights<HEIGHT>(line.peak, Maximum());
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const C power = exists && i * HEIGHT + height < size ? line.add(items[i]) : C(0);
        if (RESULT != LOG_SOFTMAX) items[i] = power;
    }
    line.ties = over_heights<HEIGHT>(line.ties, Sum());
    line.others = over_heights<HEIGHT>(line.others, Sum());
    if (!exists) return;
    if constexpr (RESULT == LOGSUMEXP) {
        if (height == 0) out[column] = stored<T>(line.peak + line.log_sum());
        return;
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int row = i * HEIGHT + height;
        if (row < size) out[start + row * inner] = stored<T>(normalized<RESULT>(items[i], items[i], line));
    }
}

enum Curve { SIGMOID, LOG_SIGMOID };

template <int CURVE, typename C>
__device__ inline C curve(C z) {
    const C power = power_of_e(z < 0 ? z : -z);  // at most 1, so that nothing overflows
    if (CURVE == LOG_SIGMOID) return (z < 0 ? z : C(0)) - logarithm_of_1_plus(power);
    return (z < 0 ? power : C(1)) / (1 + power);
}

// Element by element, in vectors if `x` and `out` begin at multiples of 16 bytes.
template <typename T, int CURVE>
__global__ void sigmoid_elements(const T* __restrict__ x, T* __restrict__ out, Index size, int aligned) {
    constexpr int LENGTH = VECTOR_BYTES / sizeof(T);
    const Index thread = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
    const Index threads = static_cast<Index>(gridDim.x) * blockDim.x;
    const Index vectors = aligned ? size / LENGTH : 0;
    for (Index i = thread; i < vectors; i += threads) {
        Vector<T, LENGTH> items = reinterpret_cast<const Vector<T, LENGTH>*>(x)[i];
#pragma unroll
        for (int j = 0; j < LENGTH; ++j) items.items[j] = stored<T>(curve<CURVE>(value_of(items.items[j])));
        reinterpret_cast<Vector<T, LENGTH>*>(out)[i] = items;
    }
    for (Index i = vectors * LENGTH + thread; i < size; i += threads) out[i] = stored<T>(curve<CURVE>(value_of(x[i])));
}
