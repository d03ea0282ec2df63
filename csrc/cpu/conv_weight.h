// The weight's gradient: rows are (channel, tap), columns are out channels, and what is summed over are the outputs.
#pragma once

#include "conv_gather.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Columns of a block of dots, and the rows beside them that fill the registers. A vector of x mostly crosses two lines
// of the cache, so there are more columns than rows where there are enough of them.
constexpr int kDotColumns = CONVARITH_REGISTERS >= 32 ? 8 : 3;
constexpr int dot_rows(int64_t columns) {
  constexpr int kFew[] = {9, 5, 4}, kMany[] = {14, 12, 8, 6, 5, 4, 3, 3};
  return CONVARITH_REGISTERS >= 32 ? kMany[columns - 1] : kFew[columns - 1];
}

// From y of a pair's first member to the second's.
inline int64_t out_apart(const GatherPlan& p) {
  return p.pair_apart * (p.pair_axis == 0 ? p.out_batch : p.out_axis[(p.pair_axis + 2) % 3]);
}

// y of one box, group and block of columns, transposed: [output][column of the block].
template <typename T, typename Factor>
void pack_columns(const GatherPlan& p, const Run* runs, int64_t outputs, const RowBlock& columns, const T* y,
                  Factor* panel) {
  const int64_t apart = out_apart(p);
  const int64_t step = p.out_axis[2], width = columns.width;
  if (columns.real < width) fill_zero(panel, outputs * width);
  for (int64_t begin = 0; begin < outputs;) {
    const Run run = merged_run(runs, begin, outputs, step);
    const auto from = FactorOf<T>::at(y + run.out, run.alone ? nullptr : y + run.out + apart);
    Factor* to = panel + begin * width;
    begin += run.length;
    if (p.out_channel == 1) {
      for (int64_t x = 0; x < run.length; ++x) copy_run(from + x * step, 1, columns.real, to + x * width);
    } else if (step == 1) {
      transpose(from, p.out_channel, columns.real, run.length, to, width);
    } else {
      for (int64_t x = 0; x < run.length; ++x) copy_run(from + x * step, p.out_channel, columns.real, to + x * width);
    }
  }
}

// The panels of a pass: [box, group][block of columns][output][column of the block].
template <typename T>
int64_t weight_pack_tasks(const WeightPlan& plan) {
  return (plan.box_end - plan.box_begin) * plan.gather.groups * row_blocks<typename SumOf<T>::type>(plan.gather);
}

template <typename T>
void weight_pack(const WeightPlan& plan, const void* y, void* panels, char* scratch, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  typedef typename FactorOf<T>::type Factor;
  const GatherPlan& p = plan.gather;
  Run* runs = reinterpret_cast<Run*>(scratch + p.at_runs);
  const int64_t blocks = row_blocks<Sum>(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t at = task / blocks, g = at % p.groups;
    const RowBlock columns = row_block_at<Sum>(p, task % blocks);
    const Box b = box_at(p, plan.box_begin + at / p.groups);
    list_runs(p, b, runs);
    pack_columns(p, runs, box_pixels(b), columns,
                 static_cast<const T*>(y) + g * p.out_group + columns.first * p.out_channel,
                 static_cast<Factor*>(panels) + at * plan.box_pixels * plan.columns + columns.first * box_pixels(b));
  }
}

// acc[r][m] += row[r][lane] * column[m * pitch + lane], through load_at().
template <typename T, int kRows, int kColumns, typename Sums, typename Load>
inline __attribute__((always_inline)) void add_products(const T* const (&row)[kRows], int64_t q, const T* column,
                                                        int64_t pitch, const Load& load_at,
                                                        Sums (&acc)[kRows][kColumns]) {
  typedef typename Simd<T>::Vec V;
  if constexpr (kRows < kColumns) {
    V u[kRows];
    CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) load_at(row[r] + q, u[r]);
    CONVARITH_UNROLL for (int m = 0; m < kColumns; ++m) {
      V v;
      load_at(column + m * pitch + q, v);
      keep(v);
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) acc[r][m] = multiply_add(acc[r][m], v, u[r]);
    }
  } else {
    V v[kColumns];
    CONVARITH_UNROLL for (int m = 0; m < kColumns; ++m) load_at(column + m * pitch + q, v[m]);
    CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
      V u;
      load_at(row[r] + q, u);
      keep(u);
      CONVARITH_UNROLL for (int m = 0; m < kColumns; ++m) acc[r][m] = multiply_add(acc[r][m], v[m], u);
    }
  }
}

