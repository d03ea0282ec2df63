// Depthwise convolutions and small groups whose rows are read where they stand. What the taps see beside a vector comes
// out of its neighbours. See DepthwisePlan::in_place. For AVX-512: with fewer registers and no masks, strips are
// faster.
#pragma once

#include "conv_depthwise.h"
#include "simd_lanes.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

constexpr int64_t kTaps3 = 9;
// Outputs of a block, rows x vectors: broad ones, and tall ones where a row has few vectors.
constexpr int kBroadRows = 4, kBroadVectors = 4, kTallRows = 7, kTallVectors = 2;
constexpr int kBroadPairs = 2, kTallPairs = 2 * kBroadPairs;   // of spread outputs' rows
constexpr int64_t kMostLines = 4 * (2 * (kTallRows - 1) + 3);  // of a group's channels

// Lanes [kShift, kShift + lanes) of `before`, `here` and `after`, counted from `here`.
template <int kShift, typename T, typename V = typename Simd<T>::Vec>
inline V neighbours(V before, V here, V after) {
  constexpr int kLanes = Simd<T>::kLanes;
  if constexpr (kShift == 0) return here;
  const V low = kShift < 0 ? before : here, high = kShift < 0 ? here : after;
  constexpr int kFirst = kShift < 0 ? kLanes + kShift : kShift;
  if constexpr (sizeof(T) == 4) {
    return as<V>(_mm512_maskz_alignr_epi32(0xffff, as<__m512i>(high), as<__m512i>(low), kFirst));
  } else {
    return as<V>(_mm512_maskz_alignr_epi64(0xff, as<__m512i>(high), as<__m512i>(low), kFirst));
  }
}

// Which lanes of the vector `at` entries from a row's first are the row's. By a comparison of vectors: GCC makes long
// chains of what clamps a count of lanes.
template <typename T>
inline __attribute__((always_inline)) uint32_t row_lanes(int64_t at, int64_t size) {
  typedef typename SumOf<T>::type Sum;
  if constexpr (sizeof(Sum) == 4) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_cmplt_epu32_mask(_mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(at)), lane),
                                   _mm512_set1_epi32(static_cast<int>(size)));
  } else {
    const __m512i lane = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_cmplt_epu64_mask(_mm512_add_epi64(_mm512_set1_epi64(at), lane), _mm512_set1_epi64(size));
  }
}

// An entry that may stand beside the row.
template <typename T>
inline const T* entry(const T* row, int64_t at) {
  return reinterpret_cast<const T*>(reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(at) * sizeof(T));
}

// That vector; zeros in its other lanes.
template <typename T>
inline __attribute__((always_inline)) typename Lanes<T>::Sums load_in_row(const T* row, int64_t at, int64_t size) {
  return load_masked(entry(row, at), row_lanes<T>(at, size));
}

// The weights of a row and channel: [tap of a row][row of taps].
template <typename Sum, typename V>
inline __attribute__((always_inline)) void spread_weights(const Sum* w, V (&v)[kTaps3]) {
  CONVARITH_UNROLL for (int i = 0; i < kTaps3; ++i) {
    v[i] = every<V>(w[i]);
    keep(v[i]);
  }
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
      cells[i] = whole ? load_wide(row + at + i * kLanes) : load_in_row(row, at + i * kLanes, size);
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

template <typename T, int kRows, int kVecs>
inline __attribute__((always_inline)) void store_block(const DepthwisePlan& p,
                                                       const typename Lanes<T>::Sums (&sums)[kRows][kVecs],
                                                       int64_t column, typename SumOf<T>::type bias, T* out,
                                                       int64_t rows) {
  constexpr int kLanes = Lanes<T>::kLanes;
  const int64_t pitch = p.out_axis[0];
  const uint32_t last = row_lanes<T>(column + (kVecs - 1) * kLanes, p.grid[1]);
  out += column;
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r, out += pitch) {
    if (r >= rows) break;
    CONVARITH_UNROLL for (int j = 0; j < kVecs - 1; ++j) store_narrow(out + j * kLanes, sums[r][j] + bias);
    store_masked(out + (kVecs - 1) * kLanes, sums[r][kVecs - 1] + bias, last);
  }
}

// Asks for the outputs of a block.
template <typename T, int kRows, int kVecs>
inline __attribute__((always_inline)) void ask_outputs(const DepthwisePlan& p, T* out, int64_t column, int64_t rows) {
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    T* line = out + least<int64_t>(r, rows - 1) * p.out_axis[0] + column;
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) prefetch<1>(line + j * Lanes<T>::kLanes, 1);
  }
}

