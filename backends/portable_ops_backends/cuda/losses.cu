// Cross-entropy of class indices, and the sums of Dice. Each input is read once; what is summed over all elements is summed
// in double precision in a fixed order: every block leaves its partial sums, and one block, or one warp per score, adds
// these.

constexpr int SUM_THREADS = 256;

// The loss of one element: `spread` is the weighted sum of the losses of all classes, which label smoothing needs.
template <typename C>
__device__ inline C loss_of(const Normalizer<C>& line, C picked, C weight, C smoothing, C spread, int classes) {
    C loss = 0;  // what has weight 0 does not count
    if (weight != 0) loss = is_infinite(line.peak) ? not_a_number() : (line.log_sum() - (picked - line.peak)) * weight;
    return smoothing > 0 ? (1 - smoothing) * loss + smoothing * (spread / classes) : loss;
}

// The class indices of a loss, the weights of the classes, and what is asked of them.
template <typename C, typename L>
struct Targets {
    const L* labels;
    const C* weights;
    bool has_ignored;
    L ignored;
    unsigned classes;

    __device__ bool is_ignored(Index element) const { return has_ignored && labels[element] == ignored; }
    __device__ unsigned class_at(Index element) const { return class_of(labels[element], classes); }
    __device__ C weight_of(unsigned label) const { return weights == nullptr ? C(1) : weights[label]; }

    // What a class adds to the spread of a smoothed loss.
    __device__ C share_of(int c, C z, C peak, C log_sum) const {
        const C weight = weight_of(c);
        return weight == 0 ? C(0) : weight * (log_sum - (z - peak));
    }
};

// Losses as they are found: written one by one, or summed.
template <typename T>
struct Losses {
    T* each;
    double* partial;
    double sum = 0;
    double weight = 0;

    __device__ void put(Index element, Working<T> loss, Working<T> its_weight) {
        if (each != nullptr) each[element] = stored<T>(loss);
        sum += loss;
        weight += its_weight;
    }

    __device__ void finish() {
        if (partial == nullptr) return;
        sum = over_lanes<SUM_THREADS>(sum, Sum());
        weight = over_lanes<SUM_THREADS>(weight, Sum());
        if (threadIdx.x == 0) {
            partial[2 * blockIdx.x] = sum;
            partial[2 * blockIdx.x + 1] = weight;
        }
    }
};

// Classes `inner` apart, a thread for each element. Up to ITEMS classes are held in registers; with ITEMS = 0, any number is
// read in one pass, and once more for label smoothing.
template <typename T, typename L, int ITEMS>
__global__ void __launch_bounds__(SUM_THREADS)
    cross_entropy_columns(const T* __restrict__ logits, const L* __restrict__ labels, const Working<T>* weights,
                          Index elements, int classes, Index inner, int has_ignored, Index ignored, double smoothing,
                          T* each, double* partial) {
    using C = Working<T>;
    const Targets<C, L> targets{labels, weights, has_ignored != 0, static_cast<L>(ignored),
                                static_cast<unsigned>(classes)};
    Losses<T> losses{each, partial};
    const Index threads = static_cast<Index>(gridDim.x) * blockDim.x;
    for (Index element = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; element < elements;
         element += threads) {
        if (targets.is_ignored(element)) {
            losses.put(element, 0, 0);
            continue;
        }
        const T* column = logits + element / inner * inner * classes + element % inner;
        Normalizer<C> line;
        C items[ITEMS == 0 ? 1 : ITEMS];
        if constexpr (ITEMS == 0) {
            for (int c = 0; c < classes; ++c) line.take(value_of(column[c * inner]));
        } else {
#pragma unroll
            for (int c = 0; c < ITEMS; ++c) items[c] = c < classes ? value_of(column[c * inner]) : C(-infinity());
#pragma unroll
            for (int c = 0; c < ITEMS; ++c) line.peak = Maximum()(line.peak, items[c]);
#pragma unroll
            for (int c = 0; c < ITEMS; ++c) {
                if (c < classes) line.add(items[c]);
            }
        }
        C spread = 0;
        if (smoothing > 0) {
            const C log_sum = line.log_sum();
            if constexpr (ITEMS == 0) {
                for (int c = 0; c < classes; ++c) {
                    spread += targets.share_of(c, value_of(column[c * inner]), line.peak, log_sum);
                }
            } else {
#pragma unroll
                for (int c = 0; c < ITEMS; ++c) {
                    if (c < classes) spread += targets.share_of(c, items[c], line.peak, log_sum);
                }
            }
        }
        const unsigned label = targets.class_at(element);
        if (label >= targets.classes) {
            losses.put(element, not_a_number(), 1);
            continue;
        }
        const C weight = targets.weight_of(label);
        const C picked = value_of(column[label * inner]);
        losses.put(element, loss_of<C>(line, picked, weight, static_cast<C>(smoothing), spread, classes), weight);
    }
    losses.finish();
}

