// Depthwise convolutions and small groups with kernels of 3 x 3: rows are read where they stand, and what the taps see
// beside a vector comes out of its neighbours. See DepthwisePlan::in_place.
#pragma once

#include "conv_depthwise.h"
#include "simd_lanes.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

constexpr int64_t kTaps3 = 9;
// Outputs of a block, rows x vectors: broad ones, and tall ones where a row has few vectors.
constexpr int kBroadRows = CONVARITH_REGISTERS >= 32 ? 4 : 2, kBroadVectors = CONVARITH_REGISTERS >= 32 ? 4 : 2;
constexpr int kTallRows = CONVARITH_REGISTERS >= 32 ? 7 : 4, kTallVectors = CONVARITH_REGISTERS >= 32 ? 2 : 1;
constexpr int64_t kMostLines = 4 * (2 * (kTallRows - 1) + 3);  // of a group's channels

// Lanes [kShift, kShift + lanes) of `before`, `here` and `after`, counted from `here`.
template <int kShift, typename T, typename V = typename Simd<T>::Vec>
inline V neighbours(V before, V here, V after) {
  constexpr int kLanes = Simd<T>::kLanes;
  if constexpr (kShift == 0) return here;
  const V low = kShift < 0 ? before : here, high = kShift < 0 ? here : after;
  constexpr int kFirst = kShift < 0 ? kLanes + kShift : kShift;
#if CONVARITH_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    return as<V>(_mm512_maskz_alignr_epi32(0xffff, as<__m512i>(high), as<__m512i>(low), kFirst));
  } else {
    return as<V>(_mm512_maskz_alignr_epi64(0xff, as<__m512i>(high), as<__m512i>(low), kFirst));
  }
#else
  typedef decltype(low < high) Index;
  Index index;
  for (int i = 0; i < kLanes; ++i) index[i] = kFirst + i;
  return __builtin_shuffle(low, high, index);
#endif
}

// The vector `at` entries from the row's, of which `left` are the row's; zeros in its other lanes.
template <typename T>
inline typename Lanes<T>::Sums load_left(const T* row, int64_t at, int64_t left) {
#if CONVARITH_BYTES == 64
  return load_between<T>(reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(at) * sizeof(T), 0, left);
#else
  return left <= 0 ? typename Lanes<T>::Sums{} : load_up_to(row + at, left);
#endif
}

// What the three taps of a row of the kernel see of a row of inputs, vector by vector of outputs: through tap t, output
// o sees input o * kStep + t - kLow. Inputs are split by their residues modulo the step.
template <typename T, int kStep, int kLow>
class TapWindow {
 public:
  typedef typename SumOf<T>::type Sum;
  typedef typename Simd<Sum>::Vec V;
  static constexpr int kLanes = Simd<Sum>::kLanes;
  static constexpr bool kBefore = kLow > 0, kAfter = kLow + kStep < 3;

  // From the vector of outputs on that sees input `first` of a row of `size` through a tap at kLow.
  inline __attribute__((always_inline)) void begin(const T* row, int64_t first, int64_t size, bool whole) {
    if (kBefore && first > 0) load_cells(row, first - kStep * kLanes, size, true, before_);
    load_cells(row, first, size, whole, here_);
  }

  // `whole`: the vector after this one has kStep * kLanes inputs of the row.
  inline __attribute__((always_inline)) void next(const T* row, int64_t first, int64_t size, bool last, bool whole,
                                                  V (&taps)[3]) {
    V after[kStep] = {};
    if (kAfter || !last) load_cells(row, first + kStep * kLanes, size, whole, after);
    taps[0] = tap<0>(after);
    taps[1] = tap<1>(after);
    taps[2] = tap<2>(after);
    CONVARITH_UNROLL for (int i = 0; i < kStep; ++i) {
      before_[i] = here_[i];
      here_[i] = after[i];
    }
  }

 private:
  static inline __attribute__((always_inline)) void load_cells(const T* row, int64_t at, int64_t size, bool whole,
                                                               V (&cells)[kStep]) {
    CONVARITH_UNROLL for (int i = 0; i < kStep; ++i) {
      cells[i] = whole ? load_wide(row + at + i * kLanes) : load_left(row, at + i * kLanes, size - at - i * kLanes);
      keep(cells[i]);
    }
    if constexpr (kStep == 2) {
      const V a = cells[0], b = cells[1];
      cells[0] = evens<Sum>(a, b);
      cells[1] = odds<Sum>(a, b);
    }
  }