// Asks for the inputs that the block below is the first to see, given this one's last line.
template <typename T, int kRows, int kVecs, int kStep>
inline __attribute__((always_inline)) void ask_inputs(const DepthwisePlan& p, const T* last_line, int64_t column) {
  CONVARITH_UNROLL for (int i = 1; i <= kRows * kStep; ++i) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs * kStep; ++j) {
      prefetch_ahead(last_line, i * p.in_axis[0] + column * kStep + j * Lanes<T>::kLanes);
    }
  }
}

// The first `rows` of kRows x kVecs outputs from column `column` on, by one row of weights. `lines` are the rows of
// inputs that they see, [channel][row].
template <typename T, int kRows, int kVecs, int kStep, int kLow>
void block3(const DepthwisePlan& p, const T* const* lines, int64_t column, const typename SumOf<T>::type* w,
            typename SumOf<T>::type bias, T* out, int64_t rows) {
  typedef TapWindow<T, kStep, kLow> Window;
  typedef typename Window::V V;
  constexpr int kLanes = Window::kLanes, kLines = (kRows - 1) * kStep + 3;
  const int64_t size = p.source[1], first = column * kStep;
  V sums[kRows][kVecs] = {};
  ask_outputs<T, kRows, kVecs>(p, out, column, rows);
  for (int64_t c = 0; c < p.channels; ++c, w += kTaps3, lines += kLines) {
    ask_inputs<T, kRows, kVecs, kStep>(p, lines[kLines - 1], column);
    V v[kTaps3];
    spread_weights(w, v);
    CONVARITH_UNROLL for (int i = 0; i < kLines; ++i) {
      Window window;
      window.begin(lines[i], first, size, kVecs > 1);
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
        V x[3];
        window.next(lines[i], first + j * kStep * kLanes, size, j == kVecs - 1, j < kVecs - 2, x);
        CONVARITH_UNROLL for (int t = 0; t < 3; ++t) {
          CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
            const int h = i - r * kStep;  // row of taps
            if (h >= 0 && h < 3) sums[r][j] += v[3 * t + h] * x[t];
          }
        }
      }
    }
  }
  store_block(p, sums, column, bias, out, rows);
}

// The same of kPairs pairs of rows of outputs that inputs are 2 apart of, kVecs pairs of vectors each. The first of the
// lines is the input before the first pair's.
template <typename T, int kPairs, int kVecs, int kLow>
void spread_block3(const DepthwisePlan& p, const T* const* lines, int64_t column, const typename SumOf<T>::type* w,
                   typename SumOf<T>::type bias, T* out, int64_t rows) {
  typedef TapWindow<T, 1, 1> Window;
  typedef typename SumOf<T>::type Sum;
  typedef typename Window::V V;
  constexpr int kLanes = Window::kLanes, kLines = kPairs + 2;
  const int64_t size = p.source[1], first = column / 2;
  V sums[2 * kPairs][kVecs][2] = {};
  ask_outputs<T, 2 * kPairs, 2 * kVecs - 1>(p, out, column, rows);
  for (int64_t c = 0; c < p.channels; ++c, w += kTaps3, lines += kLines) {
    ask_inputs<T, kPairs, kVecs, 1>(p, lines[kLines - 1], first);
    V v[kTaps3];
    spread_weights(w, v);
    CONVARITH_UNROLL for (int i = 0; i < kLines; ++i) {
      if (i == 0 ? kLow > 0 : i == kLines - 1 && kLow == 0) continue;  // seen by none
      Window window;
      window.begin(lines[i], first, size, kVecs > 1);
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
        V x[3];  // the inputs before, at and after half of an output
        window.next(lines[i], first + j * kLanes, size, j == kVecs - 1, j < kVecs - 2, x);
        CONVARITH_UNROLL for (int tap = 0; tap < kTaps3; ++tap) {
          CONVARITH_UNROLL for (int phase = 0; phase < 4; ++phase) {
            const int row = phase / 2 + kLow - tap % 3, at = phase % 2 + kLow - tap / 3;  // twice the input's distance
            const int pair = i - 1 - row / 2;
            if (row % 2 != 0 || at % 2 != 0 || pair < 0 || pair >= kPairs) continue;
            sums[2 * pair + phase / 2][j][phase % 2] += v[tap] * x[1 + at / 2];
          }
        }
      }
    }
  }
  const int64_t pitch = p.out_axis[0], last_pair = column + 2 * (kVecs - 1) * kLanes;
  const uint32_t last[2] = {row_lanes<T>(last_pair, p.grid[1]), row_lanes<T>(last_pair + kLanes, p.grid[1])};
  out += column;
  CONVARITH_UNROLL for (int r = 0; r < 2 * kPairs; ++r, out += pitch) {
    if (r >= rows) break;
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
      V even = sums[r][j][0] + bias, odd = sums[r][j][1] + bias;
      interleave<Sum>(even, odd);
      T* to = out + 2 * j * kLanes;
      if (j < kVecs - 1) {
        store_narrow(to, even);
        store_narrow(to + kLanes, odd);
      } else {
        store_masked(to, even, last[0]);
        store_masked(to + kLanes, odd, last[1]);
      }
    }
  }
}

