// Compiled with -mavx512f and friends on x86 (setup.py); empty elsewhere.
#ifdef __AVX512F__
#include "strip_kernels_impl.hpp"

namespace structloss {
const StripKernels kAvx512Kernels = make_kernels<64>("avx512");
}
#endif
