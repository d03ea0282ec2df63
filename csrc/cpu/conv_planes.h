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

// Some planes' rows as pixels of one vector, pixel i at cells + place(i). The last vectors of pixels overlap those
// before them.
template <typename T, typename Place>
void planes_to_cells(const T* planes, int64_t pitch, int64_t channels, int64_t count, const Place& place,
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
      store(cells + place(at + c), v[c]);
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

// The tile of a thread: a box of the inputs of a block of channels, and zeros beside the image.
class PlaneTile {
 public:
  PlaneTile(const PlanesPlan& p, char* scratch)
      : p_(p),
        place_(reinterpret_cast<int32_t*>(scratch + p.at_places)),
        tile_(reinterpret_cast<float*>(scratch + p.at_tile)) {
    const int64_t width = p.source[1];
    for (int64_t y = 0; y < p.tile_rows; ++y) {
      for (int64_t x = 0; x < width; ++x) place_[y * width + x] = static_cast<int32_t>(y * p.tile_row) + p.column[x];
    }
  }

  // What the outputs of a box see of some channels of an image, which begin at `planes`.
  template <typename T>
  const float* fill(const T* planes, int64_t channels, int64_t box) {
    const int64_t width = p_.source[1], seen = box * p_.box / p_.out_step[0] * p_.in_step[0] + p_.low;
    const int64_t source = most<int64_t>(0, seen), source_end = least(p_.source[0], seen + p_.tile_rows);
    if (box != cleared_) fill_zero(tile_, p_.tile_rows * p_.tile_row);
    cleared_ = box;
    const int32_t* place = place_ + (source - seen) * width;
    if (source < source_end) {
      planes_to_cells(
          planes + source * width, p_.in_channel, channels, (source_end - source) * width,
          [&](int64_t i) { return place[i]; }, tile_);
    }
    return tile_;
  }

 private:
  const PlanesPlan& p_;
  int32_t* place_;
  float* tile_;
  int64_t cleared_ = -1;  // box for which the tile has zeros beside the image
};

// A task is a block of channels of some rows of an image's outputs.
template <typename T>
void planes(const PlanesPlan& p, const void* in_data, const void* w_data, void* out_data, char* scratch, int64_t begin,
            int64_t end) {
  constexpr int kLanes = Simd<float>::kLanes;
  float* weights = reinterpret_cast<float*>(scratch);
  float* results = reinterpret_cast<float*>(scratch + p.at_results);
  const int64_t block_weights = (p.kernel[0] * p.kernel[1] + 1) * kLanes;
  if (p.channels % kLanes != 0) fill_zero(weights, p.packed_blocks * block_weights);  // lanes of no channel
  PlaneTile tile(p, scratch);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task % p.blocks, box = task / p.blocks % p.boxes, image = task / p.blocks / p.boxes;
    const int64_t channel = block * kLanes, channels = least<int64_t>(kLanes, p.channels - channel);
    float* w = weights + (p.packed_blocks > 1 ? block * block_weights : 0);
    if (p.packed_blocks == 1 || task - begin < p.blocks) {
      pack_planes(p, static_cast<const T*>(w_data), channel, channels, w);
    }
    const int64_t first = box * p.box, rows = least(p.box, p.grid[0] - first);
    const T* in = static_cast<const T*>(in_data) + image * p.in_batch + channel * p.in_channel;
    plane_rows(p, first, rows, tile.fill(in, channels, box), w, results);
    pixels_to_planes(results, rows * p.grid[1], channels,
                     static_cast<T*>(out_data) + image * p.out_batch + channel * p.out_channel + first * p.grid[1],
                     p.out_channel);
  }
}

// The weight's gradient -----------------------------------------------------------------------------------------------

// Taps whose sums stay in registers together, of so many rows and columns of the kernel at most.
constexpr int kTapSums = CONVARITH_REGISTERS >= 32 ? 28 : 12;
constexpr int kTapRows = 5, kTapColumns = 7;

// sums[tap] += sum over outputs of gradient * input. Output (y, x) sees x_row * y + tap_row * r + c through tap (r, c).
template <int kRows, int kColumns>
void weigh_taps(const float* x, int64_t x_row, int64_t tap_row, const float* gradient, int64_t gradient_row,
                int64_t high, int64_t wide, float* sums, int64_t row_step, int64_t column_step) {
  typedef Simd<float>::Vec V;
  constexpr int kLanes = Simd<float>::kLanes;
  V all[kRows][kColumns] = {};
  for (int64_t y = 0; y < high; ++y, x += x_row, gradient += gradient_row) {
    // Compilers would keep what the next output sees too, in more registers than there are.
    const float* in = x;
    for (int64_t i = 0; i < wide * kLanes; i += kLanes, in = next_place(in, kLanes)) {
      const V v = load(gradient + i);
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
        CONVARITH_UNROLL for (int c = 0; c < kColumns; ++c) {
          all[r][c] = multiply_add(all[r][c], v, load(in + r * tap_row + c * kLanes));
        }
      }
    }
  }
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int c = 0; c < kColumns; ++c) {
      float* to = sums + r * row_step + c * column_step;
      store(to, load(to) + all[r][c]);
    }
  }
}

