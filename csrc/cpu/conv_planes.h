// Depthwise convolutions of small planes with lanes along the channels. A vector of channels at a time: their planes
// are transposed into a padded tile that has a vector for every input, and what comes of it is transposed back. See
// PlanesPlan.
#pragma once

#include "conv_factor.h"
#include "conv_plan.h"
#include "simd.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Outputs of a block, and taps that are taken together: their sums and their weights stay in registers. An input is
// loaded once for all of a row's outputs that see it by these taps; for each, loads would be what takes longest.
constexpr int kPlaneOutputs = CONVARITH_REGISTERS >= 32 ? 16 : 12;
constexpr int kPlaneTaps = CONVARITH_REGISTERS >= 32 ? 4 : 2;

// sums[r][c] += sum over a run's taps t of its weight * the input of cell c + t in row r from x on.
template <int kTaps, int kRows, int kColumns>
inline __attribute__((always_inline)) void add_plane_run(const PlaneRun& run, const float* x, int64_t in_row,
                                                         const float* weights,
                                                         Simd<float>::Vec (&sums)[kRows][kColumns]) {
  typedef Simd<float>::Vec V;
  constexpr int kLanes = Simd<float>::kLanes;
  V v[kTaps];
  CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) {
    v[t] = load(weights + t * run.weight_step);
    keep(v[t]);
  }
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r, x = next_place(x, in_row)) {
    _Pragma("GCC unroll 32") for (int q = 0; q < kColumns + kTaps - 1; ++q) {
      V input = load(x + q * kLanes);
      if (kTaps > 1) keep(input);
      CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) {
        if (q >= t && q - t < kColumns) sums[r][q - t] = multiply_add(sums[r][q - t], v[t], input);
      }
    }
  }
}

// kRows x kColumns outputs, neighbours of a phase, the first of which sees the cells from `in` on.
template <int kRows, int kColumns>
void plane_block(const PlaneRun* run, const PlaneRun* end, const float* in, int64_t in_row, const float* weights,
                 const float* bias, float* out, int64_t out_row, int64_t out_pixel) {
  Simd<float>::Vec sums[kRows][kColumns] = {};
  for (; run < end; ++run) {
    const float *x = in + run->in, *w = weights + run->weight;
    switch (run->taps) {
#if CONVARITH_REGISTERS >= 32
      case 4:
        add_plane_run<4>(*run, x, in_row, w, sums);
        break;
      case 3:
        add_plane_run<3>(*run, x, in_row, w, sums);
        break;
#endif
      case 2:
        add_plane_run<2>(*run, x, in_row, w, sums);
        break;
      default:
        add_plane_run<1>(*run, x, in_row, w, sums);
    }
  }
  const auto all = load(bias);
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r, out += out_row) {
    float* to = out;
    CONVARITH_UNROLL for (int c = 0; c < kColumns; ++c, to = next_place(to, out_pixel)) store(to, sums[r][c] + all);
  }
}

using PlaneBlock = void (*)(const PlaneRun*, const PlaneRun*, const float*, int64_t, const float*, const float*, float*,
                            int64_t, int64_t);

template <int kColumns, int kRows = kPlaneOutputs / kColumns>
PlaneBlock plane_block_of(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return plane_block_of<kColumns, kRows - 1>(rows);
  }
  return plane_block<kRows, kColumns>;
}

// The microkernel for so many outputs, kPlaneOutputs at most.
template <int kColumns = kPlaneOutputs>
PlaneBlock plane_block_for(int64_t rows, int64_t columns) {
  if constexpr (kColumns > 1) {
    if (columns < kColumns) return plane_block_for<kColumns - 1>(rows, columns);
  }
  return plane_block_of<kColumns>(rows);
}

// Some planes' rows as pixels of one vector, pixel i at cells + place[i]. The last vectors of pixels overlap those
// before them.
template <typename T>
void planes_to_cells(const T* planes, int64_t pitch, int64_t channels, int64_t count, const int32_t* place,
                     float* cells) {
  typedef Simd<float>::Vec V;
  constexpr int kLanes = Simd<float>::kLanes;
  const int64_t wide = least<int64_t>(kLanes, count);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t at = least(i, count - wide);
    V v[kLanes];
    if (channels == kLanes && wide == kLanes) {
      CONVARITH_UNROLL for (int r = 0; r < kLanes; ++r) v[r] = load_wide(planes + r * pitch + at);
    } else {
      CONVARITH_UNROLL for (int r = 0; r < kLanes; ++r) {
        v[r] = r >= channels ? V{} : load_wide_some(planes + r * pitch + at, wide);
      }
    }
    transpose_vectors<float>(v);
    CONVARITH_UNROLL for (int c = 0; c < kLanes; ++c) {
      if (c >= wide) break;
      store(cells + place[at + c], v[c]);
    }
  }
}

// And pixels that follow each other to planes.
template <typename T>
void pixels_to_planes(const float* pixels, int64_t count, int64_t channels, T* planes, int64_t pitch) {
  typedef Simd<float>::Vec V;
  constexpr int kLanes = Simd<float>::kLanes;
  const int64_t wide = least<int64_t>(kLanes, count);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t at = least(i, count - wide);
    V v[kLanes];
    CONVARITH_UNROLL for (int c = 0; c < kLanes; ++c) v[c] = c < wide ? load(pixels + (at + c) * kLanes) : V{};
    transpose_vectors<float>(v);
    CONVARITH_UNROLL for (int r = 0; r < kLanes; ++r) {
      if (r >= channels) break;
      T* to = planes + r * pitch + at;
      wide == kLanes ? store_narrow(to, v[r]) : store_narrow_some(to, v[r], wide);
    }
  }
}

