// The gather: pack the weights, pack a tile of the input, multiply in registers, store.
// Every sum is taken by one thread in one order, whatever the number of threads.
#pragma once

#include "conv_outer.h"
#include "conv_plan.h"
#include "conv_tile.h"
#include "simd_lanes.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Blocks of rows as equal as they can be: 10 = 5 + 5 rather than 8 + 2.
constexpr int kRowBlock = CONVARITH_REGISTERS >= 32 ? 8 : 6;

// Vectors of a sweep with so many rows: their sums fill the registers.
constexpr int most_vectors(int64_t rows) {
  if (rows <= 1 && CONVARITH_REGISTERS >= 32) return 16;
  if (rows <= (CONVARITH_REGISTERS >= 32 ? 4 : 2)) return 6;
  return CONVARITH_REGISTERS >= 32 || rows <= 4 ? 3 : 2;
}
constexpr int kVectors = most_vectors(kRowBlock);

// Packing the weights
// --------------------------------------------------------------------------------------------------

// Rows of weights that are packed and multiplied together: kRowBlock at most, or kOuterVectors vectors whose last lanes
// may be zeros.
struct RowBlock {
  int64_t first, real, width;  // width: with the zeros
};

template <typename Sum>
inline int64_t padded_rows(const GatherPlan& p) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  return p.outer ? block_count(p.rows, kLanes) * kLanes : p.rows;
}

template <typename Sum>
inline int64_t row_blocks(const GatherPlan& p) {
  return block_count(padded_rows<Sum>(p), p.outer ? kOuterVectors * Simd<Sum>::kLanes : kRowBlock);
}

template <typename Sum>
inline RowBlock row_block_at(const GatherPlan& p, int64_t index) {
  const int64_t unit = p.outer ? Simd<Sum>::kLanes : 1;
  const int64_t units = padded_rows<Sum>(p) / unit, blocks = row_blocks<Sum>(p);
  const int64_t first = block_begin(index, units, blocks), last = block_begin(index + 1, units, blocks);
  return {first * unit, least(last * unit, p.rows) - first * unit, (last - first) * unit};
}

// Packed weights: [group][row block][channel, tap][row of the block]. All plans of a call have the same row blocks.
template <typename T>
int64_t pack_tasks(const GatherPlan& p) {
  return p.groups * row_blocks<typename SumOf<T>::type>(p);
}

template <typename Sum>
inline int64_t packed_at(const GatherPlan& p, int64_t group, const RowBlock& b, int64_t channel) {
  return p.packed + ((group * padded_rows<Sum>(p) + b.first) * p.channels + channel * b.width) * p.taps;
}

inline bool merges_phases(const GatherPlan& p) {
  return p.phases[2] > 1;
}

// Rows of a block of merged phases that follow each other in memory: of the result, or also of the weights.
struct RowRun {
  int64_t first, count;  // of the block's rows
  int64_t at;            // from row 0 of the group
};

inline int64_t row_runs(const GatherPlan& p, const RowBlock& b, bool weights, RowRun* runs) {
  const int64_t* apart = weights ? p.w_phase : p.out_phase;
  int64_t count = 0;
  for (int64_t row = 0; row < b.real;) {
    const int64_t x = (b.first + row) % p.phases[2], line = (b.first + row) / p.phases[2];
    const int64_t y = line % p.phases[1], plane = line / p.phases[1], z = plane % p.phases[0];
    const int64_t at =
        plane / p.phases[0] * (weights ? p.w_row : p.out_channel) + z * apart[0] + y * apart[1] + x * apart[2];
    const int64_t some = least(p.phases[2] - x, b.real - row);
    if (weights && apart[2] == 1 && count > 0 && runs[count - 1].at + runs[count - 1].count == at) {
      runs[count - 1].count += some;
    } else {
      runs[count++] = {row, some, at};
    }
    row += some;
  }
  return count;
}

constexpr int64_t kMostReach = 1024;  // of weights that are asked for at once
constexpr int64_t kWeightsAhead = 8;  // channels: their weights stand in other pages, and are asked for before

template <int kSize, typename From, typename Factor>
inline void widen_few(From from, Factor* to) {
  Factor v[kSize];
  CONVARITH_UNROLL for (int i = 0; i < kSize; ++i) v[i] = widen(from[i]);
  __builtin_memcpy(to, v, sizeof(v));
}

