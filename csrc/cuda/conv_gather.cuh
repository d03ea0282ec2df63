// From linear indices to places in the tensors of a ConvPlan: what the convolution kernels share.
#pragma once

#include "conv_plan.h"
#include "device.cuh"

namespace convarith::cuda {

// Part of an element's index in a tensor: places add up. `at` is where it stands along the axes; an element whose sum
// is outside of the axes does not exist.
struct alignas(16) Position {
  int32_t offset;
  int32_t at[3];
};

// Whatever is added to it, nothing stands there: coordinates are below 2^30.
__device__ inline Position nowhere() {
  constexpr int32_t kFar = -(1 << 30);
  return {0, {kFar, kFar, kFar}};
}

// The phase of a block or a thread: phases along the axes, last axis fastest.
struct PhaseIndex {
  int32_t index;
  int32_t of[3];

  __device__ PhaseIndex(const ConvPlan& p, int32_t phase) : index(phase) {
    for (int i = 2; i >= 0; --i) {
      of[i] = phase % p.axis[i].phases;
      phase /= p.axis[i].phases;
    }
  }
};

__device__ inline const PlanPhase& phase_of(const ConvPlan& p, const PhaseIndex& phase, int axis) {
  return p.axis[axis].phase[phase.of[axis]];
}

// Outputs of a phase, all images.
__device__ inline int32_t column_count(const ConvPlan& p, const PhaseIndex& phase) {
  return p.batch * phase_of(p, phase, 0).grid * phase_of(p, phase, 1).grid * phase_of(p, phase, 2).grid;
}

// Products of a phase's outputs.
__device__ inline int32_t depth_of(const ConvPlan& p, const PhaseIndex& phase) {
  return p.channels * phase_of(p, phase, 0).taps * phase_of(p, phase, 1).taps * phase_of(p, phase, 2).taps;
}

struct Output {
  int32_t image;
  int32_t at[3];  // on the phase's grid
};

__device__ inline Output output_of(const ConvPlan& p, const PhaseIndex& phase, int32_t column) {
  Output o;
  for (int i = 2; i >= 0; --i) o.at[i] = take_remainder(column, phase_of(p, phase, i).by_grid);
  o.image = column;
  return o;
}

__device__ inline int32_t image_of(const ConvPlan& p, const PhaseIndex& phase, int32_t column) {
  return output_of(p, phase, column).image;
}

// Where an output stands in `out`, and where its window begins in `in`, from an image's first element.
__device__ inline int64_t place_in_out(const ConvPlan& p, const PhaseIndex& phase, const Output& o) {
  int64_t offset = 0;
  for (int i = 0; i < 3; ++i) {
    offset += (int64_t{o.at[i]} * p.axis[i].place_step + phase_of(p, phase, i).first_place) * p.axis[i].out;
  }
  return offset;
}

__device__ inline Position position_in_in(const ConvPlan& p, const Output& o) {
  Position place = {0, {0, 0, 0}};
  for (int i = 0; i < 3; ++i) {
    place.at[i] = o.at[i] * p.axis[i].stride;
    place.offset += place.at[i] * static_cast<int32_t>(p.axis[i].in);
  }
  return place;
}

// The depth counts (tap, channel), channels fastest.
struct DepthIndex {
  int32_t channel;
  int32_t tap[3];
};

__device__ inline DepthIndex depth_index(const ConvPlan& p, const PhaseIndex& phase, int32_t depth) {
  DepthIndex d;
  d.channel = take_remainder(depth, p.by_channels);
  for (int i = 2; i > 0; --i) d.tap[i] = take_remainder(depth, phase_of(p, phase, i).by_taps);
  d.tap[0] = depth;
  return d;
}

__device__ inline Position position_in_in(const ConvPlan& p, const PhaseIndex& phase, const DepthIndex& d) {
  Position place = {d.channel * static_cast<int32_t>(p.in_channel), {0, 0, 0}};
  for (int i = 0; i < 3; ++i) {
    place.at[i] = phase_of(p, phase, i).shift + d.tap[i] * p.axis[i].shift_step;
    place.offset += place.at[i] * static_cast<int32_t>(p.axis[i].in);
  }
  return place;
}

// From a row's first weight.
__device__ inline int64_t place_in_w(const ConvPlan& p, const PhaseIndex& phase, const DepthIndex& d) {
  int64_t offset = d.channel * p.w_channel;
  for (int i = 0; i < 3; ++i) {
    offset += (int64_t{d.tap[i]} * p.axis[i].tap_step + phase_of(p, phase, i).first_tap) * p.axis[i].w;
  }
  return offset;
}

__device__ inline bool exists(const ConvPlan& p, const Position& a, const Position& b) {
  bool inside = true;
  for (int i = 0; i < 3; ++i) {
    inside = inside && static_cast<uint32_t>(a.at[i] + b.at[i]) < static_cast<uint32_t>(p.axis[i].source);
  }
  return inside;
}

// The sum of one output by its definition: no zero of the padding is multiplied. The depth runs over [begin, end).
template <typename T>
__device__ Accumulate<T> gather_sum(const ConvPlan& p, const PhaseIndex& phase, int32_t column, int32_t begin,
                                    int32_t end, const T* in_group, const T* w_row) {
  const Output o = output_of(p, phase, column);
  const Position origin = position_in_in(p, o);
  const T* image = in_group + o.image * p.in_batch;
  Accumulate<T> sum(0);
  for (int32_t k = begin; k < end; ++k) {
    const DepthIndex d = depth_index(p, phase, k);
    const Position place = position_in_in(p, phase, d);
    if (!exists(p, origin, place)) continue;
    sum += convert<Accumulate<T>>(image[origin.offset + place.offset]) *
           convert<Accumulate<T>>(w_row[place_in_w(p, phase, d)]);
  }
  return sum;
}

// The sum of one weight likewise, over the outputs [begin, end).
template <typename T>
__device__ Accumulate<T> weight_sum(const ConvPlan& p, const PhaseIndex& phase, int32_t depth, int32_t begin,
                                    int32_t end, const T* in_group, const T* out_row) {
  const Position place = position_in_in(p, phase, depth_index(p, phase, depth));
  Accumulate<T> sum(0);
  for (int32_t column = begin; column < end; ++column) {
    const Output o = output_of(p, phase, column);
    const Position origin = position_in_in(p, o);
    if (!exists(p, origin, place)) continue;
    sum += convert<Accumulate<T>>(in_group[o.image * p.in_batch + origin.offset + place.offset]) *
           convert<Accumulate<T>>(out_row[o.image * p.out_batch + place_in_out(p, phase, o)]);
  }
  return sum;
}

}  // namespace convarith::cuda
