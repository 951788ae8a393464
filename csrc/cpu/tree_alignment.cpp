#include "tree_alignment.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "mapping.hpp"
#include "parallel.hpp"
#include "wide_alignment.hpp"

namespace structloss {
namespace {

struct PairPlan {
    Orientation orientation;
    int64_t cells;
};

template <class Cost>
std::vector<PairPlan> plan_pairs(const TreePairs<Cost>& pairs, int64_t* used) {
    std::vector<PairPlan> plan(pairs.batch);
    std::vector<int32_t> parent;
    std::vector<int32_t> scratch;
    for (int64_t p = 0; p < pairs.batch; ++p) {
        const int64_t n = pairs.sizes_a[p];
        const int64_t m = pairs.sizes_b[p];
        if (n < 0 || n > pairs.width_a || m < 0 || m > pairs.width_b) {
            throw std::invalid_argument("sizes of pair " + std::to_string(p) + " are " + std::to_string(n) +
                                        " and " + std::to_string(m) + ", outside the padded widths " +
                                        std::to_string(pairs.width_a) + " and " +
                                        std::to_string(pairs.width_b));
        }
        const TreeWork first = tree_work(pairs.leftmost_a + p * pairs.width_a, n, parent, scratch);
        const TreeWork second = tree_work(pairs.leftmost_b + p * pairs.width_b, m, parent, scratch);
        const SideChoice side = choose_side(first, second);
        if (pairs.method == Method::kExact && side.cells > pairs.max_cells) {
            throw std::invalid_argument("method=\"exact\" needs " + std::to_string(side.cells) +
                                        " cells for pair " + std::to_string(p) + " (" + std::to_string(n) +
                                        " and " + std::to_string(m) +
                                        " nodes), more than max_cells = " + std::to_string(pairs.max_cells) +
                                        "; raise max_cells or use method=\"auto\" or \"flattened\"");
        }
        const bool flatten = pairs.method == Method::kFlattened ||
                             (pairs.method == Method::kAuto && side.cells > pairs.max_cells);
        plan[p] = flatten ? PairPlan{Orientation::kFlattened, n * m} : PairPlan{side.orientation, side.cells};
        used[p] = static_cast<int64_t>(flatten ? Method::kFlattened : Method::kExact);
    }
    return plan;
}

// Works the pairs off in descending order of cells, each thread with a worker (and its memory) of its own. A
// pair's result does not depend on the thread that it meets; of several failures the one of the first pair is
// reported.
template <class MakeWorker>
void for_each_pair(const std::vector<PairPlan>& plan, int64_t threads, MakeWorker make_worker) {
    const int64_t batch = static_cast<int64_t>(plan.size());
    std::vector<int64_t> order(batch);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t x, int64_t y) { return plan[x].cells > plan[y].cells; });
    std::vector<std::exception_ptr> failures(batch);
    std::atomic<int64_t> next{0};
    on_threads(batch > 1 ? threads : 1, [&](int64_t) {
        auto worker = make_worker();
        for (int64_t k = next++; k < batch; k = next++) {
            try {
                worker.run(order[k], plan[order[k]].orientation);
            } catch (...) {
                failures[order[k]] = std::current_exception();
            }
        }
    });
    for (const std::exception_ptr& failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
}

template <class Cost>
const CostKernels<Cost>& cost_kernels(const StripKernels& kernels);
template <>
const CostKernels<float>& cost_kernels<float>(const StripKernels& kernels) {
    return kernels.costs_float;
}
template <>
const CostKernels<double>& cost_kernels<double>(const StripKernels& kernels) {
    return kernels.costs_double;
}

// One pair in oriented order: which tree gives the rows, and its costs as weights
// w(i, j) = (remove_i + insert_j - relabel_ij) / temperature.
template <class Cost>
class PairCosts {
  public:
    double base = 0.0;     // sum of remove and insert: the cost of the empty mapping
    double largest = 0.0;  // weight, at least 0
    bool swapped = false;  // rows are the second tree's nodes

    PairCosts(const TreePairs<Cost>& pairs, PairProgram& program) : pairs_(pairs), program_(program) {}