// The weights of some rows and channels: to[channel, tap][row].
template <typename From, typename Factor>
void pack_block(const GatherPlan& p, From w, const RowBlock& b, int64_t channels, Factor* to) {
  if (p.taps == 0) return;
  bool consecutive = true;
  for (int64_t t = 0; t < p.taps; ++t) consecutive = consecutive && p.tap_weight[t] == p.tap_weight[0] + t;
  if (p.w_channel == 1) {
    for (int64_t t = 0; t < p.taps; ++t) {
      transpose(w + p.tap_weight[t], p.w_row, b.real, channels, to + t * b.width, p.taps * b.width);
    }
  } else if (consecutive && p.w_channel == p.taps) {
    transpose(w + p.tap_weight[0], p.w_row, b.real, channels * p.taps, to, b.width);
  } else if (consecutive && p.taps > 1 && p.w_row != 1) {
    for (int64_t c = 0; c < channels; ++c, to += p.taps * b.width) {
      transpose(w + (c * p.w_channel + p.tap_weight[0]), p.w_row, b.real, p.taps, to, b.width);
    }
  } else {
    for (int64_t c = 0; c < channels; ++c, w = w + p.w_channel) {
      if (p.w_row == 1 && c + kWeightsAhead < channels) {
        prefetch(w + (kWeightsAhead * p.w_channel + p.tap_weight[0]), b.real);
      }
      for (int64_t t = 0; t < p.taps; ++t, to += b.width) copy_run(w + p.tap_weight[t], p.w_row, b.real, to);
    }
  }
}

constexpr int64_t kMostKernel = 64;

// The taps between neighbouring rows, where they stand in memory as [row][tap] with those of all plans among them;
// otherwise 0. The last one is read, so that what stands before it may be, too: weights may be a part of a tensor.
inline int64_t kernel_between_rows(const GatherPlan* plans, int64_t count) {
  const int64_t kernel = plans[0].w_row;
  if (kernel < 2 || kernel > kMostKernel) return 0;
  // Channels among the taps: those of the last channel end past the tensor.
  if (plans[0].channels > 1 && plans[0].w_channel < kernel) return 0;
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t t = 0; t < plans[i].taps; ++t) last = most(last, plans[i].tap_weight[t]);
  }
  return last + 1 == kernel ? kernel : 0;
}

// Channel c of the weights at w; of pairs, with the second member's where there is one.
template <typename T>
auto weights_of_channel(const GatherPlan& p, const T* w, int64_t c) {
  const T* first = w + c * p.w_channel;
  const bool alone = p.pair_alone && c + 1 == p.channels;
  return FactorOf<T>::at(first, alone ? nullptr : first + (p.in_words ? p.w_channel / 2 : p.pair_apart * p.w_channel));
}

// The weights of some rows, which begin at w: every plan's own taps, one plan after the other.
template <typename T, typename Factor>
void pack_by_plan(const GatherPlan* plans, int64_t count, const T* w, int64_t group, const RowBlock& b,
                  Factor* packed) {
  for (int64_t i = 0; i < count; ++i) {
    const GatherPlan& p = plans[i];
    const int64_t whole = p.channels - (p.pair_alone ? 1 : 0);  // with a second member
    Factor* block = packed + packed_at<typename SumOf<T>::type>(p, group, b, 0);
    pack_block(p, weights_of_channel(p, w, 0), b, whole, block);
    if (whole < p.channels) pack_block(p, weights_of_channel(p, w, whole), b, 1, block + whole * p.taps * b.width);
  }
}

// The same where kernel_between_rows() is not 0: all taps of a channel, each to the plan that it belongs to, so that
// every weight is read once.
template <typename T, typename Factor>
void pack_by_channel(const GatherPlan* plans, int64_t count, int64_t kernel, const T* w, int64_t group,
                     const RowBlock& b, Factor* packed) {
  const GatherPlan& any = plans[0];
  Factor* tap_to[kMostKernel] = {};
  int64_t pitch[kMostKernel] = {};
  for (int64_t i = 0; i < count; ++i) {
    const GatherPlan& p = plans[i];
    Factor* block = packed + packed_at<typename SumOf<T>::type>(p, group, b, 0);
    for (int64_t t = 0; t < p.taps; ++t) {
      tap_to[p.tap_weight[t]] = block + t * b.width;
      pitch[p.tap_weight[t]] = p.taps * b.width;
    }
  }
  for (int64_t c = 0; c < any.channels; ++c) {
    if (c + kWeightsAhead < any.channels) prefetch(w + (c + kWeightsAhead) * any.w_channel, b.real * kernel);
    split_columns(weights_of_channel(any, w, c), b.real, kernel, tap_to);
    for (int64_t t = 0; t < kernel; ++t) tap_to[t] += pitch[t];
  }
}

