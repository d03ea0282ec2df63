// The weight's gradient of depthwise convolutions and small groups whose rows are read where they stand. As
// conv_depthwise_in_place.h.
#pragma once

#include "conv_depthwise_in_place.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

constexpr int64_t kAhead = 4;  // rows of outputs that are asked for ahead

// acc[m][t][h] += g[m][h] * what tap t sees of two vectors.
template <typename T, int kTap, int kRows, int kSize, int kHeight, typename V>
inline __attribute__((always_inline)) void add_products(V here, V next, const V (&g)[kRows][kHeight],
                                                        V (&acc)[kRows][kSize][kHeight]) {
  if constexpr (kTap < kSize) {
    const V seen = neighbours<kTap, T>(V{}, here, next);
    CONVARITH_UNROLL for (int m = 0; m < kRows; ++m) {
      CONVARITH_UNROLL for (int h = 0; h < kHeight; ++h) acc[m][kTap][h] += g[m][h] * seen;
    }
    add_products<T, kTap + 1>(here, next, g, acc);
  }
}

// sums[3 * t + h] += sum over the outputs of some rows of y * what tap t of row h sees, lanes along the outputs. Rows
// are asked for ahead whether that is wanted or not.
template <typename T, int kStep, int kLow>
void weigh3(const DepthwisePlan& p, const T* x, const T* y, const T* zeros, int64_t begin, int64_t end, bool,
            typename SumOf<T>::type* sums) {
  typedef TapWindow<T, kStep, kLow> Window;
  typedef typename Window::V V;
  constexpr int kLanes = Window::kLanes, kRows = 2, kLines = (kRows - 1) * kStep + 3;
  const int64_t vectors = block_count(p.grid[1], kLanes);
  V acc[kTaps3];
  CONVARITH_UNROLL for (int i = 0; i < kTaps3; ++i) acc[i] = load(sums + i * kLanes);
  for (int64_t row = begin; row < end; row += kRows) {
    const T *grad[kRows], *lines[kLines];
    CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) grad[r] = row_or(zeros, y, row + r, end, p.out_axis[0]);
    CONVARITH_UNROLL for (int i = 0; i < kLines; ++i) {
      lines[i] = row_or(zeros, x, row * kStep + p.low[0] + i, p.source[0], p.in_axis[0]);
    }
    Window window[kLines];
    CONVARITH_UNROLL for (int i = 0; i < kLines; ++i) window[i].begin(lines[i], 0, p.source[1], vectors > 1);
    const auto add = [&](int64_t v, bool last, bool whole) __attribute__((always_inline)) {
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) prefetch_ahead(grad[r], kAhead * p.out_axis[0] + v * kLanes);
      CONVARITH_UNROLL for (int i = kLines - kRows * kStep; i < kLines; ++i) {
        CONVARITH_UNROLL for (int j = 0; j < kStep; ++j) {
          prefetch_ahead(lines[i], kAhead * kStep * p.in_axis[0] + (v * kStep + j) * kLanes);
        }
      }
      V g[kRows];
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
        g[r] = last ? load_in_row(grad[r], v * kLanes, p.grid[1]) : load_wide(grad[r] + v * kLanes);
      }
      CONVARITH_UNROLL for (int i = 0; i < kLines; ++i) {
        V taps[3];
        window[i].next(lines[i], v * kStep * kLanes, p.source[1], last, whole, taps);
        CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
          const int h = i - r * kStep;
          if (h < 0 || h >= 3) continue;
          CONVARITH_UNROLL for (int t = 0; t < 3; ++t) acc[3 * t + h] += g[r] * taps[t];
        }
      }
    };
    int64_t v = 0;
    for (; v < vectors - 2; ++v) add(v, false, true);
    for (; v < vectors - 1; ++v) add(v, false, false);
    add(v, true, false);
  }
  CONVARITH_UNROLL for (int i = 0; i < kTaps3; ++i) store(sums + i * kLanes, acc[i]);
}

