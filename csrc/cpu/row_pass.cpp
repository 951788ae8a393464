#include "row_pass.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "arena.hpp"
#include "parallel.hpp"

namespace structloss {
namespace {

// Logits of a row that are looked at twice in a sweep: they have to stay in the first-level cache.
constexpr int64_t kBlock = 4096;
// Below about 10 microseconds of work more threads cost more than they bring.
constexpr int64_t kLogitsForThreads = 32768;
constexpr float kLowest = -0x1.fffffep127f;
constexpr float kMinusInfinity = -__builtin_inff();

int64_t rounded_up(int64_t count) { return (count + kRowLanes - 1) / kRowLanes * kRowLanes; }

template <class Logit>
const RowKernels<Logit>& kernels_for(const RowKernelSet& set) {
    if constexpr (std::is_same_v<Logit, float>) {
        return set.float32;
    } else {
        return set.bfloat16;
    }
}

float widened(float value) { return value; }
float widened(BFloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

void narrow(float value, float& out) { out = value; }
void narrow(float value, BFloat16& out) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    out.bits = value == value ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : 0x7fc0;
}

// Memory of one thread, reserved before it starts.
struct RowSpace {
    Buffer<float> z;
    Buffer<float> slope;
};

// The logits of a block as z, in place where they are that already.
template <class Logit>
class BlockReader {
  public:
    BlockReader(const RowFormula& formula, const RowKernels<Logit>& kernels, RowSpace& space)
        : formula_(formula), kernels_(kernels), space_(space) {}

    bool in_place(int64_t count) const {
        return std::is_same_v<Logit, float> && formula_.softcap == 0.0f && formula_.logit_scale == 1.0f &&
               count % kRowLanes == 0;
    }

    float* read(Logit* logits, int64_t count, bool may_change) {
        if constexpr (std::is_same_v<Logit, float>) {
            if (may_change && in_place(count)) return logits;
        }
        kernels_.load(logits, count, formula_.logit_scale, formula_.softcap, space_.z.get(), slope());
        return space_.z.get();
    }

    float* slope() const { return formula_.softcap > 0.0f ? space_.slope.get() : nullptr; }

