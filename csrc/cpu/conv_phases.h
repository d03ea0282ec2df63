// What the plans of depthwise convolutions share: phases of outputs with the taps by which they see the input.
#pragma once

#include "conv_planning.h"

namespace convarith::cpu {

constexpr int64_t kMostPhases = 16;  // along an axis

// One axis of outputs: the phases, and for each the taps and the inputs that its first output sees through them.
struct AxisPhases {
  struct Tap {
    int64_t input, tap;
  };
  int64_t out_step = 1, in_step = 1;
  int64_t low = 0, high = 0;  // of those inputs
  std::vector<std::vector<Tap>> taps;
};

inline AxisPhases axis_phases(const Axis& a, int64_t outputs, bool transposed, bool rows) {
  AxisPhases result;
  if (a.stride == 1) {  // rows of the same residue see the same rows of the input
    result.out_step = result.in_step = rows ? a.dilation : 1;
  } else if (transposed) {
    result.out_step = a.stride;
  } else {
    result.in_step = a.stride;
  }
  result.taps.resize(std::min(result.out_step, outputs));
  bool first = true;
  for (size_t r = 0; r < result.taps.size(); ++r) {
    for (int64_t t = 0; t < a.kernel; ++t) {
      const int64_t output = static_cast<int64_t>(r);
      const int64_t scaled = transposed ? output + a.lo - t * a.dilation : input_index(a, output, t);
      const int64_t input = transposed ? floor_div(scaled, a.stride) : scaled;
      if (transposed && scaled != input * a.stride) continue;
      result.taps[r].push_back({input, t});
      result.low = first ? input : std::min(result.low, input);
      result.high = first ? input : std::max(result.high, input);
      first = false;
    }
    if (transposed) std::reverse(result.taps[r].begin(), result.taps[r].end());
  }
  return result;
}

// Taps of a column of the kernel in runs of inputs that are `step` apart, none longer than `most`.
inline std::vector<std::vector<AxisPhases::Tap>> runs_of(std::vector<AxisPhases::Tap> taps, int64_t step,
                                                         int64_t most) {
  std::vector<std::vector<AxisPhases::Tap>> runs;
  while (!taps.empty()) {
    std::vector<AxisPhases::Tap> run, rest;
    for (const auto& tap : taps) {
      const bool next = run.empty() || tap.input == run.back().input + step;
      (next && static_cast<int64_t>(run.size()) < most ? run : rest).push_back(tap);
    }
    runs.push_back(std::move(run));
    taps = std::move(rest);
  }
  return runs;
}

// From one tap of a run to the next.
inline int64_t taps_apart(const std::vector<AxisPhases::Tap>& run) {
  return run.size() > 1 ? run[1].tap - run[0].tap : 0;
}

// Whole boxes: as equal as can be, multiples of `step`.
inline int64_t whole(int64_t size, int64_t part, int64_t step) {
  return parts(even_part(size, part), step) * step;
}

// What is read and what is written: of x = C^T y where `transposed`, otherwise of y = C x or the weight's gradient.
template <typename D>
void set_sides(const Problem& p, bool transposed, D& d) {
  const Strides &in = transposed ? p.y : p.x, &out = transposed ? p.x : p.y;
  d.batch = p.batch;
  d.in_batch = in.batch;
  d.in_channel = in.channel;
  d.out_batch = out.batch;
  d.out_channel = out.channel;
  for (int i = 0; i < 2; ++i) {
    d.grid[i] = transposed ? p.axis[i + 1].input : p.output[i + 1];
    d.source[i] = transposed ? p.output[i + 1] : p.axis[i + 1].input;
  }
}

// The kernel and the phases of both axes, once the sides are set; false where these are too many.
template <typename D>
bool set_phases(const Problem& p, bool transposed, D& d, std::array<AxisPhases, 2>& axes) {
  for (int i = 0; i < 2; ++i) {
    const Axis& a = p.axis[i + 1];
    if (a.stride > kMostPhases) return false;
    axes[i] = axis_phases(a, d.grid[i], transposed, false);
    d.kernel[i] = a.kernel;
    d.w_axis[i] = p.w.axis[i + 1];
    d.out_step[i] = axes[i].out_step;
    d.in_step[i] = axes[i].in_step;
  }
  return true;
}

// Whether the rows of a plane follow each other in memory.
inline bool dense_plane(const Strides& s, const int64_t* size) {
  return (s.axis[2] == 1 || size[1] == 1) && (s.axis[1] == size[1] || size[0] == 1);
}

// With lanes along the channels, those of depthwise convolutions and small groups; planes are of depthwise ones.
PlanPtr plan_channelwise(const Problem& p, Pass pass, const ConvKernels& k);
PlanPtr plan_planes(const Problem& p, Pass pass, const ConvKernels& k);

}  // namespace convarith::cpu
