// The copy for every processor of the architecture (SSE2, NEON), and the choice among the copies.
#include "strip_kernels.hpp"

#include "instruction_set.hpp"
#include "strip_kernels_impl.hpp"

namespace structloss {

const StripKernels kBaselineKernels = make_kernels<16>("baseline");

const StripKernels& strip_kernels() {
#if defined(__x86_64__)
    return choose_kernels({&kBaselineKernels, &kAvx2Kernels, &kAvx512Kernels});
#else
    return choose_kernels({&kBaselineKernels});
#endif
}

}  // namespace structloss
