// The weight's gradient: rows are (channel, tap), columns are out channels, and what is summed over are the outputs.
#pragma once

#include "conv_gather.h"
#include "conv_plan.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

constexpr int kDotRows = CONVARITH_REGISTERS >= 32 ? 14 : 9;

// y of one box and group, transposed: [column block][output][column of the block].
template <typename T>
void weight_pack(const WeightPlan& plan, const void* from, void* to, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  const GatherPlan& p = plan.gather;
  const T* y = static_cast<const T*>(from);
  const int64_t columns = plan.columns, block = plan.column_block;
  constexpr int kAtOnce = Simd<Sum>::kLanes;  // divides a column block
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task % p.groups;
    const Box b = box_at(p, plan.box_begin + task / p.groups);
    const int64_t pixels = box_pixels(b);
    Sum* panels = static_cast<Sum*>(to) + task * plan.box_pixels * columns;
    for (int64_t column0 = 0; column0 < columns; column0 += kAtOnce) {
      int64_t pixel = 0;
      const int64_t wide = least<int64_t>(kAtOnce, columns - column0);
      for (int64_t n = 0; n < b.size[0]; ++n) {
        for (int64_t z = 0; z < b.size[1]; ++z) {
          for (int64_t row = 0; row < b.size[2]; ++row) {
            const T* run = y + p.out_offset + (b.first[0] + n) * p.out_batch + (b.first[1] + z) * p.out_axis[0] +
                           (b.first[2] + row) * p.out_axis[1] + b.first[3] * p.out_axis[2] + g * p.out_group;
            for (int64_t x0 = 0; x0 < b.size[3]; x0 += kAtOnce) {
              const int64_t length = least<int64_t>(kAtOnce, b.size[3] - x0);
              Sum* panel = panels + column0 / block * block * pixels + pixel * block + column0 % block;
              const int64_t real = most<int64_t>(0, least(wide, p.rows - column0));
              const T* in = run + column0 * p.out_channel + x0 * p.out_axis[2];
              if (p.out_axis[2] == 1) {
                transpose(in, p.out_channel, real, length, panel, block);
              } else {
                for (int64_t i = 0; i < real; ++i) {
                  for (int64_t x = 0; x < length; ++x) {
                    panel[x * block + i] = widen(in[i * p.out_channel + x * p.out_axis[2]]);
                  }
                }
              }
              for (int64_t i = real; i < wide; ++i) {
                for (int64_t x = 0; x < length; ++x) panel[x * block + i] = 0;
              }
              pixel += length;
            }
          }
        }
      }
    }
  }
}

// sums[r][k] += sum over the runs' outputs q of tile[offset[r] + q] * panel[q][k].
template <typename T, int kRows, int kVecs>
void multiply_outer(const Run* runs, int64_t count, const T* tile, const int32_t* offset, const T* panel, T* sums,
                    int64_t pitch) {
  typedef typename Simd<T>::Vec V;
  constexpr int kLanes = Simd<T>::kLanes;
  V acc[kRows][kVecs];
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) acc[r][j] = V{};
  }
  for (int64_t i = 0; i < count; ++i) {
    const T* x[kRows];
    CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) x[r] = tile + runs[i].source + offset[r];
    const int64_t length = runs[i].length;
    for (int64_t q = 0; q < length; ++q, panel += kVecs * kLanes) {
      V y[kVecs];
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) y[j] = load(panel + j * kLanes);
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
        const V v = x[r][q] - V{};
        CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) acc[r][j] += v * y[j];
      }
    }
  }
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
      T* out = sums + r * pitch + j * kLanes;
      store(out, load(out) + acc[r][j]);
    }
  }
}

template <typename T>
using MultiplyOuter = void (*)(const Run*, int64_t, const T*, const int32_t*, const T*, T*, int64_t);

template <typename T, int kRows>
MultiplyOuter<T> outer_vectors(int64_t vectors) {
  switch (vectors) {
    case 1:
      return multiply_outer<T, kRows, 1>;
    case 2:
      return multiply_outer<T, kRows, 2>;
    default:
      return multiply_outer<T, kRows, 3>;
  }
}