// What taps [kTap, kSize) of the kernel's rows see of a line, whose vectors x begin where the first tap's of the first
// output does: line kLine meets row r of outputs through row kLine - r of the kernel.
template <typename Sum, int kLine, int kSize, int kTap, int kRows, int kVecs, typename V>
inline __attribute__((always_inline)) void add_line(const V (&x)[kVecs + 1], const Sum* w, V (&sums)[kRows][kVecs]) {
  if constexpr (kTap < kSize) {
    V v[kRows];
    CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
      if (kLine < r || kLine >= r + kSize) continue;
      v[r] = every<V>(w[kTap * kSize + kLine - r]);
      keep(v[r]);
    }
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
      const V seen = neighbours<kTap, Sum>(V{}, x[j], x[j + 1]);
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
        if (kLine >= r && kLine < r + kSize) sums[r][j] += v[r] * seen;
      }
    }
    add_line<Sum, kLine, kSize, kTap + 1>(x, w, sums);
  }
}

template <typename T, int kSize, int kLine, int kRows, int kVecs, typename V>
inline __attribute__((always_inline)) void add_lines(const DepthwisePlan& p, const T* const* lines, int64_t first,
                                                     const typename SumOf<T>::type* w, V (&sums)[kRows][kVecs]) {
  if constexpr (kLine < kRows + kSize - 1) {
    V x[kVecs + 1];
    CONVARITH_UNROLL for (int j = 0; j <= kVecs; ++j) {
      x[j] = load_in_row(lines[kLine], first + j * Lanes<T>::kLanes, p.source[1]);
      keep(x[j]);
    }
    asm("" : "+r"(w));  // weights are loaded again for every line: there are too many of them to be kept
    add_line<typename SumOf<T>::type, kLine, kSize, 0>(x, w, sums);
    add_lines<T, kSize, kLine + 1>(p, lines, first, w, sums);
  }
}

// The same as block3() of larger kernels: a line's vectors are loaded once, and what every tap sees comes out of two.
template <typename T, int kRows, int kVecs, int kSize>
void square_block(const DepthwisePlan& p, const T* const* lines, int64_t column, const typename SumOf<T>::type* w,
                  typename SumOf<T>::type bias, T* out, int64_t rows) {
  typedef typename Lanes<T>::Sums V;
  constexpr int kLines = kRows + kSize - 1;
  V sums[kRows][kVecs] = {};
  ask_outputs<T, kRows, kVecs>(p, out, column, rows);
  for (int64_t c = 0; c < p.channels; ++c, w += kSize * kSize, lines += kLines) {
    ask_inputs<T, kRows, kVecs, 1>(p, lines[kLines - 1], column);
    add_lines<T, kSize, 0>(p, lines, column + p.low[1], w, sums);
  }
  store_block(p, sums, column, bias, out, rows);
}

// Blocks -------------------------------------------------------------------------------------------------------------

template <typename T>
using Block3 = void (*)(const DepthwisePlan&, const T* const*, int64_t, const typename SumOf<T>::type*,
                        typename SumOf<T>::type, T*, int64_t);

template <typename T, int kStep, int kLow, int kVecs = kBroadVectors>
Block3<T> block3_of(bool tall, int64_t vectors) {
  if constexpr (kVecs > 1) {
    if (vectors < kVecs) return block3_of<T, kStep, kLow, kVecs - 1>(tall, vectors);
  }
  if constexpr (kVecs <= kTallVectors) {
    if (tall) return block3<T, kTallRows, kVecs, kStep, kLow>;
  }
  return block3<T, kBroadRows, kVecs, kStep, kLow>;
}

template <typename T, int kSize, int kVecs = kBroadVectors>
Block3<T> square_block_of(bool tall, int64_t vectors) {
  if constexpr (kVecs > 1) {
    if (vectors < kVecs) return square_block_of<T, kSize, kVecs - 1>(tall, vectors);
  }
  if constexpr (kVecs <= kTallVectors) {
    if (tall) return square_block<T, kTallRows, kVecs, kSize>;
  }
  return square_block<T, kBroadRows, kVecs, kSize>;
}

template <typename T, int kLow>
Block3<T> spread_block3_of(bool tall, int64_t vectors) {
  if (vectors > 1) return spread_block3<T, kBroadPairs, 2, kLow>;
  return tall ? spread_block3<T, kTallPairs, 1, kLow> : spread_block3<T, kBroadPairs, 1, kLow>;
}

