// Each output goes to the one input of its window that its tap names: the adjoint of picking them, as in
// pooling_backward.h. Stage 1 sums, for each tap of the last axis on a line of its own, what the lines of y have for
// that tap; stage 2 goes along the last axis. So nothing is scattered, and every input is written once.
#pragma once

#include "pooling_backward.h"
#include "pooling_indices.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

typedef uint8_t Taps __attribute__((vector_size(16)));  // those of a vector of sums, and maybe some that follow

// Zeros follow the last tap, before `end`.
inline Taps load_taps(const uint8_t* p, const uint8_t* end) {
  Taps taps = {};
  if (end - p >= static_cast<int64_t>(sizeof(taps))) {
    __builtin_memcpy(&taps, p, sizeof(taps));
  } else {
    for (int64_t i = 0; i < end - p; ++i) taps[i] = p[i];
  }
  return taps;
}

// sum, and v where there is this tap.
#if CONVARITH_BYTES == 64
inline Floats add_where(Taps taps, Taps tap, Floats v, Floats sum) {
  return _mm512_mask_add_ps(sum, _mm_cmpeq_epi8_mask((__m128i)taps, (__m128i)tap), sum, v);
}
inline Doubles add_where(Taps taps, Taps tap, Doubles v, Doubles sum) {
  const auto mask = static_cast<__mmask8>(_mm_cmpeq_epi8_mask((__m128i)taps, (__m128i)tap));
  return _mm512_mask_add_pd(sum, mask, sum, v);
}
#elif CONVARITH_BYTES == 32
inline Floats add_where(Taps taps, Taps tap, Floats v, Floats sum) {
  return sum + _mm256_and_ps(v, (__m256)_mm256_cvtepi8_epi32((__m128i)(taps == tap)));
}
inline Doubles add_where(Taps taps, Taps tap, Doubles v, Doubles sum) {
  return sum + _mm256_and_pd(v, (__m256d)_mm256_cvtepi8_epi64((__m128i)(taps == tap)));
}
#else
template <typename Sums>
inline Sums add_where(Taps taps, Taps tap, Sums v, Sums sum) {
  constexpr int kBytes = sizeof(v[0]);
  Taps lane;
  for (int i = 0; i < 16; ++i) lane[i] = static_cast<uint8_t>(i / kBytes);
  typedef decltype(v < v) Bits;
  return sum + (Sums)((Bits)v & (Bits)__builtin_shuffle((Taps)(taps == tap), lane));
}
#endif

template <typename T>
struct TapSums {
  typedef typename Lanes<T>::Sum Sum;
  typedef typename Lanes<T>::Sums Sums;
  static constexpr int kLanes = Lanes<T>::kLanes;
  static constexpr int kMostLines = 256;  // a window has no more

  // A line of y that a row of x sees, and its tap 0 of the last axis.
  struct Line {
    Taps first;
    const T* g;
    const uint8_t* taps;
  };

  const PoolPlan& plan;
  const T* g;
  const uint8_t* taps;
  const uint8_t* taps_end;
  Line lines[kMostLines];

  // Taps [first, first + kTaps) of the last axis.
  template <int kTaps>
  void sum(int64_t count, int64_t first, Sum* to) const {
    const int64_t n = plan.output[2] * plan.inner;
    for (int64_t e = 0; e < n; e += kLanes) {
      Sums sums[kTaps] = {};
      for (int64_t l = 0; l < count; ++l) {
        const Sums v = load_up_to(lines[l].g + e, n - e);
        const Taps here = load_taps(lines[l].taps + e, taps_end) - lines[l].first - every<Taps>(static_cast<uint8_t>(first));
        CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) {
          sums[t] = add_where(here, every<Taps>(static_cast<uint8_t>(t)), v, sums[t]);
        }
      }
      // Behind the line's end are zeros, and these are, too.
      CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) store(to + t * plan.tap_line + e, sums[t]);
    }
  }

  int64_t find_lines(const Row& row) {
    const Lines seen(plan.lines, row.i0, row.i1);
    const int64_t plane = row.plane * plan.output[0] * plan.output[1] * plan.output[2] * plan.inner;
    Line* line = lines;
    for (int64_t l0 = 0; l0 < seen.count0; ++l0) {
      const int64_t tap0 = plan.lines[0].first_tap[row.i0] + l0 * plan.lines[0].tap_step;
      int64_t tap = (tap0 * plan.kernel[1] + plan.lines[1].first_tap[row.i1]) * plan.kernel[2];
      int64_t at = plane + seen.start + l0 * seen.step0;
      for (int64_t l1 = 0; l1 < seen.count1; ++l1) {
        *line++ = {every<Taps>(static_cast<uint8_t>(tap)), g + at, taps + at};
        at += seen.step1;
        tap += plan.lines[1].tap_step * plan.kernel[2];
      }
    }
    return line - lines;
  }

  void operator()(const Row& row, Sum* to) {
    constexpr int64_t kMost = 5;  // taps at once
    const int64_t kernel = plan.kernel[2], count = find_lines(row);
    to += plan.at_output;
    for (int64_t t = 0, parts = block_count(kernel, kMost); parts > 0; --parts) {
      const int64_t taps_now = block_count(kernel - t, parts);
      switch (taps_now) {
        case 1:
          sum<1>(count, t, to);
          break;
        case 2:
          sum<2>(count, t, to);
          break;
        case 3:
          sum<3>(count, t, to);
          break;
        case 4:
          sum<4>(count, t, to);
          break;
        default:
          sum<5>(count, t, to);
      }
      t += taps_now;
      to += taps_now * plan.tap_line;
    }
  }
};

inline bool are_taps(const uint8_t* taps, int64_t count, int64_t kernel) {
  typedef Simd<uint8_t>::Vec Vec;
  const Vec last = every<Vec>(static_cast<uint8_t>(kernel - 1));
  decltype(Vec{} > last) bad = {};
  int64_t e = 0;
  for (; e + Simd<uint8_t>::kLanes <= count; e += Simd<uint8_t>::kLanes) bad |= load(taps + e) > last;
  bool valid = !any(bad);
  for (; e < count; ++e) valid &= taps[e] < kernel;
  return valid;
}

template <typename T>
void tap_scatter(const PoolPlan& plan, const void* g, const uint8_t* taps, const uint8_t* taps_end, void* result,
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
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
