// What the declarations of launch functions need: CUDA's stream and error, and dtypes, without torch.
#pragma once

#ifdef CONVARITH_EMULATE
#include "emulation.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace convarith::cuda {

// Of the untyped pointers that launch functions take.
enum class DType {
  kFloat,
  kDouble,
  kBFloat16,
  kHalf,
  kUInt8,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kBool,
  kComplexFloat,
  kComplexDouble
};

}  // namespace convarith::cuda
