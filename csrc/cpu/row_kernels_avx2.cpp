// Compiled with -mavx2 on x86 (setup.py); empty elsewhere.
#ifdef __AVX2__
#include "row_kernels_impl.hpp"

namespace structloss {
const RowKernelSet kAvx2RowKernels = make_row_kernels<32>("avx2");
}
#endif
