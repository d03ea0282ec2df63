// The fast convolution kernels, written once with the compiler's vectors and compiled for every instruction set: see
// simd.h and target_*.h.
#include "ceiling.h"
#include "conv_channelwise.h"
#include "conv_depthwise.h"
#include "conv_planes.h"
#if CONVARITH_BYTES == 64
#include "conv_depthwise_in_place_weight.h"
#endif

namespace convarith::cpu::CONVARITH_ISA {

// Of conv_products.h and conv_winograd.h, which are compiled by themselves.
template <typename T>
void set_products(ConvKernels& k);
template <typename T>
void set_winograd(ConvKernels& k);

namespace {

template <typename T>
ConvKernels kernels() {
  typedef typename SumOf<T>::type Sum;
  ConvKernels k = {};
  k.lanes = Simd<Sum>::kLanes;
  k.item = sizeof(T);
  k.sum_item = sizeof(Sum);
  k.sweep_rows = kSweepRows;
  k.sweep_vectors = kSweepVectors;
  k.sweep_height = kSweepHeight;
  k.weigh_height = kWeighHeight;
  k.plane_taps = kPlaneTaps;
  k.tap_rows = kTapRows;
  k.tap_columns = kTapColumns;
  k.tap_sums = kTapSums;
  k.multiply_adds = multiply_adds<Sum>;
  k.finite = finite<T>;
  set_products<T>(k);
  k.depthwise = depthwise<T>;
  k.depthwise_sum = depthwise_sum<T>;
  k.depthwise_store = depthwise_store<T>;
#if CONVARITH_BYTES == 64
  k.most_in_place = 7;
  k.depthwise_in_place = depthwise_in_place<T>;
  k.depthwise_in_place_sum = depthwise_in_place_sum<T>;
#endif
  k.channelwise = channelwise<T>;
  k.channelwise_sum = channelwise_sum<T>;
  k.channelwise_store = channelwise_store<T>;
  if constexpr (sizeof(Sum) == sizeof(float)) {
    set_winograd<T>(k);
    k.planes = planes<T>;
    k.planes_sum = planes_sum<T>;
    k.planes_store = planes_store<T>;
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
