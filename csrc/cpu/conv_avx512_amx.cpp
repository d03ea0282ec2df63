// AVX-512 with AMX: conv_amx.h for bfloat16; everything else is AVX-512's, whose products of float32 are faster than
// Intel's of pairs of bfloat16 in vectors.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 10
#define CONVARITH_ISA avx512_amx
#include "target_bf16.h"

#ifdef CONVARITH_BF16
#include "conv_amx.h"
#include "conv_amx_weight.h"
#endif

namespace convarith::cpu {
namespace avx512 {
ConvKernels conv_kernels(int dtype);
}

namespace avx512_amx {
ConvKernels conv_kernels(int dtype) {
  ConvKernels k = avx512::conv_kernels(dtype);
  if (dtype == 2) {
    k.amx_pack_tasks = amx_pack_tasks;
    k.amx_pack = amx_pack<Brain16>;
    k.amx_gather = amx_gather<Brain16>;
    k.amx_weight_pack_tasks = amx_weight_pack_tasks;
    k.amx_weight_pack = amx_weight_pack;
    k.amx_weight_sum = amx_weight_sum;
    k.amx_weight_store_tasks = amx_weight_store_tasks;
    k.amx_weight_store = amx_weight_store;
  }
  return k;
}
}  // namespace avx512_amx
}  // namespace convarith::cpu
#endif