    void build(int64_t p, Orientation orientation, bool swap) {
        p_ = p;
        swapped = swap;
        OrientedTree& a = swap ? program_.second : program_.first;
        OrientedTree& b = swap ? program_.first : program_.second;
        a.build(pairs_.leftmost_a + p * pairs_.width_a, pairs_.sizes_a[p], orientation);
        b.build(pairs_.leftmost_b + p * pairs_.width_b, pairs_.sizes_b[p], orientation);
        const Cost* remove = pairs_.remove + p * pairs_.width_a;
        const Cost* insert = pairs_.insert + p * pairs_.width_b;
        base = checked_sum("delete", remove, pairs_.sizes_a[p]) +
               checked_sum("insert", insert, pairs_.sizes_b[p]);
        first_cost_ = swap ? insert : remove;
        second_cost_ = swap ? remove : insert;
    }

    // w(i, .) for all nodes i of the first tree in oriented order, its columns in the order of the caller,
    // into place(i); then done(i).
    template <class Place, class Done>
    void load(const StripKernels& kernels, double temperature, Place place, Done done) {
        const int32_t m = program_.second.size;
        bool valid = true;
        largest = 0.0;
        for (int32_t i = 0; i < program_.first.size; ++i) {
            const int64_t node = program_.first.node[i];
            valid &= cost_kernels<Cost>(kernels).weights(first_cost_[node], second_cost_,
                                                         relabel_row(kernels, node), 1.0 / temperature, m,
                                                         place(i), &largest);
            done(i);
        }
        if (!valid) find_bad_relabel();
        // Beyond this, n * m weights could leave the exponents of Wide.
        if (largest > 1e15 || !(base <= std::numeric_limits<double>::max())) {
            throw std::invalid_argument("costs of pair " + std::to_string(p_) +
                                        " are too large: (delete + insert - relabel) / temperature reaches " +
                                        std::to_string(largest) + ", at most 1e15 is supported");
        }
    }

    // One row of the posterior, from(j) in the order of the caller, to where it belongs.
    template <class From>
    void store(Cost* posterior, int32_t i, From from) {
        const int32_t m = program_.second.size;
        Cost* out = posterior + p_ * pairs_.width_a * pairs_.width_b;
        const int64_t node = program_.first.node[i];
        if (!swapped) {
            from(out + node * pairs_.width_b);
            return;
        }
        column_.resize(m);
        from(column_.data());
        for (int32_t j = 0; j < m; ++j) out[j * pairs_.width_b + node] = column_[j];
    }

  private:
    const TreePairs<Cost>& pairs_;
    PairProgram& program_;
    int64_t p_ = 0;
    const Cost* first_cost_ = nullptr;
    const Cost* second_cost_ = nullptr;
    std::vector<Cost> column_;

    // Costs of matching a node of the first tree with every node of the second.
    const Cost* relabel_row(const StripKernels& kernels, int64_t node) {
        const int64_t first = p_ * pairs_.width_a;
        if (pairs_.relabel != nullptr && !swapped) return pairs_.relabel + (first + node) * pairs_.width_b;
        const int32_t m = program_.second.size;
        column_.resize(m);
        if (pairs_.relabel == nullptr) {
            const int64_t* labels_a = pairs_.label_a + first;
            const int64_t* labels_b = pairs_.label_b + p_ * pairs_.width_b;
            cost_kernels<Cost>(kernels).unit((swapped ? labels_b : labels_a)[node],
                                             swapped ? labels_a : labels_b, m, column_.data());
        } else {
            for (int32_t j = 0; j < m; ++j) column_[j] = pairs_.relabel[(first + j) * pairs_.width_b + node];
        }
        return column_.data();
    }

    void refuse(const std::string& where, double cost, const char* wanted) const {
        throw std::invalid_argument(where + " = " + std::to_string(cost) +
                                    "; costs must be >= 0 and not NaN" + wanted);
    }

    double checked_sum(const char* name, const Cost* costs, int64_t count) const {
        double sum = 0.0;
        for (int64_t i = 0; i < count; ++i) {
            if (!(costs[i] >= 0 && costs[i] <= std::numeric_limits<Cost>::max()))
                refuse(std::string(name) + "[" + std::to_string(p_) + ", " + std::to_string(i) + "]",
                       costs[i], " and finite");
            sum += costs[i];
        }
        return sum;
    }

