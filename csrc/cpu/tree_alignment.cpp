#include "tree_alignment.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "mapping.hpp"
#include "posterior.hpp"

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
    const auto work = [&] {
        auto worker = make_worker();
        for (int64_t k = next++; k < batch; k = next++) {
            try {
                worker.run(order[k], plan[order[k]].orientation);
            } catch (...) {
                failures[order[k]] = std::current_exception();
            }
        }
    };
    std::vector<std::thread> helpers;
    for (int64_t t = 1; t < std::min(threads, batch); ++t) {
        try {
            helpers.emplace_back(work);
        } catch (const std::system_error&) {
            break;  // no more threads to be had: those that run do the work
        }
    }
    work();
    for (std::thread& helper : helpers) helper.join();
    for (const std::exception_ptr& failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
}

// The costs of one pair as log weights w(i, j) = (remove_i + insert_j - relabel_ij) / temperature in oriented
// order.
struct LogWeights {
    Buffer<double> values;  // (n, m)
    double base = 0.0;      // sum of remove and insert: the cost of the empty mapping
    double largest = -std::numeric_limits<double>::infinity();

    template <class Cost>
    void load(const TreePairs<Cost>& pairs, int64_t p, const PairProgram& program, double temperature) {
        const Cost* remove = pairs.remove + p * pairs.width_a;
        const Cost* insert = pairs.insert + p * pairs.width_b;
        base = checked_sum("delete", remove, pairs.sizes_a[p], p) +
               checked_sum("insert", insert, pairs.sizes_b[p], p);
        largest = -std::numeric_limits<double>::infinity();
        const int32_t n = program.first.size;
        const int32_t m = program.second.size;
        double* out = values.reserve(static_cast<size_t>(n) * m);
        for (int32_t i = 0; i < n; ++i) {
            const int64_t row = program.first.node[i];
            const Cost* relabel = pairs.relabel + (p * pairs.width_a + row) * pairs.width_b;
            for (int32_t j = 0; j < m; ++j) {
                const int64_t column = program.second.node[j];
                const double cost = relabel[column];
                if (!(cost >= 0.0)) refuse("relabel", cost, p, row, column);
                const double weight =
                    (static_cast<double>(remove[row]) + static_cast<double>(insert[column]) - cost) /
                    temperature;
                *out++ = weight;
                largest = weight > largest ? weight : largest;
            }
        }
        // Beyond this, n * m weights could leave the exponents of Wide.
        if (largest > 1e15 || !(base <= std::numeric_limits<double>::max())) {
            throw std::invalid_argument("costs of pair " + std::to_string(p) +
                                        " are too large: (delete + insert - "
                                        "relabel) / temperature reaches " +
                                        std::to_string(largest) + ", at most 1e15 is supported");
        }
    }

  private:
    static void refuse(const char* name, double cost, int64_t p, int64_t i, int64_t j) {
        throw std::invalid_argument(std::string(name) + "[" + std::to_string(p) + ", " + std::to_string(i) +
                                    (j < 0 ? "" : ", " + std::to_string(j)) + "] = " + std::to_string(cost) +
                                    "; costs must be >= 0 and not NaN" +
                                    (j < 0 ? " and finite" : " (infinity forbids the match)"));
    }

    template <class Cost>
    static double checked_sum(const char* name, const Cost* costs, int64_t count, int64_t p) {
        double sum = 0.0;
        for (int64_t i = 0; i < count; ++i) {
            if (!(costs[i] >= 0 && costs[i] <= std::numeric_limits<Cost>::max()))
                refuse(name, costs[i], p, i, -1);
            sum += costs[i];
        }
        return sum;
    }
};

// weight = exp(log weight - 2 * tilt). Costs repeat (0 and 1 by default), and exp is dear beside the
// recursion.
template <class Number>
void set_weights(const LogWeights& logs, double tilt, PairState<Number>& pair) {
    const size_t count = static_cast<size_t>(pair.first.size) * pair.second.size;
    const double* values = logs.values.get();
    Number* weight = pair.weight.reserve(count);
    pair.damping_first = pair.damping_second = std::exp(-tilt);
    double seen = std::numeric_limits<double>::quiet_NaN();
    Number seen_weight = zero<Number>();
    for (size_t k = 0; k < count; ++k) {
        if (values[k] != seen) {
            seen = values[k];
            set_exp(seen - 2.0 * tilt, seen_weight);
        }
        weight[k] = seen_weight;
    }
}

