// AVX-512 with AVX512_BF16: conv_products.h with pairs of bfloat16, and what stores as many results as it reads inputs,
// narrowed by the processor; everything else is AVX-512's.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 10
#define CONVARITH_ISA avx512_bf16
#include "target_bf16.h"

#ifdef CONVARITH_BF16
#include "conv_channelwise.h"
#include "conv_depthwise.h"
#include "conv_depthwise_in_place.h"
#include "conv_planes.h"
#include "conv_products.h"
#endif

namespace convarith::cpu {
namespace avx512 {
ConvKernels conv_kernels(int dtype);
}

namespace avx512_bf16 {
ConvKernels conv_kernels(int dtype) {
  ConvKernels k = avx512::conv_kernels(dtype);
  if (dtype == 2) {
    set_products<Brain16>(k);
    k.depthwise = depthwise<Brain16>;
    k.depthwise_in_place = depthwise_in_place<Brain16>;
    k.channelwise = channelwise<Brain16>;
    k.channelwise_sum = channelwise_sum<Brain16>;
    k.planes = planes<Brain16>;
    k.planes_sum = planes_sum<Brain16>;
    k.planes_store = planes_store<Brain16>;
  }
  return k;
}
}  // namespace avx512_bf16
}  // namespace convarith::cpu
#endif
