// Python module structloss._C. Arrays arrive as addresses of contiguous CPU memory whose shapes and dtypes
// the Python side has checked; nothing here touches a Python object while the interpreter lock is released.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cpu/row_pass.hpp"
#include "cpu/tree_alignment.hpp"
#include "trees/tree_walker.hpp"

namespace py = pybind11;

namespace {

using structloss::Method;
using structloss::TreePairs;

template <class T>
T* pointer(int64_t address) {
    return reinterpret_cast<T*>(static_cast<intptr_t>(address));
}

struct TreePairAddresses {
    bool double_precision;
    int64_t batch, width_a, width_b;
    int64_t leftmost_a, leftmost_b, sizes_a, sizes_b;
    int64_t relabel, remove, insert, label_a, label_b;
    int64_t method, max_cells, threads;

    template <class Cost>
    TreePairs<Cost> typed() const {
        return {batch,
                width_a,
                width_b,
                pointer<const int64_t>(leftmost_a),
                pointer<const int64_t>(leftmost_b),
                pointer<const int64_t>(sizes_a),
                pointer<const int64_t>(sizes_b),
                pointer<const Cost>(relabel),
                pointer<const Cost>(remove),
                pointer<const Cost>(insert),
                pointer<const int64_t>(label_a),
                pointer<const int64_t>(label_b),
                static_cast<Method>(method),
                max_cells,
                threads};
    }
};

template <class Cost>
void soft(const TreePairAddresses& pairs, int64_t temperature, int64_t value, int64_t posterior,
          int64_t entropy, int64_t used) {
    structloss::soft_tree_alignment<Cost>(pairs.typed<Cost>(), pointer<const double>(temperature),
                                          pointer<Cost>(value), pointer<Cost>(posterior),
                                          pointer<Cost>(entropy), pointer<int64_t>(used));
}

template <class Cost>
void hard(const TreePairAddresses& pairs, int64_t distance, int64_t match_a, int64_t match_b, int64_t used) {
    structloss::hard_tree_alignment<Cost>(pairs.typed<Cost>(), pointer<Cost>(distance),
                                          pointer<int64_t>(match_a), pointer<int64_t>(match_b),
                                          pointer<int64_t>(used));
}

using structloss::BFloat16;
using structloss::HiddenGradient;
using structloss::RowFormula;
using structloss::RowInputs;
using structloss::RowResults;
using structloss::RowStream;

// Calls with a null BFloat16* or float*, which says what type the logits have.
template <class Call>
void with_logit_type(bool bfloat16, Call call) {
    if (bfloat16) {
        call(static_cast<BFloat16*>(nullptr));
    } else {
        call(static_cast<float*>(nullptr));
    }
}

void bind_row_pass(py::module_& module) {
    py::class_<RowFormula>(module, "RowFormula")
        .def(py::init([](int64_t vocab, int64_t class_weight, double class_sum, double label_smoothing,
                         double z_loss, float softcap, float logit_scale) {
                 return RowFormula{vocab,      pointer<const float>(class_weight),
                                   class_sum,  label_smoothing,
                                   z_loss,     softcap,
                                   logit_scale};
             }),
             py::kw_only(), py::arg("vocab"), py::arg("class_weight"), py::arg("class_sum"),
             py::arg("label_smoothing"), py::arg("z_loss"), py::arg("softcap"), py::arg("logit_scale"));

    py::class_<RowInputs>(module, "RowInputs")
        .def(py::init([](int64_t rows, int64_t target, int64_t weight, int64_t unlikely, int64_t upstream) {
                 return RowInputs{rows, pointer<const int64_t>(target), pointer<const float>(weight),
                                  pointer<const uint8_t>(unlikely), pointer<const float>(upstream)};
             }),
             py::kw_only(), py::arg("rows"), py::arg("target"), py::arg("weight"), py::arg("unlikely"),
             py::arg("upstream"));

    py::class_<RowResults>(module, "RowResults")
        .def(py::init([](int64_t loss, int64_t logprob, int64_t lse, int64_t entropy, int64_t argmax) {
                 return RowResults{pointer<float>(loss), pointer<float>(logprob), pointer<float>(lse),
                                   pointer<float>(entropy), pointer<int64_t>(argmax)};
             }),
             py::kw_only(), py::arg("loss"), py::arg("logprob"), py::arg("lse"), py::arg("entropy"),
             py::arg("argmax"));

    module.def(
        "row_pass",
        [](const RowFormula& formula, const RowInputs& inputs, const RowResults& results, bool bfloat16,
           int64_t logits, int64_t stride, int64_t threads) {
            with_logit_type(bfloat16, [&](auto* type) {
                using Logit = std::remove_pointer_t<decltype(type)>;
                structloss::row_pass(formula, inputs, results, pointer<Logit>(logits), stride, threads);
            });
        },
        py::arg("formula"), py::arg("inputs"), py::arg("results"), py::kw_only(), py::arg("bfloat16"),
        py::arg("logits"), py::arg("stride"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());

    py::class_<RowStream>(module, "RowStream")
        .def(py::init<const RowFormula&, int64_t, bool, bool>(), py::arg("formula"), py::kw_only(),
             py::arg("rows"), py::arg("entropy"), py::arg("argmax"))
        .def(
            "absorb",
            [](RowStream& stream, bool bfloat16, int64_t target, int64_t first, int64_t columns,
               int64_t logits, bool weigh, int64_t total, int64_t width, int64_t threads) {
                with_logit_type(bfloat16, [&](auto* type) {
                    using Logit = std::remove_pointer_t<decltype(type)>;
                    stream.absorb(pointer<const int64_t>(target), first, columns, pointer<Logit>(logits),
                                  weigh, pointer<float>(total), width, threads);
                });
            },
            py::kw_only(), py::arg("bfloat16"), py::arg("target"), py::arg("first"), py::arg("columns"),
            py::arg("logits"), py::arg("weigh"), py::arg("total"), py::arg("width"), py::arg("threads"),
            py::call_guard<py::gil_scoped_release>())
        .def(
            "finish",
            [](RowStream& stream, const RowInputs& inputs, const RowResults& results, bool bfloat16,
               int64_t width, int64_t total, int64_t weight, int64_t weight_row_stride,
               int64_t weight_column_stride, int64_t index, int64_t out, int64_t threads) {
                with_logit_type(bfloat16, [&](auto* type) {
                    using Logit = std::remove_pointer_t<decltype(type)>;
                    stream.finish(inputs, results,
                                  HiddenGradient<Logit>{width,
                                                        pointer<const float>(total),
                                                        pointer<const Logit>(weight),
                                                        {weight_row_stride, weight_column_stride},
                                                        pointer<const int64_t>(index),
                                                        pointer<Logit>(out)},
                                  threads);
                });
            },
            py::arg("inputs"), py::arg("results"), py::kw_only(), py::arg("bfloat16"), py::arg("width"),
            py::arg("total"), py::arg("weight"), py::arg("weight_row_stride"),
            py::arg("weight_column_stride"), py::arg("index"), py::arg("out"), py::arg("threads"),
            py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled kernels of structloss. Private: use the functions of the package.";

    py::class_<TreePairAddresses>(module, "TreePairAddresses")
        .def(py::init([](bool double_precision, int64_t batch, int64_t width_a, int64_t width_b,
                         int64_t leftmost_a, int64_t leftmost_b, int64_t sizes_a, int64_t sizes_b,
                         int64_t relabel, int64_t remove, int64_t insert, int64_t label_a, int64_t label_b,
                         int64_t method, int64_t max_cells, int64_t threads) {
                 return TreePairAddresses{
                     double_precision, batch,  width_a, width_b, leftmost_a, leftmost_b, sizes_a,   sizes_b,
                     relabel,          remove, insert,  label_a, label_b,    method,     max_cells, threads};
             }),
             py::kw_only(), py::arg("double_precision"), py::arg("batch"), py::arg("width_a"),
             py::arg("width_b"), py::arg("leftmost_a"), py::arg("leftmost_b"), py::arg("sizes_a"),
             py::arg("sizes_b"), py::arg("relabel"), py::arg("delete"), py::arg("insert"), py::arg("label_a"),
             py::arg("label_b"), py::arg("method"), py::arg("max_cells"), py::arg("threads"));

    module.def(
        "soft_tree_alignment",
        [](const TreePairAddresses& pairs, int64_t temperature, int64_t value, int64_t posterior,
           int64_t entropy, int64_t used) {
            (pairs.double_precision ? soft<double> : soft<float>)(pairs, temperature, value, posterior,
                                                                  entropy, used);
        },
        py::arg("pairs"), py::arg("temperature"), py::arg("value"), py::arg("posterior"), py::arg("entropy"),
        py::arg("used"), py::call_guard<py::gil_scoped_release>());

    module.def(
        "hard_tree_alignment",
        [](const TreePairAddresses& pairs, int64_t distance, int64_t match_a, int64_t match_b, int64_t used) {
            (pairs.double_precision ? hard<double> : hard<float>)(pairs, distance, match_a, match_b, used);
        },
        py::arg("pairs"), py::arg("distance"), py::arg("match_a"), py::arg("match_b"), py::arg("used"),
        py::call_guard<py::gil_scoped_release>());

    bind_row_pass(module);
    structloss::bind_tree_walker(module);
}