  template <int kTap>
  inline __attribute__((always_inline)) V tap(const V (&after)[kStep]) const {
    constexpr int kResidue = (kTap - kLow + 2 * kStep) % kStep, kShift = (kTap - kLow - kResidue) / kStep;
    return neighbours<kShift, Sum>(before_[kResidue], here_[kResidue], after[kResidue]);
  }

  V before_[kStep] = {}, here_[kStep];
};

// A row of inputs; one of zeros beside the image.
template <typename T>
inline const T* row_or(const T* zeros, const T* plane, int64_t row, int64_t rows, int64_t pitch) {
  return row < 0 || row >= rows ? zeros : plane + row * pitch;
}

// kRows x kVecs outputs from column `column` on, of one row of weights, [channel][tap of a row][row of taps]. `lines`
// are the rows of inputs that they see, [channel][row].
template <typename T, int kRows, int kVecs, int kStep, int kLow>
void block3(const DepthwisePlan& p, const T* const* lines, int64_t column, const typename SumOf<T>::type* w,
            typename SumOf<T>::type bias, T* out) {
  typedef TapWindow<T, kStep, kLow> Window;
  typedef typename Window::V V;
  constexpr int kLanes = Window::kLanes, kLines = (kRows - 1) * kStep + 3;
  const int64_t size = p.source[1], first = column * kStep;
  V sums[kRows][kVecs] = {};
  for (int64_t c = 0; c < p.channels; ++c, w += kTaps3, lines += kLines) {
    V v[kTaps3];
    CONVARITH_UNROLL for (int i = 0; i < kTaps3; ++i) {
      v[i] = every<V>(w[i]);
      keep(v[i]);
    }
    CONVARITH_UNROLL for (int i = 0; i < kLines; ++i) {
      const T* line = lines[i];
      Window window;
      window.begin(line, first, size, kVecs > 1);
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
        V x[3];
        window.next(line, first + j * kStep * kLanes, size, j == kVecs - 1, j < kVecs - 2, x);
        CONVARITH_UNROLL for (int t = 0; t < 3; ++t) {
          CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
            const int h = i - r * kStep;  // row of taps
            if (h >= 0 && h < 3) sums[r][j] += v[3 * t + h] * x[t];
          }
        }
      }
    }
  }
  out += column;
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r, out += p.out_axis[0]) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
      const V v = sums[r][j] + bias;
      if (j < kVecs - 1) {
        store_narrow(out + j * kLanes, v);
      } else {
        store_up_to(out + j * kLanes, v, p.grid[1] - column - j * kLanes);
      }
    }
  }
}

// The same of one row of outputs that inputs are kStep == 2 apart of: `lines` are [channel][row of taps], null where
// the row sees none through it.
template <typename T, int kVecs, int kLow>
void spread_block3(const DepthwisePlan& p, const T* const* lines, int64_t column, const typename SumOf<T>::type* w,
                   typename SumOf<T>::type bias, T* out) {
  typedef TapWindow<T, 1, 1> Window;
  typedef typename SumOf<T>::type Sum;
  typedef typename Window::V V;
  constexpr int kLanes = Window::kLanes;
  const int64_t size = p.source[1], first = column / 2;
  V sums[2][kVecs] = {};
  for (int64_t c = 0; c < p.channels; ++c, w += kTaps3, lines += 3) {
    for (int h = 0; h < 3; ++h) {
      const T* line = lines[h];
      if (line == nullptr) continue;
      Window window;
      window.begin(line, first, size, kVecs > 1);
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
        V x[3];  // inputs before, at and after half the output
        window.next(line, first + j * kLanes, size, j == kVecs - 1, j < kVecs - 2, x);
        CONVARITH_UNROLL for (int t = 0; t < 3; ++t) {
          CONVARITH_UNROLL for (int phase = 0; phase < 2; ++phase) {
            const int twice = phase + kLow - t;
            if (twice % 2 == 0) sums[phase][j] += every<V>(w[3 * t + h]) * x[1 + twice / 2];
          }
        }
      }
    }
  }
  out += column;
  CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
    V even = sums[0][j] + bias, odd = sums[1][j] + bias;
    interleave<Sum>(even, odd);
    if (j < kVecs - 1) {
      store_narrow(out + 2 * j * kLanes, even);
      store_narrow(out + (2 * j + 1) * kLanes, odd);
      continue;
    }
    const int64_t left = p.grid[1] - column - 2 * j * kLanes;
    store_up_to(out + 2 * j * kLanes, even, left);
    if (left > kLanes) store_up_to(out + (2 * j + 1) * kLanes, odd, left - kLanes);
  }
}