// Weights of some channels, [tap][lane], and their biases.
template <typename T>
void pack_planes(const PlanesPlan& p, const T* w, int64_t channel, int64_t channels, float* packed) {
  constexpr int kLanes = Simd<float>::kLanes;
  w += channel * p.w_channel;
  const int64_t taps = p.kernel[0] * p.kernel[1];
  if (p.w_axis[1] == 1 && p.w_axis[0] == p.kernel[1]) {
    transpose(w, p.w_channel, channels, taps, packed, kLanes);
  } else {
    for (int64_t t = 0; t < taps; ++t) {
      copy_run(w + t / p.kernel[1] * p.w_axis[0] + t % p.kernel[1] * p.w_axis[1], p.w_channel, channels,
               packed + t * kLanes);
    }
  }
  float* bias = packed + taps * kLanes;
  store(bias, Simd<float>::Vec{});
  if (p.bias) copy_run(static_cast<const T*>(p.bias) + channel, 1, channels, bias);
}

// Rows [first, first + rows) of the outputs, from a tile whose first row is seen by the first of them.
void plane_rows(const PlanesPlan& p, int64_t first, int64_t rows, const float* tile, const float* weights, float* out) {
  constexpr int kLanes = Simd<float>::kLanes;
  const int64_t width = p.grid[1], in_row = p.in_step[0] * p.tile_row;
  const float* bias = weights + p.kernel[0] * p.kernel[1] * kLanes;
  for (int64_t i = 0; i < p.phases; ++i) {
    const PlanePhase& phase = p.phase[i];
    if (phase.first[0] >= rows) continue;
    const int64_t high = steps_up(rows - phase.first[0], p.out_step[0]);
    const int64_t wide = steps_up(width - phase.first[1], p.out_step[1]);
    const int64_t column_parts = block_count(wide, kPlaneOutputs);
    const int64_t at_once = kPlaneOutputs / block_count(wide, column_parts), row_parts = block_count(high, at_once);
    for (int64_t row_part = 0; row_part < row_parts; ++row_part) {
      const int64_t y = block_begin(row_part, high, row_parts), next = block_begin(row_part + 1, high, row_parts);
      // Taps that meet nothing but the rows beside the image.
      const int64_t seen = (first / p.out_step[0] + y) * p.in_step[0], last = seen + (next - y - 1) * p.in_step[0];
      const PlaneRun *begin = p.run + phase.runs_begin, *end = p.run + phase.runs_end;
      while (begin < end && last + begin->row < 0) ++begin;
      while (begin < end && seen + end[-1].row >= p.source[0]) --end;
      for (int64_t part = 0; part < column_parts; ++part) {
        const int64_t x = block_begin(part, wide, column_parts), some = block_begin(part + 1, wide, column_parts) - x;
        float* to = out + ((phase.first[0] + y * p.out_step[0]) * width + phase.first[1] + x * p.out_step[1]) * kLanes;
        plane_block_for(next - y, some)(begin, end, tile + y * in_row + x * kLanes, in_row, weights, bias, to,
                                        p.out_step[0] * width * kLanes, p.out_step[1] * kLanes);
      }
    }
  }
}

// A task is a block of channels of some rows of an image's outputs.
template <typename T>
void planes(const PlanesPlan& p, const void* in_data, const void* w_data, void* out_data, char* scratch, int64_t begin,
            int64_t end) {
  constexpr int kLanes = Simd<float>::kLanes;
  float* weights = reinterpret_cast<float*>(scratch);
  int32_t* place = reinterpret_cast<int32_t*>(scratch + p.at_places);
  float* tile = reinterpret_cast<float*>(scratch + p.at_tile);
  float* results = reinterpret_cast<float*>(scratch + p.at_results);
  const int64_t block_weights = (p.kernel[0] * p.kernel[1] + 1) * kLanes, width = p.source[1];
  if (p.channels % kLanes != 0) fill_zero(weights, p.packed_blocks * block_weights);  // lanes of no channel
  for (int64_t y = 0; y < p.tile_rows; ++y) {
    for (int64_t x = 0; x < width; ++x) place[y * width + x] = static_cast<int32_t>(y * p.tile_row) + p.column[x];
  }
  int64_t cleared = -1;  // box for which the tile has zeros beside the image
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task % p.blocks, box = task / p.blocks % p.boxes, image = task / p.blocks / p.boxes;
    const int64_t channel = block * kLanes, channels = least<int64_t>(kLanes, p.channels - channel);
    float* w = weights + (p.packed_blocks > 1 ? block * block_weights : 0);
    if (p.packed_blocks == 1 || task - begin < p.blocks) {
      pack_planes(p, static_cast<const T*>(w_data), channel, channels, w);
    }
    const int64_t first = box * p.box, rows = least(p.box, p.grid[0] - first);
    const int64_t seen = first / p.out_step[0] * p.in_step[0] + p.low;
    const int64_t source = most<int64_t>(0, seen), source_end = least(p.source[0], seen + p.tile_rows);
    if (box != cleared) fill_zero(tile, p.tile_rows * p.tile_row);
    cleared = box;
    if (source < source_end) {
      planes_to_cells(static_cast<const T*>(in_data) + image * p.in_batch + channel * p.in_channel + source * width,
                      p.in_channel, channels, (source_end - source) * width, place + (source - seen) * width, tile);
    }
    plane_rows(p, first, rows, tile, w, results);
    pixels_to_planes(results, rows * p.grid[1], channels,
                     static_cast<T*>(out_data) + image * p.out_batch + channel * p.out_channel + first * p.grid[1],
                     p.out_channel);
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
