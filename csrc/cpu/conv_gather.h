// The gather: pack the weights, pack a tile of the input, multiply in registers, store.
// Every sum is taken by one thread in one order, whatever the number of threads.
#pragma once

#include "conv_plan.h"
#include "conv_tile.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Blocks of rows as equal as they can be: 10 = 5 + 5 rather than 8 + 2.
constexpr int kRowBlock = CONVARITH_REGISTERS >= 32 ? 8 : 4;
constexpr int kVectors = 3;      // of a panel
constexpr int kWideVectors = 6;  // of a sweep with few rows
constexpr int kWideRows = CONVARITH_REGISTERS >= 32 ? 4 : 2;

// Weights as the microkernel reads them: [group][channel block][row block][channel, tap][row of the block].
int64_t pack_tasks(const GatherPlan& p) {
  return p.groups * block_count(p.rows, kRowBlock);
}

template <typename T>
void pack(const GatherPlan& p, const void* from, void* to, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  const T* w = static_cast<const T*>(from);
  Sum* packed = static_cast<Sum*>(to) + p.packed;
  const int64_t blocks = block_count(p.rows, kRowBlock);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / blocks, first = block_begin(task % blocks, p.rows, blocks);
    const int64_t rows = block_begin(task % blocks + 1, p.rows, blocks) - first;
    for (int64_t c0 = 0; c0 < p.channels; c0 += p.channel_block) {
      const int64_t channels = least(p.channel_block, p.channels - c0), depth = channels * p.taps;
      Sum* out = packed + (g * p.channels + c0) * p.taps * p.rows + first * depth;
      const T* in = w + g * p.w_group + first * p.w_row + c0 * p.w_channel;
      bool dense = true;
      for (int64_t t = 0; t < p.taps; ++t) dense = dense && p.tap_weight[t] == t;
      if (dense) {
        const bool whole = p.w_channel == p.taps;
        for (int64_t c = 0; c < (whole ? 1 : channels); ++c) {
          transpose(in + c * p.w_channel, p.w_row, rows, whole ? depth : p.taps, out + c * p.taps * rows, rows);
        }
        continue;
      }
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t t = 0; t < p.taps; ++t, out += rows) {
          const T* entry = in + c * p.w_channel + p.tap_weight[t];
          for (int64_t r = 0; r < rows; ++r) out[r] = widen(entry[r * p.w_row]);
        }
      }
    }
  }
}

// Columns [column, column + width) of the box for all offsets: what the microkernel reads, without gaps.
template <typename Sum>
void pack_panel(const Run* run, int64_t column, int64_t width, const int32_t* offset, int64_t depth, const Sum* tile,
                const Sum* tile_end, Sum* panel) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  constexpr int kPitch = kVectors * kLanes;
  while (run->column + run->length <= column) ++run;
  struct Piece {
    const Sum* from;
    int64_t to, length;
  } pieces[kPitch];
  int64_t count = 0;
  for (int64_t done = 0; done < width; ++run, ++count) {
    const int64_t skip = column + done - run->column;
    const int64_t length = least(run->length - skip, width - done);
    pieces[count] = {tile + run->source + skip, done, length};
    done += length;
  }
  if (count == 1 && pieces[0].length == kPitch) {
    for (int64_t k = 0; k < depth; ++k, panel += kPitch) {
      const Sum* from = pieces[0].from + offset[k];
      CONVARITH_UNROLL for (int j = 0; j < kVectors; ++j) store(panel + j * kLanes, load(from + j * kLanes));
    }
    return;
  }
  for (int64_t k = 0; k < depth; ++k, panel += kPitch) {
    for (int64_t i = 0; i < count; ++i) {
      const Sum* from = pieces[i].from + offset[k];
      Sum* to = panel + pieces[i].to;
      const int64_t length = pieces[i].length;
      // What a whole vector writes past a piece is written again by the next piece, row or panel.
      if (from + (length + kLanes - 1) / kLanes * kLanes <= tile_end) {
        for (int64_t x = 0; x < length; x += kLanes) store(to + x, load(from + x));
      } else {
        for (int64_t x = 0; x < length; ++x) to[x] = from[x];
      }
    }
  }
}