// sums[r][m][lane] (+)= sum over the runs' outputs q of that lane, of tile[offset[r] + source + q] * y[m * pitch + out
// + q], r < kRows, m < kColumns. What stands behind a run may be an infinity, or not be memory. With every vector the
// line `ahead` of column 0's is asked for.
template <typename T, int kRows, int kColumns>
void multiply_dot(const Run* runs, int64_t count, const T* tile, const int32_t* offset, const T* y, int64_t pitch,
                  int64_t ahead, typename SumOf<T>::type* sums, int64_t sums_pitch, bool add) {
  typedef typename Simd<T>::Vec V;
  typedef typename Simd<typename SumOf<T>::type>::Vec Sums;
  typedef decltype(V{} < V{}) Mask;
  constexpr int kLanes = Simd<T>::kLanes;
  Sums acc[kRows][kColumns];
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int m = 0; m < kColumns; ++m) {
      acc[r][m] = add ? load(sums + r * sums_pitch + m * kLanes) : Sums{};
    }
  }
  const int64_t length = runs[0].length, rest = length % kLanes;  // the runs of a box are equally long
  Mask mask;
  for (int j = 0; j < kLanes; ++j) mask[j] = j < rest ? -1 : 0;
  const auto load_whole = [](const T* p, V& v) { v = load(p); };
  const auto load_rest = [&](const T* p, V& v) {
    if constexpr (CONVARITH_BYTES == 64) {
      v = load_some(p, rest);
    } else {
      v = reinterpret_cast<V>(reinterpret_cast<Mask>(load(p)) & mask);
    }
  };
  for (int64_t i = 0; i < count; ++i) {
    const T* column = y + runs[i].out;
    const T* row[kRows];
    CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) row[r] = tile + runs[i].source + offset[r];
    int64_t q = 0;
    for (; q + kLanes <= length; q += kLanes) {
      prefetch_ahead<2>(column + q, ahead);
      add_products(row, q, column, pitch, load_whole, acc);
    }
    if (rest > 0) add_products(row, q, column, pitch, load_rest, acc);
  }
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int m = 0; m < kColumns; ++m) store(sums + r * sums_pitch + m * kLanes, acc[r][m]);
  }
}

template <typename T>
using MultiplyDot = void (*)(const Run*, int64_t, const T*, const int32_t*, const T*, int64_t, int64_t,
                             typename SumOf<T>::type*, int64_t, bool);

template <typename T, int kColumns, int kRows = dot_rows(kColumns)>
MultiplyDot<T> dot_rows_for(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return dot_rows_for<T, kColumns, kRows - 1>(rows);
  }
  return multiply_dot<T, kRows, kColumns>;
}

// The microkernel for a block of rows, of dot_rows(columns) at most.
template <typename T, int kColumns = kDotColumns>
MultiplyDot<T> dot_for(int64_t rows, int64_t columns) {
  if constexpr (kColumns > 1) {
    if (columns < kColumns) return dot_for<T, kColumns - 1>(rows, columns);
  }
  return dot_rows_for<T, kColumns>(rows);
}

// Rows beside one vector of columns have a number loaded for every product, which is more than processors load. But
// where neighbouring rows are kTaps taps that see neighbours, and so are neighbouring outputs, a few outputs
// share what they see.
constexpr int kLineOutputs = CONVARITH_REGISTERS >= 32 ? 4 : 2;
constexpr int kMostLineTaps = 7;
constexpr int lines_at_once(int64_t taps) {
  return (CONVARITH_REGISTERS >= 32 ? 16 : 12) / static_cast<int>(taps);
}