template <typename T>
MultiplyOuter<T> outer_for(int64_t rows, int64_t vectors) {
  switch (rows) {
    case 1:
      return outer_vectors<T, 1>(vectors);
    case 2:
      return outer_vectors<T, 2>(vectors);
    case 3:
      return outer_vectors<T, 3>(vectors);
    case 4:
      return outer_vectors<T, 4>(vectors);
#if CONVARITH_REGISTERS >= 32
    case 5:
      return outer_vectors<T, 5>(vectors);
    case 6:
      return outer_vectors<T, 6>(vectors);
    case 7:
      return outer_vectors<T, 7>(vectors);
    case 8:
      return outer_vectors<T, 8>(vectors);
#endif
    default:
      __builtin_unreachable();
  }
}

// sums[r * pitch] += sum over the runs' outputs q of tile[offset[r] + q] * y[q], lanes along q. y's runs begin at whole
// vectors and end in zeros; what the tile holds beside them may be an infinity, so it is masked.
template <typename T, int kRows>
void multiply_dot(const Run* runs, int64_t count, const T* tile, const int32_t* offset, const T* y, T* sums,
                  int64_t pitch) {
  typedef typename Simd<T>::Vec V;
  constexpr int kLanes = Simd<T>::kLanes;
  typedef decltype(V{} < V{}) Mask;
  V acc[kRows];
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) acc[r] = V{};
  const int64_t rest = runs[0].length % kLanes;  // the runs of a box are equally long
  Mask mask;
  for (int j = 0; j < kLanes; ++j) mask[j] = j < rest ? -1 : 0;
  for (int64_t i = 0; i < count; ++i) {
    const T* x = tile + runs[i].source;
    int64_t q = 0;
    for (; q + kLanes <= runs[i].length; q += kLanes, y += kLanes) {
      const V v = load(y);
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) acc[r] += v * load(x + offset[r] + q);
    }
    if (rest == 0) continue;
    const V v = load(y);
    y += kLanes;
    CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
      acc[r] += v * reinterpret_cast<V>(reinterpret_cast<Mask>(load(x + offset[r] + q)) & mask);
    }
  }
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    T sum = 0;
    for (int j = 0; j < kLanes; ++j) sum += acc[r][j];
    sums[r * pitch] += sum;
  }
}

template <typename T>
using MultiplyDot = void (*)(const Run*, int64_t, const T*, const int32_t*, const T*, T*, int64_t);

template <typename T, int kRows = kDotRows>
MultiplyDot<T> dot_for(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return dot_for<T, kRows - 1>(rows);
  }
  return multiply_dot<T, kRows>;
}

