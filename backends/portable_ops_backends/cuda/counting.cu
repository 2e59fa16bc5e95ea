// Pairs of labels, counted in one pass over both maps.
//
// A thread takes up to 16 pixels per load. It keeps the pair that it saw last with the length of its run, and looks at what
// the labels mean when the run ends, so that uniform regions cost little and end in one addition per thread. Runs that end
// are added to counters in shared memory, of which a block has several copies: neighbouring lanes use different ones, with
// 32 copies in different banks, so that they do not wait for each other where all see the same pair. Copies are summed into
// 64-bit totals in the end. Where one copy does not fit, runs are added to the totals at once.
//
// A block's counters have 32 bits. The host hands over fewer than 2**32 pixels per launch, so none can overflow.

constexpr int COUNT_THREADS = 512;

// Where counts go. PAIRS: the confusion matrix, row after row, and then one bin for pixels whose labels name no class.
// Otherwise three rows of num_classes + 1 bins: targets, predictions, and those that agree; the last bin of each is for
// pixels whose labels name no class.
template <bool PAIRS, bool SHARED>
struct Counters {
    unsigned num_classes;
    unsigned copies;
    unsigned* shared;
    unsigned long long* totals;

    __device__ void add(unsigned long long bin, unsigned number) const {
        if constexpr (SHARED) {
            atomicAdd(&shared[static_cast<unsigned>(bin) * copies + (threadIdx.x & (copies - 1))], number);
        } else {
            atomicAdd(&totals[bin], static_cast<unsigned long long>(number));
        }
    }

    __device__ void add_pair(unsigned pred, unsigned target, unsigned number) const {
        const bool named = pred < num_classes && target < num_classes;
        if constexpr (PAIRS) {
            const auto row = static_cast<unsigned long long>(named ? target : num_classes) * num_classes;
            add(named ? row + pred : row, number);
        } else {
            const unsigned long long row = num_classes + 1ull;
            add(named ? target : num_classes, number);
            add(row + (named ? pred : num_classes), number);
            if (named && pred == target) add(2 * row + target, number);
        }
    }
};

// The pair of labels that a thread saw last, and how often.
template <typename P, typename T, bool PAIRS, bool SHARED>
struct Runs {
    Counters<PAIRS, SHARED> counters;
    bool has_ignored;
    T ignored;
    P pred = 0;
    T target = 0;
    unsigned length = 0;

    __device__ void finish() const {
        if (length == 0 || (has_ignored && target == ignored)) return;
        counters.add_pair(class_of(pred, counters.num_classes), class_of(target, counters.num_classes), length);
    }

    __device__ void take(P p, T t, unsigned number = 1) {
        if (p != pred || t != target) {
            finish();
            pred = p;
            target = t;
            length = 0;
        }
        length += number;
    }

    template <int LENGTH>
    __device__ void take(const Vector<P, LENGTH>& p, const Vector<T, LENGTH>& t) {
        if constexpr (LENGTH == VECTOR_BYTES) {  // both of one byte: equal ones are told four at a time
            if (is_uniform(p) && is_uniform(t)) {
                take(p.items[0], t.items[0], LENGTH);
                return;
            }
        }
#pragma unroll
        for (int i = 0; i < LENGTH; ++i) take(p.items[i], t.items[i]);
    }

    template <typename B>
    __device__ static bool is_uniform(const Vector<B, VECTOR_BYTES>& bytes) {
        const auto& words = reinterpret_cast<const Vector<unsigned, 4>&>(bytes).items;
        const unsigned repeated = (words[0] & 0xffu) * 0x01010101u;
        return words[0] == repeated && words[1] == repeated && words[2] == repeated && words[3] == repeated;
    }
};

template <typename P, typename T, bool PAIRS, bool SHARED>
__global__ void __launch_bounds__(COUNT_THREADS, 2)
    count_labels(const P* __restrict__ pred, const T* __restrict__ target, unsigned size, unsigned num_classes,
                 int has_ignored, Index ignored, unsigned copies, unsigned long long* totals) {
    constexpr int LENGTH = VECTOR_BYTES / (sizeof(P) > sizeof(T) ? sizeof(P) : sizeof(T));
    const unsigned bins = PAIRS ? num_classes * num_classes + 1 : 3 * (num_classes + 1);
    unsigned* shared = dynamic_shared_memory();
    if constexpr (SHARED) {
        for (unsigned i = threadIdx.x; i < bins * copies; i += blockDim.x) shared[i] = 0;
        __syncthreads();
    }
    Runs<P, T, PAIRS, SHARED> runs{{num_classes, copies, shared, totals}, has_ignored != 0, static_cast<T>(ignored)};

    // Vectors begin where `pred` is aligned; if `target` is not aligned there, too, all pixels are taken one by one.
    const Address past = reinterpret_cast<Address>(pred) % sizeof(Vector<P, LENGTH>);
    const unsigned first = past ? static_cast<unsigned>((sizeof(Vector<P, LENGTH>) - past) / sizeof(P)) : 0;
    const bool aligned = first <= size && reinterpret_cast<Address>(target + first) % sizeof(Vector<T, LENGTH>) == 0;
    const unsigned head = aligned ? first : size;
    const unsigned vectors = (size - head) / LENGTH;
    const auto* pred_vectors = reinterpret_cast<const Vector<P, LENGTH>*>(pred + head);
    const auto* target_vectors = reinterpret_cast<const Vector<T, LENGTH>*>(target + head);

    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned threads = gridDim.x * blockDim.x;
    for (Index i = thread; i < vectors; i += 2 * static_cast<Index>(threads)) {
        // Both loads are under way before the first is used.
        const Index j = i + threads < vectors ? i + threads : i;
        const Vector<P, LENGTH> p = pred_vectors[i], next_p = pred_vectors[j];
        const Vector<T, LENGTH> t = target_vectors[i], next_t = target_vectors[j];
        runs.take(p, t);
        if (j != i) runs.take(next_p, next_t);
    }
    const unsigned taken = vectors * LENGTH;
    for (Index i = thread; i < size - taken; i += threads) {
        const Index place = i < head ? i : i + taken;
        runs.take(pred[place], target[place]);
    }
    runs.finish();

    if constexpr (SHARED) {
        __syncthreads();
        for (unsigned bin = threadIdx.x; bin < bins; bin += blockDim.x) {
            unsigned long long total = 0;
            // Each lane begins with another copy, so that lanes read from different banks.
            for (unsigned i = 0; i < copies; ++i) total += shared[bin * copies + ((i + threadIdx.x) & (copies - 1))];
            if (total) atomicAdd(&totals[bin], total);
        }
    }
}
