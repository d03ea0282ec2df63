// The same sums as a simpler problem. Plain C++ without torch.
#pragma once

#include "problem.h"

namespace convarith {

// Whether axes of these sizes follow each other in memory, last axis fastest, and channels follow them.
inline bool contiguous_axes(const Strides& s, const std::array<int64_t, kAxes>& size) {
  int64_t step = 1;
  for (int i = kAxes - 1; i >= 0; --i) {
    if (size[i] > 1 && s.axis[i] != step) return false;
    step *= size[i];
  }
  return s.channel == step;
}

inline std::array<int64_t, kAxes> input_of(const Problem& p) {
  return {p.axis[0].input, p.axis[1].input, p.axis[2].input};
}

// A kernel of 1 along an axis that moves over all of its input: outputs are as many, and x and y alike.
inline bool is_pointwise(const Axis& a) {
  return a.kernel == 1 && a.stride == 1 && a.lo == 0 && a.hi == 0;
}
inline bool is_pointwise(const Problem& p) {
  return is_pointwise(p.axis[0]) && is_pointwise(p.axis[1]) && is_pointwise(p.axis[2]);
}

// A kernel that covers its whole input is a product of matrices: every tap is a channel.
inline Problem as_product(Problem p) {
  const int64_t taps = p.kernel_numel();
  bool covers = true;
  for (int i = 0; i < kAxes; ++i) {
    const Axis& a = p.axis[i];
    covers = covers && p.output[i] == 1 && a.lo == 0 && a.dilation == 1 && a.input == a.kernel;
  }
  if (!covers || taps == 1 || !contiguous_axes(p.w, input_of(p)) || !contiguous_axes(p.x, input_of(p))) return p;
  p.in_channels *= taps;
  p.x.channel = p.w.channel = 1;
  p.axis = {kTrivialAxis, kTrivialAxis, kTrivialAxis};
  p.x.axis = p.y.axis = p.w.axis = {0, 0, 1};
  return p;
}

}  // namespace convarith
