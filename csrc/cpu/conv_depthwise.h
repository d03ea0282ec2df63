// Depthwise convolutions and small groups: fill a padded strip, sweep it, store. See DepthwisePlan.
#pragma once

#include "conv_plan.h"
#include "simd.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

constexpr int kSweepRows = 4;
constexpr int kSweepHeight = 7;
constexpr int kSweepVectors = CONVARITH_REGISTERS >= 32 ? 4 : 2;

// Less than a vector.
template <typename T>
inline void copy_part(const T* from, int64_t count, T* to) {
  CONVARITH_UNROLL for (int part = Simd<T>::kLanes / 2; part > 0; part /= 2) {
    if (count & part) {
      __builtin_memcpy(to, from, part * sizeof(T));
      from += part;
      to += part;
    }
  }
}

// Neighbours, converted; the last vector overlaps the one before it.
template <typename T, typename Sum>
inline void copy_line(const T* from, int64_t count, Sum* to) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  if (count >= kLanes) {
    for (int64_t i = 0; i < count - kLanes; i += kLanes) store(to + i, load_wide(from + i));
    store(to + count - kLanes, load_wide(from + count - kLanes));
  } else if constexpr (sizeof(T) == sizeof(Sum)) {
    copy_part(from, count, to);
  } else {
    copy_run(from, 1, count, to);
  }
}

// Neighbours to even and odd[...], by turns, converted.
template <typename T, typename Sum>
inline void split_line(const T* from, int64_t pairs, Sum* even, Sum* odd) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  const auto split = [&](int64_t i) {
    if constexpr (sizeof(T) == sizeof(Sum)) {
      const auto a = load(from + 2 * i), b = load(from + 2 * i + kLanes);
      store(even + i, evens<T>(a, b));
      store(odd + i, odds<T>(a, b));
    } else {  // a pair is a word
      Words words;
      __builtin_memcpy(&words, from + 2 * i, sizeof(words));
      store(even + i, widen_halves(halves_of(words & 0xffffu), T{}));
      store(odd + i, widen_halves(halves_of(words >> 16), T{}));
    }
  };
  if (pairs >= kLanes) {
    for (int64_t i = 0; i < pairs - kLanes; i += kLanes) split(i);
    split(pairs - kLanes);
    return;
  }
  for (int64_t i = 0; i < pairs; ++i) {
    even[i] = widen(from[2 * i]);
    odd[i] = widen(from[2 * i + 1]);
  }
}

// The reverse, to `count` neighbours.
template <typename T, typename Sum>
inline void join_line(const Sum* even, const Sum* odd, int64_t count, T* to) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  typedef decltype(load(even) < load(odd)) Index;
  Index low, high;
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i / 2 + i % 2 * kLanes;
    high[i] = low[i] + kLanes / 2;
  }
  int64_t i = 0;
  for (; 2 * (i + kLanes) <= count; i += kLanes) {
    const auto a = load(even + i), b = load(odd + i);
    store_narrow(to + 2 * i, __builtin_shuffle(a, b, low));
    store_narrow(to + 2 * i + kLanes, __builtin_shuffle(a, b, high));
  }
  for (; 2 * i < count; ++i) {
    narrow(even[i], to[2 * i]);
    if (2 * i + 1 < count) narrow(odd[i], to[2 * i + 1]);
  }
}

// A box of outputs of one image and group; its first outputs of every phase are `at`.
struct SweepBox {
  int64_t index[4];  // image, group, row, column
  int64_t first[2], size[2], at[2];
};

inline void place(const DepthwisePlan& p, SweepBox* b) {
  for (int i = 0; i < 2; ++i) {
    b->first[i] = b->index[2 + i] * p.box[i];
    b->size[i] = least(p.box[i], p.grid[i] - b->first[i]);
    b->at[i] = steps_up(b->first[i], p.out_step[i]);  // a multiple of it
  }
}

inline SweepBox sweep_box(const DepthwisePlan& p, int64_t task) {
  SweepBox b;
  const int64_t counts[4] = {p.batch, p.groups, p.boxes[0], p.boxes[1]};
  for (int i = 3; i >= 0; --i) {
    b.index[i] = task % counts[i];
    task /= counts[i];
  }
  place(p, &b);
  return b;
}

