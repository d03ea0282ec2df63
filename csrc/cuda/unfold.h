// unfold and fold: launch functions. x (planes, *input), y (planes, taps, outputs).
#pragma once

#include "../problem.h"
#include "runtime.h"

namespace convarith::cuda {

cudaError_t launch_unfold(const Windows& w, DType dtype, const void* x, void* y, cudaStream_t stream);
cudaError_t launch_fold(const Windows& w, DType dtype, const void* y, void* x, cudaStream_t stream);

}  // namespace convarith::cuda
