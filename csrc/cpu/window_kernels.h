// The kernels of pooling, unfold, fold and normalisation, written once with the compiler's vectors and compiled for
// every instruction set: see simd.h for what the including file defines.
#include "lrn_kernels.h"
#include "pooling_indices.h"
#include "pooling_powers.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

template <typename T>
WindowKernels window_kernels_of() {
  return {Lanes<T>::kLanes, sizeof(typename Lanes<T>::Sum),
          pool<T>,          max_pool_with_indices<T>,
          pool_backward<T>, lrn<T>,
          lrn_backward<T>,  are_indices,
          scatter_add<T>};
}

}  // namespace

// By dtype: float, double, bfloat16, float16.
WindowKernels window_kernels(int dtype) {
  switch (dtype) {
    case 0:
      return window_kernels_of<float>();
    case 1:
      return window_kernels_of<double>();
    case 2:
      return window_kernels_of<Brain16>();
    default:
      return window_kernels_of<Half16>();
  }
}

}  // namespace convarith::cpu::CONVARITH_ISA