    void find_bad_relabel() const {
        for (int64_t a = 0; a < pairs_.sizes_a[p_]; ++a) {
            for (int64_t b = 0; b < pairs_.sizes_b[p_]; ++b) {
                const Cost cost = pairs_.relabel[(p_ * pairs_.width_a + a) * pairs_.width_b + b];
                if (!(cost >= 0))
                    refuse("relabel[" + std::to_string(p_) + ", " + std::to_string(a) + ", " +
                               std::to_string(b) + "]",
                           cost, " (infinity forbids the match)");
            }
        }
    }
};

// Plain doubles and their range.
//
// Rows belong to the smaller tree, and each of its n nodes is weighted by exp(-tilt) inside a forest. A
// forest pair then has log Z~ between -tilt n and (largest - tilt) n + log(number of mappings); two trees of
// n and m nodes have at most binomial(n + m, n) mappings. `safe_tilt` centres that interval and is safe where
// it is narrow enough, whatever the trees are.
//
// Where it is wider, a tilt that fits the typical pair is tried and *certified*: if all values of the forward
// pass and all adjoints of the reverse pass (seeded with 1 / Z~) stay below 2^960, then underflow was
// harmless. Every operation loses at most 2^-1074 by underflow, a value loses its error times its adjoint and
// an adjoint its error times its value, so the relative loss is below 2^-114 times the number of operations.
// A match weight that underflows has w < tilt - 708, and P(i, j) <= exp(w): with tilt <= 600 that is below
// e^-108. Without a certificate the pair is computed in Wide, never with a saturated value.
constexpr double kSafeLogRange = 650.0;
constexpr double kLargestTilt = 600.0;
constexpr double kHopelessLogRange = 6000.0;
constexpr size_t kKeepAllBytes = size_t{64} << 20;

template <class Cost>
class SoftWorker {
  public:
    SoftWorker(const StripKernels& kernels, const TreePairs<Cost>& pairs, const double* temperature,
               Cost* value, Cost* posterior, Cost* entropy)
        : pairs_(pairs),
          temperature_(temperature),
          value_(value),
          posterior_(posterior),
          entropy_(entropy),
          kernels_(kernels) {}
    SoftWorker(const SoftWorker&) = delete;  // members refer to each other
    SoftWorker& operator=(const SoftWorker&) = delete;

    void run(int64_t p, Orientation orientation) {
        costs_.build(p, orientation, pairs_.sizes_a[p] > pairs_.sizes_b[p]);
        if (program_.first.size == 0) {
            value_[p] = static_cast<Cost>(costs_.base);
            return;
        }
        double* log_weight = log_weight_.reserve(node_pairs() + kStripLanes<double>);
        const size_t m = program_.second.size;
        costs_.load(kernels_, temperature_[p], [&](int32_t i) { return log_weight + i * m; }, [](int32_t) {});
        program_.columns.build(program_.second);
        const double safe_tilt = costs_.largest / 2.0 + log_mappings() / (2.0 * program_.first.size);
        const bool safe = safe_tilt * program_.first.size <= kSafeLogRange;
        const bool reverse = posterior_ != nullptr || !safe;  // the certificate needs the reverse pass
        build_rows(reverse);
        forward_.columns.build(program_.second, program_.columns);
        const CostKernels<Cost>& kernels = cost_kernels<Cost>(kernels_);
        if (safe ? run_plain(safe_tilt, reverse) : search_tilt()) {
            finish(p, [&](int32_t i, Cost* out) {
                return kernels.posterior(reverse_.adjoint(i), forward_.subtree(i), log_weight + i * m, m,
                                         out);
            });
            return;
        }
        run_wide();
        finish(p, [&](int32_t i, Cost* out) {
            double expected = 0.0;
            for (size_t j = 0; j < m; ++j) {
                const double matched = probability(wide_.adjoint(i)[j] * wide_.subtree(i)[j]);
                out[j] = static_cast<Cost>(matched);
                if (matched > 0.0) expected += matched * log_weight[i * m + j];
            }
            return expected;
        });
    }

  private:
    const TreePairs<Cost>& pairs_;
    const double* temperature_;
    Cost* value_;
    Cost* posterior_;
    Cost* entropy_;

    const StripKernels& kernels_;
    PairProgram program_;
    PairCosts<Cost> costs_{pairs_, program_};
    Buffer<double> log_weight_;  // w(i, j)
    bool all_rows_kept_ = false;
    double log_partition_ = 0.0;
    StripForward<SumOps> forward_{program_, kernels_};
    StripReverse reverse_{forward_, program_, kernels_};
    WideAlignment wide_{program_};

    size_t node_pairs() const { return static_cast<size_t>(program_.first.size) * program_.second.size; }