// Classes side by side, LANES threads for each row: lanes of a warp, or the whole block.
template <typename T, typename L, int LANES>
__global__ void __launch_bounds__(SUM_THREADS)
    cross_entropy_rows(const T* __restrict__ logits, const L* __restrict__ labels, const Working<T>* weights,
                       Index elements, int classes, int has_ignored, Index ignored, double smoothing, T* each,
                       double* partial) {
    using C = Working<T>;
    const Targets<C, L> targets{labels, weights, has_ignored != 0, static_cast<L>(ignored),
                                static_cast<unsigned>(classes)};
    Losses<T> losses{each, partial};
    constexpr int ROWS = SUM_THREADS / LANES;
    const int lane = threadIdx.x % LANES;
    // All threads of a block go round as often, since all take part in the reductions.
    for (Index first = static_cast<Index>(blockIdx.x) * ROWS; first < elements;
         first += static_cast<Index>(gridDim.x) * ROWS) {
        const Index element = first + threadIdx.x / LANES;
        const bool counts = element < elements && !targets.is_ignored(element);
        const T* row = logits + element * classes;
        Normalizer<C> own;
        for (int c = lane; counts && c < classes; c += LANES) own.take(value_of(row[c]));
        const Normalizer<C> line = own.template merged<LANES>();
        C spread = 0;
        if (smoothing > 0) {
            const C log_sum = line.log_sum();
            for (int c = lane; counts && c < classes; c += LANES) {
                spread += targets.share_of(c, value_of(row[c]), line.peak, log_sum);
            }
            spread = over_lanes<LANES>(spread, Sum());
        }
        if (lane != 0 || element >= elements) continue;
        const unsigned label = counts ? targets.class_at(element) : 0;
        if (!counts) {
            losses.put(element, 0, 0);
        } else if (label >= targets.classes) {
            losses.put(element, not_a_number(), 1);
        } else {
            const C weight = targets.weight_of(label);
            const C loss = loss_of<C>(line, value_of(row[label]), weight, static_cast<C>(smoothing), spread, classes);
            losses.put(element, loss, weight);
        }
    }
    losses.finish();
}

// One block: the sum of all partial losses, or their mean, nan if there is nothing to divide by.
template <typename T>
__global__ void __launch_bounds__(SUM_THREADS) total_loss(const double* partial, int parts, int is_mean, T* out) {
    double sum = 0, weight = 0;
    for (int part = threadIdx.x; part < parts; part += SUM_THREADS) {
        sum += partial[2 * part];
        weight += partial[2 * part + 1];
    }
    sum = over_lanes<SUM_THREADS>(sum, Sum());
    weight = over_lanes<SUM_THREADS>(weight, Sum());
    if (threadIdx.x != 0) return;
    if (!is_mean) {
        *out = stored<T>(sum);
    } else {
        *out = stored<T>(weight == 0 ? static_cast<double>(not_a_number()) : sum / weight);
    }
}

// A mask's value in the dtype of the prediction.
template <typename C, typename T>
__device__ inline C mask_value(T x) {
    return static_cast<C>(value_of(x));
}

constexpr int PIECE = 4 * SUM_THREADS;  // elements that a block takes at once

// Block (score, part): overlap, and sum of both masks, over a part of the pieces of an array of shape (outer, scores, inner).
template <typename P, typename T>
__global__ void __launch_bounds__(SUM_THREADS)
    dice_sums(const P* __restrict__ pred, const T* __restrict__ target, Index outer, Index inner, double* partial) {
    using C = Working<P>;
    const Index scores = gridDim.x, pieces = (inner + PIECE - 1) / PIECE;
    double overlap = 0, total = 0;
    for (Index piece = blockIdx.y; piece < outer * pieces; piece += gridDim.y) {
        const Index start = piece / pieces * scores * inner + blockIdx.x * inner;
        const Index first = piece % pieces * PIECE;
        // A few neighbours are added in the working dtype, as conversion to double is slow on many devices.
        C product = 0, sum_of_pred = 0, sum_of_target = 0;
#pragma unroll
        for (int i = 0; i < PIECE; i += SUM_THREADS) {
            const Index place = first + i + threadIdx.x;
            if (place < inner) {
                const C p = value_of(pred[start + place]);
                const C t = mask_value<C>(target[start + place]);
                product += p * t;
                sum_of_pred += p;
                sum_of_target += t;
            }
        }
        overlap += product;
        total += static_cast<double>(sum_of_pred) + sum_of_target;
    }
    overlap = over_lanes<SUM_THREADS>(overlap, Sum());
    total = over_lanes<SUM_THREADS>(total, Sum());
    if (threadIdx.x == 0) {
        double* own = partial + 2 * (blockIdx.x * static_cast<Index>(gridDim.y) + blockIdx.y);
        own[0] = overlap;
        own[1] = total;
    }
}

// A warp for each score.
template <typename P>
__global__ void dice_scores(const double* partial, int parts, double smooth, double absent, P* out) {
    const double* own = partial + 2 * (blockIdx.x * static_cast<Index>(parts));
    double overlap = 0, total = 0;
    for (int part = threadIdx.x; part < parts; part += WARP) {
        overlap += own[2 * part];
        total += own[2 * part + 1];
    }
    overlap = over_lanes<WARP>(overlap, Sum());
    total = over_lanes<WARP>(total, Sum());
    if (threadIdx.x == 0) {
        out[blockIdx.x] = stored<P>(total == 0 ? absent : (2 * overlap + smooth) / (total + smooth));
    }
}
