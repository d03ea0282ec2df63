// The dtypes of CUDA's launch functions; plain C++.
#pragma once

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