inline void next_box(const DepthwisePlan& p, SweepBox* b) {
  const int64_t counts[4] = {p.batch, p.groups, p.boxes[0], p.boxes[1]};
  for (int i = 3; i >= 0 && ++b->index[i] == counts[i]; --i) b->index[i] = 0;
  place(p, b);
}

// Outputs of the box that belong to a phase.
inline int64_t phase_size(int64_t size, int64_t first, int64_t step) {
  return size <= first ? 0 : steps_up(size - first, step);
}

constexpr int kMostResidues = 8;

// To whole vectors.
template <typename T>
inline void clear(T* to, int64_t count) {
  for (int64_t i = 0; i < count; i += Simd<T>::kLanes) store(to + i, typename Simd<T>::Vec{});
}

// Fills rows of a strip with the inputs of a group. Cells beside a row of inputs are not written: they are cleared
// before, and stay clear as long as the boxes have the same columns.
template <typename T>
class Strip {
 public:
  typedef typename SumOf<T>::type Sum;

  Strip(const DepthwisePlan& p, const SweepBox& b, const T* in, Sum* cells)
      : plan_(p),
        first_row_(b.at[0] * p.in_step[0] + p.low[0]),
        in_(in + b.index[0] * p.in_batch + b.index[1] * p.channels * p.in_channel +
            (b.at[1] * p.in_step[1] + p.low[1]) * p.in_axis[1]),
        cells_(cells) {
    const int64_t step = p.in_step[1];
    for (int64_t r = 0; r < step; ++r) {
      const int64_t column = b.at[1] * step + p.low[1] + r;  // of cell 0
      begin_[r] = column >= 0 ? 0 : least(steps_up(-column, step), p.cells);
      end_[r] =
          column >= p.source[1] ? begin_[r] : most(begin_[r], least(steps_up(p.source[1] - column, step), p.cells));
    }
  }

  // Rows [filled, end) of every channel.
  void fill(int64_t end) {
    const DepthwisePlan& p = plan_;
    end = least(end, p.strip_rows);
    const bool plain = p.in_step[1] == 1 && p.in_axis[1] == 1;
    for (int64_t c = 0; c < p.channels; ++c) {
      Sum* row = cells_ + c * p.channel_pitch + filled_ * p.row_pitch;
      for (int64_t y = first_row_ + filled_; y < first_row_ + end; ++y, row += p.row_pitch) {
        if (y < 0 || y >= p.source[0]) {
          clear(row, p.row_pitch - p.lead);
          continue;
        }
        const T* line = in_ + c * p.in_channel + y * p.in_axis[0];
        prefetch_ahead(line, p.ahead, p.ahead_line);
        if (plain) {
          copy_line(line + begin_[0], end_[0] - begin_[0], row + begin_[0]);
        } else {
          fill_residues(line, row);
        }
      }
    }
    filled_ = end;
  }

 private:
  void fill_residues(const T* line, Sum* row) const {
    const DepthwisePlan& p = plan_;
    const int64_t step = p.in_step[1];
    int64_t begin = 0, end = 0;  // where both residues of a step of 2 have cells
    if (step == 2 && p.in_axis[1] == 1) {
      begin = most(begin_[0], begin_[1]);
      end = most(begin, least(end_[0], end_[1]));
    }
    for (int64_t r = 0; r < step; ++r) {
      Sum* cells = row + r * p.residue_pitch;
      const auto copy = [&](int64_t from, int64_t to) {
        copy_run(line + (from * step + r) * p.in_axis[1], step * p.in_axis[1], to - from, cells + from);
      };
      if (begin == end) {
        copy(begin_[r], end_[r]);
      } else {
        copy(begin_[r], begin);
        copy(end, end_[r]);
      }
    }
    if (begin < end) split_line(line + 2 * begin, end - begin, row + begin, row + p.residue_pitch + begin);
  }

  const DepthwisePlan& plan_;
  int64_t first_row_;
  int64_t begin_[kMostResidues], end_[kMostResidues];  // cells that are inputs
  const T* in_;                                        // may point beside the row
  Sum* cells_;
  int64_t filled_ = 0;
};