// The same of merged phases, w being that of row 0: all plans together, which have the same rows.
template <typename T, typename Factor>
void pack_phases(const GatherPlan* plans, int64_t count, const T* w, int64_t group, const RowBlock& b, Factor* packed) {
  const GatherPlan& any = plans[0];
  RowRun runs[kOuterVectors * Simd<Factor>::kLanes];
  const int64_t run_count = row_runs(any, b, true, runs), step = any.w_phase[2];
  const int64_t reach = least(runs[run_count - 1].at - runs[0].at + any.w_row, kMostReach);
  for (int64_t c = 0; c < any.channels; ++c) {
    if (c + kWeightsAhead < any.channels) prefetch_ahead(w, (c + kWeightsAhead) * any.w_channel + runs[0].at, reach);
    const auto channel = weights_of_channel(any, w, c);
    for (int64_t i = 0; i < count; ++i) {
      Factor* to = packed + packed_at<typename SumOf<T>::type>(plans[i], group, b, c);
      for (int64_t t = 0; t < plans[i].taps; ++t, to += b.width) {
        const auto from = channel + plans[i].tap_weight[t];
        for (int64_t j = 0; j < run_count; ++j) {
          const RowRun& run = runs[j];
          if (step == 1 && run.count == 2) {
            widen_few<2>(from + run.at, to + run.first);
          } else if (step == 1 && run.count == 4) {
            widen_few<4>(from + run.at, to + run.first);
          } else if (step == 1 && run.count == 8) {
            widen_few<8>(from + run.at, to + run.first);
          } else {
            copy_run(from + run.at, step, run.count, to + run.first);
          }
        }
      }
    }
  }
}

template <typename T, typename Factor>
void pack_blocks(const GatherPlan* plans, int64_t count, const T* from, Factor* packed, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  const GatherPlan& any = plans[0];
  const int64_t blocks = row_blocks<Sum>(any), kernel = kernel_between_rows(plans, count);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / blocks;
    const RowBlock b = row_block_at<Sum>(any, task % blocks);
    const T* w = from + g * any.w_group + (merges_phases(any) ? 0 : b.first * any.w_row);
    for (int64_t i = 0; i < count && b.real < b.width; ++i) {
      fill_zero(packed + packed_at<Sum>(plans[i], g, b, 0), plans[i].channels * plans[i].taps * b.width);
    }
    if (merges_phases(any)) {
      pack_phases(plans, count, w, g, b, packed);
    } else if (kernel == 0) {
      pack_by_plan(plans, count, w, g, b, packed);
    } else {
      pack_by_channel(plans, count, kernel, w, g, b, packed);
    }
  }
}

template <typename T>
void pack(const GatherPlan* plans, int64_t count, const void* from, void* to, int64_t begin, int64_t end) {
  auto* packed = static_cast<typename FactorOf<T>::type*>(to);
#if CONVARITH_BF16
  if (plans[0].w_words) return pack_blocks(plans, count, static_cast<const Word*>(from), packed, begin, end);
#endif
  pack_blocks(plans, count, static_cast<const T*>(from), packed, begin, end);
}

// Multiplying --------------------------------------------------------------------------------------------------------

// sums[r][x] = sum over k of w[k][r] * b[k][x], r < kRows, x < kVecs vectors, added to what stands there already or to
// bias[r], which may be null; b's rows stand at `offset`.
template <typename T, int kRows, int kVecs>
void multiply(int64_t depth, const T* w, const T* b, const int32_t* offset, typename SumOf<T>::type* sums,
              int64_t pitch, bool add, const typename SumOf<T>::type* bias) {
  typedef typename Simd<T>::Vec V;
  typedef typename Simd<typename SumOf<T>::type>::Vec Sums;
  constexpr int kLanes = Simd<T>::kLanes;
  Sums acc[kRows][kVecs];
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) acc[r][j] = Sums{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    const T* row = b + offset[k];
    if constexpr (kVecs <= 3) {
      V x[kVecs];
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) x[j] = load(row + j * kLanes);
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
        const V v = w[r] - V{};
        CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) acc[r][j] = multiply_add(acc[r][j], v, x[j]);
      }
    } else {
      V v[kRows];
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) v[r] = w[r] - V{};
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
        V x = load(row + j * kLanes);
        keep(x);
        CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) acc[r][j] = multiply_add(acc[r][j], v[r], x);
      }
    }
    w += kRows;
  }
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
      auto* out = sums + r * pitch + j * kLanes;
      store(out, add ? load(out) + acc[r][j] : bias ? bias[r] + acc[r][j] : acc[r][j]);
    }
  }
}

template <typename T>
using Multiply = void (*)(int64_t, const T*, const T*, const int32_t*, typename SumOf<T>::type*, int64_t, bool,
                          const typename SumOf<T>::type*);

// The microkernel for a block of rows and a sweep of vectors.
template <typename T, int kRows>
Multiply<T> multiply_vectors(int64_t vectors) {
  switch (vectors) {
    case 1:
      return multiply<T, kRows, 1>;
    case 2:
      return multiply<T, kRows, 2>;
    case 3:
      if constexpr (most_vectors(kRows) >= 3) return multiply<T, kRows, 3>;
      __builtin_unreachable();
    case 6:
      if constexpr (most_vectors(kRows) >= 6) return multiply<T, kRows, 6>;
      __builtin_unreachable();
    default:
      if constexpr (most_vectors(kRows) > 6) return multiply<T, kRows, most_vectors(kRows)>;
      __builtin_unreachable();
  }
}

