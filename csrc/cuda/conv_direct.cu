// Convolutions with few channels per group, depthwise above all: nothing is worth staging, the caches hold what
// neighbouring threads share. Memory bandwidth is the limit, so every thread has a few outputs for one load of a
// weight.
#include "conv_gather.cuh"
#include "conv_kernels.h"
#include "elements.cuh"

namespace convarith::cuda {
namespace {

constexpr int kBlocksAtOnce = 4;  // on a multiprocessor, at least: for more the compiler would spill

template <typename Sum>
struct Input {
  Sum value;
  bool exists;
};

// A thread has kRows rows of kDirectOutputs outputs, one below the other along axis 1.
template <typename T, int kRows>
__global__ void __launch_bounds__(kDirectThreads, kBlocksAtOnce)
    gather_direct_kernel(const __grid_constant__ ConvPlan p, const T* in, const T* w, T* out) {
  using Sum = Accumulate<T>;
  int32_t index = static_cast<int32_t>(blockIdx.x) * kDirectThreads + static_cast<int32_t>(threadIdx.x);
  int32_t at[3], row_block, group;
  const auto take_output = [&] {
    at[2] = take_remainder(index, p.by_x);
    at[1] = take_remainder(index, p.by_y) * kDirectOutputs;
    at[0] = take_remainder(index, p.by_z);
  };
  if (!p.group_lanes) take_output();
  row_block = take_remainder(index, p.by_row_blocks);
  group = take_remainder(index, p.by_groups);
  if (p.group_lanes) take_output();
  const int32_t image = take_remainder(index, p.by_batch);
  if (index >= p.phases) return;
  const PhaseIndex phase_index(p, index);
  const PlanPhase phase[3] = {phase_of(p, phase_index, 0), phase_of(p, phase_index, 1), phase_of(p, phase_index, 2)};
  if (at[0] >= phase[0].grid || at[1] >= phase[1].grid || at[2] >= phase[2].grid) return;

  const int32_t first_row = row_block * kRows;
  const T* in_group = in + image * p.in_batch + group * p.in_group;
  const T* w_rows = w + group * p.w_group + first_row * p.w_row;
  const PlanAxis &down = p.axis[1], &across = p.axis[2];
  // Where an output's next tap is its lower neighbour's present one, three inputs of four are at hand.
  const bool slides = down.stride == down.shift_step || down.stride == -down.shift_step;

  Sum sum[kRows][kDirectOutputs] = {};
  for (int32_t c = 0; c < p.channels; ++c) {
    for (int32_t t0 = 0; t0 < phase[0].taps; ++t0) {
      const int32_t z = at[0] * p.axis[0].stride + phase[0].shift + t0 * p.axis[0].shift_step;
      if (static_cast<uint32_t>(z) >= static_cast<uint32_t>(p.axis[0].source)) continue;
      for (int32_t t2 = 0; t2 < phase[2].taps; ++t2) {
        const int32_t x = at[2] * across.stride + phase[2].shift + t2 * across.shift_step;
        if (static_cast<uint32_t>(x) >= static_cast<uint32_t>(across.source)) continue;
        const T* line = in_group + c * p.in_channel + z * p.axis[0].in + x * across.in;
        const T* w_line = w_rows + c * p.w_channel +
                          (phase[0].first_tap + int64_t{t0} * p.axis[0].tap_step) * p.axis[0].w +
                          (phase[2].first_tap + int64_t{t2} * across.tap_step) * across.w;
        Input<Sum> input[kDirectOutputs] = {};
        for (int32_t step = 0; step < phase[1].taps; ++step) {
          const int32_t t1 = down.shift_step > 0 ? step : phase[1].taps - 1 - step;
          const int32_t first = at[1] * down.stride + phase[1].shift + t1 * down.shift_step;
#pragma unroll
          for (int j = 0; j < kDirectOutputs; ++j) {
            if (slides && step > 0 && j + 1 < kDirectOutputs) {
              input[j] = input[j + 1];
              continue;
            }
            const int32_t y = first + j * down.stride;
            input[j].exists = static_cast<uint32_t>(y) < static_cast<uint32_t>(down.source);
            input[j].value = input[j].exists ? convert<Sum>(line[y * down.in]) : Sum(0);
          }
          const T* taps = w_line + (phase[1].first_tap + int64_t{t1} * down.tap_step) * down.w;
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            if (first_row + r >= p.rows) break;
            const Sum weight = convert<Sum>(taps[r * p.w_row]);
#pragma unroll
            for (int j = 0; j < kDirectOutputs; ++j) {
              if (input[j].exists) sum[r][j] += weight * input[j].value;
            }
          }
        }
      }
    }
  }

  T* to = out + image * p.out_batch + group * p.out_group + first_row * p.out_row;
  for (int i = 0; i < 3; ++i) to += (int64_t{at[i]} * p.axis[i].place_step + phase[i].first_place) * p.axis[i].out;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int j = 0; j < kDirectOutputs; ++j) {
      if (first_row + r >= p.rows || at[1] + j >= phase[1].grid) continue;
      to[r * p.out_row + int64_t{j} * down.place_step * down.out] = convert<T>(sum[r][j]);
    }
  }
}