// Plain doubles and their range.
//
// With every node weighted by exp(-tilt), a forest pair of a and b nodes has log Z~ between -tilt (a + b) and
// largest * min(a, b) + (a + b) ln 2 - tilt (a + b): the number of mappings is at most 2^(a + b). `safe_tilt`
// centres that interval and is safe where it is narrow enough, whatever the trees are.
//
// Where it is wider, a tilt that fits the typical pair is tried and *certified*: if all values of the forward
// pass and all adjoints of the reverse pass (seeded with 1 / Z~) stay below kPeak = 2^960, then underflow was
// harmless. Every operation loses at most 2^-1074 by underflow, a value loses its error times its adjoint and
// an adjoint its error times its value, so the relative loss is below 2^-114 times the number of operations.
// A match weight that underflows has w < 2 * tilt - 708, and P(i, j) <= exp(w): with tilt <= 300 that is
// below e^-108. Without a certificate the pair is computed in Wide, never with a saturated value.
constexpr double kPeak = 0x1p960;
constexpr double kSafeLogRange = 650.0;
constexpr double kLargestTilt = 300.0;
constexpr double kHopelessLogRange = 6000.0;
constexpr size_t kKeepAllBytes = size_t{64} << 20;

template <class Cost>
class SoftWorker {
  public:
    SoftWorker(const TreePairs<Cost>& pairs, double temperature, Cost* value, Cost* posterior, Cost* entropy)
        : pairs_(pairs), temperature_(temperature), value_(value), posterior_(posterior), entropy_(entropy) {}
    SoftWorker(const SoftWorker&) = delete;  // members refer to each other
    SoftWorker& operator=(const SoftWorker&) = delete;

    void run(int64_t p, Orientation orientation) {
        program_.first.build(pairs_.leftmost_a + p * pairs_.width_a, pairs_.sizes_a[p], orientation);
        program_.second.build(pairs_.leftmost_b + p * pairs_.width_b, pairs_.sizes_b[p], orientation);
        logs_.load(pairs_, p, program_, temperature_);
        if (program_.first.size == 0 || program_.second.size == 0) {
            value_[p] = static_cast<Cost>(logs_.base);
            return;
        }
        program_.columns.build(program_.second);
        build_rows();
        if (posterior_ == nullptr ? plain_value() : plain_posterior()) {
            finish(p, plain_, plain_adjoint_);
        } else {
            run_wide();
            finish(p, wide_, wide_adjoint_);
        }
    }

  private:
    const TreePairs<Cost>& pairs_;
    double temperature_;
    Cost* value_;
    Cost* posterior_;
    Cost* entropy_;

    PairProgram program_;
    LogWeights logs_;
    bool all_rows_kept_ = false;
    double log_partition_ = 0.0;
    PairState<double> plain_{program_};
    PairState<Wide> wide_{program_};
    Adjoints<double> plain_adjoint_;
    Adjoints<Wide> wide_adjoint_;

    void build_rows() {
        if (posterior_ == nullptr) {
            program_.rows.build(program_.first, RowProgram::Storage::kRecycle);
            return;
        }
        program_.rows.build(program_.first, RowProgram::Storage::kKeepAll);
        const size_t bytes =
            static_cast<size_t>(program_.rows.slots) * program_.columns.width * sizeof(double);
        all_rows_kept_ = bytes <= kKeepAllBytes;
        if (!all_rows_kept_) program_.rows.build(program_.first, RowProgram::Storage::kKeepTable);
    }

    double nodes() const { return static_cast<double>(program_.first.size) + program_.second.size; }
    double smaller() const { return std::min(program_.first.size, program_.second.size); }
    double largest() const { return std::max(logs_.largest, 0.0); }
    double safe_tilt() const { return largest() / 4.0 + 0.34657359027997264; }

    bool plain_value() {
        const double tilt = safe_tilt();
        if (tilt * nodes() > kSafeLogRange) return false;
        set_weights(logs_, tilt, plain_);
        log_partition_ = std::log(run_forward(plain_)) + tilt * nodes();
        return true;
    }

    bool plain_posterior() {
        double tilt = safe_tilt();
        if (tilt * nodes() > kSafeLogRange) {
            if (largest() * smaller() > kHopelessLogRange) return false;
            tilt = 0.75 * largest() * smaller() / nodes();
        }
        for (int attempt = 0; attempt < 2 && tilt <= kLargestTilt; ++attempt) {
            set_weights(logs_, tilt, plain_);
            const double partition = run_forward(plain_);
            if (!(plain_.peak <= kPeak)) {
                tilt = largest() * smaller() / nodes();
                continue;
            }
            if (partition >= 1.0 / kPeak) {
                run_reverse(plain_, plain_adjoint_, partition, all_rows_kept_);
                if (plain_adjoint_.peak <= kPeak) {
                    log_partition_ = std::log(partition) + tilt * nodes();
                    return true;
                }
            }
            tilt = partition > 0.0 ? tilt + std::log(partition) / nodes() : tilt / 2.0;
        }
        return false;
    }

