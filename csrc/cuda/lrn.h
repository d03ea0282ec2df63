// Local response normalisation: launch functions. All tensors (planes, channels, inner), as Lrn says.
#pragma once

#include "../problem.h"
#include "runtime.h"

namespace convarith::cuda {

cudaError_t launch_lrn(const Lrn& p, DType dtype, const void* x, void* y, cudaStream_t stream);
cudaError_t launch_lrn_backward(const Lrn& p, DType dtype, const void* g, const void* x, void* result,
                                cudaStream_t stream);

}  // namespace convarith::cuda
