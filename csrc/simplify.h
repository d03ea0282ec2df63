// The same sums as a simpler problem. Plain C++ without torch.
#pragma once

#include "problem.h"

namespace convarith {

// What follows axes of these sizes where they follow each other in memory, last axis fastest and `step` apart; or -1.
inline int64_t step_after_axes(const Strides& s, const std::array<int64_t, kAxes>& size, int64_t step) {
  for (int i = kAxes - 1; i >= 0; --i) {
    if (size[i] > 1 && s.axis[i] != step) return -1;
    step *= size[i];
  }
  return step;
}
// Whether channels follow them; or whether they follow all channels.
inline bool contiguous_axes(const Strides& s, const std::array<int64_t, kAxes>& size) {
  return s.channel == step_after_axes(s, size, 1);
}
inline bool axes_after_channels(const Strides& s, const std::array<int64_t, kAxes>& size, int64_t channels) {
  return s.channel == 1 && step_after_axes(s, size, channels) > 0;
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
  if (!covers || taps == 1) return p;
  const auto all = [&](const auto& layout) { return layout(p.x) && layout(p.w); };  // of both in the same order
  const bool taps_inside = all([&](const Strides& s) { return contiguous_axes(s, input_of(p)); });
  const bool channels_inside =
      all([&](const Strides& s) { return axes_after_channels(s, input_of(p), p.in_channels); });
  if (!taps_inside && !channels_inside) return p;
  p.in_channels *= taps;
  p.x.channel = p.w.channel = 1;
  p.axis = {kTrivialAxis, kTrivialAxis, kTrivialAxis};
  p.x.axis = p.y.axis = p.w.axis = {0, 0, 1};
  return p;
}

}  // namespace convarith
