// What a kernel is told: sizes, and strides in elements. Plain data without torch; csrc/checks.h makes it from tensors.
#pragma once

#include <array>
#include <cstdint>

#include "geometry.h"

namespace convarith {

constexpr int kAxes = 3;  // fewer axes are padded in front by axes of size 1, so that every kernel is written once

constexpr Axis kTrivialAxis = {1, 1, 1, 0, 0, 1};

// Elements between neighbours of a tensor (batch, channel, *axis). A weight's batch is its out channel.
struct Strides {
  int64_t batch;
  int64_t channel;
  std::array<int64_t, kAxes> axis;
};

// phi(x, w, y) = <y, C(w) x>: the sizes that conv, conv_transpose and conv_weight share.
//   x (batch, groups * in_channels, *input)   w (groups * out_channels, in_channels, *kernel)
//   y (batch, groups * out_channels, *output)
struct Problem {
  int64_t batch;
  int64_t groups;
  int64_t in_channels;   // per group
  int64_t out_channels;  // per group
  std::array<Axis, kAxes> axis;
  std::array<int64_t, kAxes> output;
  Strides x;
  Strides w;
  Strides y;

  CONVARITH_HD constexpr int64_t kernel_numel() const { return axis[0].kernel * axis[1].kernel * axis[2].kernel; }
  CONVARITH_HD constexpr int64_t input_numel() const { return axis[0].input * axis[1].input * axis[2].input; }
  CONVARITH_HD constexpr int64_t output_numel() const { return output[0] * output[1] * output[2]; }
};

// What pooling, unfold and fold share: every plane alike is cut into windows.
//   x (planes, *input, inner)   y (planes, *output, inner)
// A plain tensor has inner 1 and its channels among the planes; in channels_last memory the channels are inner.
struct Windows {
  int64_t planes;
  int64_t inner;
  std::array<Axis, kAxes> axis;
  std::array<int64_t, kAxes> output;

  CONVARITH_HD constexpr int64_t kernel_numel() const { return axis[0].kernel * axis[1].kernel * axis[2].kernel; }
  CONVARITH_HD constexpr int64_t input_numel() const { return axis[0].input * axis[1].input * axis[2].input; }
  CONVARITH_HD constexpr int64_t output_numel() const { return output[0] * output[1] * output[2]; }
};

// The guide's stretched tensor: stride - 1 zeros between units, then padding. Unit o stands at o * stride + lo, which
// is where a convolution with one tap reads from. So the axis is that convolution's, and a unit cropped away is an
// output that meets no input.
//   units (leading, *units)   stretched (leading, *axis.input)
struct Stretch {
  int64_t leading;
  std::array<Axis, kAxes> axis;
  std::array<int64_t, kAxes> units;

  CONVARITH_HD constexpr int64_t stretched_numel() const { return axis[0].input * axis[1].input * axis[2].input; }
  CONVARITH_HD constexpr int64_t units_numel() const { return units[0] * units[1] * units[2]; }
};

// Planes on either side of a maximum's indices, which count the inputs of a plane; inner as in Windows.
//   x (planes, inputs, inner)   indices and y (planes, outputs, inner)
struct Selection {
  int64_t planes;
  int64_t inner;
  int64_t inputs;
  int64_t outputs;
};

// Local response normalisation, y = x s^-beta with s = k + alpha * (sum of x^2 over size channels around this one).
//   x, y (planes, channels, inner)
struct Lrn {
  int64_t planes;
  int64_t channels;
  int64_t inner;
  int64_t size;
  double alpha;
  double beta;
  double k;

  // Channels that c's sum has: c - size / 2 to c + (size - 1) / 2.
  CONVARITH_HD constexpr Range window(int64_t c) const { return clipped(c - size / 2, c + (size + 1) / 2); }
  // Channels whose sum has c.
  CONVARITH_HD constexpr Range seen_by(int64_t c) const { return clipped(c - (size - 1) / 2, c + size / 2 + 1); }

 private:
  CONVARITH_HD constexpr Range clipped(int64_t begin, int64_t end) const {
    return {begin < 0 ? 0 : begin, end < channels ? end : channels};
  }
};

}  // namespace convarith