    double log_mappings() const {
        const double n = program_.first.size;
        const double m = program_.second.size;
        return std::lgamma(n + m + 1.0) - std::lgamma(n + 1.0) - std::lgamma(m + 1.0);
    }

    void build_rows(bool reverse) {
        all_rows_kept_ = false;
        if (!reverse) {
            program_.rows.build(program_.first, RowProgram::Storage::kRecycle);
            return;
        }
        program_.rows.build(program_.first, RowProgram::Storage::kKeepAll);
        const size_t bytes =
            static_cast<size_t>(program_.rows.slots) * program_.columns.width * sizeof(double);
        all_rows_kept_ = bytes <= kKeepAllBytes;
        if (!all_rows_kept_) program_.rows.build(program_.first, RowProgram::Storage::kKeepTable);
    }

    // Z~ of this tilt, NaN where a value left the range.
    double partition_at(double tilt) {
        kernels_.exp(log_weight_.get(), tilt, forward_.weight.reserve(node_pairs() + kStripLanes<double>),
                     node_pairs());
        forward_.ops.damping = std::exp(-tilt);
        double partition;
        return forward_.run(partition) ? partition : std::numeric_limits<double>::quiet_NaN();
    }

    bool run_plain(double tilt, bool reverse) {
        const double partition = partition_at(tilt);
        if (!(partition >= 1.0 / SumOps::kPeak)) return false;
        if (reverse && !reverse_.run(partition, all_rows_kept_)) return false;
        log_partition_ = std::log(partition) + tilt * program_.first.size;
        return true;
    }

    bool search_tilt() {
        const double n = program_.first.size;
        if (costs_.largest * n > kHopelessLogRange) return false;
        double tilt = 0.75 * costs_.largest;
        for (int attempt = 0; attempt < 2 && tilt <= kLargestTilt; ++attempt) {
            const double partition = partition_at(tilt);
            if (!(partition <= SumOps::kPeak)) {
                tilt = costs_.largest;
                continue;
            }
            if (partition >= 1.0 / SumOps::kPeak && reverse_.run(partition, all_rows_kept_)) {
                log_partition_ = std::log(partition) + tilt * n;
                return true;
            }
            tilt = partition > 0.0 ? tilt + std::log(partition) / n : tilt / 2.0;
        }
        return false;
    }

    void run_wide() {
        Wide* weight = wide_.weight.reserve(node_pairs());
        // Costs repeat, and exp is dear.
        double seen = std::numeric_limits<double>::quiet_NaN();
        Wide seen_weight = kWideZero;
        for (size_t k = 0; k < node_pairs(); ++k) {
            if (log_weight_.get()[k] != seen) {
                seen = log_weight_.get()[k];
                seen_weight = wide_exp(seen);
            }
            weight[k] = seen_weight;
        }
        const Wide partition = wide_.forward();
        log_partition_ = log_of(partition);
        if (posterior_ != nullptr) wide_.reverse(partition, all_rows_kept_);
    }

    // posterior_row(i, out) writes P(i, .) and returns the sum of P w.
    template <class PosteriorRow>
    void finish(int64_t p, PosteriorRow posterior_row) {
        value_[p] = static_cast<Cost>(costs_.base - temperature_[p] * log_partition_);
        if (posterior_ == nullptr) return;
        double expected = 0.0;
        for (int32_t i = 0; i < program_.first.size; ++i)
            costs_.store(posterior_, i, [&](Cost* out) { expected += posterior_row(i, out); });
        entropy_[p] = static_cast<Cost>(log_partition_ - expected);
    }
};

template <class Cost>
class HardWorker {
  public:
    HardWorker(const StripKernels& kernels, const TreePairs<Cost>& pairs, Cost* distance, int64_t* match_a,
               int64_t* match_b)
        : pairs_(pairs), distance_(distance), match_a_(match_a), match_b_(match_b), kernels_(kernels) {}
    HardWorker(const HardWorker&) = delete;  // members refer to each other
    HardWorker& operator=(const HardWorker&) = delete;

    void run(int64_t p, Orientation orientation) {
        costs_.build(p, orientation, false);
        if (program_.first.size == 0 || program_.second.size == 0) {
            distance_[p] = static_cast<Cost>(costs_.base);
            return;
        }
        program_.columns.build(program_.second);
        program_.rows.build(program_.first, RowProgram::Storage::kRecycle);
        if (load_narrow()) {
            solve(p, narrow_, narrow_mapping_);
        } else {
            load(wide_.weight.reserve(node_pairs()));
            solve(p, wide_, wide_mapping_);
        }
    }