// Multiplying --------------------------------------------------------------------------------------------------------

// sums[r][x] (+)= sum over k of w[k][r] * b[k][x], r < kRows, x < kVecs vectors. With kPanel, b's rows follow each
// other; otherwise they stand at `offset`.
template <typename T, int kRows, int kVecs, bool kPanel>
void multiply(int64_t depth, const T* w, const T* b, const int32_t* offset, T* sums, int64_t pitch, bool add) {
  typedef typename Simd<T>::Vec V;
  constexpr int kLanes = Simd<T>::kLanes;
  V acc[kRows][kVecs];
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) acc[r][j] = V{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    const T* row = kPanel ? b + k * (kVectors * kLanes) : b + offset[k];
    if constexpr (kVecs <= 3) {
      V x[kVecs];
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) x[j] = load(row + j * kLanes);
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
        const V v = w[r] - V{};
        CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) acc[r][j] += v * x[j];
      }
    } else {
      V v[kRows];
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) v[r] = w[r] - V{};
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
        const V x = load(row + j * kLanes);
        CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) acc[r][j] += v[r] * x;
      }
    }
    w += kRows;
  }
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
      T* out = sums + r * pitch + j * kLanes;
      store(out, add ? load(out) + acc[r][j] : acc[r][j]);
    }
  }
}

template <typename T>
using Multiply = void (*)(int64_t, const T*, const T*, const int32_t*, T*, int64_t, bool);

// The microkernel for a block of rows and a sweep of vectors.
template <typename T, bool kPanel, int kRows>
Multiply<T> multiply_vectors(int64_t vectors) {
  switch (vectors) {
    case 1:
      return multiply<T, kRows, 1, kPanel>;
    case 2:
      return multiply<T, kRows, 2, kPanel>;
    case 3:
      return multiply<T, kRows, 3, kPanel>;
    default:
      if constexpr (kRows <= kWideRows && !kPanel) return multiply<T, kRows, kWideVectors, kPanel>;
      __builtin_unreachable();
  }
}

template <typename T, bool kPanel>
Multiply<T> multiply_for(int64_t rows, int64_t vectors) {
  switch (rows) {
    case 1:
      return multiply_vectors<T, kPanel, 1>(vectors);
    case 2:
      return multiply_vectors<T, kPanel, 2>(vectors);
    case 3:
      return multiply_vectors<T, kPanel, 3>(vectors);
    case 4:
      return multiply_vectors<T, kPanel, 4>(vectors);
#if CONVARITH_REGISTERS >= 32
    case 5:
      return multiply_vectors<T, kPanel, 5>(vectors);
    case 6:
      return multiply_vectors<T, kPanel, 6>(vectors);
    case 7:
      return multiply_vectors<T, kPanel, 7>(vectors);
    case 8:
      return multiply_vectors<T, kPanel, 8>(vectors);
#endif
    default:
      __builtin_unreachable();
  }
}

// Storing ------------------------------------------------------------------------------------------------------------

template <typename T, typename Sum>
void store_runs(const Run* runs, int64_t count, const Sum* sums, int64_t step, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    const Sum* from = sums + runs[i].column;
    T* to = out + runs[i].out;
    if (step == 1) {
      for (int64_t x = 0; x < runs[i].length; ++x) narrow(from[x], to[x]);
    } else {
      for (int64_t x = 0; x < runs[i].length; ++x) narrow(from[x], to[x * step]);
    }
  }
}

