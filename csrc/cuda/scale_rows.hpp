#pragma once

#include <cstdint>

namespace structloss {

// matrix[r, :] *= scale[r] on a CUDA stream, in place. matrix: (rows, columns) float32, row-major,
// contiguous; scale: (rows,) float32. All are device addresses. Returns the cudaError_t of the launch (0 =
// success).
int scale_rows(float* matrix, const float* scale, std::int64_t rows, std::int64_t columns, void* stream);

// Text of a cudaError_t.
const char* error_text(int status);

// Number of visible devices; -1 when the driver is missing or too old.
int device_count();

}  // namespace structloss