  private:
    const TreePairs<Cost>& pairs_;
    Cost* distance_;
    int64_t* match_a_;
    int64_t* match_b_;
    const StripKernels& kernels_;
    PairProgram program_;
    PairCosts<Cost> costs_{pairs_, program_};
    StripForward<MaxOps<float>> narrow_{program_, kernels_};
    StripForward<MaxOps<double>> wide_{program_, kernels_};
    Mapping<float> narrow_mapping_;
    Mapping<double> wide_mapping_;
    Buffer<double> row_;

    size_t node_pairs() const { return static_cast<size_t>(program_.first.size) * program_.second.size; }

    // A match that saves nothing is never needed.
    static double useful(double weight) {
        return weight > 0.0 ? weight : -std::numeric_limits<double>::infinity();
    }

    // True where all useful weights are multiples of 2^-10.
    template <class Number>
    bool load(Number* weight) {
        constexpr double kRound = 0x1.8p42;  // x + kRound - kRound rounds to a multiple of 2^-10
        const int32_t m = program_.second.size;
        double* row = row_.reserve(m);
        bool exact = true;
        costs_.load(
            kernels_, 1.0, [&](int32_t) { return row; },
            [&](int32_t i) {
                Number* out = weight + static_cast<size_t>(i) * m;
                for (int32_t j = 0; j < m; ++j) {
                    exact &= (row[j] <= 0.0) | (row[j] + kRound - kRound == row[j]);
                    out[j] = static_cast<Number>(useful(row[j]));
                }
            });
        return exact;
    }

    // Weights as floats; true where every sum of them is exact: they add up to less than 2^14.
    bool load_narrow() {
        return load(narrow_.weight.reserve(node_pairs())) &&
               costs_.largest * std::min(program_.first.size, program_.second.size) < 0x1p14;
    }

    template <class Number>
    void solve(int64_t p, StripForward<MaxOps<Number>>& forward, Mapping<Number>& mapping) {
        forward.columns.build(program_.second, program_.columns);
        Number best;
        forward.run(best);
        distance_[p] = static_cast<Cost>(costs_.base - static_cast<double>(best));
        if (match_a_ == nullptr) return;
        mapping.trace(program_, forward);
        for (int32_t i = 0; i < program_.first.size; ++i) {
            if (mapping.match[i] < 0) continue;
            const int32_t a = program_.first.node[i];
            const int32_t b = program_.second.node[mapping.match[i]];
            match_a_[p * pairs_.width_a + a] = b;
            match_b_[p * pairs_.width_b + b] = a;
        }
    }
};

}  // namespace

template <class Cost>
void soft_tree_alignment(const TreePairs<Cost>& pairs, const double* temperature, Cost* value,
                         Cost* posterior, Cost* entropy, int64_t* used) {
    const StripKernels& kernels = strip_kernels();  // may throw, so not in a thread
    const std::vector<PairPlan> plan = plan_pairs(pairs, used);
    std::fill_n(entropy, pairs.batch, Cost{0});
    for_each_pair(plan, pairs.threads,
                  [&] { return SoftWorker<Cost>(kernels, pairs, temperature, value, posterior, entropy); });
}

template <class Cost>
void hard_tree_alignment(const TreePairs<Cost>& pairs, Cost* distance, int64_t* match_a, int64_t* match_b,
                         int64_t* used) {
    const StripKernels& kernels = strip_kernels();  // may throw, so not in a thread
    const std::vector<PairPlan> plan = plan_pairs(pairs, used);
    for_each_pair(plan, pairs.threads,
                  [&] { return HardWorker<Cost>(kernels, pairs, distance, match_a, match_b); });
}

template void soft_tree_alignment<float>(const TreePairs<float>&, const double*, float*, float*, float*,
                                         int64_t*);
template void soft_tree_alignment<double>(const TreePairs<double>&, const double*, double*, double*, double*,
                                          int64_t*);
template void hard_tree_alignment<float>(const TreePairs<float>&, float*, int64_t*, int64_t*, int64_t*);
template void hard_tree_alignment<double>(const TreePairs<double>&, double*, int64_t*, int64_t*, int64_t*);

}  // namespace structloss