// A task: one group, one share of its rows, all boxes of the pass in turn.
template <typename T>
void weight_sum(const WeightPlan& plan, const void* x_data, const void* y_data, const void* panels_data,
                void* sums_data, char* scratch, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const GatherPlan& p = plan.gather;
  const T* x = static_cast<const T*>(x_data);
  const T* y = static_cast<const T*>(y_data);
  Run* runs = reinterpret_cast<Run*>(scratch + p.at_runs);
  Sum* lines = reinterpret_cast<Sum*>(scratch + p.at_panel);  // y of a box, for dots
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / plan.row_tasks, share = task % plan.row_tasks;
    const int64_t first = plan.first_row + block_begin(share, plan.row_count, plan.row_tasks);
    const int64_t last = plan.first_row + block_begin(share + 1, plan.row_count, plan.row_tasks);
    for (int64_t box = plan.box_begin; box < plan.box_end; ++box) {
      const Box b = box_at(p, box);
      const int64_t count = list_runs(p, b, runs), pixels = box_pixels(b);
      const Sum* panels = static_cast<const Sum*>(panels_data) +
                          ((box - plan.box_begin) * p.groups + g) * plan.box_pixels * plan.columns;
      const int64_t line = block_count(b.size[3], kLanes) * kLanes;
      if (plan.dot) {
        for (int64_t m = 0; m < p.rows; ++m) {
          for (int64_t i = 0; i < count; ++i) {
            Sum* to = lines + (m * count + i) * line;
            copy_run(y + g * p.out_group + m * p.out_channel + runs[i].out, p.out_axis[2], b.size[3], to);
            for (int64_t q = b.size[3]; q < line; ++q) to[q] = 0;
          }
        }
      }
      for (int64_t c0 = first / p.taps; c0 * p.taps < last; c0 += p.channel_block) {
        const int64_t channels = least(p.channel_block, (last + p.taps - 1) / p.taps - c0);
        const Sum* tile;
        if (p.raw) {
          tile = reinterpret_cast<const Sum*>(x) + (g * p.channels + c0) * p.in_channel;
        } else {
          Sum* cells = reinterpret_cast<Sum*>(scratch + p.at_tile);
          pad_tile(p, b, x, g, c0, channels, cells);
          tile = cells;
        }
        const int64_t row_begin = most(first, c0 * p.taps), row_end = least(last, (c0 + channels) * p.taps);
        const int32_t* offset = p.offset + (row_begin - c0 * p.taps);
        Sum* sums = static_cast<Sum*>(sums_data) + (g * plan.row_count + row_begin - plan.first_row) * plan.columns;
        if (plan.dot) {
          const int64_t blocks = block_count(row_end - row_begin, kDotRows);
          for (int64_t block = 0; block < blocks; ++block) {
            const int64_t row = block_begin(block, row_end - row_begin, blocks);
            const int64_t rows = block_begin(block + 1, row_end - row_begin, blocks) - row;
            for (int64_t m = 0; m < p.rows; ++m) {
              dot_for<Sum>(rows)(runs, count, tile, offset + row, lines + m * count * line,
                                 sums + row * plan.columns + m, plan.columns);
            }
          }
          continue;
        }
        const int64_t blocks = block_count(row_end - row_begin, kRowBlock);
        for (int64_t column = 0; column < plan.columns; column += plan.column_block) {
          for (int64_t block = 0; block < blocks; ++block) {
            const int64_t row = block_begin(block, row_end - row_begin, blocks);
            const int64_t rows = block_begin(block + 1, row_end - row_begin, blocks) - row;
            outer_for<Sum>(rows, plan.column_block / kLanes)(runs, count, tile, offset + row, panels + column * pixels,
                                                             sums + row * plan.columns + column, plan.columns);
          }
        }
      }
    }
  }
}

// The sums of a pass to where w has them; a task is some rows of w, (group, out channels).
constexpr int kStoreRows = 16;

int64_t weight_store_tasks(const WeightPlan& plan) {
  return plan.gather.groups * block_count(plan.gather.rows, kStoreRows);
}

template <typename T>
void weight_store(const WeightPlan& plan, const void* sums_data, void* w_data, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  const GatherPlan& p = plan.gather;
  const int64_t blocks = block_count(p.rows, kStoreRows);
  bool dense = p.w_channel == p.taps && sizeof(T) == sizeof(Sum);
  for (int64_t t = 0; t < p.taps; ++t) dense = dense && p.tap_weight[t] == t;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / blocks, first = task % blocks * kStoreRows,
                  rows = least<int64_t>(kStoreRows, p.rows - first);
    const Sum* sums = static_cast<const Sum*>(sums_data) + g * plan.row_count * plan.columns + first;
    T* w = static_cast<T*>(w_data) + g * p.w_group + first * p.w_row;
    if constexpr (sizeof(T) == sizeof(Sum)) {
      if (dense) {
        transpose(sums, plan.columns, plan.row_count, rows, w + plan.first_row, p.w_row);
        continue;
      }
    }
    for (int64_t r = 0; r < plan.row_count; ++r) {
      const int64_t row = plan.first_row + r, at = row / p.taps * p.w_channel + p.tap_weight[row % p.taps];
      for (int64_t m = 0; m < rows; ++m) narrow(sums[r * plan.columns + m], w[m * p.w_row + at]);
    }
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