// sums[r][j] += sum over shifts s and h < kHeight of w[s][h] * source[(r + h) * step + shift[s] + vector j]. Every
// vector of the strip is loaded once for all rows that it meets. Vectors follow each other, but the last stands at
// `last`.
template <int kRows, int kVecs, int kHeight, typename T>
inline __attribute__((always_inline)) const T* add_taps(const T* source, int64_t step, int64_t last,
                                                        const int64_t* shift, int64_t shifts, const T* w,
                                                        typename Simd<T>::Vec (&sums)[kRows][kVecs]) {
  typedef typename Simd<T>::Vec V;
  for (int64_t s = 0; s < shifts; ++s, w += kHeight) {
    const T* from = source + shift[s];
    CONVARITH_UNROLL for (int i = 0; i < kRows + kHeight - 1; ++i, from += step) {
      V x[kVecs];
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
        x[j] = load(from + (j < kVecs - 1 ? j * Simd<T>::kLanes : last));
        keep(x[j]);
      }
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
        if (i < r || i >= r + kHeight) continue;
        const V v = w[i - r] - V{};
        CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) sums[r][j] += v * x[j];
      }
    }
  }
  return w;
}

// Rows of outputs of one row of weights, and its bias, to to[r * pitch + vector j]. The last block overlaps the one
// before it.
template <typename T, int kRows, int kVecs>
void sweep(const DepthwisePlan& p, const RowPhase& row_phase, const ColumnPhase& column_phase, const T* strip,
           int64_t last, const T* w, int64_t rows, T bias, T* to, int64_t pitch) {
  const int64_t step = p.in_step[0] * p.row_pitch;
  const int64_t* shift = p.shift + column_phase.shift_begin;
  const int64_t shifts = column_phase.shift_end - column_phase.shift_begin;
  for (int64_t block = 0; block < rows; block += kRows) {
    const int64_t row = most<int64_t>(0, least(block, rows - kRows));
    typename Simd<T>::Vec sums[kRows][kVecs] = {};
    const T* plane = strip + row * step;
    const T* taps = w;
    for (int64_t c = 0; c < p.channels; ++c, plane += p.channel_pitch) {
      for (int64_t t = row_phase.rows_begin; t < row_phase.rows_end; ++t) {
        const T* source = plane + p.tap_rows[t].source * p.row_pitch;
        switch (p.tap_rows[t].height) {
          case 1:
            taps = add_taps<kRows, kVecs, 1>(source, step, last, shift, shifts, taps, sums);
            break;
          case 2:
            taps = add_taps<kRows, kVecs, 2>(source, step, last, shift, shifts, taps, sums);
            break;
          case 3:
            taps = add_taps<kRows, kVecs, 3>(source, step, last, shift, shifts, taps, sums);
            break;
          case 4:
            taps = add_taps<kRows, kVecs, 4>(source, step, last, shift, shifts, taps, sums);
            break;
          case 5:
            taps = add_taps<kRows, kVecs, 5>(source, step, last, shift, shifts, taps, sums);
            break;
          case 6:
            taps = add_taps<kRows, kVecs, 6>(source, step, last, shift, shifts, taps, sums);
            break;
          case 7:
            taps = add_taps<kRows, kVecs, 7>(source, step, last, shift, shifts, taps, sums);
            break;
          default:
            __builtin_unreachable();
        }
      }
    }
    CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
      if (r >= rows - row) break;
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
        store(to + (row + r) * pitch + (j < kVecs - 1 ? j * Simd<T>::kLanes : last), sums[r][j] + bias);
      }
    }
  }
}

template <typename T>
using Sweep = void (*)(const DepthwisePlan&, const RowPhase&, const ColumnPhase&, const T*, int64_t, const T*, int64_t,
                       T, T*, int64_t);

template <typename T, int kVecs = kSweepVectors>
Sweep<T> sweep_for(int64_t rows, int64_t vectors) {
  if constexpr (kVecs > 1) {
    if (vectors < kVecs) return sweep_for<T, kVecs - 1>(rows, vectors);
  }
  return rows > 1 ? sweep<T, kSweepRows, kVecs> : sweep<T, 1, kVecs>;
}

// The weights of a group, [row][phase][channel][tap].
template <typename T, typename Sum>
void pack_taps(const DepthwisePlan& p, const T* w, Sum* packed) {
  for (int64_t m = 0; m < p.rows; ++m) {
    for (int64_t phase = 0; phase < p.row_phases * p.column_phases; ++phase) {
      const int64_t begin = p.phase_taps[2 * phase], end = p.phase_taps[2 * phase + 1];
      Sum* to = packed + (m * p.taps + begin) * p.channels;
      for (int64_t c = 0; c < p.channels; ++c) {
        const T* from = w + m * p.w_row + c * p.w_channel;
        for (int64_t t = begin; t < end; ++t) *to++ = widen(from[p.tap_weight[t]]);
      }
    }
  }
}

