// Python module structloss._C. Arrays arrive as addresses of contiguous CPU memory whose shapes and dtypes
// the Python side has checked; nothing here touches a Python object while the interpreter lock is released.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

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

    structloss::bind_tree_walker(module);
}
