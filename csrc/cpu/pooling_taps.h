// Each output goes to the one input of its window that its tap names: the adjoint of picking them, as in
// pooling_backward.h. Stage 1 sums, for each tap of the last axis on a line of its own, what the lines of y have for
// that tap; stage 2 goes along the last axis. So nothing is scattered, and every input is written once. With AVX-512
// and a stride of 2 both are one stage, in registers. Short rows cost more than adding their outputs one by one: see
// pooling_scatter.h.
#pragma once

#include "pooling_backward.h"
#include "pooling_indices.h"
#include "pooling_scatter.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

typedef uint8_t Taps __attribute__((vector_size(16)));  // those of a vector of sums, and maybe some that follow

// The first `count` taps from p on; before `end`, where there are no more, others may follow.
#if CONVARITH_BYTES == 64
inline Taps load_taps(const uint8_t* p, uint32_t mask) {
  return (Taps)_mm_maskz_loadu_epi8(static_cast<__mmask16>(mask), p);
}
inline Taps load_taps(const uint8_t* p, int64_t count, const uint8_t*) {
  return load_taps(p, lane_mask(0, static_cast<int>(least<int64_t>(count, 16))));
}
#else
inline Taps load_taps(const uint8_t* p, int64_t, const uint8_t* end) {
  Taps taps;
  if (end - p >= static_cast<int64_t>(sizeof(taps))) {
    __builtin_memcpy(&taps, p, sizeof(taps));
    return taps;
  }
  uint8_t rest[sizeof(taps)] = {};
  for (int64_t i = 0; i < end - p; ++i) rest[i] = p[i];
  __builtin_memcpy(&taps, rest, sizeof(taps));
  return taps;
}
#endif

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
class TapSums {
 public:
  typedef typename Lanes<T>::Sum Sum;
  typedef typename Lanes<T>::Sums Sums;

  TapSums(const PoolPlan& p, const void* y, const uint8_t* taps, const uint8_t* end)
      : plan(p),
        y_(static_cast<const T*>(y)),
        taps_(taps),
        end_(end),
        size_(p.output[2] * p.inner),
        plane_size_(p.output[0] * p.output[1] * size_),
        tap_line_(p.tap_line) {}

#if CONVARITH_BYTES == 64
  // Both stages of rows [begin, end), where the stride is 2 and neighbouring taps see inputs of both residues; false
  // for other windows.
  bool rows(T* result, int64_t begin, int64_t end) {
    const int64_t taps = plan.kernel[2];
    if (taps == 1 || plan.inner != 1 || plan.stride != 2 || plan.dilation % 2 == 0) return false;
    bool odd_first = true;  // where no even residue has tap 0
    for (int64_t o = 0; o < plan.offsets_begin[1]; ++o) odd_first &= tap_of(plan.offsets[o]) > 0;
    switch (taps) {
      case 2:
        return odd_first ? strided_rows<2, 1>(result, begin, end) : strided_rows<2, 0>(result, begin, end);
      case 3:
        return odd_first ? strided_rows<3, 1>(result, begin, end) : strided_rows<3, 0>(result, begin, end);
      case 5:
        return odd_first ? strided_rows<5, 1>(result, begin, end) : strided_rows<5, 0>(result, begin, end);
      default:
        return false;
    }
  }
#endif

  // Stage 1 of a row.
  void operator()(const Row& row, Sum* to) {
    constexpr int64_t kMost = 5;  // taps at once
    const int64_t count = find_lines(row);
    to += plan.at_output;
    for (int64_t t = 0; t < plan.kernel[2]; t += kMost, to += kMost * plan.tap_line) {
      switch (least(kMost, plan.kernel[2] - t)) {
        case 1:
          sum_line<1>(count, t, to);
          break;
        case 2:
          sum_line<2>(count, t, to);
          break;
        case 3:
          sum_line<3>(count, t, to);
          break;
        case 4:
          sum_line<4>(count, t, to);
          break;
        default:
          sum_line<5>(count, t, to);
      }
    }
  }

 private:
  static constexpr int kLanes = Lanes<T>::kLanes;
  static constexpr int kMostLines = 256;  // a window has no more

  // A line of y that a row of x sees, and its first tap of the last axis, in all lanes.
  struct Line {
    Taps tap;
    const T* y;
    const uint8_t* taps;
  };

  int64_t find_lines(const Row& row) {
    const LineTable &table0 = plan.lines[0], &table1 = plan.lines[1];
    const Lines seen(plan.lines, row.i0, row.i1);
    int64_t count = 0;
    for (int64_t l0 = 0; l0 < seen.count0; ++l0) {
      const int64_t tap0 = table0.first_tap[row.i0] + l0 * table0.tap_step;
      int64_t tap = (tap0 * plan.kernel[1] + table1.first_tap[row.i1]) * plan.kernel[2];
      int64_t at = row.plane * plane_size_ + seen.start + l0 * seen.step0;
      for (int64_t l1 = 0; l1 < seen.count1; ++l1, at += seen.step1, tap += table1.tap_step * plan.kernel[2]) {
        lines_[count++] = {every<Taps>(static_cast<uint8_t>(tap)), y_ + at, taps_ + at};
      }
    }
    return count;
  }

#if CONVARITH_BYTES == 64
  // Whether rows are whole vectors, and a thread's too many to stay.
  static bool goes_past_caches(const T* to, int64_t size, int64_t rows) {
    return sizeof(T) == sizeof(Sum) && size % kLanes == 0 && reinterpret_cast<uintptr_t>(to) % CONVARITH_BYTES == 0 &&
           rows * size * static_cast<int64_t>(sizeof(T)) >= kPastCaches;
  }