// A block's sums from `bounce`, [column phase][row][vectors], to the row of outputs `line`.
template <typename T, typename Sum>
inline void store_line(const DepthwisePlan& p, const Sum* bounce, int64_t bounce_phase, int64_t count, T* line) {
  if (p.out_axis[1] == 1 && p.out_step[1] == 1) return scatter_run(bounce, count, line, 1);
  if (p.out_axis[1] == 1 && p.out_step[1] == 2) return join_line(bounce, bounce + bounce_phase, count, line);
  const int64_t step = p.out_step[1];
  for (int64_t phase = 0; phase < step; ++phase, bounce += bounce_phase) {
    for (int64_t i = 0; i * step + phase < count; ++i) narrow(bounce[i], line[(i * step + phase) * p.out_axis[1]]);
  }
}

template <typename T>
void depthwise(const DepthwisePlan& p, const void* in_data, const void* w_data, void* out_data, char* scratch,
               int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const T* in = static_cast<const T*>(in_data);
  const T* w = static_cast<const T*>(w_data);
  Sum* cells = reinterpret_cast<Sum*>(scratch) + p.lead;
  Sum* weights = reinterpret_cast<Sum*>(scratch + p.at_weights);
  Sum* bounce = reinterpret_cast<Sum*>(scratch + p.at_bounce);
  constexpr int64_t kBounceRow = kSweepVectors * kLanes;
  const int64_t bounce_phase = p.chunk * kBounceRow;
  const int64_t block_rows = p.chunk > 1 ? kSweepRows : 1;
  SweepBox b = sweep_box(p, begin);
  for (int64_t task = begin; task < end; ++task, next_box(p, &b)) {
    const int64_t group = b.index[1];
    T* out = static_cast<T*>(out_data) + b.index[0] * p.out_batch + group * p.rows * p.out_channel +
             b.first[0] * p.out_axis[0] + b.first[1] * p.out_axis[1];
    pack_taps(p, w + group * p.w_group, weights);
    if (task == begin || p.boxes[1] > 1) clear(cells - p.lead, p.channels * p.channel_pitch);
    Strip<T> strip(p, b, in, cells);
    const int64_t most_rows = phase_size(b.size[0], 0, p.out_step[0]);
    const int64_t columns = phase_size(b.size[1], 0, p.out_step[1]), vectors = block_count(columns, kLanes);
    const bool direct = sizeof(T) == sizeof(Sum) && p.out_step[1] == 1 && p.out_axis[1] == 1 && columns >= kLanes;
    const int64_t last_vector = most<int64_t>(0, columns - kLanes);
    for (int64_t row = 0; row < most_rows; row += p.chunk) {
      strip.fill((least(row + p.chunk, most_rows) - 1) * p.in_step[0] + p.window);
      for (int64_t y = 0; y < p.row_phases; ++y) {
        const RowPhase& row_phase = p.row_phase[y];
        const int64_t rows = least(phase_size(b.size[0], row_phase.first, p.out_step[0]) - row, p.chunk);
        T* lines = out + (row_phase.first + row * p.out_step[0]) * p.out_axis[0];
        const Sum* source = cells + row * p.in_step[0] * p.row_pitch;
        for (int64_t v = 0; v < vectors; v += kSweepVectors) {
          const int64_t count = least<int64_t>(kSweepVectors, vectors - v);
          const int64_t column = least(v * kLanes, last_vector);
          const int64_t last = least((v + count - 1) * kLanes, last_vector) - column;
          const Sweep<Sum> sweep_rows = sweep_for<Sum>(block_rows, count);
          for (int64_t m = 0; m < p.rows; ++m) {
            T* to = lines + m * p.out_channel + column * p.out_step[1] * p.out_axis[1];
            const Sum bias = p.bias ? widen(static_cast<const T*>(p.bias)[group * p.rows + m]) : Sum(0);
            for (int64_t x = 0; x < p.column_phases; ++x) {
              const int64_t phase = y * p.column_phases + x;
              const Sum* taps = weights + (m * p.taps + p.phase_taps[2 * phase]) * p.channels;
              Sum* sums = bounce + x * bounce_phase;
              int64_t pitch = kBounceRow;
              if constexpr (sizeof(T) == sizeof(Sum)) {
                if (direct) sums = to, pitch = p.out_step[0] * p.out_axis[0];
              }
              sweep_rows(p, row_phase, p.column_phase[x], source + column, last, taps, rows, bias, sums, pitch);
            }
            if (direct) continue;
            const int64_t outputs = least((last + kLanes) * p.out_step[1], b.size[1] - column * p.out_step[1]);
            for (int64_t r = 0; r < rows; ++r) {
              store_line(p, bounce + r * kBounceRow, bounce_phase, outputs, to + r * p.out_step[0] * p.out_axis[0]);
            }
          }
        }
      }
    }
  }
}

