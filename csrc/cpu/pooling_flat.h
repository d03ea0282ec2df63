// The adjoint of pooling many small planes: a plane of x is one run of vectors, whatever its rows are. Each lane of a
// vector picks the outputs that see it from as many entries of y's plane, in as many steps as windows see an input.
#pragma once

#include "pooling_lines.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

template <typename T>
class FlatPlanes {
 public:
  typedef typename Lanes<T>::Sum Sum;
  typedef typename Lanes<T>::Sums Sums;
  typedef decltype(Sums{} < Sums{}) Index;
  typedef decltype(+Index{}[0]) Lane;
  static constexpr int kLanes = Lanes<T>::kLanes;

  FlatPlanes(const PoolPlan& p, char* scratch)
      : plan(p),
        inputs_(p.input[0] * p.input[1] * p.input[2]),
        outputs_(p.output[0] * p.output[1] * p.output[2]),
        kept_(reinterpret_cast<Sum*>(scratch)) {
    for (int64_t e = 0; e < kKept * size(); ++e) kept_[e] = 0;
  }

  // Planes [begin, end); share(e, count) is of entries of y that follow each other, finish(sum, e, count) of x. Planes
  // of both halves in turn, to read the tables once for two; the next two are kept before they are read.
  template <typename Share, typename Finish>
  void sum(const Share& share, const Finish& finish, T* result, int64_t begin, int64_t end) {
    const int64_t middle = begin + (end - begin) / 2;
    const auto keep = [&](int64_t plane, Sum* to) {
      const Sum* weight = static_cast<const Sum*>(plan.flat_weight);
      for (int64_t e = 0; e < outputs_; e += kLanes) {
        store(to + e, share(plane * outputs_ + e, outputs_ - e) * load(weight + e));
      }
    };
    const auto kept = [&](int64_t round) { return kept_ + round % 2 * 2 * size(); };
    const auto keep_next = [&](int64_t a, int64_t b) {
      if (a < middle) keep(a, kept(b - middle));
      if (b < end) keep(b, kept(b - middle) + size());
    };
    keep_next(begin, middle);
    for (int64_t a = begin, b = middle; b < end; ++a, ++b) {
      keep_next(a + 1, b + 1);
      const Sum* from = kept(b - middle);
      int64_t step = 0;
      for (int64_t e = 0; e < inputs_; e += kLanes) {
        Sums sum_a = {}, sum_b = {};
        for (int64_t s = 0; s < plan.flat_steps; ++s, ++step) {
          const Sum* first = from + plan.flat_first[step];
          const Index index = load(static_cast<const Lane*>(plan.flat_picks) + step * kLanes);
          const auto pick = [&](const Sum* y) { return index >= 0 ? __builtin_shuffle(load(y), index) : Sums{}; };
          sum_a += pick(first);
          sum_b += pick(first + size());
        }
        const int64_t at_a = a * inputs_ + e, at_b = b * inputs_ + e, left = inputs_ - e;
        prefetch_ahead(result, at_a + kBytesAhead / sizeof(T));
        prefetch_ahead(result, at_b + kBytesAhead / sizeof(T));
        if (a < middle) store_up_to(result + at_a, finish(sum_a, at_a, left), left);
        store_up_to(result + at_b, finish(sum_b, at_b, left), left);
      }
    }
  }

 private:
  static constexpr int kKept = 4;

  int64_t size() const { return outputs_ + kLanes; }  // of what a plane of y has for x

  const PoolPlan& plan;
  int64_t inputs_, outputs_;  // of a plane
  Sum* kept_;
};

template <typename T, typename Policy>
void flat_backward(const Policy& policy, const PoolPlan& plan, const void* g_data, const void* x_data,
                   const void* y_data, void* result, char* scratch, int64_t begin, int64_t end) {
  const T* g = static_cast<const T*>(g_data);
  const T* x = static_cast<const T*>(x_data);
  const T* y = static_cast<const T*>(y_data);
  typedef typename Lanes<T>::Sums Sums;
  FlatPlanes<T>(plan, scratch)
      .sum([&](int64_t e, int64_t count) { return policy.share(g + e, y + e, count); },
           [&](Sums sum, int64_t e, int64_t count) { return policy.finish(sum, x + e, count); },
           static_cast<T*>(result), begin, end);
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