// Blocks -------------------------------------------------------------------------------------------------------------

template <typename T>
using Block3 = void (*)(const DepthwisePlan&, const T* const*, int64_t, const typename SumOf<T>::type*,
                        typename SumOf<T>::type, T*);

template <typename T, int kRows, int kVecs, int kStep, int kLow>
Block3<T> block3_of(int64_t vectors) {
  if constexpr (kVecs > 1) {
    if (vectors < kVecs) return block3_of<T, kRows, kVecs - 1, kStep, kLow>(vectors);
  }
  return block3<T, kRows, kVecs, kStep, kLow>;
}

template <typename T, int kStep, int kLow>
Block3<T> block3_for(int64_t rows, int64_t vectors) {
  if (rows == kTallRows) return block3_of<T, kTallRows, kTallVectors, kStep, kLow>(vectors);
  if (rows == kBroadRows) return block3_of<T, kBroadRows, kBroadVectors, kStep, kLow>(vectors);
  return block3<T, 1, 1, kStep, kLow>;
}

template <typename T, int kLow, int kVecs = kBroadVectors>
Block3<T> spread_block3_for(int64_t rows, int64_t vectors) {
  if constexpr (kVecs > 1) {
    if (vectors < kVecs) return spread_block3_for<T, kLow, kVecs - 1>(rows, vectors);
  }
  return spread_block3<T, kVecs, kLow>;
}

// By what the plan's outputs see: a column of blocks for every step and distance of the first tap.
template <typename T>
using Block3For = Block3<T> (*)(int64_t rows, int64_t vectors);

template <typename T>
Block3For<T> blocks3(const DepthwisePlan& p) {
  constexpr Block3For<T> all[3][3] = {
      {block3_for<T, 1, 0>, block3_for<T, 1, 1>, block3_for<T, 1, 2>},
      {block3_for<T, 2, 0>, block3_for<T, 2, 1>, block3_for<T, 2, 2>},
      {spread_block3_for<T, 0>, spread_block3_for<T, 1>, spread_block3_for<T, 2>},
  };
  return all[p.out_step[1] == 2 ? 2 : p.in_step[1] - 1][-p.low[1]];
}

struct BlockShape {
  int64_t rows, vectors;
};

// Of a box with that many rows, and vectors in each.
inline BlockShape block_shape(const DepthwisePlan& p, int64_t rows, int64_t vectors) {
  if (p.out_step[0] == 2) return {1, kBroadVectors};
  const int64_t tall = block_count(rows, kTallRows) * kTallRows, broad = block_count(rows, kBroadRows) * kBroadRows;
  if (vectors <= kTallVectors && rows >= kTallRows && tall <= broad) return {kTallRows, kTallVectors};
  if (rows >= kBroadRows) return {kBroadRows, kBroadVectors};
  return {1, 1};
}

// The rows of inputs that a block sees from output row `row` on.
template <typename T>
inline void block_lines(const DepthwisePlan& p, const T* in, const T* zeros, int64_t row, int64_t rows,
                        const T** lines) {
  for (int64_t c = 0; c < p.channels; ++c, in += p.in_channel) {
    if (p.out_step[0] == 2) {
      for (int64_t h = 0; h < 3; ++h) {
        const int64_t twice = row - p.low[0] - h;
        *lines++ = twice % 2 == 0 ? row_or<T>(nullptr, in, twice / 2, p.source[0], p.in_axis[0]) : nullptr;
      }
      continue;
    }
    const int64_t first = row * p.in_step[0] + p.low[0], count = (rows - 1) * p.in_step[0] + 3;
    for (int64_t i = first; i < first + count; ++i) *lines++ = row_or(zeros, in, i, p.source[0], p.in_axis[0]);
  }
}

