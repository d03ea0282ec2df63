// As many multiply-adds as a thread can do: sums in registers that wait for nothing but themselves.
#pragma once

#include "simd.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

constexpr int kSums = 12;  // more than the units have stages, all of them in registers

// Returns the operations; `result` keeps the sums from being left out.
template <typename T>
int64_t multiply_adds(int64_t rounds, void* result) {
  typedef typename Simd<T>::Vec V;
  V sums[kSums];
  for (int s = 0; s < kSums; ++s) sums[s] = V{} + T(s);  // each another: equal ones would be computed once
  V x = V{} + T(1), factor = V{} + T(0.5);
  for (int64_t i = 0; i < rounds; ++i) {
    CONVARITH_UNROLL for (int s = 0; s < kSums; ++s) sums[s] = sums[s] * factor + x;
  }
  for (int s = 1; s < kSums; ++s) sums[0] += sums[s];
  store(static_cast<T*>(result), sums[0]);
  return 2 * rounds * kSums * Simd<T>::kLanes;
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