// multiply_outer() of one vector, of the rows from[r] + t, t < kTaps, r < kLines, and the same sums. Outputs come in
// runs of `length` that follow each other; offset has an entry for each output.
template <typename T, int kTaps, int kLines>
void multiply_lines(int64_t depth, int64_t length, const T* const* from, const int32_t* offset, const T* columns,
                    typename SumOf<T>::type* sums, bool add) {
  typedef typename Simd<T>::Vec V;
  typedef typename Simd<typename SumOf<T>::type>::Vec Sums;
  constexpr int kLanes = Simd<T>::kLanes;
  Sums acc[kLines * kTaps];
  CONVARITH_UNROLL for (int i = 0; i < kLines * kTaps; ++i) acc[i] = Sums{};
  const auto multiply = [&](auto outputs, int64_t at) __attribute__((always_inline)) {
    constexpr int kOutputs = decltype(outputs)::value;
    V y[kOutputs];
    CONVARITH_UNROLL for (int o = 0; o < kOutputs; ++o) y[o] = load(columns + o * kLanes);
    columns += kOutputs * kLanes;
    CONVARITH_UNROLL for (int r = 0; r < kLines; ++r) {
      CONVARITH_UNROLL for (int i = 0; i < kTaps + kOutputs - 1; ++i) {
        V v = from[r][at + i] - V{};
        keep(v);
        CONVARITH_UNROLL for (int o = 0; o < kOutputs; ++o) {
          const int t = i - o;
          if (t >= 0 && t < kTaps) acc[r * kTaps + t] = multiply_add(acc[r * kTaps + t], v, y[o]);
        }
      }
    }
  };
  for (int64_t begin = 0; begin < depth; begin += length) {
    const int64_t at = offset[begin];
    int64_t q = 0;
    for (; q + kLineOutputs <= length; q += kLineOutputs) multiply(Constant<kLineOutputs>{}, at + q);
    for (; q < length; ++q) multiply(Constant<1>{}, at + q);
  }
  CONVARITH_UNROLL for (int i = 0; i < kLines * kTaps; ++i) {
    store(sums + i * kLanes, add ? load(sums + i * kLanes) + acc[i] : acc[i]);
  }
}

template <typename T>
using MultiplyLines = void (*)(int64_t, int64_t, const T* const*, const int32_t*, const T*, typename SumOf<T>::type*,
                               bool);

template <typename T, int kTaps, int kLines = lines_at_once(kTaps)>
MultiplyLines<T> lines_of_taps_for(int64_t lines) {
  if constexpr (kLines > 1) {
    if (lines < kLines) return lines_of_taps_for<T, kTaps, kLines - 1>(lines);
  }
  return multiply_lines<T, kTaps, kLines>;
}

// The microkernel for so many lines, of lines_at_once(taps) at most.
template <typename T>
MultiplyLines<T> lines_for(int64_t lines, int64_t taps) {
  if (taps == 3) return lines_of_taps_for<T, 3>(lines);
  if (taps == 5) return lines_of_taps_for<T, 5>(lines);
  return lines_of_taps_for<T, kMostLineTaps>(lines);
}

// The taps of a line where all rows are in lines that there is a microkernel for; otherwise 1.
inline int64_t taps_of_line(const GatherPlan& p) {
  if ((p.raw ? p.stride[2] * p.in_axis[2] : p.move[2] * p.tile_cell) != 1) return 1;
  int64_t taps = 1;
  while (taps < p.taps && p.offset[taps] == p.offset[0] + taps) ++taps;
  if ((taps != 3 && taps != 5 && taps != kMostLineTaps) || p.taps % taps != 0) return 1;
  for (int64_t t = 0; t < p.taps; ++t) {
    if (p.offset[t] != p.offset[t - t % taps] + t % taps) return 1;
  }
  return taps;
}