// By what the plan's outputs see: steps, and the distance of the first tap.
template <typename T>
Block3<T> block3_for(const DepthwisePlan& p, bool tall, int64_t vectors) {
  constexpr Block3<T> (*all[3][3])(bool tall, int64_t vectors) = {
      {block3_of<T, 1, 0>, block3_of<T, 1, 1>, block3_of<T, 1, 2>},
      {block3_of<T, 2, 0>, block3_of<T, 2, 1>, block3_of<T, 2, 2>},
      {spread_block3_of<T, 0>, spread_block3_of<T, 1>, spread_block3_of<T, 2>},
  };
  if (p.taps == 25) return square_block_of<T, 5>(tall, vectors);
  if (p.taps == 49) return square_block_of<T, 7>(tall, vectors);
  return all[p.out_step[1] == 2 ? 2 : p.in_step[1] - 1][-p.low[1]](tall, vectors);
}

// How a box is cut into blocks.
template <typename T>
struct Blocks3 {
  int64_t rows, lines;           // of a block, and the lines of a channel that it sees
  int64_t columns, fewer, step;  // blocks of a row; of those, the first have `step` columns of outputs,
  Block3<T> few, more;           // and the others a vector more
};

template <typename T>
Blocks3<T> blocks3(const DepthwisePlan& p) {
  const bool spread = p.out_step[1] == 2;
  Blocks3<T> b;
  const int64_t vectors = block_count(p.grid[1], p.out_step[1] * Lanes<T>::kLanes);
  const int64_t tall_rows = spread ? 2 * kTallPairs : kTallRows, broad_rows = spread ? 2 * kBroadPairs : kBroadRows;
  const int64_t tall_vectors = spread ? 1 : kTallVectors, broad_vectors = spread ? 2 : kBroadVectors;
  const bool tall = vectors <= tall_vectors &&
                    block_count(p.box[0], tall_rows) * tall_rows <= block_count(p.box[0], broad_rows) * broad_rows;
  b.rows = tall ? tall_rows : broad_rows;
  b.lines = spread ? b.rows / 2 + 2 : (b.rows - 1) * p.in_step[0] + p.window;
  b.columns = block_count(vectors, tall ? tall_vectors : broad_vectors);
  b.fewer = b.columns - vectors % b.columns;
  b.step = vectors / b.columns * p.out_step[1] * Lanes<T>::kLanes;
  b.few = block3_for<T>(p, tall, vectors / b.columns);
  b.more = block3_for<T>(p, tall, block_count(vectors, b.columns));
  return b;
}

template <typename T>
void depthwise_in_place(const DepthwisePlan& p, const void* in_data, const void* w_data, void* out_data, char* scratch,
                        int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  const T* zeros = reinterpret_cast<const T*>(scratch);
  Sum* weights = reinterpret_cast<Sum*>(scratch + p.at_weights);
  __builtin_memset(scratch, 0, static_cast<size_t>(p.at_weights));
  const Blocks3<T> blocks = blocks3<T>(p);
  const T* lines[kMostLines];
  int64_t packed = -1;  // group
  SweepBox b = sweep_box(p, begin);
  for (int64_t task = begin; task < end; ++task, next_box(p, &b)) {
    const int64_t group = b.index[1], last = b.first[0] + b.size[0];
    const T* in = static_cast<const T*>(in_data) + b.index[0] * p.in_batch + group * p.channels * p.in_channel;
    if (group != packed) pack_taps(p, static_cast<const T*>(w_data) + group * p.w_group, weights);
    packed = group;
    T* out = static_cast<T*>(out_data) + b.index[0] * p.out_batch + group * p.rows * p.out_channel;
    for (int64_t row = b.first[0]; row < last; row += blocks.rows) {
      const int64_t seen = p.out_step[0] == 2 ? row / 2 - 1 : row * p.in_step[0] + p.low[0];
      const T** line = lines;
      for (int64_t c = 0; c < p.channels; ++c) {
        for (int64_t i = seen; i < seen + blocks.lines; ++i) {
          *line++ = row_or(zeros, in + c * p.in_channel, i, p.source[0], p.in_axis[0]);
        }
      }
      for (int64_t m = 0; m < p.rows; ++m) {
        const Sum bias = p.bias ? widen(static_cast<const T*>(p.bias)[group * p.rows + m]) : Sum(0);
        T* to = out + m * p.out_channel + row * p.out_axis[0];
        const Sum* w = weights + m * p.channels * p.taps;
        for (int64_t i = 0, column = 0; i < blocks.columns; ++i) {
          const bool few = i < blocks.fewer;
          (few ? blocks.few : blocks.more)(p, lines, column, w, bias, to, last - row);
          column += few ? blocks.step : blocks.step + p.out_step[1] * Lanes<T>::kLanes;
        }
      }
    }
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