  int64_t tap_of(int64_t offset) const { return (offset + plan.at_output) / tap_line_; }

  // Tap t of the last axis sees inputs 2 m + (kFirst + t) % 2, of outputs m + shift[t].
  template <int kTaps, int kFirst>
  bool strided_rows(T* result, int64_t begin, int64_t end) {
    constexpr int64_t kMostMasks = 1024;
    const int64_t n = plan.input[2], vectors = (n + 2 * kLanes - 1) / (2 * kLanes);
    if (vectors * kTaps > kMostMasks) return false;
    int64_t shift[kTaps];
    for (const int64_t* offset = plan.offsets; offset < plan.offsets + kTaps; ++offset) {
      const int64_t t = tap_of(*offset);
      shift[t] = *offset - t * tap_line_;
    }
    uint16_t masks[kMostMasks];  // which outputs of a vector of m there are, for each tap
    for (int64_t v = 0; v < vectors; ++v) {
      for (int t = 0; t < kTaps; ++t) {
        const auto lane = [&](int64_t o) {
          return static_cast<int>(least<int64_t>(most<int64_t>(o - v * kLanes - shift[t], 0), kLanes));
        };
        masks[v * kTaps + t] = static_cast<uint16_t>(lane_mask(lane(0), lane(size_)));
      }
    }
    T* to = result + begin * n;
    const bool past_caches = goes_past_caches(to, n, end - begin);
    const bool fetches = !past_caches && n * static_cast<int64_t>(sizeof(T)) <= kMostBytesAhead;
    const auto put = [past_caches](T* p, Sums v, int64_t count) {
      if constexpr (sizeof(T) == sizeof(Sum)) {
        if (past_caches) return store_past_caches(p, v);
      }
      store_up_to(p, v, count);
    };
    for (Row row(begin, plan.input); begin < end; ++begin, row.advance(), to += n) {
      const Line* last = lines_ + find_lines(row);
      if (fetches && begin + 1 < end) prefetch<1>(to + n, n);
      for (int64_t v = 0; v < vectors; ++v) {
        Sums sums[2] = {};
        for (const Line* line = lines_; line < last; ++line) {
          CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) {
            const uint32_t mask = masks[v * kTaps + t];
            const int64_t at = v * kLanes + shift[t];
            Sums& sum = sums[(kFirst + t) % 2];
            sum = add_where(load_taps(line->taps + at, mask), line->tap + static_cast<uint8_t>(t),
                            load_masked(line->y + at, mask), sum);
          }
        }
        interleave<Sum>(sums[0], sums[1]);
        const int64_t e = 2 * v * kLanes;
        put(to + e, sums[0], n - e);
        if (n - e > kLanes) put(to + e + kLanes, sums[1], n - e - kLanes);
      }
    }
    fence_past_caches();
    return true;
  }
#endif

  // Taps [first, first + kTaps) of the last axis.
  template <int kTaps>
  void sum_line(int64_t count, int64_t first, Sum* to) const {
    int64_t e = 0;
    const int64_t size = size_;  // in a register: stores may reach members
    for (; e + kLanes <= size; e += kLanes) sum_vector<kTaps>(count, first, e, kLanes, to + e);
    // Behind the line's end are zeros, and these are, too.
    if (e < size) sum_vector<kTaps>(count, first, e, size - e, to + e);
  }

  template <int kTaps>
  void sum_vector(int64_t lines, int64_t first, int64_t e, int64_t count, Sum* to) const {
    Sums sums[kTaps] = {};
    for (const Line *line = lines_, *end = lines_ + lines; line < end; ++line) {
      const Sums v = load_up_to(line->y + e, count);
      const Taps here = load_taps(line->taps + e, count, end_) - line->tap - static_cast<uint8_t>(first);
      CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) {
        sums[t] = add_where(here, every<Taps>(static_cast<uint8_t>(t)), v, sums[t]);
      }
    }
    CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) store(to + t * tap_line_, sums[t]);
  }

  const PoolPlan& plan;
  const T* y_;
  const uint8_t* taps_;
  const uint8_t* end_;         // of all taps
  int64_t size_, plane_size_;  // of a line, of a plane of y
  int64_t tap_line_;           // the plan's
  Line lines_[kMostLines];
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
  if (plan.places != nullptr) {
    return scatter_planes<T>(plan, static_cast<const T*>(g), taps, taps_end, static_cast<T*>(result), scratch, begin,
                             end);
  }
  typedef AverageBackward<T> Policy;
  TapSums<T> sums(plan, g, taps, taps_end);
#if CONVARITH_BYTES == 64
  if (sums.rows(static_cast<T*>(result), begin, end)) return;
#endif
  const BackwardRows<Policy, T> kernel(plan, Policy(plan), neutral_lines<T>(plan, 0, scratch));
  kernel.rows(sums, static_cast<const T*>(nullptr), static_cast<T*>(result), begin, end);
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