// Lines of memory that the next box reads, which no prefetcher foresees: parts of as many rows as there are channels.
// They are asked for a few at a time while others are multiplied.
class Ahead {
 public:
  // `rows` rows of `size` numbers, which are `pitch` apart.
  template <typename T>
  void add(const T* first, int64_t rows, int64_t pitch, int64_t size) {
    constexpr int64_t kItem = sizeof(T);
    region_[regions_++] = {reinterpret_cast<uintptr_t>(first), rows, pitch * kItem, size * kItem};
    lines_ += rows * block_count(size * kItem, kLine);
  }
  // Shares the lines out among so many calls of next().
  void spread(int64_t calls) { share_ = least(block_count(lines_, calls), kMostLines); }
  // Those of one share, for so many steps.
  LinesAhead next(int64_t depth) {
    const int64_t wanted = least(share_, depth);
    int64_t count = 0;
    while (count < wanted && regions_ > 0) {
      Region& r = region_[regions_ - 1];
      const uintptr_t at = r.first + static_cast<uintptr_t>(offset_);
      const int64_t some = least(wanted - count, block_count(r.size - offset_, kLine));
      for (int64_t i = 0; i < some; ++i) line_[count + i] = reinterpret_cast<const void*>(at + i * kLine);
      count += some;
      offset_ += some * kLine;
      if (offset_ < r.size) continue;
      offset_ = 0;
      r.first += static_cast<uintptr_t>(r.pitch);
      if (--r.rows == 0) --regions_;
    }
    if (count == 0) line_[count++] = line_;
    int64_t shift = 0;
    while (depth >> shift >= 2 * count) ++shift;
    const void* const last = line_[count - 1];
    for (const int64_t end = ((depth - 1) >> shift) + 1; count < end; ++count) line_[count] = last;
    return {line_, shift};
  }

 private:
  static constexpr int64_t kLine = 64, kMostLines = 64;
  struct Region {
    uintptr_t first;
    int64_t rows, pitch, size;  // bytes
  };
  Region region_[2];
  int64_t regions_ = 0, offset_ = 0, lines_ = 0, share_ = 0;
  const void* line_[2 * kMostLines];
};

// What a box reads of x where it stands, of `channels` channels from x on, as far as it is of one image and plane.
template <typename T>
void add_inputs(const GatherPlan& p, const Box& b, const T* x, int64_t channels, Ahead& ahead) {
  if (b.size[0] > 1 || p.cells[0] > 1) return;
  const int64_t cells[2] = {(b.size[2] - 1) * p.stride[1] + 1, (b.size[3] - 1) * p.stride[2] + 1};
  const int64_t size = (cells[0] - 1) * p.in_axis[1] + (cells[1] - 1) * p.in_axis[2] + 1;
  x += b.first[0] * p.in_batch;
  for (int i = 0; i < 3; ++i) x += b.first[i + 1] * p.stride[i] * p.in_axis[i];
  if (p.in_channel == 1) {
    ahead.add(x, 1, 0, size + channels - 1);
  } else {
    ahead.add(x, channels, p.in_channel, size);
  }
}

// Where the first output of a box stands.
inline int64_t first_out(const GatherPlan& p, const Box& b) {
  int64_t at = p.out_offset + b.first[0] * p.out_batch;
  for (int i = 0; i < 3; ++i) at += b.first[i + 1] * p.out_axis[i];
  return at;
}

// And of y, of one image and plane.
template <typename T>
void add_outputs(const GatherPlan& p, const Box& b, const T* y, Ahead& ahead) {
  if (b.size[0] > 1 || b.size[1] > 1) return;
  const int64_t size = (b.size[2] - 1) * p.out_axis[1] + (b.size[3] - 1) * p.out_axis[2] + 1;
  if (p.out_channel == 1) {
    ahead.add(y + first_out(p, b), 1, 0, size + p.rows - 1);
  } else {
    ahead.add(y + first_out(p, b), p.rows, p.out_channel, size);
  }
}

// What a task works on: a group, a share of its rows, and a share of the pass's boxes.
struct WeightTask {
  int64_t group, row_begin, row_end, box_begin, box_end;
};

// A group's sums in one share of the boxes: [block of columns][row][column of the block]; for dots, [row][column].
template <typename Sum>
Sum* weight_sums(const WeightPlan& plan, void* sums, int64_t group, int64_t share) {
  return static_cast<Sum*>(sums) + (share * plan.gather.groups + group) * plan.row_count * plan.columns;
}