// The weight's gradient -----------------------------------------------------------------------------------------------

// sums[s][h] += sum over rows r and vectors of y[r] * source[(r + h) * step + shift[s]], lanes along the outputs.
template <typename T, int kRows, int kHeight, int kShifts>
void weigh_block(const T* source, int64_t step, const int64_t* shift, const T* y, int64_t y_step, int64_t rows,
                 int64_t vectors, T* sums) {
  typedef typename Simd<T>::Vec V;
  constexpr int kLanes = Simd<T>::kLanes;
  V acc[kShifts][kHeight];
  CONVARITH_UNROLL for (int s = 0; s < kShifts; ++s) {
    CONVARITH_UNROLL for (int h = 0; h < kHeight; ++h) acc[s][h] = load(sums + (s * kHeight + h) * kLanes);
  }
  for (int64_t row = 0; row < rows; row += kRows, source += kRows * step, y += kRows * y_step) {
    for (int64_t v = 0; v < vectors * kLanes; v += kLanes) {
      V g[kRows];
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) g[r] = load(y + r * y_step + v);
      const T* from = source + v;
      CONVARITH_UNROLL for (int i = 0; i < kRows + kHeight - 1; ++i, from += step) {
        CONVARITH_UNROLL for (int s = 0; s < kShifts; ++s) {
          V x = load(from + shift[s]);
          keep(x);
          CONVARITH_UNROLL for (int h = 0; h < kHeight; ++h) {
            if (i >= h && i < h + kRows) acc[s][h] += g[i - h] * x;
          }
        }
      }
    }
  }
  CONVARITH_UNROLL for (int s = 0; s < kShifts; ++s) {
    CONVARITH_UNROLL for (int h = 0; h < kHeight; ++h) store(sums + (s * kHeight + h) * kLanes, acc[s][h]);
  }
}

constexpr int kWeighHeight = CONVARITH_REGISTERS >= 32 ? 4 : 3;
constexpr int kWeighShifts = kWeighHeight;

template <typename T>
using WeighBlock = void (*)(const T*, int64_t, const int64_t*, const T*, int64_t, int64_t, int64_t, T*);

template <typename T, int kHeight = kWeighHeight, int kShifts = kWeighShifts>
WeighBlock<T> weigh_block_for(bool one_row, int64_t height, int64_t shifts) {
  if constexpr (kHeight > 1) {
    if (height < kHeight) return weigh_block_for<T, kHeight - 1, kShifts>(one_row, height, shifts);
  }
  if constexpr (kShifts > 1) {
    if (shifts < kShifts) return weigh_block_for<T, kHeight, kShifts - 1>(one_row, height, shifts);
  }
  return one_row ? weigh_block<T, 1, kHeight, kShifts> : weigh_block<T, kSweepRows, kHeight, kShifts>;
}

// The outputs of a box and row of weights, and zeros after the last row; those after every row's last are there.
template <typename T, typename Sum>
void fill_gradient(const DepthwisePlan& p, const SweepBox& b, int64_t m, const T* y, Sum* strip) {
  y += b.index[0] * p.out_batch + (b.index[1] * p.rows + m) * p.out_channel + b.first[0] * p.out_axis[0] +
       b.first[1] * p.out_axis[1];
  for (int64_t i = 0; i < b.size[0]; ++i, y += p.out_axis[0], strip += p.gradient_pitch) {
    if (p.out_axis[1] == 1) {
      copy_line(y, b.size[1], strip);
    } else {
      copy_run(y, p.out_axis[1], b.size[1], strip);
    }
  }
  clear(strip, (p.gradient_rows - b.size[0]) * p.gradient_pitch);
}

