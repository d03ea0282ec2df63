// zero_insert and its adjoint: launch functions.
#pragma once

#include "../problem.h"
#include "runtime.h"

namespace convarith::cuda {

// units (leading, *units) -> stretched (leading, *axis.input)
cudaError_t launch_zero_insert(const Stretch& s, DType dtype, const void* units, void* stretched, cudaStream_t stream);
cudaError_t launch_zero_remove(const Stretch& s, DType dtype, const void* stretched, void* units, cudaStream_t stream);

}  // namespace convarith::cuda