// The rows of the task in a block of channels; tile holds those channels of the box, whose runs of outputs are `length`
// long.
template <typename Factor, typename Sum>
void sum_outer(const WeightPlan& plan, const WeightTask& task, int64_t c0, int64_t channels, const Factor* tile,
               const int32_t* pixels, int64_t outputs, int64_t length, const Factor* panels, bool add, Sum* all_sums,
               Ahead& ahead) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  const GatherPlan& p = plan.gather;
  const int64_t row_begin = most(task.row_begin, c0 * p.taps);
  const int64_t row_end = least(task.row_end, (c0 + channels) * p.taps);
  const int64_t blocks = row_blocks<Sum>(p);
  const int32_t* offset = p.offset + (row_begin - c0 * p.taps);
  const int64_t taps = taps_of_line(p);
  const bool whole_lines = taps > 1 && row_begin % taps == 0 && row_end % taps == 0;
  ahead.spread(blocks * block_count(row_end - row_begin, kMostOuterRows));
  for (int64_t block = 0; block < blocks; ++block) {
    const RowBlock columns = row_block_at<Sum>(p, block);
    const int64_t vectors = columns.width / kLanes;
    const bool lines = vectors == 1 && whole_lines;
    const int64_t step = lines ? taps : 1, count = (row_end - row_begin) / step;
    const int64_t parts = block_count(count, lines ? lines_at_once(taps) : outer_rows(vectors));
    const Factor* panel = panels + columns.first * outputs;
    Sum* sums = all_sums + columns.first * plan.row_count + (row_begin - plan.first_row) * columns.width;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = block_begin(part, count, parts), some = block_begin(part + 1, count, parts) - first;
      const Factor* from[kMostOuterRows];
      for (int64_t r = 0; r < some; ++r) from[r] = tile + offset[(first + r) * step];
      Sum* part_sums = sums + first * step * columns.width;
      if (lines) {
        lines_for<Factor>(some, taps)(outputs, length, from, pixels, panel, part_sums, add);
      } else {
        outer_for<Factor, LinesAhead>(some, vectors)(outputs, from, pixels, panel, {part_sums}, add,
                                                     ahead.next(outputs));
      }
    }
  }
}

// Sums of lanes, [row of the task][column][lane]; column m of y stands at m * pitch. While all rows pass a block of
// columns, the block that follows is asked for, a column with each block of rows; after the last one the first of the
// next box, which stands `following` from this box's.
template <typename Factor, typename Sum>
void sum_dot(const WeightPlan& plan, const WeightTask& task, int64_t c0, int64_t channels, const Factor* tile,
             const Run* runs, int64_t count, const Factor* y, int64_t pitch, int64_t following, bool add,
             Sum* all_sums) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  const GatherPlan& p = plan.gather;
  const int64_t row_begin = most(task.row_begin, c0 * p.taps);
  const int64_t row_end = least(task.row_end, (c0 + channels) * p.taps);
  const int64_t strips = block_count(p.rows, kDotColumns), sums_pitch = plan.columns * kLanes;
  Sum* sums = all_sums + (row_begin - task.row_begin) * sums_pitch;
  for (int64_t strip = 0; strip < strips; ++strip) {
    const int64_t m = block_begin(strip, p.rows, strips);
    const int64_t columns = block_begin(strip + 1, p.rows, strips) - m;
    const int64_t next = strip + 1 < strips ? columns * pitch : following - m * pitch;
    const int64_t blocks = block_count(row_end - row_begin, dot_rows(columns));
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t row = block_begin(block, row_end - row_begin, blocks);
      const int64_t rows = block_begin(block + 1, row_end - row_begin, blocks) - row;
      dot_for<Factor>(rows, columns)(runs, count, tile, p.offset + (row_begin - c0 * p.taps) + row, y + m * pitch,
                                     pitch, next + least(block, columns - 1) * pitch,
                                     sums + row * sums_pitch + m * kLanes, sums_pitch, add);
    }
  }
}

