// The copy for every processor of the architecture (SSE2, NEON), and the choice among the copies.
#include "strip_kernels.hpp"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "strip_kernels_impl.hpp"

namespace structloss {

const StripKernels kBaselineKernels = make_kernels<16>("baseline");

namespace {

std::vector<const StripKernels*> usable_kernels() {
    std::vector<const StripKernels*> kernels{&kBaselineKernels};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) kernels.push_back(&kAvx2Kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        kernels.push_back(&kAvx512Kernels);
    }
#endif
    return kernels;
}

}  // namespace

const StripKernels& strip_kernels() {
    static const std::vector<const StripKernels*> usable = usable_kernels();
    const char* wanted = std::getenv("STRUCTLOSS_CPU");
    if (wanted == nullptr || *wanted == '\0') return *usable.back();
    std::string names;
    for (const StripKernels* kernels : usable) {
        if (std::strcmp(kernels->name, wanted) == 0) return *kernels;
        names += (names.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw std::invalid_argument("STRUCTLOSS_CPU=" + std::string(wanted) + " cannot run here; wants one of " +
                                names);
}

}  // namespace structloss