// The same of kernels without steps, line by line of inputs: of kRows rows of weights from y on, and of kHeight rows of
// the kernel from `first` on, each of which meets its own row of outputs there. sums are [row][kSize * t + h].
template <typename T, int kSize, int kHeight, int kRows>
void weigh_lines(const DepthwisePlan& p, const T* x, const T* y, const T* zeros, int64_t begin, int64_t end, int first,
                 bool asks, typename SumOf<T>::type* sums) {
  typedef typename SumOf<T>::type Sum;
  typedef typename Simd<Sum>::Vec V;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const int64_t low = p.low[1], last = (block_count(p.grid[1], kLanes) - 1) * kLanes;
  // Every vector of outputs but the last two sees whole vectors of inputs.
  const uint32_t first_inputs = row_lanes<T>(low, p.source[1]), last_inputs = row_lanes<T>(low + last, p.source[1]);
  const uint32_t inputs_behind = row_lanes<T>(low + last + kLanes, p.source[1]);
  const uint32_t last_outputs = row_lanes<T>(last, p.grid[1]);
  const int64_t sums_row = p.channels * kSize * kSize * kLanes;
  V acc[kRows][kSize][kHeight];
  CONVARITH_UNROLL for (int m = 0; m < kRows; ++m) {
    CONVARITH_UNROLL for (int t = 0; t < kSize; ++t) {
      CONVARITH_UNROLL for (int h = 0; h < kHeight; ++h) {
        acc[m][t][h] = load(sums + m * sums_row + (kSize * t + first + h) * kLanes);
      }
    }
  }
  // Row r of outputs, from `begin` on, sees line r + h through row first + h of the kernel.
  const int64_t top = begin + p.low[0] + first, rows = end - begin;
  const int64_t last_line = least(rows + kHeight - 1, p.source[0] - top);
  y += begin * p.out_axis[0];
  for (int64_t line = most<int64_t>(0, -top); line < last_line; ++line) {
    const T* row = x + (top + line) * p.in_axis[0];
    const T* grad[kRows][kHeight];
    CONVARITH_UNROLL for (int m = 0; m < kRows; ++m) {
      CONVARITH_UNROLL for (int h = 0; h < kHeight; ++h) {
        grad[m][h] = row_or(zeros, y + m * p.out_channel, line - h, rows, p.out_axis[0]);
      }
    }
    if (asks) {
      prefetch_ahead(row, kAhead * p.in_axis[0], p.source[1]);
      CONVARITH_UNROLL for (int m = 0; m < kRows; ++m) {
        prefetch_ahead(grad[m][0], kAhead * p.out_axis[0], p.grid[1]);
      }
    }
    const T* seen = entry(row, low);
    V here = load_masked(seen, first_inputs);
    const auto add = [&](int64_t column, V next, bool whole) __attribute__((always_inline)) {
      V g[kRows][kHeight];
      CONVARITH_UNROLL for (int m = 0; m < kRows; ++m) {
        CONVARITH_UNROLL for (int h = 0; h < kHeight; ++h) {
          g[m][h] = whole ? load_wide(grad[m][h] + column) : load_masked(grad[m][h] + column, last_outputs);
          keep(g[m][h]);
        }
      }
      add_products<Sum, 0>(here, next, g, acc);
      here = next;
    };
    int64_t column = 0;
    for (; column < last - kLanes; column += kLanes) add(column, load_wide(seen + column + kLanes), true);
    if (column < last) add(column, load_masked(seen + last, last_inputs), true);
    add(last, load_masked(entry(seen, last + kLanes), inputs_behind), false);
  }
  CONVARITH_UNROLL for (int m = 0; m < kRows; ++m) {
    CONVARITH_UNROLL for (int t = 0; t < kSize; ++t) {
      CONVARITH_UNROLL for (int h = 0; h < kHeight; ++h) {
        store(sums + m * sums_row + (kSize * t + first + h) * kLanes, acc[m][t][h]);
      }
    }
  }
}

// Of all rows of the kernel.
template <typename T, int kSize, int kRows>
void weigh_square(const DepthwisePlan& p, const T* x, const T* y, const T* zeros, int64_t begin, int64_t end, bool asks,
                  typename SumOf<T>::type* sums) {
  weigh_lines<T, kSize, 3, kRows>(p, x, y, zeros, begin, end, 0, asks, sums);
  if constexpr (kSize > 3) {
    for (int first = 3; first < kSize; first += 2) {
      weigh_lines<T, kSize, 2, kRows>(p, x, y, zeros, begin, end, first, false, sums);
    }
  }
}

template <typename T>
using Weigh = void (*)(const DepthwisePlan&, const T*, const T*, const T*, int64_t, int64_t, bool,
                       typename SumOf<T>::type*);

// Rows of weights that are weighed at once.
inline int64_t weighed_rows(const DepthwisePlan& p) {
  return p.taps == kTaps3 && p.in_step[1] == 1 && p.rows % 2 == 0 ? 2 : 1;
}

template <typename T>
Weigh<T> weigh_for(const DepthwisePlan& p) {
  constexpr Weigh<T> all[2][3] = {{weigh3<T, 1, 0>, weigh3<T, 1, 1>, weigh3<T, 1, 2>},
                                  {weigh3<T, 2, 0>, weigh3<T, 2, 1>, weigh3<T, 2, 2>}};
  if (p.taps == 25) return weigh_square<T, 5, 1>;
  if (p.taps == 49) return weigh_square<T, 7, 1>;
  if (weighed_rows(p) == 2) return weigh_square<T, 3, 2>;
  return all[p.in_step[1] - 1][-p.low[1]];
}

// As depthwise_sum.
template <typename T>
void depthwise_in_place_sum(const DepthwisePlan& p, const void* x_data, const void* y_data, void* sums_data,
                            char* scratch, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const int64_t block = weighed_rows(p);
  const Weigh<T> weigh = weigh_for<T>(p);
  T* zeros = reinterpret_cast<T*>(scratch);
  Sum* lanes = reinterpret_cast<Sum*>(scratch + p.at_weights);
  __builtin_memset(scratch, 0, p.at_weights);
  const int64_t pairs = p.rows * p.channels;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task / p.groups, group = task % p.groups;
    clear(lanes, pairs * p.taps * kLanes);
    const int64_t last = block_begin(part + 1, p.batch * p.boxes[0], p.parts);
    for (int64_t i = block_begin(part, p.batch * p.boxes[0], p.parts); i < last; ++i) {
      const int64_t image = i / p.boxes[0], first = i % p.boxes[0] * p.box[0];
      for (int64_t m = 0; m < p.rows; m += block) {
        for (int64_t c = 0; c < p.channels; ++c) {
          weigh(p, static_cast<const T*>(x_data) + image * p.in_batch + (group * p.channels + c) * p.in_channel,
                static_cast<const T*>(y_data) + image * p.out_batch + (group * p.rows + m) * p.out_channel, zeros,
                first, least(p.grid[0], first + p.box[0]), m == 0 || c == 0,
                lanes + (m * p.channels + c) * p.taps * kLanes);
        }
      }
    }
    add_lanes(lanes, pairs * p.taps, static_cast<Sum*>(sums_data) + task * pairs * p.taps);
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
