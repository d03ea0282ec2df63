// Each output goes to the one input of its window that its tap names: the places of many taps are found first, and
// outputs are added there one by one then, in their order.
#pragma once

#include "pooling_lines.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Which inputs of a plane the taps of `count` of its outputs name, from `first` on; false where one is on padding. All
// are the kernel's. What stands behind them in `places`, up to a whole vector, is not kept; at taps_end there are no
// more taps.
inline bool find_places(const PoolPlan& plan, const uint8_t* taps, const uint8_t* taps_end, int64_t first,
                        int64_t count, int32_t* places) {
  const int32_t* from = plan.places + first;
  const uint32_t* seen_taps = plan.seen_taps + first;
  int64_t e = 0;
  uint32_t seen = 1;
#if CONVARITH_BYTES == 64
  typedef Simd<int32_t>::Vec Places;
  constexpr int kLanes = Simd<int32_t>::kLanes;
  const Places near = load(plan.tap_offset), far = load(plan.tap_offset + kLanes);
  auto all_seen = every<Simd<uint32_t>::Vec>(1);
  const __mmask16 all = 0xffff;  // some compilers take the plain conversion's target for one that is read
  for (; e < count && taps_end - taps - e >= kLanes; e += kLanes) {
    const Places tap = (Places)_mm512_maskz_cvtepu8_epi32(all, _mm_maskz_loadu_epi8(all, taps + e)) & 31;
    store(places + e, load(from + e) + __builtin_shuffle(near, far, tap));
    all_seen &= load(seen_taps + e) >> (Simd<uint32_t>::Vec)tap;
  }
  seen = !any(all_seen == 0);
#endif
  for (; e < count; ++e) {
    places[e] = from[e] + plan.tap_offset[taps[e]];
    seen &= seen_taps[e] >> taps[e];
  }
  return seen != 0;
}

template <typename T>
void scatter_planes(const PoolPlan& plan, const T* y, const uint8_t* taps, const uint8_t* taps_end, T* result,
                    char* scratch, int64_t begin, int64_t end) {
  typedef typename Lanes<T>::Sum Sum;
  typedef typename Lanes<T>::Sums Sums;
  constexpr int64_t kLanes = Lanes<T>::kLanes, kAtOnce = 256;
  constexpr bool kInPlace = sizeof(T) == sizeof(Sum);
  const int64_t inputs = plan.input[0] * plan.input[1] * plan.input[2];
  const int64_t outputs = plan.output[0] * plan.output[1] * plan.output[2];
  alignas(64) int32_t places[kAtOnce];
  for (int64_t plane = begin; plane < end; ++plane) {
    T* to = result + plane * inputs;
    Sum* sums = reinterpret_cast<Sum*>(kInPlace ? reinterpret_cast<char*>(to) : scratch);
    for (int64_t e = 0; e < inputs; e += kLanes) store_up_to(sums + e, Sums{}, inputs - e);
    for (int64_t first = 0; first < outputs; first += kAtOnce) {
      const int64_t count = least(kAtOnce, outputs - first);
      const T* from = y + plane * outputs + first;
      const uint8_t* tap = taps + plane * outputs + first;
      if (find_places(plan, tap, taps_end, first, count, places)) {
        CONVARITH_UNROLL for (int64_t o = 0; o < count; ++o) sums[places[o]] += widen(from[o]);
      } else {
        for (int64_t o = 0; o < count; ++o) {
          if ((plan.seen_taps[first + o] >> tap[o] & 1) != 0) sums[places[o]] += widen(from[o]);
        }
      }
    }
    for (int64_t e = 0; e < inputs && !kInPlace; e += kLanes) {
      store_up_to(to + e, load_up_to(sums + e, inputs - e), inputs - e);
    }
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
