// The integers that kernels inline: the map from an output and a tap to an input, its inverse, and the size check.
// constexpr, for host and device, without torch. torch_convarith/geometry.py derives sizes in Python; a test compares.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CONVARITH_HD __host__ __device__
#else
#define CONVARITH_HD
#endif

namespace convarith {

// One axis of a convolution: output o sees through tap t the input o * stride + t * dilation - lo.
struct Axis {
  int64_t input;
  int64_t kernel;
  int64_t stride;
  int64_t lo;  // zeros before the first input; negative crops
  int64_t hi;  // zeros after the last input
  int64_t dilation;
};

// What a window sees outside the input.
enum class PaddingMode : int { kZeros, kReflect, kReplicate, kCircular };

struct Range {  // begin <= index < end; empty where begin == end
  int64_t begin;
  int64_t end;
};

// C++ division truncates towards zero; sizes need the floor. The divisor is positive.
CONVARITH_HD constexpr int64_t floor_div(int64_t a, int64_t b) {
  return a / b - (a % b < 0 ? 1 : 0);
}

CONVARITH_HD constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return -floor_div(-a, b);
}

CONVARITH_HD constexpr int64_t effective_kernel(const Axis& a) {
  return a.kernel + (a.kernel - 1) * (a.dilation - 1);
}

CONVARITH_HD constexpr int64_t padded_size(const Axis& a) {
  return a.input + a.lo + a.hi;
}

// Ask before dividing: for input 2, kernel 3, stride 2 the truncated quotient says that there is one output.
CONVARITH_HD constexpr bool fits(const Axis& a) {
  return padded_size(a) >= effective_kernel(a);
}

// Relationship 15; 0 where not even one window fits.
CONVARITH_HD constexpr int64_t output_size(const Axis& a) {
  return fits(a) ? (padded_size(a) - effective_kernel(a)) / a.stride + 1 : 0;
}

// The a of relationship 14: padded inputs past the last window.
CONVARITH_HD constexpr int64_t unused(const Axis& a) {
  return (padded_size(a) - effective_kernel(a)) % a.stride;
}

// May lie outside [0, input): on padding.
CONVARITH_HD constexpr int64_t input_index(const Axis& a, int64_t output, int64_t tap) {
  return output * a.stride + tap * a.dilation - a.lo;
}

// The output that sees `input` through `tap`, or -1: on the stride's other phases there is none.
CONVARITH_HD constexpr int64_t output_index(const Axis& a, int64_t outputs, int64_t input, int64_t tap) {
  const int64_t scaled = input + a.lo - tap * a.dilation;
  if (scaled < 0 || scaled % a.stride != 0) return -1;
  const int64_t output = scaled / a.stride;
  return output < outputs ? output : -1;
}

// The outputs that meet an input through `tap`; the others see padding there.
CONVARITH_HD constexpr Range outputs_of_tap(const Axis& a, int64_t outputs, int64_t tap) {
  const int64_t offset = input_index(a, 0, tap);
  const int64_t first = ceil_div(-offset, a.stride);
  const int64_t last = floor_div(a.input - 1 - offset, a.stride);
  const int64_t begin = first < 0 ? 0 : first;
  const int64_t end = last + 1 < outputs ? last + 1 : outputs;
  return begin < end ? Range{begin, end} : Range{0, 0};
}

// The taps through which `output` meets an input; the others see padding.
CONVARITH_HD constexpr Range taps_of_output(const Axis& a, int64_t output) {
  const int64_t start = input_index(a, output, 0);
  const int64_t first = start < 0 ? ceil_div(-start, a.dilation) : 0;
  const int64_t last = floor_div(a.input - 1 - start, a.dilation);
  const int64_t end = last + 1 < a.kernel ? last + 1 : a.kernel;
  return first < end ? Range{first, end} : Range{0, 0};
}

// Pooling windows. With ceil_mode a last, incomplete one counts if it starts inside the input or its left padding.
CONVARITH_HD constexpr int64_t pooling_output_size(const Axis& a, bool ceil_mode) {
  if (!ceil_mode) return output_size(a);
  Axis rounded = a;
  rounded.hi += a.stride - 1;
  const int64_t output = output_size(rounded);
  return (output - 1) * a.stride < a.input + a.lo ? output : output - 1;
}

// The input that stands at `index` of the padded input, index counted from the first real input; -1 for a zero.
CONVARITH_HD constexpr int64_t source_index(int64_t index, int64_t input, PaddingMode mode) {
  if (index >= 0 && index < input) return index;
  switch (mode) {
    case PaddingMode::kReplicate:
      return index < 0 ? 0 : input - 1;
    case PaddingMode::kCircular:
      return index - floor_div(index, input) * input;
    case PaddingMode::kReflect: {
      const int64_t period = 2 * (input - 1);
      if (period == 0) return 0;
      const int64_t phase = index - floor_div(index, period) * period;
      return phase < input ? phase : period - phase;
    }
    default:
      return -1;
  }
}

// The guide's figures, as (i, k, s, p, d) -> o.
namespace figures {
constexpr Axis axis(int64_t i, int64_t k, int64_t s, int64_t p, int64_t d = 1) {
  return Axis{i, k, s, p, p, d};
}
static_assert(output_size(axis(4, 3, 1, 0)) == 2, "relationship 1");
static_assert(output_size(axis(5, 4, 1, 2)) == 6, "relationship 2");
static_assert(output_size(axis(5, 3, 1, 1)) == 5, "relationship 3: half (same) padding");
static_assert(output_size(axis(5, 3, 1, 2)) == 7, "relationship 4: full padding");
static_assert(output_size(axis(5, 3, 2, 0)) == 2, "relationship 5");
static_assert(output_size(axis(5, 3, 2, 1)) == 3 && unused(axis(5, 3, 2, 1)) == 0, "relationship 6");
static_assert(output_size(axis(6, 3, 2, 1)) == 3 && unused(axis(6, 3, 2, 1)) == 1, "relationships 6 and 14");
static_assert(output_size(axis(7, 3, 1, 0, 2)) == 3, "relationship 15");
static_assert(!fits(axis(2, 3, 2, 0)) && output_size(axis(2, 3, 2, 0)) == 0, "refused before dividing");
static_assert(output_index(axis(5, 3, 2, 0), 2, 2, 0) == 1 && output_index(axis(5, 3, 2, 0), 2, 1, 0) == -1, "C^T");
static_assert(pooling_output_size(axis(6, 3, 2, 0), false) == 2 && pooling_output_size(axis(6, 3, 2, 0), true) == 3,
              "");
static_assert(taps_of_output(axis(5, 3, 2, 1), 0).begin == 1 && taps_of_output(axis(5, 3, 2, 1), 2).end == 2,
              "padding");
static_assert(source_index(-1, 4, PaddingMode::kReflect) == 1 && source_index(5, 4, PaddingMode::kCircular) == 1, "");
}  // namespace figures

}  // namespace convarith