// y of a box for dots, [column][cell of the tile], with zeros beside the outputs: the runs become one.
template <typename T, typename Factor>
int64_t pack_cells(const GatherPlan& p, Run* runs, int64_t count, const T* y, Factor* lines) {
  constexpr int kLanes = Simd<Factor>::kLanes;
  const int64_t apart = out_apart(p), first = runs[0].source;
  const int64_t length = runs[count - 1].source - first + runs[0].length;
  const int64_t pitch = block_count(length, kLanes) * kLanes;
  for (int64_t m = 0; m < p.rows; ++m, lines += pitch) {
    int64_t end = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t begin = runs[i].source - first, size = runs[i].length;
      const T* member = y + m * p.out_channel + runs[i].out;
      const auto from = FactorOf<T>::at(member, runs[i].alone ? nullptr : member + apart);
      if (end < begin) fill_zero(lines + end, begin - end);
      if (p.out_axis[2] == 1) {  // in whole vectors, zeros at their ends, over which the next run is written
        for (end = begin; end < begin + size; end += kLanes) {
          const int64_t left = begin + size - end;
          store(lines + end,
                left < kLanes ? load_wide_some(from + (end - begin), left) : load_wide(from + (end - begin)));
        }
      } else {
        copy_run(from, p.out_axis[2], size, lines + begin);
        end = begin + size;
      }
    }
    if (end < pitch) fill_zero(lines + end, pitch - end);
  }
  runs[0].length = length;
  runs[0].out = 0;
  return pitch;
}

// Few outputs, many channels on both sides: columns are (channel, tap), packed as [output][column of the block], and
// rows are y's, read where they stand. Sums go from registers to w; or, where those cannot hold them until they are
// whole, to a thread's own of a block of columns, for neighbouring lines of w are another thread's.
template <typename T>
void weight_patches(const WeightPlan& plan, const T* x, const T* y, T* w, char* scratch, int64_t begin, int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  const GatherPlan& p = plan.gather;
  Run* runs = reinterpret_cast<Run*>(scratch + p.at_runs);
  int32_t* pixels = reinterpret_cast<int32_t*>(scratch + p.at_pixels);
  T* panel = reinterpret_cast<T*>(scratch + p.at_own);
  T* sums = reinterpret_cast<T*>(scratch + p.at_sums);
  const Box b = box_at(p, 0);
  const int64_t count = list_runs(p, b, runs), length = runs[0].length, outputs = count * length;
  list_pixels(p, runs, count, pixels);
  int32_t* outs = pixels + outputs;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t q = 0; q < length; ++q) {
      outs[i * length + q] = static_cast<int32_t>(runs[i].out + q * p.out_axis[2]);
    }
  }
  const int64_t in_row = p.channels * p.taps, vectors = block_count(in_row, kLanes);
  const int64_t blocks = block_count(vectors, kOuterVectors), chunks = block_count(outputs, plan.box_pixels);
  const bool straight = p.taps == 1 && (p.raw ? p.stride[2] * p.in_axis[2] : p.move[2] * p.tile_cell) == 1;
  constexpr int64_t kItem = sizeof(T);
  const auto lines = reinterpret_cast<uintptr_t>(w) | static_cast<uintptr_t>((p.w_group | p.w_row | in_row) * kItem);
  const bool past_caches = chunks == 1 && lines % 64 == 0 && p.groups * p.rows * in_row * kItem >= kPastCaches;
  HeldTile held;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t share = task % plan.row_tasks, block = task / plan.row_tasks % blocks;
    const int64_t g = task / plan.row_tasks / blocks;
    const int64_t first = block_begin(block, vectors, blocks) * kLanes;
    const int64_t width = block_begin(block + 1, vectors, blocks) * kLanes - first;
    const int64_t real = least(width, in_row - first), c0 = first / p.taps;
    const int64_t first_row = block_begin(share, p.rows, plan.row_tasks);
    const int64_t all_rows = block_begin(share + 1, p.rows, plan.row_tasks) - first_row;
    const int64_t parts = block_count(all_rows, outer_rows(width / kLanes));
    const T* tile = tile_at<T>(p, b, x, g, c0, (first + real - 1) / p.taps - c0 + 1, scratch, held) + runs[0].source;
    const int32_t* offset = p.offset + (first - c0 * p.taps);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t o = block_begin(chunk, outputs, chunks), o_end = block_begin(chunk + 1, outputs, chunks);
      if (real < width) fill_zero(panel, (o_end - o) * width);
      for (int64_t q = o; q < o_end;) {
        const int64_t some = straight ? least(length - q % length, o_end - q) : 1;
        const T* from = tile + pixels[q];
        T* to = panel + (q - o) * width;
        if (straight) {
          transpose(from + offset[0], p.raw ? p.in_channel : p.tile_channel, real, some, to, width);
        } else {
          for (int64_t j = 0; j < real; ++j) to[j] = from[offset[j]];
        }
        q += some;
      }
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t begin_row = block_begin(part, all_rows, parts);
        const int64_t rows = block_begin(part + 1, all_rows, parts) - begin_row, row = first_row + begin_row;
        const T* from[kMostOuterRows];
        T* to[kMostOuterRows];
        T* const w_block = w + g * p.w_group + row * p.w_row + first;
        for (int64_t r = 0; r < rows; ++r) {
          from[r] = y + g * p.out_group + (row + r) * p.out_channel;
          to[r] = chunks == 1 ? w_block + r * p.w_row : sums + (begin_row + r) * width;
        }
        outer_for<T, RowsAhead, OuterRows<T>>(rows, width / kLanes)(o_end - o, from, outs + o, panel,
                                                                    {to, real, nullptr, past_caches}, chunk > 0, {});
        if (chunks == 1 || chunk + 1 < chunks) continue;
        for (int64_t r = 0; r < rows; ++r) copy_run(to[r], 1, real, w_block + r * p.w_row);
      }
    }
  }
  fence_past_caches();
}