using WeighTaps = void (*)(const float*, int64_t, int64_t, const float*, int64_t, int64_t, int64_t, float*, int64_t,
                           int64_t);

template <int kColumns, int kRows = kTapSums / kColumns < kTapRows ? kTapSums / kColumns : kTapRows>
WeighTaps weigh_taps_of(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return weigh_taps_of<kColumns, kRows - 1>(rows);
  }
  return weigh_taps<kRows, kColumns>;
}

template <int kColumns = kTapColumns>
WeighTaps weigh_taps_for(int64_t rows, int64_t columns) {
  if constexpr (kColumns > 1) {
    if (columns < kColumns) return weigh_taps_for<kColumns - 1>(rows, columns);
  }
  return weigh_taps_of<kColumns>(rows);
}

// All taps, by rows [first, first + rows) of the outputs, of which those are left out that see only what is beside the
// image.
void weigh_planes(const PlanesPlan& p, int64_t first, int64_t rows, const float* tile, const float* gradient,
                  float* sums) {
  constexpr int kLanes = Simd<float>::kLanes;
  const int64_t gradient_row = p.grid[1] * kLanes, x_row = p.in_step[0] * p.tile_row;
  for (int64_t i = 0; i < p.tap_blocks; ++i) {
    const PlaneTaps& taps = p.tap_block[i];
    const int64_t top = first * p.in_step[0] + taps.row, bottom = top + (taps.rows - 1) * p.tap_apart;
    const int64_t begin = bottom < 0 ? block_count(-bottom, p.in_step[0]) : 0;
    const int64_t end = least(rows, top < p.source[0] ? (p.source[0] - 1 - top) / p.in_step[0] + 1 : 0);
    if (begin >= end) continue;
    weigh_taps_for(taps.rows, taps.columns)(tile + taps.in + begin * x_row, x_row, p.tap_apart * p.tile_row,
                                            gradient + begin * gradient_row, gradient_row, end - begin, p.grid[1],
                                            sums + taps.weight, p.kernel[1] * kLanes, taps.weight_step);
  }
}

// A task is a block of channels and a part of the images; sums are [part][block][tap][lane].
template <typename T>
void planes_sum(const PlanesPlan& p, const void* x_data, const void* y_data, void* sums_data, char* scratch,
                int64_t begin, int64_t end) {
  constexpr int kLanes = Simd<float>::kLanes;
  float* gradient = reinterpret_cast<float*>(scratch + p.at_results);
  const int64_t taps = p.kernel[0] * p.kernel[1];
  PlaneTile tile(p, scratch);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task / p.blocks, channel = task % p.blocks * kLanes;
    const int64_t channels = least<int64_t>(kLanes, p.channels - channel);
    float* sums = static_cast<float*>(sums_data) + task * taps * kLanes;
    fill_zero(sums, taps * kLanes);
    for (int64_t box = 0; box < p.boxes; ++box) {
      const int64_t first = box * p.box, rows = least(p.box, p.grid[0] - first);
      const int64_t last = block_begin(part + 1, p.batch, p.parts);
      for (int64_t image = block_begin(part, p.batch, p.parts); image < last; ++image) {
        const T* x = static_cast<const T*>(x_data) + image * p.in_batch + channel * p.in_channel;
        const T* y = static_cast<const T*>(y_data) + image * p.out_batch + channel * p.out_channel + first * p.grid[1];
        planes_to_cells(y, p.out_channel, channels, rows * p.grid[1], [](int64_t i) { return i * kLanes; }, gradient);
        weigh_planes(p, first, rows, tile.fill(x, channels, box), gradient, sums);
      }
    }
  }
}

// The parts' sums of some blocks to w.
template <typename T>
void planes_store(const PlanesPlan& p, void* sums_data, void* w_data, int64_t begin, int64_t end) {
  constexpr int kLanes = Simd<float>::kLanes;
  const int64_t taps = p.kernel[0] * p.kernel[1], apart = p.blocks * taps * kLanes;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t channel = block * kLanes, channels = least<int64_t>(kLanes, p.channels - channel);
    float* sums = static_cast<float*>(sums_data) + block * taps * kLanes;
    for (int64_t part = 1; part < p.parts; ++part) {
      const float* other = sums + part * apart;
      for (int64_t i = 0; i < taps * kLanes; i += kLanes) store(sums + i, load(sums + i) + load(other + i));
    }
    T* w = static_cast<T*>(w_data) + channel * p.w_channel;
    if (p.w_axis[1] == 1 && p.w_axis[0] == p.kernel[1]) {
      transpose_narrow(sums, kLanes, taps, channels, w, p.w_channel);
      continue;
    }
    for (int64_t t = 0; t < taps; ++t, sums += kLanes) {
      scatter_run(sums, channels, w + t / p.kernel[1] * p.w_axis[0] + t % p.kernel[1] * p.w_axis[1], p.w_channel);
    }
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
