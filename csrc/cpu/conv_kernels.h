// The fast convolution kernels, written once with the compiler's vectors and compiled for every instruction set: see
// simd.h for what the including file defines.
#include "conv_gather.h"
#include "conv_weight.h"
#include "conv_winograd.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

template <typename T>
ConvKernels kernels() {
  typedef typename SumOf<T>::type Sum;
  ConvKernels k = {};
  k.lanes = Simd<Sum>::kLanes;
  k.row_block = kRowBlock;
  k.vectors = kVectors;
  k.item = sizeof(T);
  k.sum_item = sizeof(Sum);
  k.finite = finite<T>;
  k.pack_tasks = pack_tasks;
  k.pack = pack<T>;
  k.gather = gather<T>;
  k.weight_pack = weight_pack<T>;
  k.weight_sum = weight_sum<T>;
  k.weight_store_tasks = weight_store_tasks;
  k.weight_store = weight_store<T>;
  if constexpr (sizeof(Sum) == sizeof(float)) {
    k.winograd_weights = winograd_weights<T>;
    k.winograd_inputs = winograd_inputs<T>;
    k.winograd_outputs = winograd_outputs<T>;
    k.winograd = winograd<T>;
    k.winograd_gradient = winograd_gradient<T>;
  }
  return k;
}

}  // namespace

// By dtype: float, double, bfloat16, float16.
ConvKernels conv_kernels(int dtype) {
  switch (dtype) {
    case 0:
      return kernels<float>();
    case 1:
      return kernels<double>();
    case 2:
      return kernels<Brain16>();
    default:
      return kernels<Half16>();
  }
}

}  // namespace convarith::cpu::CONVARITH_ISA
