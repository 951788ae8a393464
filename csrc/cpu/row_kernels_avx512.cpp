// Compiled with -mavx512f and friends on x86 (setup.py); empty elsewhere.
#ifdef __AVX512F__
#include "row_kernels_impl.hpp"

namespace structloss {
const RowKernelSet kAvx512RowKernels = make_row_kernels<64>("avx512");
}
#endif