  private:
    const RowFormula& formula_;
    const RowKernels<Logit>& kernels_;
    RowSpace& space_;
};

// For each row of `columns` elements, on threads that have room for `block` of them.
template <class Row>
void for_each_row(int64_t rows, int64_t columns, int64_t block, int64_t threads, Row row) {
    const int64_t group = std::max<int64_t>(1, kBlock / columns);  // rows that a thread takes at a time
    if (rows * columns < kLogitsForThreads || rows <= group) threads = 1;
    std::vector<RowSpace> spaces(std::max<int64_t>(threads, 1));
    for (RowSpace& space : spaces) {
        space.z.reserve(rounded_up(block));
        space.slope.reserve(rounded_up(block));
    }
    std::atomic<int64_t> next{0};
    on_threads(threads, [&](int64_t t) {
        for (int64_t start = next.fetch_add(group); start < rows; start = next.fetch_add(group)) {
            for (int64_t r = start; r < std::min(rows, start + group); ++r) row(r, spaces[t]);
        }
    });
}

// The first class with the largest z, or with NaN where there is one: as torch's argmax.
void find_best(const float* z, int64_t first, int64_t count, float top, bool has_nan, RowState& state) {
    if (std::isnan(state.best)) return;
    if (has_nan) {
        const float* nan = std::find_if(z, z + count, [](float value) { return std::isnan(value); });
        if (nan != z + count) {
            state.best = *nan;
            state.best_class = first + (nan - z);
            return;
        }
    }
    if (top > state.best) {
        state.best = top;
        state.best_class = first + (std::find(z, z + count, top) - z);
    }
}

struct Wanted {
    bool moment;
    bool dot;
    bool argmax;
};

// Adds a block of classes to the state of its row; `out` gets exp(z - top) * slope unless it is null. Returns
// the factor for what was added up with the top before.
template <class Logit>
double add_block(const RowFormula& formula, const RowKernels<Logit>& kernels, BlockReader<Logit>& reader,
                 const Wanted& wanted, int64_t target, int64_t first, int64_t count, Logit* logits,
                 Logit* out, RowState& state) {
    float* z = reader.read(logits, count, out == nullptr || !wanted.argmax);
    if (wanted.dot) {
        const float* weight = formula.class_weight;
        state.dot += kernels.dot(z, weight == nullptr ? nullptr : weight + first, count);
    }
    const int64_t hole = target - first;
    if (hole >= 0 && hole < count) {
        state.target_z = z[hole];
        if (reader.slope() != nullptr) state.target_slope = reader.slope()[hole];
        z[hole] = kMinusInfinity;
    }
    const float top = kernels.largest(z, rounded_up(count));
    double factor = 1.0;
    if (top > state.top) {
        const double shift = static_cast<double>(state.top) - top;
        factor = std::exp(shift);
        state.moment = wanted.moment ? factor * (state.moment + shift * state.sum) : 0.0;
        state.sum *= factor;
        state.top = top;
    }
    const ExpSums sums = kernels.exponentials(z, reader.slope(), count, state.top, wanted.moment, out);
    state.sum += sums.sum;
    state.moment += sums.moment;
    if (wanted.argmax) find_best(z, first, count, top, std::isnan(sums.sum), state);
    return factor;
}

// log(1 + exp(x))
double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

// The gradient of a row's logits: (others * exp(z - top) - flat * class_weight) * slope, and at the target
// `target`.
struct RowGradient {
    double others;
    double target;
    double flat;
};

// Results of row r, and its gradient where there is an upstream one.
RowGradient conclude(const RowFormula& formula, const RowInputs& inputs, const RowResults& results, int64_t r,
                     const RowState& state) {
    const double eps = formula.label_smoothing;
    const double z_target = state.target_z;
    const bool alone = state.sum == 0.0;  // no other class: the lowest number adds exactly 0 beside any logit
    const double lse_other = alone ? kLowest : state.top + std::log(state.sum);
    const double margin = z_target - lse_other;
    const double nll = softplus(-margin);
    const double unlikelihood = softplus(margin);
    const double p_target = 1.0 / (1.0 + std::exp(-margin));
    const double p_other = 1.0 / (1.0 + std::exp(margin));
    const double lse = z_target > lse_other ? z_target + nll : lse_other + unlikelihood;

    results.logprob[r] = static_cast<float>(-nll);
    results.lse[r] = static_cast<float>(lse);
    if (results.entropy != nullptr) {
        // H(p) = H(p_y, 1 - p_y) + (1 - p_y) H(r)
        const double binary = (p_target > 0.0 ? p_target * nll : 0.0) + p_other * unlikelihood;
        const double entropy = alone ? 0.0 : std::log(state.sum) - state.moment / state.sum;
        results.entropy[r] = static_cast<float>(binary + p_other * entropy);
    }
    if (results.argmax != nullptr) {
        const bool target_first = state.target_z == state.best && inputs.target[r] < state.best_class;
        const bool target_best = state.best_class < 0 || state.target_z > state.best || target_first;
        results.argmax[r] = target_best ? inputs.target[r] : state.best_class;
    }

    const double class_target = formula.class_weight ? formula.class_weight[inputs.target[r]] : 1.0;
    const bool unlikely = inputs.unlikely != nullptr && inputs.unlikely[r];
    const double weight = inputs.weight ? inputs.weight[r] : 1.0;
    double loss = unlikely ? unlikelihood : (1.0 - eps) * nll;
    if (formula.z_loss != 0.0) loss += formula.z_loss * lse * lse;
    loss *= class_target;
    if (eps != 0.0 && !unlikely) loss += eps / formula.vocab * (formula.class_sum * lse - state.dot);
    results.loss[r] = static_cast<float>(weight * loss);

    if (inputs.upstream == nullptr) return {};
    const double scale = inputs.upstream[r] * static_cast<double>(formula.logit_scale) * weight;
    const double minus_push =
        unlikely ? scale * class_target * p_target : (eps - 1.0) * scale * class_target * p_other;
    // `spread` multiplies the whole softmax: z-loss and smoothing move the log-sum-exp.
    double spread = 0.0;
    if (formula.z_loss != 0.0) spread = 2.0 * formula.z_loss * scale * class_target * lse;
    const double flat = eps != 0.0 && !unlikely ? scale * (eps / formula.vocab) : 0.0;
    if (flat != 0.0) spread += flat * formula.class_sum;
    const double at_target = minus_push + spread * p_target - flat * class_target;
    double others = alone ? 0.0 : (spread * p_other - minus_push) / state.sum;
    if (std::isnan(others))
        others = std::numeric_limits<double>::quiet_NaN();  // as row_kernels_impl.hpp wants
    return {others, at_target * state.target_slope, flat};
}

}  // namespace

template <class Logit>
void row_pass(const RowFormula& formula, const RowInputs& inputs, const RowResults& results, Logit* logits,
              int64_t stride, int64_t threads) {
    const RowKernels<Logit>& kernels = kernels_for<Logit>(row_kernels());
    const Wanted wanted{results.entropy != nullptr, formula.label_smoothing != 0.0,
                        results.argmax != nullptr};
    const int64_t vocab = formula.vocab;
    for_each_row(inputs.rows, vocab, std::min(kBlock, vocab), threads, [&](int64_t r, RowSpace& space) {
        BlockReader<Logit> reader(formula, kernels, space);
        Logit* row = logits + r * stride;
        RowState state;
        for (int64_t first = 0; first < vocab; first += kBlock) {
            add_block<Logit>(formula, kernels, reader, wanted, inputs.target[r], first,
                             std::min(kBlock, vocab - first), row + first, nullptr, state);
        }
        const RowGradient gradient = conclude(formula, inputs, results, r, state);
        if (inputs.upstream == nullptr) return;
        for (int64_t first = 0; first < vocab; first += kBlock) {
            const int64_t count = std::min(kBlock, vocab - first);
            const float* weight =
                formula.class_weight && gradient.flat != 0.0 ? formula.class_weight + first : nullptr;
            const float* z = reader.read(row + first, count, true);
            kernels.gradient(z, reader.slope(), weight, count, state.top, static_cast<float>(gradient.others),
                             static_cast<float>(gradient.flat), row + first);
        }
        narrow(static_cast<float>(gradient.target), row[inputs.target[r]]);
    });
}

template <class Logit>
void RowStream::absorb(const int64_t* target, int64_t first, int64_t columns, Logit* logits, bool weigh,
                       float* total, int64_t width, int64_t threads) {
    const RowKernels<Logit>& kernels = kernels_for<Logit>(row_kernels());
    const Wanted wanted{entropy_, false, argmax_};
    for_each_row(
        static_cast<int64_t>(states_.size()), columns, columns, threads, [&](int64_t r, RowSpace& space) {
            BlockReader<Logit> reader(formula_, kernels, space);
            Logit* row = logits + r * columns;
            const double factor = add_block<Logit>(formula_, kernels, reader, wanted, target[r], first,
                                                   columns, row, weigh ? row : nullptr, states_[r]);
            if (total == nullptr || factor == 1.0) return;
            for (int64_t d = 0; d < width; ++d) total[r * width + d] *= static_cast<float>(factor);
        });
}

template <class Logit>
void RowStream::finish(const RowInputs& inputs, const RowResults& results,
                       const HiddenGradient<Logit>& gradient, int64_t threads) {
    for_each_row(inputs.rows, std::max<int64_t>(gradient.width, 1), 0, threads, [&](int64_t r, RowSpace&) {
        const RowGradient of_row = conclude(formula_, inputs, results, r, states_[r]);
        if (inputs.upstream == nullptr) return;
        const float others = static_cast<float>(of_row.others);
        const float target = static_cast<float>(of_row.target);
        const float* total = gradient.total + r * gradient.width;
        const Logit* weight = gradient.weight + inputs.target[r] * gradient.weight_stride[0];
        Logit* out = gradient.out + (gradient.index ? gradient.index[r] : r) * gradient.width;
        for (int64_t d = 0; d < gradient.width; ++d)
            narrow(others * total[d] + target * widened(weight[d * gradient.weight_stride[1]]), out[d]);
    });
}

template void row_pass<float>(const RowFormula&, const RowInputs&, const RowResults&, float*, int64_t,
                              int64_t);
template void row_pass<BFloat16>(const RowFormula&, const RowInputs&, const RowResults&, BFloat16*, int64_t,
                                 int64_t);
template void RowStream::absorb<float>(const int64_t*, int64_t, int64_t, float*, bool, float*, int64_t,
                                       int64_t);
template void RowStream::absorb<BFloat16>(const int64_t*, int64_t, int64_t, BFloat16*, bool, float*, int64_t,
                                          int64_t);
template void RowStream::finish<float>(const RowInputs&, const RowResults&, const HiddenGradient<float>&,
                                       int64_t);
template void RowStream::finish<BFloat16>(const RowInputs&, const RowResults&,
                                          const HiddenGradient<BFloat16>&, int64_t);

}  // namespace structloss
