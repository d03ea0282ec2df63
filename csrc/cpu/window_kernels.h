// The kernels of pooling, unfold, fold and normalisation, written once with the compiler's vectors and compiled for
// every instruction set: see simd.h and target_*.h.
#include "lrn_kernels.h"
#include "pooling_powers.h"
#include "pooling_taps.h"

namespace convarith::cpu::CONVARITH_ISA {

template <typename T>
void set_pool(WindowKernels& k);  // of window_pool.h, which is compiled by itself

namespace {

template <typename T>
WindowKernels window_kernels_of() {
  WindowKernels k = {};
  k.lanes = Lanes<T>::kLanes;
  k.item = sizeof(T);
  k.sum_item = sizeof(typename Lanes<T>::Sum);
  set_pool<T>(k);
  k.pool_backward = pool_backward<T>;
  k.max_pool_with_indices = max_pool_with<ByIndex, T>;
  k.max_pool_with_taps = max_pool_with<ByTap, T>;
  k.are_taps = are_taps;
  k.tap_scatter = tap_scatter<T>;
  k.are_indices = are_indices;
  k.scatter_add = scatter_add<T>;
  k.lrn = lrn<T>;
  k.lrn_backward = lrn_backward<T>;
  return k;
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
