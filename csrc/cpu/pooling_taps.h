// Each output goes to the one input of its window that its tap names: the adjoint of picking them, as in
// pooling_backward.h. Stage 1 sums, for each tap of the last axis on a line of its own, what the lines of y have for
// that tap; stage 2 goes along the last axis. So nothing is scattered, and every input is written once.
#pragma once

#include "pooling_backward.h"
#include "pooling_indices.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// As many taps as a vector of sums has lanes. Whole vectors are read but before `end`, where zeros follow.
template <typename Sum>
inline typename Best<false, Sum>::Where load_taps(const uint8_t* p, const uint8_t* end) {
  typename PlaceOf<Sum>::Taps taps = {};
  if (end - p >= Simd<Sum>::kLanes) {
    __builtin_memcpy(&taps, p, sizeof(taps));
  } else {
    for (int64_t i = 0; i < end - p; ++i) taps[i] = p[i];
  }
  return __builtin_convertvector(taps, typename Best<false, Sum>::Where);
}

template <typename T>
struct TapSums {
  typedef typename Lanes<T>::Sum Sum;
  typedef typename Lanes<T>::Sums Sums;
  typedef typename Best<false, Sum>::Where Where;
  static constexpr int kLanes = Lanes<T>::kLanes;

  const PoolPlan& plan;
  const T* g;
  const uint8_t* taps;
  const uint8_t* taps_end;
  Where largest;  // of all taps seen

  static Where place(int64_t tap) { return every<Where>(static_cast<typename PlaceOf<Sum>::type>(tap)); }

  // Taps [first, first + kTaps) of the last axis; `from` is the plane's.
  template <int kTaps>
  void sum(const Row& row, int64_t from, int64_t first, Sum* to) {
    const Lines lines(plan.lines, row.i0, row.i1);
    const int64_t kernel1 = plan.kernel[1], kernel2 = plan.kernel[2];
    const int64_t tap0 = plan.lines[0].first_tap[row.i0], tap1 = plan.lines[1].first_tap[row.i1];
    const int64_t n = plan.output[2] * plan.inner;
    for (int64_t e = 0; e < n; e += kLanes) {
      Sums sums[kTaps] = {};
      for (int64_t l0 = 0; l0 < lines.count0; ++l0) {
        int64_t tap = ((tap0 + l0 * plan.lines[0].tap_step) * kernel1 + tap1) * kernel2 + first;
        int64_t at = from + lines.start + l0 * lines.step0 + e;
        for (int64_t l1 = 0; l1 < lines.count1; ++l1) {
          const Sums v = load_up_to(g + at, n - e);
          const Where here = load_taps<Sum>(taps + at, taps_end);
          largest = here > largest ? here : largest;
          CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) sums[t] += here == place(tap + t) ? v : Sums{};
          at += lines.step1;
          tap += plan.lines[1].tap_step * kernel2;
        }
      }
      // Behind the line's end are zeros, and these are, too.
      CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) store(to + t * plan.tap_line + e, sums[t]);
    }
  }

  void operator()(const Row& row, Sum* lines) {
    constexpr int64_t kMost = 5;  // taps at once
    const int64_t kernel = plan.kernel[2];
    const int64_t plane_size = plan.output[0] * plan.output[1] * plan.output[2] * plan.inner;
    const int64_t from = row.plane * plane_size;
    for (int64_t t = 0, parts = block_count(kernel, kMost), part = 0; part < parts; ++part) {
      const int64_t count = block_count(kernel - t, parts - part);
      Sum* to = lines + plan.at_output + t * plan.tap_line;
      switch (count) {
        case 1:
          sum<1>(row, from, t, to);
          break;
        case 2:
          sum<2>(row, from, t, to);
          break;
        case 3:
          sum<3>(row, from, t, to);
          break;
        case 4:
          sum<4>(row, from, t, to);
          break;
        default:
          sum<5>(row, from, t, to);
      }
      t += count;
    }
  }
};

template <typename T>
bool tap_scatter(const PoolPlan& plan, const void* g, const uint8_t* taps, const uint8_t* taps_end, void* result,
                 char* scratch, int64_t begin, int64_t end) {
  typedef AverageBackward<T> Policy;
  auto* kept = neutral_lines<T>(plan, 0, scratch);
  auto* phases = kept + plan.rows_at_once * plan.line_size;
  TapSums<T> sums = {plan, static_cast<const T*>(g), taps, taps_end, {}};
  const auto combine = [&](const Row& row, typename Lanes<T>::Sum* lines) { sums(row, lines); };
  with_backward_stride(plan, [&](auto stride) {
    const BackwardRows<decltype(stride)::value, Policy, T> kernel = {plan, Policy(plan), kept, phases};
    kernel.rows(combine, static_cast<const T*>(nullptr), static_cast<T*>(result), begin, end);
  });
  return !any(sums.largest >= sums.place(plan.kernel[0] * plan.kernel[1] * plan.kernel[2]));
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