template <typename T>
void weight_sum(const WeightPlan& plan, const void* x_data, const void* y_data, const void* panels_data,
                void* sums_data, char* scratch, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  typedef typename FactorOf<T>::type Factor;
  const GatherPlan& p = plan.gather;
  const T* x = static_cast<const T*>(x_data);
  const T* y = static_cast<const T*>(y_data);
  if constexpr (sizeof(T) == sizeof(Sum)) {
    if (plan.patches) return weight_patches(plan, x, y, static_cast<T*>(sums_data), scratch, begin, end);
  }
  Run* runs = reinterpret_cast<Run*>(scratch + p.at_runs);
  int32_t* pixels = reinterpret_cast<int32_t*>(scratch + p.at_pixels);
  Factor* own = reinterpret_cast<Factor*>(scratch + p.at_own);  // y of a box, unless all tasks share it
  Sum* lanes = reinterpret_cast<Sum*>(scratch + p.at_sums);
  HeldTile held;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t share = index % plan.box_tasks, at = index / plan.box_tasks;
    const int64_t g = at / plan.row_tasks, boxes = plan.box_end - plan.box_begin;
    const WeightTask task = {g, plan.first_row + block_begin(at % plan.row_tasks, plan.row_count, plan.row_tasks),
                             plan.first_row + block_begin(at % plan.row_tasks + 1, plan.row_count, plan.row_tasks),
                             plan.box_begin + block_begin(share, boxes, plan.box_tasks),
                             plan.box_begin + block_begin(share + 1, boxes, plan.box_tasks)};
    Sum* sums = weight_sums<Sum>(plan, sums_data, g, share);
    for (int64_t box = task.box_begin; box < task.box_end; ++box) {
      const Box b = box_at(p, box);
      int64_t count = list_runs(p, b, runs);
      const int64_t outputs = box_pixels(b);
      const T* y_group = y + g * p.out_group;
      const Factor* panels = own;
      int64_t pitch = p.out_channel, following = 0;  // of dots
      if (plan.in_place) {
        if (box + 1 < task.box_end) following = first_out(p, box_at(p, box + 1)) - first_out(p, b);
        panels = reinterpret_cast<const Factor*>(y_group);
      } else if (plan.dot) {
        pitch = pack_cells(p, runs, count, y_group, own);
        count = 1;
      } else if (plan.box_tasks > 1) {
        for (int64_t block = 0; block < row_blocks<Sum>(p); ++block) {
          const RowBlock columns = row_block_at<Sum>(p, block);
          pack_columns(p, runs, outputs, columns, y_group + columns.first * p.out_channel,
                       own + columns.first * outputs);
        }
      } else {
        panels = static_cast<const Factor*>(panels_data) +
                 ((box - plan.box_begin) * p.groups + g) * plan.box_pixels * plan.columns;
      }
      if (!plan.dot) list_pixels(p, runs, count, pixels);
      const bool first = plan.box_tasks > 1 ? box == task.box_begin : box == 0;
      for (int64_t c0 = task.row_begin / p.taps; c0 * p.taps < task.row_end; c0 += p.channel_block) {
        const int64_t channels = least(p.channel_block, (task.row_end + p.taps - 1) / p.taps - c0);
        const Factor* tile = tile_at<T>(p, b, x, g, c0, channels, scratch, held);
        if (plan.dot) {
          sum_dot(plan, task, c0, channels, tile, runs, count, panels, pitch, following, !first, lanes);
        } else {
          Ahead ahead;
          if (box + 1 < task.box_end) {
            const Box next = box_at(p, box + 1);
            if (plan.box_tasks > 1 && c0 * p.taps <= task.row_begin) add_outputs(p, next, y_group, ahead);
            if (p.raw) add_inputs(p, next, tile, channels, ahead);
          }
          sum_outer(plan, task, c0, channels, tile + runs[0].source, pixels, outputs, runs[0].length, panels, !first,
                    sums, ahead);
        }
      }
    }
    if (plan.dot) {
      add_lanes(lanes, (task.row_end - task.row_begin) * plan.columns,
                sums + (task.row_begin - plan.first_row) * plan.columns);
    }
  }
}

