// Compiled with -mavx2 on x86 (setup.py); empty elsewhere.
#ifdef __AVX2__
#include "strip_kernels_impl.hpp"

namespace structloss {
const StripKernels kAvx2Kernels = make_kernels<32>("avx2");
}
#endif
