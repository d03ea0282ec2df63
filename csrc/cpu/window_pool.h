// Pooling forward, compiled by itself: it takes as long as all other window kernels together.
#include "pooling_powers.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

template <typename T>
void pool(Pooling kind, const PoolPlan& plan, const void* x, void* y, char* scratch, int64_t begin, int64_t end) {
  switch (kind) {
    case Pooling::kMax:
      return pool_rows<T>(Maximum<false, T>(plan), plan, x, y, scratch, begin, end);
    case Pooling::kMin:
      return pool_rows<T>(Maximum<true, T>(plan), plan, x, y, scratch, begin, end);
    case Pooling::kAverage:
      return pool_rows<T>(Average<T>(plan), plan, x, y, scratch, begin, end);
    case Pooling::kNorm:
    case Pooling::kSignedNorm:
      return with_power(plan.exponent, [&](auto power) {
        constexpr int kPower = decltype(power)::value;
        const Norm<kPower, T> norm(plan, kind == Pooling::kSignedNorm);
        if constexpr (kPower == 2) {
          pool_rows<T>(norm, plan, x, y, scratch, begin, end);
        } else {
          norm_by_chunks<T>(norm, plan, x, y, scratch, begin, end);
        }
      });
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
