// The adjoint of pooling many small planes: a plane of x is one run of vectors, whatever its rows are. Each lane of a
// vector picks the outputs that see it from as many entries of y's plane, in as many steps as windows see an input.
#pragma once

#include "pooling_lines.h"
#include "window_stream.h"

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
    for (int64_t e = 0; e < 4 * (outputs_ + kLanes); ++e) kept_[e] = 0;
  }

  // Planes [begin, end); share(e, count) is of entries of y that follow each other, finish(sum, e, count) of x.
  template <typename Share, typename Finish>
  void sum(const Share& share, const Finish& finish, T* result, int64_t begin, int64_t end) {
    const auto keep = [&](int64_t plane) {
      Sum* to = kept(plane);
      const Sum* weight = static_cast<const Sum*>(plan.flat_weight);
      for (int64_t e = 0; e < outputs_; e += kLanes) {
        store(to + e, share(plane * outputs_ + e, outputs_ - e) * load(weight + e));
      }
    };
    const auto pick = [&](int64_t plane, int64_t first, int64_t step) {
      const Index index = load(static_cast<const Lane*>(plan.flat_picks) + step * kLanes);
      const Sums from = __builtin_shuffle(load(kept(plane) + first), index);
      return index >= 0 ? from : Sums{};
    };
    run(keep, pick, finish, result, begin, end);
  }

  // Likewise by the taps of a maximum.
  void sum_by_taps(const T* y, const uint8_t* taps, T* result, int64_t begin, int64_t end) {
    const auto keep = [&](int64_t plane) {
      Sum* to = kept(plane);
      Lane* to_tap = reinterpret_cast<Lane*>(to + outputs_ + kLanes);
      for (int64_t e = 0; e < outputs_; e += kLanes) store(to + e, load_up_to(y + plane * outputs_ + e, outputs_ - e));
      for (int64_t e = 0; e < outputs_; ++e) to_tap[e] = taps[plane * outputs_ + e];
    };
    const auto pick = [&](int64_t plane, int64_t first, int64_t step) {
      const Sum* from = kept(plane) + first;
      const Lane* tap = reinterpret_cast<const Lane*>(from + outputs_ + kLanes);
      const Index index = load(static_cast<const Lane*>(plan.flat_picks) + step * kLanes);
      const Index wanted = load(static_cast<const Lane*>(plan.flat_taps) + step * kLanes);
      return __builtin_shuffle(load(tap), index) == wanted ? __builtin_shuffle(load(from), index) : Sums{};
    };
    const auto finish = [&](Sums sum, int64_t, int64_t) { return sum; };  // not a function: those take no vectors
    run(keep, pick, finish, result, begin, end);
  }

 private:
  // What a plane of y has for x; the next one's is written before it is read.
  Sum* kept(int64_t plane) const { return kept_ + plane % 2 * 2 * (outputs_ + kLanes); }

  template <typename Keep, typename Pick, typename Finish>
  void run(const Keep& keep, const Pick& pick, const Finish& finish, T* result, int64_t begin, int64_t end) {
    Stream<T> out(result + begin * inputs_, (end - begin) * inputs_);
    if (begin < end) keep(begin);
    for (int64_t plane = begin; plane < end; ++plane) {
      if (plane + 1 < end) keep(plane + 1);
      int64_t step = 0;
      for (int64_t e = 0; e < inputs_; e += kLanes) {
        Sums sum = {};
        for (int64_t s = 0; s < plan.flat_steps; ++s, ++step) sum += pick(plane, plan.flat_first[step], step);
        const int64_t count = inputs_ - e;
        store_sums(out.next(least<int64_t>(kLanes, count)), finish(sum, plane * inputs_ + e, count));
      }
    }
  }

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