// A block has one row and kDirectColumns (tap, channel) columns of one group, or of kDirectLanes neighbouring ones; the
// rest of its threads share the outputs of one split, and then add up in a fixed order.
template <typename T>
__global__ void __launch_bounds__(kDirectThreads, kBlocksAtOnce)
    weight_direct_kernel(const __grid_constant__ ConvPlan p, const T* in, const T* out, T* w, Accumulate<T>* partial) {
  using Sum = Accumulate<T>;
  Sum* sums = shared_memory<Sum>();  // [kDirectColumns][kDirectThreads]
  Position* places = reinterpret_cast<Position*>(sums + kDirectColumns * kDirectThreads);

  const int32_t lanes = p.group_lanes ? kDirectLanes : 1, threads = kDirectThreads / lanes;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = thread % lanes, mine = thread / lanes;
  const PhaseIndex phase(p, 0);
  const int32_t columns = depth_of(p, phase), column_blocks = (columns + kDirectColumns - 1) / kDirectColumns;
  auto index = static_cast<int32_t>(blockIdx.x);
  const int32_t first_column = index % column_blocks * kDirectColumns;
  index /= column_blocks;
  const int32_t row = index % p.rows, group = index / p.rows * lanes + lane;
  const int32_t count = min(kDirectColumns, columns - first_column);
  if (thread < kDirectColumns) {
    places[thread] =
        thread < count ? position_in_in(p, phase, depth_index(p, phase, first_column + thread)) : nowhere();
  }
  __syncthreads();

  const int64_t begin = int64_t{static_cast<int32_t>(blockIdx.y)} * p.steps_per_split;
  const int32_t end = static_cast<int32_t>(min(int64_t{column_count(p, phase)}, begin + p.steps_per_split));
  const T* in_group = in + group * p.in_group;
  const T* out_row = out + group * p.out_group + row * p.out_row;
  Sum sum[kDirectColumns] = {};
  if (group < p.groups) {
    for (int32_t i = static_cast<int32_t>(begin) + mine; i < end; i += threads) {
      const Output o = output_of(p, phase, i);
      const Position origin = position_in_in(p, o);
      const T* image = in_group + o.image * p.in_batch;
      const Sum value = convert<Sum>(out_row[o.image * p.out_batch + place_in_out(p, phase, o)]);
#pragma unroll
      for (int c = 0; c < kDirectColumns; ++c) {
        const Position place = places[c];
        if (exists(p, origin, place)) sum[c] += value * convert<Sum>(image[origin.offset + place.offset]);
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kDirectColumns; ++c) sums[c * kDirectThreads + thread] = sum[c];
  for (int32_t half = threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (mine >= half) continue;
#pragma unroll
    for (int c = 0; c < kDirectColumns; ++c) {
      sums[c * kDirectThreads + thread] += sums[c * kDirectThreads + thread + half * lanes];
    }
  }
  if (mine > 0 || group >= p.groups) return;
  for (int c = 0; c < count; ++c) {
    const Sum total = sums[c * kDirectThreads + thread];
    if (p.splits > 1) {
      const int64_t split = static_cast<int32_t>(blockIdx.y);
      partial[((split * p.groups + group) * columns + first_column + c) * p.rows + row] = total;
    } else {
      w[group * p.w_group + row * p.w_row + place_in_w(p, phase, depth_index(p, phase, first_column + c))] =
          convert<T>(total);
    }
  }
}

template <typename T>
cudaError_t gather_of(const ConvPlan& p, const void* in, const void* w, void* out, cudaStream_t stream) {
  const int64_t threads = int64_t{p.by_x.divisor} * p.by_y.divisor * p.by_z.divisor * p.by_row_blocks.divisor *
                          p.groups * p.batch * p.phases;
  const auto blocks = static_cast<unsigned>((threads + kDirectThreads - 1) / kDirectThreads);
  const auto kernel = p.rows > 1 ? gather_direct_kernel<T, kDirectRows> : gather_direct_kernel<T, 1>;
  return launch(kernel, dim3(blocks), dim3(kDirectThreads), 0, stream, p, static_cast<const T*>(in),
                static_cast<const T*>(w), static_cast<T*>(out));
}

template <typename T>
cudaError_t weight_of(const ConvPlan& p, const void* in, const void* out, void* w, void* partial, cudaStream_t stream) {
  using Sum = Accumulate<T>;
  const int64_t lanes = p.group_lanes ? kDirectLanes : 1;
  int64_t columns = p.channels;
  for (const PlanAxis& a : p.axis) columns *= a.phase[0].taps;
  const int64_t blocks = (columns + kDirectColumns - 1) / kDirectColumns * p.rows * ((p.groups + lanes - 1) / lanes);
  const size_t shared = kDirectColumns * (kDirectThreads * sizeof(Sum) + sizeof(Position));
  return launch(weight_direct_kernel<T>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(p.splits)),
                dim3(kDirectThreads), shared, stream, p, static_cast<const T*>(in), static_cast<const T*>(out),
                static_cast<T*>(w), static_cast<Sum*>(partial));
}

}  // namespace

cudaError_t gather_direct(const ConvPlan& p, DType dtype, const void* in, const void* w, void* out,
                          cudaStream_t stream) {
  return with_floating(dtype, [&](auto t) { return gather_of<decltype(t)>(p, in, w, out, stream); });
}

cudaError_t weight_direct(const ConvPlan& p, DType dtype, const void* in, const void* out, void* w, void* partial,
                          cudaStream_t stream) {
  return with_floating(dtype, [&](auto t) { return weight_of<decltype(t)>(p, in, out, w, partial, stream); });
}

}  // namespace convarith::cuda
