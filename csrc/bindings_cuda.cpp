// Python module structloss._C_cuda: the CUDA kernels, raw device addresses and a stream handle, no torch
// headers. Nothing here touches a Python object while the interpreter lock is released.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cuda/tree_alignment.hpp"

namespace py = pybind11;

namespace {

using structloss::cuda::Arithmetic;
using structloss::cuda::Launch;
using structloss::cuda::TreePairs;

template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void check(int status, const char* what) {
    if (status != 0)
        throw std::runtime_error(std::string(what) + ": " + structloss::cuda::error_text(status));
}

TreePairs tree_pairs(int64_t batch, int64_t width_a, int64_t width_b, std::uintptr_t leftmost_a,
                     std::uintptr_t leftmost_b, std::uintptr_t sizes_a, std::uintptr_t sizes_b,
                     std::uintptr_t relabel, std::uintptr_t remove, std::uintptr_t insert, bool double_costs,
                     int32_t method, int64_t max_cells, int64_t table_columns) {
    return {batch,
            width_a,
            width_b,
            pointer<const int64_t>(leftmost_a),
            pointer<const int64_t>(leftmost_b),
            pointer<const int64_t>(sizes_a),
            pointer<const int64_t>(sizes_b),
            pointer<const void>(relabel),
            pointer<const void>(remove),
            pointer<const void>(insert),
            double_costs,
            method,
            max_cells,
            table_columns};
}

void add_constants(py::module_& m) {
    m.attr("BAD_SIZES") = int{structloss::cuda::kBadSizes};
    m.attr("BAD_LEFTMOST_A") = int{structloss::cuda::kBadLeftmostA};
    m.attr("BAD_LEFTMOST_B") = int{structloss::cuda::kBadLeftmostB};
    m.attr("BAD_TEMPERATURE") = int{structloss::cuda::kBadTemperature};
    m.attr("BAD_DELETE") = int{structloss::cuda::kBadDelete};
    m.attr("BAD_INSERT") = int{structloss::cuda::kBadInsert};
    m.attr("BAD_RELABEL") = int{structloss::cuda::kBadRelabel};
    m.attr("COSTS_TOO_LARGE") = int{structloss::cuda::kCostsTooLarge};
    m.attr("TOO_MANY_CELLS") = int{structloss::cuda::kTooManyCells};
    m.attr("TOO_MANY_COLUMNS") = int{structloss::cuda::kTooManyColumns};
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
    m.doc() = "CUDA kernels of structloss; addresses and streams are plain integers. Private.";
    add_constants(m);
    m.def("device_count", &structloss::cuda::device_count,
          "Visible CUDA devices; -1 without a usable driver.");
    m.def(
        "float64_slowdown",
        [] {
            int32_t ratio = 0;
            check(structloss::cuda::float64_slowdown(&ratio), "float64_slowdown");
            return ratio;
        },
        "float32 throughput over float64 throughput of the current device.");

    py::class_<TreePairs>(m, "TreePairs")
        .def(py::init(&tree_pairs), py::kw_only(), py::arg("batch"), py::arg("width_a"), py::arg("width_b"),
             py::arg("leftmost_a"), py::arg("leftmost_b"), py::arg("sizes_a"), py::arg("sizes_b"),
             py::arg("relabel"), py::arg("delete"), py::arg("insert"), py::arg("double_costs"),
             py::arg("method"), py::arg("max_cells"), py::arg("table_columns"));
    py::class_<Launch>(m, "Launch")
        .def_readonly("blocks", &Launch::blocks)
        .def_readonly("threads", &Launch::threads)
        .def_readonly("shared_bytes", &Launch::shared_bytes)
        .def_readonly("workspace_bytes", &Launch::workspace_bytes);

    m.def(
        "choose_launch",
        [](const TreePairs& pairs, int32_t arithmetic, bool detail, int64_t memory_budget, int32_t threads) {
            Launch launch{};
            check(structloss::cuda::choose_launch(pairs, static_cast<Arithmetic>(arithmetic), detail,
                                                  memory_budget, threads, &launch),
                  "choose_launch");
            return launch;
        },
        py::arg("pairs"), py::arg("arithmetic"), py::arg("detail"), py::arg("memory_budget"),
        py::arg("threads") = 0);

    m.def(
        "plan_tree_alignment",
        [](const TreePairs& pairs, std::uintptr_t cells, std::uintptr_t columns, std::uintptr_t used,
           std::uintptr_t status, std::uintptr_t stream) {
            py::gil_scoped_release release;
            check(structloss::cuda::plan_tree_alignment(pairs, pointer<int64_t>(cells),
                                                        pointer<int64_t>(columns), pointer<int64_t>(used),
                                                        pointer<int32_t>(status), pointer<void>(stream)),
                  "plan_tree_alignment");
        },
        py::arg("pairs"), py::arg("cells"), py::arg("columns"), py::arg("used"), py::arg("status"),
        py::arg("stream"));

    m.def(
        "soft_tree_alignment",
        [](const TreePairs& pairs, std::uintptr_t temperature, std::uintptr_t value, std::uintptr_t posterior,
           std::uintptr_t entropy, std::uintptr_t used, std::uintptr_t status, int32_t arithmetic,
           const Launch& launch, std::uintptr_t workspace, std::uintptr_t stream) {
            py::gil_scoped_release release;
            check(structloss::cuda::soft_tree_alignment(
                      pairs, pointer<const double>(temperature), pointer<void>(value),
                      pointer<void>(posterior), pointer<void>(entropy), pointer<int64_t>(used),
                      pointer<int32_t>(status), static_cast<Arithmetic>(arithmetic), launch,
                      pointer<void>(workspace), pointer<void>(stream)),
                  "soft_tree_alignment");
        },
        py::arg("pairs"), py::arg("temperature"), py::arg("value"), py::arg("posterior"), py::arg("entropy"),
        py::arg("used"), py::arg("status"), py::arg("arithmetic"), py::arg("launch"), py::arg("workspace"),
        py::arg("stream"));

    m.def(
        "hard_tree_alignment",
        [](const TreePairs& pairs, std::uintptr_t distance, std::uintptr_t match_a, std::uintptr_t match_b,
           std::uintptr_t used, std::uintptr_t status, const Launch& launch, std::uintptr_t workspace,
           std::uintptr_t stream) {
            py::gil_scoped_release release;
            check(structloss::cuda::hard_tree_alignment(
                      pairs, pointer<void>(distance), pointer<int64_t>(match_a), pointer<int64_t>(match_b),
                      pointer<int64_t>(used), pointer<int32_t>(status), launch, pointer<void>(workspace),
                      pointer<void>(stream)),
                  "hard_tree_alignment");
        },
        py::arg("pairs"), py::arg("distance"), py::arg("match_a"), py::arg("match_b"), py::arg("used"),
        py::arg("status"), py::arg("launch"), py::arg("workspace"), py::arg("stream"));
}