template <typename T>
Multiply<T> multiply_for(int64_t rows, int64_t vectors) {
  switch (rows) {
    case 1:
      return multiply_vectors<T, 1>(vectors);
    case 2:
      return multiply_vectors<T, 2>(vectors);
    case 3:
      return multiply_vectors<T, 3>(vectors);
    case 4:
      return multiply_vectors<T, 4>(vectors);
    case 5:
      return multiply_vectors<T, 5>(vectors);
    case 6:
      return multiply_vectors<T, 6>(vectors);
#if CONVARITH_REGISTERS >= 32
    case 7:
      return multiply_vectors<T, 7>(vectors);
    case 8:
      return multiply_vectors<T, 8>(vectors);
#endif
    default:
      __builtin_unreachable();
  }
}

// Storing ------------------------------------------------------------------------------------------------------------

// Outputs of a row, the plan's step apart, and the zeros between them where the plan fills, with the row's bias.
template <typename T, typename Sum>
inline void store_row(const GatherPlan& p, const Sum* sums, int64_t count, Sum bias, T* to) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  if (!p.fills) return scatter_run(sums, count, to, p.out_axis[2]);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t some = least<int64_t>(kLanes, count - i);
    auto first = some == kLanes ? load(sums + i) : load_some(sums + i, some), second = bias - typename Simd<Sum>::Vec{};
    interleave<Sum>(first, second);
    Sum both[2 * kLanes];
    store(both, first);
    store(both + kLanes, second);
    scatter_run(both, 2 * some, to + 2 * i, 1);
  }
}

// to[i * step + j] = sums[i * pitch + j] for i < count and j < size.
template <int kSize, typename Sum, typename T>
inline void store_few(const Sum* sums, int64_t pitch, int64_t count, T* to, int64_t step) {
  for (int64_t i = 0; i < count; ++i, sums += pitch, to += step) {
    T v[kSize];
    CONVARITH_UNROLL for (int j = 0; j < kSize; ++j) narrow(sums[j], v[j]);
    __builtin_memcpy(to, v, sizeof(v));
  }
}

template <typename Sum, typename T>
inline void store_phases(const Sum* sums, int64_t pitch, int64_t size, int64_t count, T* to, int64_t step) {
  if (size == 2) return store_few<2>(sums, pitch, count, to, step);
  if (size == 4) return store_few<4>(sums, pitch, count, to, step);
  if (size == 8) return store_few<8>(sums, pitch, count, to, step);
  for (int64_t i = 0; i < count; ++i) scatter_run(sums + i * pitch, size, to + i * step, 1);
}

// Runs of two rows that follow each other in memory, of half precisions: words, which are transposed as such.
template <typename T>
void store_words(const RowRun* runs, int64_t run_count, const float* sums, int64_t width, int64_t count, T* to) {
  constexpr int kStrip = 32, kMost = kOuterVectors * Simd<float>::kLanes;
  float words[kStrip * kMost / 2], line[kMost / 2 * kStrip];
  for (int64_t x = 0; x < count; x += kStrip, sums += kStrip * width) {
    const int64_t high = least<int64_t>(kStrip, count - x);
    for (int64_t i = 0; i < high; ++i) {
      scatter_run(sums + i * width, width, reinterpret_cast<T*>(words + i * width / 2), 1);
    }
    transpose(words, width / 2, high, run_count, line, kStrip);
    for (int64_t i = 0; i < run_count; ++i) {
      const float* from = line + i * kStrip;
      T* outputs = to + runs[i].at + 2 * x;
      if (high == kStrip) {
        __builtin_memcpy(outputs, from, kStrip * sizeof(float));
      } else {
        __builtin_memcpy(outputs, from, static_cast<uint64_t>(high) * sizeof(float));
      }
    }
  }
}

// The same of `count` outputs of a block of merged phases, whose rows are those of the runs.
template <typename T, typename Sum>
void store_merged(const GatherPlan& p, const RowBlock& b, const RowRun* runs, int64_t run_count, const Sum* sums,
                  int64_t count, T* to) {
  const int64_t step = p.out_axis[2];
  if constexpr (sizeof(T) == 2) {
    const bool in_twos = p.phases[2] == 2 && step == 2 && runs[0].count == 2 && 2 * run_count == b.real;
    if (in_twos) return store_words(runs, run_count, sums, b.width, count, to);
  }
  for (int64_t i = 0; i < run_count; ++i) {
    store_phases(sums + runs[i].first, b.width, runs[i].count, count, to + runs[i].at, step);
  }
}

