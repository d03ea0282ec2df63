// The fast convolution kernels, written once with the compiler's vectors and compiled for every instruction set: see
// simd.h for what the including file defines.
#include "conv_channelwise.h"
#include "conv_depthwise.h"
#include "conv_gather.h"
#include "conv_weight.h"
#include "conv_winograd.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

template <typename T>
ConvKernels kernels() {
  typedef typename SumOf<T>::type Sum;
  ConvKernels k = {Simd<Sum>::kLanes,
                   kRowBlock,
                   kVectors,
                   sizeof(T),
                   sizeof(Sum),
                   kSweepRows,
                   kSweepVectors,
                   kSweepHeight,
                   kWeighHeight,
                   finite<T>,
                   pack_tasks,
                   pack<T>,
                   gather<T>,
                   weight_pack<T>,
                   weight_sum<T>,
                   weight_store_tasks,
                   weight_store<T>,
                   winograd_pack<T>,
                   winograd<T>,
                   depthwise<T>,
                   depthwise_sum<T>,
                   depthwise_store<T>,
                   nullptr,
                   nullptr,
                   nullptr};
  if constexpr (sizeof(T) == sizeof(Sum)) {
    k.channelwise = channelwise<T>;
    k.channelwise_sum = channelwise_sum<T>;
    k.channelwise_store = channelwise_store<T>;
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
