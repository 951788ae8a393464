// The copy for every processor of the architecture (SSE2, NEON), and the choice among the copies.
#include "row_kernels.hpp"

#include "instruction_set.hpp"
#include "row_kernels_impl.hpp"

namespace structloss {

const RowKernelSet kBaselineRowKernels = make_row_kernels<16>("baseline");

const RowKernelSet& row_kernels() {
#if defined(__x86_64__)
    return choose_kernels({&kBaselineRowKernels, &kAvx2RowKernels, &kAvx512RowKernels});
#else
    return choose_kernels({&kBaselineRowKernels});
#endif
}

}  // namespace structloss