// Outputs [begin, end) of a box as the outer product leaves them, sums[output - begin][row of the block], to out, where
// the group's rows begin.
template <typename T, typename Sum>
void store_outer(const GatherPlan& p, const Run* runs, int64_t begin, int64_t end, const RowBlock& b, const Sum* bias,
                 const Sum* sums, T* out) {
  constexpr int kStrip = 16;
  const int64_t step = p.out_axis[2];
  RowRun row_run[kOuterVectors * Simd<Sum>::kLanes];
  const int64_t row_count = merges_phases(p) ? row_runs(p, b, false, row_run) : 0;
  while (begin < end) {
    const Run run = merged_run(runs, begin, end, step);
    T* to = out + (merges_phases(p) ? 0 : b.first * p.out_channel) + run.out;
    begin += run.length;
    if (merges_phases(p)) {
      store_merged(p, b, row_run, row_count, sums, run.length, to);
    } else if (p.out_channel == 1) {
      for (int64_t x = 0; x < run.length; ++x) scatter_run(sums + x * b.width, b.real, to + x * step, 1);
    } else if (step == 1) {
      transpose_narrow(sums, b.width, run.length, b.real, to, p.out_channel);
    } else {
      Sum strip[kOuterVectors * Simd<Sum>::kLanes * kStrip];
      for (int64_t x = 0; x < run.length; x += kStrip) {
        const int64_t wide = least<int64_t>(kStrip, run.length - x);
        transpose(sums + x * b.width, b.width, wide, b.real, strip, kStrip);
        for (int64_t r = 0; r < b.real; ++r) {
          store_row(p, strip + r * kStrip, wide, bias[r], to + r * p.out_channel + x * step);
        }
      }
    }
    sums += run.length * b.width;
  }
}

// Some of the row blocks of a group of a box.
struct GatherTask {
  Box box;
  int64_t group, block_begin, block_end;
};

// Where the offsets count from, for channels from c0 on.
template <typename T, typename Factor = typename FactorOf<T>::type>
const Factor* tile_at(const GatherPlan& p, const Box& b, const T* in, int64_t g, int64_t c0, int64_t channels,
                      char* scratch, HeldTile& held) {
  if (p.raw) return reinterpret_cast<const Factor*>(in) + g * p.in_group + c0 * p.in_channel;
  Factor* tile = reinterpret_cast<Factor*>(scratch + p.at_tile);
  if (p.one_tile && held.box == b.index && held.group == g) return tile;
  held = {b.index, g};
#if CONVARITH_BF16
  if (p.in_words) {
    pad_tile(p, b, reinterpret_cast<const Word*>(in), g, c0, channels, tile);
    return tile;
  }
#endif
  pad_tile(p, b, in, g, c0, channels, tile);
  return tile;
}

// One of `parts` shares of the lines that store_outer will write: asked for while there is something to multiply.
template <typename T>
void prefetch_rows(const GatherPlan& p, const Run* runs, int64_t begin, int64_t end, const RowBlock& b, int64_t part,
                   int64_t parts, T* out) {
  if (p.out_channel == 1 || merges_phases(p)) return;
  const Run run = merged_run(runs, begin, end, p.out_axis[2]);
  for (int64_t r = block_begin(part, b.real, parts); r < block_begin(part + 1, b.real, parts); ++r) {
    prefetch<1>(out + (b.first + r) * p.out_channel + run.out, run.length * p.out_axis[2]);
  }
}

constexpr int kStripBlocks = 16;  // blocks of outputs that are stored together

// The bias of some rows.
template <typename T, typename Sum>
inline void widen_bias(const GatherPlan& p, int64_t group, int64_t first, int64_t count, Sum* to) {
  const T* bias = static_cast<const T*>(p.bias) + group * p.bias_group;
  const int64_t phases = p.phases[0] * p.phases[1] * p.phases[2];
  if (phases == 1) return copy_run(bias + first, 1, count, to);
  for (int64_t i = 0; i < count; ++i) to[i] = widen(bias[(first + i) / phases]);
}

// Whether sums stand in memory as the result does: there they are then, from the first channels on; or, of pairs, where
// no more channels follow.
template <typename T>
inline bool sums_in_place(const GatherPlan& p) {
  if (p.out_channel != 1 || merges_phases(p)) return false;
  return sizeof(T) == sizeof(typename SumOf<T>::type) || (FactorOf<T>::kMembers == 2 && p.channel_block == p.channels);
}