// A gather's task: one box, one group, one share of the rows.
template <typename T>
void gather_box(const GatherPlan& p, int64_t task, const T* in, int64_t in_count, const typename SumOf<T>::type* packed,
                T* out, char* scratch) {
  typedef typename SumOf<T>::type Sum;
  constexpr int kLanes = Simd<Sum>::kLanes;
  Sum* panel = reinterpret_cast<Sum*>(scratch + p.at_panel);
  Sum* sums = reinterpret_cast<Sum*>(scratch + p.at_sums);
  Run* runs = reinterpret_cast<Run*>(scratch + p.at_runs);

  const int64_t share = task % p.row_split, g = task / p.row_split % p.groups;
  const Box b = box_at(p, task / p.row_split / p.groups);
  const int64_t blocks = block_count(p.rows, kRowBlock);
  const int64_t block_first = block_begin(share, blocks, p.row_split);
  const int64_t block_last = block_begin(share + 1, blocks, p.row_split);
  const int64_t first_row = block_begin(block_first, p.rows, blocks);
  const int64_t last_row = block_begin(block_last, p.rows, blocks);

  const int64_t count = list_runs(p, b, runs);
  const int64_t columns = runs[count - 1].column + runs[count - 1].length;
  const int64_t widest = p.panel || (p.rows + blocks - 1) / blocks > kWideRows ? kVectors : kWideVectors;

  for (int64_t c0 = 0; c0 < p.channels; c0 += p.channel_block) {
    const int64_t channels = least(p.channel_block, p.channels - c0), depth = channels * p.taps;
    const Sum* tile;
    const Sum* tile_end;
    if (p.raw) {
      tile = reinterpret_cast<const Sum*>(in) + (g * p.channels + c0) * p.in_channel;
      tile_end = reinterpret_cast<const Sum*>(in) + in_count;
    } else {
      Sum* cells = reinterpret_cast<Sum*>(scratch + p.at_tile);
      pad_tile(p, b, in, g, c0, channels, cells);
      tile = cells;
      tile_end = cells + p.channel_block * p.tile_channel + kWideVectors * kLanes;
    }
    const Sum* weights = packed + p.packed + (g * p.channels + c0) * p.taps * p.rows;
    for (int64_t column = 0; column < columns;) {
      int64_t vectors = block_count(columns - column, kLanes);
      vectors = vectors >= widest ? widest : least<int64_t>(vectors, kVectors);
      if (p.panel) {
        pack_panel(runs, column, least(columns - column, vectors * kLanes), p.offset, depth, tile, tile_end, panel);
      }
      for (int64_t block = block_first; block < block_last; ++block) {
        const int64_t row = block_begin(block, p.rows, blocks), rows = block_begin(block + 1, p.rows, blocks) - row;
        Sum* to = sums + (row - first_row) * p.columns + column;
        if (p.panel) {
          multiply_for<Sum, true>(rows, vectors)(depth, weights + row * depth, panel, nullptr, to, p.columns, c0 > 0);
        } else {
          multiply_for<Sum, false>(rows, vectors)(depth, weights + row * depth, tile + column, p.offset, to, p.columns,
                                                  c0 > 0);
        }
      }
      column += vectors * kLanes;
    }
  }
  for (int64_t row = first_row; row < last_row; ++row) {
    store_runs(runs, count, sums + (row - first_row) * p.columns, p.out_axis[2],
               out + g * p.out_group + row * p.out_channel);
  }
}

inline int64_t gather_tasks(const GatherPlan& p) {
  return p.boxes[0] * p.boxes[1] * p.boxes[2] * p.boxes[3] * p.groups * p.row_split;
}

// Tasks of several plans, one of each in turn: the phases of a transposed convolution write neighbouring elements.
template <typename T>
void gather(const GatherPlan* plans, int64_t count, const void* in, int64_t in_count, const void* packed, void* out,
            char* scratch, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  for (int64_t task = begin; task < end; ++task) {
    const GatherPlan& p = plans[task % count];
    if (task / count >= gather_tasks(p)) continue;
    gather_box<T>(p, task / count, static_cast<const T*>(in), in_count, static_cast<const Sum*>(packed),
                  static_cast<T*>(out), scratch);
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