    void run_wide() {
        set_weights(logs_, 0.0, wide_);
        const Wide partition = run_forward(wide_);
        log_partition_ = log_of(partition);
        if (posterior_ != nullptr) run_reverse(wide_, wide_adjoint_, partition, all_rows_kept_);
    }

    template <class Number>
    void finish(int64_t p, const PairState<Number>& pair, const Adjoints<Number>& adjoint) {
        value_[p] = static_cast<Cost>(logs_.base - temperature_ * log_partition_);
        if (posterior_ == nullptr) return;
        const int32_t n = program_.first.size;
        const int32_t m = program_.second.size;
        const Number* subtree = pair.subtree.get();
        const Number* adjoint_subtree = adjoint.subtree.get();
        const double* log_weight = logs_.values.get();
        double expected = 0.0;
        for (int32_t i = 0; i < n; ++i) {
            Cost* out = posterior_ + (p * pairs_.width_a + program_.first.node[i]) * pairs_.width_b;
            for (int32_t j = 0; j < m; ++j) {
                const double matched = probability(*adjoint_subtree++ * *subtree++);
                out[program_.second.node[j]] = static_cast<Cost>(matched);
                if (matched > 0.0) expected += matched * *log_weight;
                ++log_weight;
            }
        }
        entropy_[p] = static_cast<Cost>(log_partition_ - expected);
    }
};

template <class Cost>
class HardWorker {
  public:
    HardWorker(const TreePairs<Cost>& pairs, Cost* distance, int64_t* match_a, int64_t* match_b)
        : pairs_(pairs), distance_(distance), match_a_(match_a), match_b_(match_b) {}
    HardWorker(const HardWorker&) = delete;  // members refer to each other
    HardWorker& operator=(const HardWorker&) = delete;

    void run(int64_t p, Orientation orientation) {
        program_.first.build(pairs_.leftmost_a + p * pairs_.width_a, pairs_.sizes_a[p], orientation);
        program_.second.build(pairs_.leftmost_b + p * pairs_.width_b, pairs_.sizes_b[p], orientation);
        logs_.load(pairs_, p, program_, 1.0);
        if (program_.first.size == 0 || program_.second.size == 0) {
            distance_[p] = static_cast<Cost>(logs_.base);
            return;
        }
        program_.columns.build(program_.second);
        program_.rows.build(program_.first, RowProgram::Storage::kRecycle);
        set_weights(logs_, 0.0, state_);
        distance_[p] = static_cast<Cost>(logs_.base - run_forward(state_).value);
        if (match_a_ == nullptr) return;
        mapping_.trace(state_);
        for (int32_t i = 0; i < program_.first.size; ++i) {
            if (mapping_.match[i] < 0) continue;
            const int32_t a = program_.first.node[i];
            const int32_t b = program_.second.node[mapping_.match[i]];
            match_a_[p * pairs_.width_a + a] = b;
            match_b_[p * pairs_.width_b + b] = a;
        }
    }

  private:
    const TreePairs<Cost>& pairs_;
    Cost* distance_;
    int64_t* match_a_;
    int64_t* match_b_;
    PairProgram program_;
    LogWeights logs_;
    PairState<Tropical> state_{program_};
    Mapping mapping_;
};

}  // namespace

template <class Cost>
void soft_tree_alignment(const TreePairs<Cost>& pairs, double temperature, Cost* value, Cost* posterior,
                         Cost* entropy, int64_t* used) {
    if (!(temperature > 0.0) || !std::isfinite(temperature)) {
        throw std::invalid_argument("temperature must be finite and > 0, got " + std::to_string(temperature));
    }
    const std::vector<PairPlan> plan = plan_pairs(pairs, used);
    std::fill_n(entropy, pairs.batch, Cost{0});
    for_each_pair(plan, pairs.threads,
                  [&] { return SoftWorker<Cost>(pairs, temperature, value, posterior, entropy); });
}

template <class Cost>
void hard_tree_alignment(const TreePairs<Cost>& pairs, Cost* distance, int64_t* match_a, int64_t* match_b,
                         int64_t* used) {
    const std::vector<PairPlan> plan = plan_pairs(pairs, used);
    for_each_pair(plan, pairs.threads, [&] { return HardWorker<Cost>(pairs, distance, match_a, match_b); });
}

template void soft_tree_alignment<float>(const TreePairs<float>&, double, float*, float*, float*, int64_t*);
template void soft_tree_alignment<double>(const TreePairs<double>&, double, double*, double*, double*,
                                          int64_t*);
template void hard_tree_alignment<float>(const TreePairs<float>&, float*, int64_t*, int64_t*, int64_t*);
template void hard_tree_alignment<double>(const TreePairs<double>&, double*, int64_t*, int64_t*, int64_t*);

}  // namespace structloss