// Whether results are whole lines that are written once, and too many to stay.
template <typename T>
inline bool goes_past_caches(const GatherPlan& p, const T* out) {
  // Of narrower numbers whole vectors do not make whole lines, but whole blocks do.
  typedef typename SumOf<T>::type Sum;
  constexpr int64_t kRows = sizeof(T) == sizeof(Sum) ? 64 / sizeof(T) : kOuterVectors * Simd<Sum>::kLanes;
  if (p.channel_block < p.channels || p.rows % kRows != 0) return false;
  int64_t apart = p.out_batch | p.out_group | p.out_offset;
  for (int i = 0; i < 3; ++i) apart |= p.out_axis[i];
  const auto at = reinterpret_cast<uintptr_t>(out) | static_cast<uintptr_t>(apart) * sizeof(T);
  const int64_t results = p.batch * p.groups * p.rows * p.grid[0] * p.grid[1] * p.grid[2];
  return at % 64 == 0 && results * static_cast<int64_t>(sizeof(T)) >= kPastCaches;
}

// Lanes along the rows: a block of outputs by a block of rows.
template <typename T>
void gather_outer(const GatherPlan& p, const GatherTask& task, const T* in, const typename FactorOf<T>::type* packed,
                  T* out, char* scratch, HeldTile& held) {
  typedef typename SumOf<T>::type Sum;
  typedef typename FactorOf<T>::type Factor;
  constexpr int kLanes = Simd<Sum>::kLanes;
  constexpr bool kInPlace = sizeof(T) == sizeof(Sum) || FactorOf<T>::kMembers == 2;  // other halves: too many kernels
  Run* runs = reinterpret_cast<Run*>(scratch + p.at_runs);
  int32_t* pixels = reinterpret_cast<int32_t*>(scratch + p.at_pixels);
  int64_t* places = reinterpret_cast<int64_t*>(scratch + p.at_places);
  const Box& b = task.box;
  const int64_t g = task.group, outputs = box_pixels(b);
  const int64_t count = list_runs(p, b, runs), first_row = row_block_at<Sum>(p, task.block_begin).first;
  list_pixels(p, runs, count, pixels);
  const bool in_place = sums_in_place<T>(p);
  if (in_place) list_places(p, runs, count, places);
  const bool past_caches = in_place && goes_past_caches(p, out);

  for (int64_t c0 = 0; c0 < p.channels; c0 += p.channel_block) {
    const int64_t channels = least(p.channel_block, p.channels - c0), depth = channels * p.taps;
    const Factor* tile = tile_at<T>(p, b, in, g, c0, channels, scratch, held) + runs[0].source;
    const bool last = c0 + channels == p.channels;
    for (int64_t block = task.block_begin; block < task.block_end; ++block) {
      const RowBlock r = row_block_at<Sum>(p, block);
      const Factor* weights = packed + packed_at<Sum>(p, g, r, c0);
      const int64_t vectors = r.width / kLanes, at_once = outer_rows(vectors), strip = kStripBlocks * at_once;
      Sum bias[kOuterVectors * kLanes] = {};
      if (p.bias) widen_bias<T>(p, g, r.first, r.real, bias);
      Sum* block_sums = reinterpret_cast<Sum*>(scratch + p.at_sums) + (r.first - first_row) * outputs;
      T* rows_out = out + g * p.out_group;
      for (int64_t first = 0; first < outputs; first += strip) {
        const int64_t size = least(strip, outputs - first), parts = block_count(size, at_once);
        Sum* sums = block_sums + (p.channel_block < p.channels ? first * r.width : 0);
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t q = block_begin(part, size, parts), some = block_begin(part + 1, size, parts) - q;
          const Factor* from[kMostOuterRows];
          for (int64_t i = 0; i < some; ++i) from[i] = tile + pixels[first + q + i];
          const Sum* start = p.bias ? bias : nullptr;
          if constexpr (kInPlace) {
            if (in_place) {
              T* to[kMostOuterRows];
              for (int64_t i = 0; i < some; ++i) to[i] = rows_out + r.first + places[first + q + i];
              outer_for<Factor, RowsAhead, OuterRows<T>>(some, vectors)(depth, from, p.offset, weights,
                                                                        {to, r.real, start, past_caches}, c0 > 0, {});
              continue;
            }
          }
          Sum* to[kMostOuterRows];
          for (int64_t i = 0; i < some; ++i) to[i] = sums + (q + i) * r.width;
          if (last) prefetch_rows(p, runs, first, first + size, r, part, parts, rows_out);
          outer_for<Factor, RowsAhead, OuterRows<Sum>>(some, vectors)(depth, from, p.offset, weights,
                                                                      {to, r.width, start, false}, c0 > 0, {});
        }
        // While the sums are in the first cache.
        if (last && !in_place) store_outer(p, runs, first, first + size, r, bias, sums, rows_out);
      }
    }
  }
}

