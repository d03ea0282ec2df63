// A gather: what conv and conv_transpose have in common, axis by axis. Along one axis
//
//   out[place(o)] = sum over j of w[tap(j)] * in[o * stride + shift + j * shift_step]        (nothing outside the
//   input)
//
// for o < grid and j < taps. A convolution is one gather; x = C^T y is one for each phase of the stride, over the taps
// of that phase alone, so that no inserted zero exists. Every map is an arithmetic progression: a kernel needs no
// table. constexpr, for host and device, without torch.
#pragma once

#include <cstdint>

#include "geometry.h"

namespace convarith {

struct GatherAxis {
  int64_t grid;        // outputs
  int64_t stride;      // inputs between neighbouring outputs
  int64_t source;      // extent of the input
  int64_t taps;        // of this gather
  int64_t shift;       // where output 0 reads through tap 0; may be negative
  int64_t shift_step;  // from tap to tap; negative in C^T
  int64_t first_tap;   // the weight's tap of j = 0
  int64_t tap_step;
  int64_t first_place;  // where output 0 stands
  int64_t place_step;
};

CONVARITH_HD constexpr int64_t greatest_common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// y = C x.
CONVARITH_HD constexpr GatherAxis forward_axis(const Axis& a, int64_t outputs) {
  return {outputs, a.stride, a.input, a.kernel, -a.lo, a.dilation, 0, 1, 0, 1};
}

// Phases of x = C^T y: the inputs are sorted by their residue modulo the stride.
CONVARITH_HD constexpr int64_t phase_count(const Axis& a) {
  return a.stride < a.input ? a.stride : a.input;
}

// The inputs phase, phase + stride, ... They meet the taps t for which the stride divides phase + lo - t * dilation: a
// progression of step stride / gcd(stride, dilation), or none at all.
CONVARITH_HD constexpr GatherAxis phase_axis(const Axis& a, int64_t outputs, int64_t phase) {
  const int64_t common = greatest_common_divisor(a.stride, a.dilation);
  const int64_t step = a.stride / common;
  int64_t first = 0;
  while (first < step && first < a.kernel && (phase + a.lo - first * a.dilation) % a.stride != 0) ++first;
  const bool meets = first < step && first < a.kernel;
  GatherAxis g = {ceil_div(a.input - phase, a.stride), 1, outputs, 0, 0, 0, 0, step, phase, a.stride};
  if (meets) {
    g.taps = (a.kernel - 1 - first) / step + 1;
    g.shift = floor_div(phase + a.lo - first * a.dilation, a.stride);
    g.shift_step = -(a.dilation / common);
    g.first_tap = first;
  }
  return g;
}

// The same sums without leading and trailing taps that meet no input through any output.
CONVARITH_HD constexpr GatherAxis trimmed(GatherAxis g) {
  const auto meets = [&](int64_t j) {
    const int64_t first = g.shift + j * g.shift_step;
    return first < g.source && first + (g.grid - 1) * g.stride >= 0;
  };
  while (g.taps > 0 && !meets(g.taps - 1)) --g.taps;
  while (g.taps > 0 && !meets(0)) {
    --g.taps;
    g.shift += g.shift_step;
    g.first_tap += g.tap_step;
  }
  return g;
}

// Whether some output meets padding through some tap.
CONVARITH_HD constexpr bool pads(const GatherAxis& g) {
  if (g.taps == 0 || g.grid == 0) return false;
  const int64_t a = g.shift, b = g.shift + (g.taps - 1) * g.shift_step;
  return (a < b ? a : b) < 0 || (a < b ? b : a) + (g.grid - 1) * g.stride >= g.source;
}

// Division by a number known before: n / d as a multiplication and a shift, for 0 <= n < 2^31 and 0 < d < 2^31.
// [Granlund & Montgomery 1994, "Division by invariant integers using multiplication"]
struct FastDivisor {
  uint32_t divisor;
  uint32_t multiplier;
  uint32_t shift;

  CONVARITH_HD constexpr int32_t quotient(int32_t n) const {
    const auto high = static_cast<uint32_t>(static_cast<uint64_t>(static_cast<uint32_t>(n)) * multiplier >> 32);
    return static_cast<int32_t>((high + static_cast<uint32_t>(n)) >> shift);
  }
  CONVARITH_HD constexpr int32_t remainder(int32_t n) const { return n - quotient(n) * static_cast<int32_t>(divisor); }
};

CONVARITH_HD constexpr FastDivisor fast_divisor(int64_t d) {
  uint32_t shift = 0;
  while ((int64_t{1} << shift) < d) ++shift;
  const auto wide = static_cast<uint64_t>(d);
  return {static_cast<uint32_t>(d), static_cast<uint32_t>((((uint64_t{1} << shift) - wide) << 32) / wide + 1), shift};
}

// What is left of `n` where `d` divides it off: `n` becomes the quotient, the result is the remainder.
CONVARITH_HD constexpr int32_t take_remainder(int32_t& n, const FastDivisor& d) {
  const int32_t quotient = d.quotient(n), rest = n - quotient * static_cast<int32_t>(d.divisor);
  n = quotient;
  return rest;
}

namespace figures {
static_assert(phase_axis(axis(5, 3, 2, 1), 3, 0).taps == 1 && phase_axis(axis(5, 3, 2, 1), 3, 1).taps == 2,
              "figure 4.6: of three taps, one and two");
static_assert(phase_axis(axis(7, 2, 2, 0, 2), 3, 1).taps == 0, "a dilation that never meets the odd inputs");
static_assert(trimmed(forward_axis(axis(1, 3, 1, 1), 1)).taps == 1, "one pixel sees through the middle tap only");
static_assert(!pads(forward_axis(axis(5, 3, 2, 0), 2)) && pads(forward_axis(axis(5, 3, 2, 1), 3)), "");
static_assert(fast_divisor(7).quotient(2147483646) == 306783378 && fast_divisor(1).quotient(2147483647) == 2147483647,
              "");
static_assert(fast_divisor(2147483647).quotient(2147483646) == 0 && fast_divisor(3).remainder(1000000000) == 1, "");
}  // namespace figures

}  // namespace convarith