// A task is a group and a part of the boxes of all images: sums are [part][group][row][channel][tap].
template <typename T>
void depthwise_sum(const DepthwisePlan& p, const void* x_data, const void* y_data, void* sums_data, char* scratch,
                   int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  constexpr int kLanes = Simd<Sum>::kLanes;
  Sum* cells = reinterpret_cast<Sum*>(scratch) + p.lead;
  Sum* lanes = reinterpret_cast<Sum*>(scratch + p.at_weights);  // the sums, lanes still apart
  Sum* gradient = reinterpret_cast<Sum*>(scratch + p.at_bounce);
  const int64_t pairs = p.rows * p.channels, boxes = p.boxes[0] * p.boxes[1], step = p.in_step[0] * p.row_pitch;
  const int64_t y_step = p.out_step[0] * p.gradient_pitch;
  bool cleared = false;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task / p.groups, group = task % p.groups;
    for (int64_t i = 0; i < pairs * p.taps * kLanes; i += kLanes) store(lanes + i, typename Simd<Sum>::Vec{});
    const int64_t last = block_begin(part + 1, p.batch * boxes, p.parts);
    for (int64_t i = block_begin(part, p.batch * boxes, p.parts); i < last; ++i) {
      const SweepBox b = sweep_box(p, (i / boxes * p.groups + group) * boxes + i % boxes);
      if (!cleared || p.boxes[1] > 1) {
        clear(cells - p.lead, p.channels * p.channel_pitch);
        clear(gradient, p.gradient_rows * p.gradient_pitch);
        cleared = true;
      }
      Strip<T>(p, b, static_cast<const T*>(x_data), cells).fill(p.strip_rows);
      const int64_t vectors = block_count(b.size[1], kLanes);
      const bool one_row = p.gradient_rows == p.out_step[0];  // of each phase
      for (int64_t m = 0; m < p.rows; ++m) {
        fill_gradient(p, b, m, static_cast<const T*>(y_data), gradient);
        for (int64_t c = 0; c < p.channels; ++c) {
          for (int64_t phase = 0; phase < p.row_phases; ++phase) {
            const RowPhase& rows = p.row_phase[phase];
            Sum* to = lanes + ((m * p.channels + c) * p.taps + p.phase_taps[2 * phase]) * kLanes;
            const int64_t count = phase_size(b.size[0], rows.first, p.out_step[0]);
            for (int64_t t = rows.rows_begin; t < rows.rows_end; ++t) {
              const int64_t height = p.tap_rows[t].height, shifts = p.column_phase[0].shift_end;
              const int64_t blocks = block_count(shifts, kWeighShifts);
              for (int64_t block = 0; block < blocks; ++block) {
                const int64_t s = block_begin(block, shifts, blocks), s_end = block_begin(block + 1, shifts, blocks);
                weigh_block_for<Sum>(one_row, height, s_end - s)(
                    cells + c * p.channel_pitch + p.tap_rows[t].source * p.row_pitch, step, p.shift + s,
                    gradient + rows.first * p.gradient_pitch, y_step, count, vectors, to);
                to += (s_end - s) * height * kLanes;
              }
            }
          }
        }
      }
    }
    add_lanes(lanes, pairs * p.taps, static_cast<Sum*>(sums_data) + task * pairs * p.taps);
  }
}

// The parts' sums, of some groups, to w.
template <typename T>
void depthwise_store(const DepthwisePlan& p, const void* sums_data, void* w_data, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  const int64_t size = p.rows * p.channels * p.taps;
  for (int64_t g = begin; g < end; ++g) {
    const Sum* sums = static_cast<const Sum*>(sums_data) + g * size;
    T* w = static_cast<T*>(w_data) + g * p.w_group;
    for (int64_t m = 0; m < p.rows; ++m) {
      for (int64_t c = 0; c < p.channels; ++c) {
        for (int64_t t = 0; t < p.taps; ++t, ++sums) {
          Sum sum = 0;
          for (int64_t part = 0; part < p.parts; ++part) sum += sums[part * p.groups * size];
          narrow(sum, w[m * p.w_row + c * p.w_channel + p.tap_weight[t]]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