// The bias of a block of rows, or null.
template <typename T>
class BlockBias {
 public:
  typedef typename SumOf<T>::type Sum;
  BlockBias(const GatherPlan& p, int64_t group, const RowBlock& r) : biased_(p.bias != nullptr) {
    if (biased_) widen_bias<T>(p, group, r.first, r.real, bias_);
  }
  const Sum* get() const { return biased_ ? bias_ : nullptr; }

 private:
  bool biased_;
  Sum bias_[2 * kRowBlock];  // a vector at least
};

// Of `left` vectors, how many are swept next with a block of rows. Two and two are faster than three and one.
inline int64_t sweep_vectors(int64_t left, int64_t widest) {
  if (left == 4) return 2;
  return left >= widest ? widest : left >= 6 && widest > 6 ? 6 : least<int64_t>(left, 3);
}

// The most vectors of a sweep: registers that few rows leave are for more of them.
template <typename Sum>
inline int64_t widest_sweep(const GatherPlan& p) {
  return most_vectors(row_block_at<Sum>(p, row_blocks<Sum>(p) - 1).width);
}

// Lanes along the outputs of a run, whose sums are stored where they go. The last vector of a run begins before its
// end, among outputs that are stored already, and gives the same: nothing beside the run is written. Rows are few at a
// time and written to their ends, as memory likes it.
template <typename T>
void gather_direct(const GatherPlan& p, const GatherTask& task, const T* in, const typename FactorOf<T>::type* packed,
                   T* out, char* scratch, HeldTile& held) {
  typedef typename FactorOf<T>::type Factor;
  constexpr int kLanes = Simd<T>::kLanes;
  Run* runs = reinterpret_cast<Run*>(scratch + p.at_runs);
  const Box& b = task.box;
  const int64_t g = task.group, count = list_runs(p, b, runs), length = b.size[3], depth = p.channels * p.taps;
  const int64_t widest = widest_sweep<T>(p), whole = sweep_vectors(length / kLanes, widest);
  const Factor* tile = tile_at<T>(p, b, in, g, 0, p.channels, scratch, held);
  for (int64_t block = task.block_begin; block < task.block_end; ++block) {
    const RowBlock r = row_block_at<T>(p, block);
    const Factor* weights = packed + packed_at<T>(p, g, r, 0);
    T* rows = out + g * p.out_group + r.first * p.out_channel;
    const BlockBias<T> bias(p, g, r);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t x = 0; x < length;) {
        const int64_t vectors = least(sweep_vectors(block_count(length - x, kLanes), widest), whole);
        x = least(x, length - vectors * kLanes);
        multiply_for<Factor>(r.real, vectors)(depth, weights, tile + runs[i].source + x, p.offset,
                                              rows + runs[i].out + x, p.out_channel, false, bias.get());
        x += vectors * kLanes;
      }
    }
  }
}

// Lanes along the outputs, which are read from the tile through the offsets.
template <typename T>
void gather_offset(const GatherPlan& p, const GatherTask& task, const T* in, const typename FactorOf<T>::type* packed,
                   T* out, char* scratch, HeldTile& held) {
  typedef typename SumOf<T>::type Sum;
  typedef typename FactorOf<T>::type Factor;
  constexpr int kLanes = Simd<Sum>::kLanes;
  Sum* sums = reinterpret_cast<Sum*>(scratch + p.at_sums);
  Run* runs = reinterpret_cast<Run*>(scratch + p.at_runs);
  const Box& b = task.box;
  const int64_t g = task.group, first_row = row_block_at<Sum>(p, task.block_begin).first;
  const int64_t count = list_runs(p, b, runs), columns = runs[count - 1].column + runs[count - 1].length;
  const int64_t widest = widest_sweep<Sum>(p);
  const int64_t last_row = task.block_end < row_blocks<Sum>(p) ? row_block_at<Sum>(p, task.block_end).first : p.rows;

  for (int64_t c0 = 0; c0 < p.channels; c0 += p.channel_block) {
    const int64_t channels = least(p.channel_block, p.channels - c0), depth = channels * p.taps;
    const Factor* tile = tile_at<T>(p, b, in, g, c0, channels, scratch, held);
    for (int64_t column = 0; column < columns;) {
      const int64_t vectors = sweep_vectors(block_count(columns - column, kLanes), widest);
      for (int64_t block = task.block_begin; block < task.block_end; ++block) {
        const RowBlock r = row_block_at<Sum>(p, block);
        const BlockBias<T> bias(p, g, r);
        multiply_for<Factor>(r.real, vectors)(depth, packed + packed_at<Sum>(p, g, r, c0), tile + column, p.offset,
                                              sums + (r.first - first_row) * p.columns + column, p.columns, c0 > 0,
                                              bias.get());
      }
      column += vectors * kLanes;
    }
  }
  if (p.out_channel == 1 && last_row - first_row > 3) {  // of fewer rows a transposition would be mostly zeros
    T* to = out + g * p.out_group + first_row;
    for (int64_t i = 0; i < count; ++i) {
      transpose_narrow(sums + runs[i].column, p.columns, last_row - first_row, runs[i].length, to + runs[i].out,
                       p.out_axis[2]);
    }
    return;
  }
  for (int64_t row = first_row; row < last_row; ++row) {
    Sum bias = 0;
    if (p.bias) widen_bias<T>(p, g, row, 1, &bias);
    const Sum* line = sums + (row - first_row) * p.columns;
    T* to = out + g * p.out_group + row * p.out_channel;
    for (int64_t i = 0; i < count; ++i) store_row(p, line + runs[i].column, runs[i].length, bias, to + runs[i].out);
  }
}

