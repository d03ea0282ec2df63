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
  return {Simd<Sum>::kLanes,
          kRowBlock,
          kVectors,
          kOuterVectors,
          sizeof(T),
          sizeof(Sum),
          finite<T>,
          pack_tasks<T>,
          pack<T>,
          gather<T>,
          weight_pack_tasks<T>,
          weight_pack<T>,
          weight_sum<T>,
          weight_store_tasks<T>,
          weight_store<T>,
          winograd_pack<T>,
          winograd<T>};
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
