// The direct products of a dtype, for gathers and for the weight's gradient: what an instruction set with a product of
// its own has instead of the others'.
#pragma once

#include "conv_gather.h"
#include "conv_weight.h"

namespace convarith::cpu::CONVARITH_ISA {

template <typename T>
void transpose_planes(const void* from, int64_t from_pitch, int64_t rows, int64_t count, void* to, int64_t to_pitch) {
  transpose(static_cast<const T*>(from), from_pitch, rows, count, static_cast<T*>(to), to_pitch);
}

template <typename T>
void set_products(ConvKernels& k) {
  k.row_block = kRowBlock;
  k.vectors = kVectors;
  k.outer_vectors = kOuterVectors;
  k.dot_columns = kDotColumns;
  k.pairs = FactorOf<T>::kMembers == 2;
  if constexpr (sizeof(T) == sizeof(typename SumOf<T>::type)) k.transpose = transpose_planes<T>;
  k.pack_tasks = pack_tasks<T>;
  k.pack = pack<T>;
  k.gather = gather<T>;
  k.weight_pack_tasks = weight_pack_tasks<T>;
  k.weight_pack = weight_pack<T>;
  k.weight_sum = weight_sum<T>;
  k.weight_store_tasks = weight_store_tasks<T>;
  k.weight_store = weight_store<T>;
}

#if !CONVARITH_BF16
template void set_products<float>(ConvKernels&);
template void set_products<double>(ConvKernels&);
template void set_products<Brain16>(ConvKernels&);
template void set_products<Half16>(ConvKernels&);
#endif

}  // namespace convarith::cpu::CONVARITH_ISA
