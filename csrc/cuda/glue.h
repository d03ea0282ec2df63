// Between torch and the launch functions of this folder: device, stream, dtype and errors.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "runtime.h"

#ifndef CONVARITH_EMULATE
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

// Where a file of glue registers its operators. The tests run the same glue over emulated kernels, on CPU tensors and
// beside the CPU's own operators.
#ifdef CONVARITH_EMULATE
#define CONVARITH_CUDA_IMPL(m) TORCH_LIBRARY_IMPL(torch_convarith_emulated, CPU, m)
#else
#define CONVARITH_CUDA_IMPL(m) TORCH_LIBRARY_IMPL(torch_convarith, CUDA, m)
#endif

namespace convarith::cuda {

// Makes a tensor's device the current one for as long as this lives. Kernels go to its current stream.
class OnDeviceOf {
 public:
#ifdef CONVARITH_EMULATE
  explicit OnDeviceOf(const at::Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
#else
  explicit OnDeviceOf(const at::Tensor& t) : guard_(t.device()) {}
  cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream(); }

 private:
  c10::cuda::CUDAGuard guard_;
#endif
};

// Launches are asynchronous: this reports what was wrong with the launch itself.
inline void check_launch(cudaError_t error, const char* name) {
  TORCH_CHECK(error == cudaSuccess, name, ": ", cudaGetErrorString(error));
}

// The dtypes that an operator takes; another one raises with its name.
enum class DTypes { kFloating, kFloatingOrComplex, kReal, kNumber, kAny };

inline DType dtype_of(const at::Tensor& t, DTypes allowed, const char* name) {
  const auto where = [&](DType dtype, bool allowed_here) {
    TORCH_CHECK_NOT_IMPLEMENTED(allowed_here, "\"", name, "\" not implemented for '", t.scalar_type(), "'");
    return dtype;
  };
  const bool integers = allowed != DTypes::kFloating && allowed != DTypes::kFloatingOrComplex;
  const bool complex = allowed != DTypes::kFloating && allowed != DTypes::kReal;
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::kFloat;
    case at::kDouble:
      return DType::kDouble;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kHalf;
    case at::kByte:
      return where(DType::kUInt8, integers);
    case at::kChar:
      return where(DType::kInt8, integers);
    case at::kShort:
      return where(DType::kInt16, integers);
    case at::kInt:
      return where(DType::kInt32, integers);
    case at::kLong:
      return where(DType::kInt64, integers);
    case at::kComplexFloat:
      return where(DType::kComplexFloat, complex);
    case at::kComplexDouble:
      return where(DType::kComplexDouble, complex);
    default:
      return where(DType::kBool, allowed == DTypes::kAny && t.scalar_type() == at::kBool);
  }
}

}  // namespace convarith::cuda
