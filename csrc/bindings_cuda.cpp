// Python bindings of the CUDA kernels: raw device addresses and a stream handle, no torch headers.

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cuda/scale_rows.hpp"

namespace py = pybind11;

namespace {

void check(int status, const char* what) {
    if (status != 0) throw std::runtime_error(std::string(what) + ": " + structloss::error_text(status));
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
    m.doc() = "CUDA kernels of structloss; addresses and streams are plain integers.";
    m.def("device_count", &structloss::device_count, "Visible CUDA devices; -1 without a usable driver.");
    m.def(
        "scale_rows",
        [](std::uintptr_t matrix, std::uintptr_t scale, std::int64_t rows, std::int64_t columns,
           std::uintptr_t stream) {
            py::gil_scoped_release release;
            check(structloss::scale_rows(reinterpret_cast<float*>(matrix),
                                         reinterpret_cast<const float*>(scale), rows, columns,
                                         reinterpret_cast<void*>(stream)),
                  "scale_rows");
        },
        py::arg("matrix"), py::arg("scale"), py::arg("rows"), py::arg("columns"), py::arg("stream"));
}