template <typename T>
void depthwise3(const DepthwisePlan& p, const void* in_data, const void* w_data, void* out_data, char* scratch,
                int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  constexpr int kLanes = Simd<Sum>::kLanes;
  T* zeros = reinterpret_cast<T*>(scratch);
  Sum* weights = reinterpret_cast<Sum*>(scratch + p.at_weights);
  __builtin_memset(scratch, 0, p.at_weights);
  const Block3For<T> block_for = blocks3<T>(p);
  const int64_t vectors = block_count(p.grid[1], p.out_step[1] * kLanes);
  const T* lines[kMostLines];
  SweepBox b = sweep_box(p, begin);
  for (int64_t task = begin; task < end; ++task, next_box(p, &b)) {
    const int64_t group = b.index[1], last = b.first[0] + b.size[0];
    const T* in = static_cast<const T*>(in_data) + b.index[0] * p.in_batch + group * p.channels * p.in_channel;
    T* out = static_cast<T*>(out_data) + b.index[0] * p.out_batch + group * p.rows * p.out_channel;
    pack_taps(p, static_cast<const T*>(w_data) + group * p.w_group, weights);
    const BlockShape shape = block_shape(p, b.size[0], vectors);
    const int64_t columns = block_count(vectors, shape.vectors);
    for (int64_t at = b.first[0]; at < last; at += shape.rows) {
      const int64_t row = least(at, last - shape.rows);  // the last block overlaps the one before it
      block_lines(p, in, zeros, row, shape.rows, lines);
      for (int64_t i = 0; i < columns; ++i) {
        const int64_t v = block_begin(i, vectors, columns);
        const Block3<T> block = block_for(shape.rows, block_begin(i + 1, vectors, columns) - v);
        for (int64_t m = 0; m < p.rows; ++m) {
          const Sum bias = p.bias ? widen(static_cast<const T*>(p.bias)[group * p.rows + m]) : Sum(0);
          block(p, lines, v * p.out_step[1] * kLanes, weights + m * p.channels * kTaps3, bias,
                out + m * p.out_channel + row * p.out_axis[0]);
        }
      }
    }
  }
}

// The weight's gradient -----------------------------------------------------------------------------------------------

// sums[3 * t + h] += sum over the outputs of some rows of y * what tap t of row h sees, lanes along the outputs.
template <typename T, int kStep, int kLow>
void weigh3(const DepthwisePlan& p, const T* x, const T* y, const T* zeros, int64_t begin, int64_t end,
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
      V g[kRows];
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
        g[r] = last ? load_left(grad[r], v * kLanes, p.grid[1] - v * kLanes) : load_wide(grad[r] + v * kLanes);
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

// As depthwise_sum.
template <typename T>
void depthwise3_sum(const DepthwisePlan& p, const void* x_data, const void* y_data, void* sums_data, char* scratch,
                    int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  constexpr int kLanes = Simd<Sum>::kLanes;
  constexpr decltype(&weigh3<T, 1, 0>) all[2][3] = {{weigh3<T, 1, 0>, weigh3<T, 1, 1>, weigh3<T, 1, 2>},
                                                    {weigh3<T, 2, 0>, weigh3<T, 2, 1>, weigh3<T, 2, 2>}};
  const auto weigh = all[p.in_step[1] - 1][-p.low[1]];
  T* zeros = reinterpret_cast<T*>(scratch);
  Sum* lanes = reinterpret_cast<Sum*>(scratch + p.at_weights);
  __builtin_memset(scratch, 0, p.at_weights);
  const int64_t pairs = p.rows * p.channels;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task / p.groups, group = task % p.groups;
    clear(lanes, pairs * kTaps3 * kLanes);
    const int64_t last = block_begin(part + 1, p.batch * p.boxes[0], p.parts);
    for (int64_t i = block_begin(part, p.batch * p.boxes[0], p.parts); i < last; ++i) {
      const int64_t image = i / p.boxes[0], first = i % p.boxes[0] * p.box[0];
      for (int64_t pair = 0; pair < pairs; ++pair) {
        const int64_t m = pair / p.channels, c = pair % p.channels;
        weigh(p, static_cast<const T*>(x_data) + image * p.in_batch + (group * p.channels + c) * p.in_channel,
              static_cast<const T*>(y_data) + image * p.out_batch + (group * p.rows + m) * p.out_channel, zeros, first,
              least(p.grid[0], first + p.box[0]), lanes + pair * kTaps3 * kLanes);
      }
    }
    add_lanes(lanes, pairs * kTaps3, static_cast<Sum*>(sums_data) + task * pairs * kTaps3);
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