// The sums of a pass to where w has them; a task is a group's block of columns.
template <typename T>
int64_t weight_store_tasks(const WeightPlan& plan) {
  return plan.gather.groups * row_blocks<typename SumOf<T>::type>(plan.gather);
}

template <typename T>
void weight_store(const WeightPlan& plan, void* sums_data, void* w_data, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  const GatherPlan& p = plan.gather;
  const int64_t blocks = row_blocks<Sum>(p), rows = plan.row_count;
  bool dense = p.w_channel == p.taps;
  for (int64_t t = 0; t < p.taps; ++t) dense = dense && p.tap_weight[t] == t;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / blocks;
    const RowBlock columns = row_block_at<Sum>(p, task % blocks);
    const int64_t pitch = plan.dot ? plan.columns : columns.width;
    const int64_t first = plan.dot ? columns.first : columns.first * rows;
    Sum* sums = weight_sums<Sum>(plan, sums_data, g, 0) + first;
    for (int64_t share = 1; share < plan.box_tasks; ++share) {
      const Sum* more = weight_sums<Sum>(plan, sums_data, g, share) + first;
      for (int64_t r = 0; r < rows; ++r) add_run(more + r * pitch, columns.real, sums + r * pitch);
    }
    T* w = static_cast<T*>(w_data) + g * p.w_group + columns.first * p.w_row;
    if (dense) {
      transpose_narrow(sums, pitch, rows, columns.real, w + plan.first_row, p.w_row);
      continue;
    }
    if (p.w_channel == 1 && p.w_row != 1) {  // channels follow each other: those of a tap together
      for (int64_t t = 0; t < p.taps; ++t) {
        const int64_t channel = steps_up(plan.first_row - t, p.taps), end = steps_up(plan.first_row + rows - t, p.taps);
        transpose_narrow(sums + (channel * p.taps + t - plan.first_row) * pitch, p.taps * pitch, end - channel,
                         columns.real, w + p.tap_weight[t] + channel, p.w_row);
      }
      continue;
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = plan.first_row + r, at = row / p.taps * p.w_channel + p.tap_weight[row % p.taps];
      if (p.w_row == 1) {
        scatter_run(sums + r * pitch, columns.real, w + at, 1);
        continue;
      }
      for (int64_t m = 0; m < columns.real; ++m) narrow(sums[r * pitch + m], w[m * p.w_row + at]);
    }
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