// Without taps: zeros and the bias.
template <typename T>
void gather_nothing(const GatherPlan& p, const GatherTask& task, T* out, char* scratch) {
  typedef typename SumOf<T>::type Sum;
  Run* runs = reinterpret_cast<Run*>(scratch + p.at_runs);
  const int64_t outputs = box_pixels(task.box), step = p.out_axis[2];
  list_runs(p, task.box, runs);
  for (int64_t block = task.block_begin; block < task.block_end; ++block) {
    const RowBlock b = row_block_at<Sum>(p, block);
    constexpr int kOuterRows = kOuterVectors * Simd<Sum>::kLanes,
                  kMostRows = kOuterRows > kRowBlock ? kOuterRows : kRowBlock;
    Sum bias[kMostRows] = {};
    if (p.bias) widen_bias<T>(p, task.group, b.first, b.real, bias);
    for (int64_t begin = 0; begin < outputs;) {
      const Run run = merged_run(runs, begin, outputs, step);
      T* to = out + task.group * p.out_group + b.first * p.out_channel + run.out;
      begin += run.length;
      if (p.out_channel == 1) {
        for (int64_t x = 0; x < run.length; ++x) scatter_run(bias, b.real, to + x * step, 1);
        continue;
      }
      for (int64_t r = 0; r < b.real; ++r, to += p.out_channel) {
        T value;
        narrow(bias[r], value);
        if (step == 1) {
          for (int64_t x = 0; x < run.length; ++x) to[x] = value;
        } else {
          for (int64_t x = 0; x < run.length; ++x) to[x * step] = value;
        }
      }
    }
  }
}

template <typename T>
void gather_task(const GatherPlan& p, const GatherTask& task, const T* in, const typename FactorOf<T>::type* packed,
                 T* out, char* scratch, HeldTile& held) {
  if (p.taps == 0) return gather_nothing<T>(p, task, out, scratch);
  if (p.outer) return gather_outer<T>(p, task, in, packed, out, scratch, held);
  if constexpr (sizeof(T) == sizeof(typename SumOf<T>::type)) {
    if (p.direct) return gather_direct<T>(p, task, in, packed, out, scratch, held);
  }
  gather_offset<T>(p, task, in, packed, out, scratch, held);
}

// The boxes of several plans in turn, of each in proportion: the phases of a transposed convolution write neighbouring
// elements. A box is counted once for every group.
template <typename T>
void gather(const GatherPlan* plans, int64_t count, const int64_t* cuts, int64_t slices, const void* in,
            const void* packed_data, void* out_data, char* scratch, HeldTile& held, int64_t begin, int64_t end) {
  const T* from = static_cast<const T*>(in);
  const auto* packed = static_cast<const typename FactorOf<T>::type*>(packed_data);
  T* out = static_cast<T*>(out_data);
  const int64_t blocks = row_blocks<typename SumOf<T>::type>(plans[0]);
  for (int64_t slice = begin; slice < end; ++slice) {
    const int64_t* cut = cuts + slice;
    const auto boxes_of = [&](int64_t plan) {
      const int64_t* c = cut + plan * (slices + 1);
      return c[1] > c[0] ? block_count(c[1], blocks) - c[0] / blocks : 0;
    };
    int64_t turns = 0;
    for (int64_t i = 0; i < count; ++i) turns = most(turns, boxes_of(i));
    for (int64_t turn = 0; turn < turns; ++turn) {
      for (int64_t i = 0; i < count; ++i) {
        const GatherPlan& p = plans[i];
        const int64_t* c = cut + i * (slices + 1);
        const int64_t boxes = boxes_of(i), first = c[0] / blocks;
        const int64_t last_box = first + block_begin(turn + 1, boxes, turns);
        for (int64_t box = first + block_begin(turn, boxes, turns); box < last_box; ++box) {
          gather_task<T>(p,
                         {box_at(p, box / p.groups), box % p.groups, most<int64_t>(0, c[0] - box * blocks),
                          least(blocks, c[1] - box * blocks)},
                         from, packed, out, scratch, held);
        }
      }
    }
  }
  fence_past_caches();
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
