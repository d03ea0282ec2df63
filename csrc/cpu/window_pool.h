// Pooling forward, compiled by itself: with a kernel for each policy, kernel size and stride it takes as long as all
// other window kernels together.
#include "pooling_powers.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

template <bool kSigned, typename T>
void norm_pool_rows(const PoolPlan& plan, const void* x, void* y, char* scratch, int64_t begin, int64_t end) {
  with_power(plan.exponent, [&](auto power) {
    constexpr int kPower = decltype(power)::value;
    if constexpr (kPower == 0) {
      general_norm<kSigned, T>(plan, x, y, scratch, begin, end);
    } else {
      pool_rows<Norm<kPower, kSigned, T>, T>(plan, x, y, scratch, begin, end);
    }
  });
}

template <typename T>
void pool(Pooling kind, const PoolPlan& plan, const void* x, void* y, char* scratch, int64_t begin, int64_t end) {
  switch (kind) {
    case Pooling::kMax:
      return pool_rows<Maximum<false, T>, T>(plan, x, y, scratch, begin, end);
    case Pooling::kMin:
      return pool_rows<Maximum<true, T>, T>(plan, x, y, scratch, begin, end);
    case Pooling::kAverage:
      return pool_rows<Average<T>, T>(plan, x, y, scratch, begin, end);
    case Pooling::kNorm:
      return norm_pool_rows<false, T>(plan, x, y, scratch, begin, end);
    case Pooling::kSignedNorm:
      return norm_pool_rows<true, T>(plan, x, y, scratch, begin, end);
  }
}

}  // namespace

template <typename T>
void set_pool(WindowKernels& k) {
  k.pool = pool<T>;
}

template void set_pool<float>(WindowKernels&);
template void set_pool<double>(WindowKernels&);
template void set_pool<Brain16>(WindowKernels&);
template void set_pool<Half16>(WindowKernels&);

}  // namespace convarith::cpu::CONVARITH_ISA
