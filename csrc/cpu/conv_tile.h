// Boxes of outputs, and the padded tile of inputs that a box sees.
#pragma once

#include "conv_factor.h"
#include "conv_plan.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

struct Box {
  int64_t index;
  int64_t first[4];  // batch, z, y, x
  int64_t size[4];
};

inline Box box_at(const GatherPlan& p, int64_t index) {
  Box b;
  b.index = index;
  const int64_t extent[4] = {p.batch, p.grid[0], p.grid[1], p.grid[2]};
  for (int i = 3; i >= 0; --i) {
    b.first[i] = index % p.boxes[i] * p.box[i];
    b.size[i] = least(p.box[i], extent[i] - b.first[i]);
    index /= p.boxes[i];
  }
  return b;
}

inline int64_t box_pixels(const Box& b) {
  return b.size[0] * b.size[1] * b.size[2] * b.size[3];
}

// Cells [begin, end) along one axis that hold an input; cell j stands at (first + j) * step + residue.
inline void inside(int64_t first, int64_t step, int64_t residue, int64_t source, int64_t cells, int64_t* begin,
                   int64_t* end) {
  const int64_t at = first * step + residue;  // of cell 0
  *begin = at >= 0 ? 0 : least((-at + step - 1) / step, cells);
  *end = at >= source ? *begin : least((source - 1 - at) / step + 1, cells);
  if (*end < *begin) *end = *begin;
}

// The next channel's rows may stand in other pages, where no prefetcher foresees them: the first lines of some are
// asked for ahead.
constexpr int64_t kRowsAsked = 4, kCellsAsked = 256;

template <typename T>
inline void prefetch_rows_of_input(const T* first, int64_t rows, int64_t step, int64_t width) {
  if (step * static_cast<int64_t>(sizeof(T)) < 64) {  // several of a line
    prefetch(first, least((rows - 1) * step + width, kRowsAsked * kCellsAsked));
  } else {
    for (int64_t y = 0; y < rows; ++y) prefetch(first + y * step, least(width, kCellsAsked));
  }
}

// Which axis is the innermost: rows in both the input and the tile; channels in both; or channels in the input, rows in
// the tile.
enum class Innermost { kRows, kChannels, kTransposed };

// A row of `size` cells of channels that follow each other in memory, to a row for every channel.
template <typename T, typename Factor>
inline void transpose_cells(const RowPart<T>& part, int64_t step, int64_t size, int64_t channels, Factor* row,
                            int64_t pitch) {
  transpose(part.at, step, part.end - part.begin, channels, row + part.begin, pitch);
  for (int64_t c = 0; c < channels; ++c, row += pitch) {
    fill_zero(row, part.begin);
    fill_zero(row + part.end, size - part.end);
  }
}

// The tile of channels [c0, c0 + channels) under a box: zeros, and the rows that meet the input. Of pairs, both members
// are looked at alike.
template <Innermost kInnermost, typename T, typename Factor>
void pad_tile_along(const GatherPlan& p, const Box& b, const T* in, int64_t g, int64_t c0, int64_t channels,
                    Factor* tile) {
  constexpr int kMembers = FactorOf<T>::kMembers;
  constexpr bool kTransposed = kInnermost == Innermost::kTransposed;
  constexpr bool kPixels = kInnermost != Innermost::kRows;  // with all of their channels
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  int64_t cells[3], step[3], first[kMembers][3], apart[5] = {};
  apart[p.pair_axis] = p.pair_apart;
  for (int i = 0; i < 3; ++i) {
    const int64_t outputs = least(p.box[i + 1], p.tile_grid[i] - b.first[i + 1]);
    cells[i] = p.cells[i] - (p.box[i + 1] - outputs) * p.move[i];
    step[i] = p.stride[i] / p.move[i];
    for (int m = 0; m < kMembers; ++m) first[m][i] = (b.first[i + 1] + m * apart[i + 1]) * p.move[i] + p.low[i];
  }
  const int64_t ahead = most<int64_t>(1, kRowsAsked / (cells[0] * cells[1]));  // channels
  const int64_t row_size = cells[2] * p.tile_cell, step_in = step[2] * p.in_axis[2];
  const int64_t step_y = step[1] * p.in_axis[1];
  // The last pair has no second member where there is nothing to make it of.
  const int64_t last_image = p.pair_alone && p.pair_axis == 0 ? p.batch - 1 : p.batch;
  const int64_t last_channel = p.pair_alone && p.pair_axis == 4 ? p.channels - 1 : p.channels;
  for (int64_t r = 0; r < p.residues; ++r) {
    const int64_t* residue = p.residue + 3 * r;
    int64_t begin[kMembers][3], end[kMembers][3];
    const T* corner[kMembers];
    for (int m = 0; m < kMembers; ++m) {
      for (int i = 0; i < 3; ++i) {
        inside(first[m][i], step[i], residue[i], p.source[i], cells[i], &begin[m][i], &end[m][i]);
      }
      corner[m] = in + g * p.in_group + (c0 + m * apart[4]) * p.in_channel + (b.first[0] + m * apart[0]) * p.in_batch +
                  ((first[m][2] + begin[m][2]) * step[2] + residue[2]) * p.in_axis[2];
    }
    int64_t row_begin[kMembers], row_end[kMembers];
    for (int m = 0; m < kMembers; ++m) {
      row_begin[m] = begin[m][2];
      row_end[m] = end[m][2];
    }
    const CopyRows<T> copy_rows(row_begin, row_end, step_in, cells[2]);
    // Residues of the same rows, and rows of the same lines, are asked for once.
    const bool asks = !kPixels && residue[2] == 0 && (residue[1] == 0 || p.in_axis[1] >= kLine);
    for (int64_t n = 0; n < b.size[0]; ++n) {
      for (int64_t c = 0; c < (kPixels ? 1 : channels); ++c) {
        Factor* image = tile + c * p.tile_channel + r * p.tile_residue + n * p.tile_image;
        for (int64_t z = 0; z < cells[0]; ++z) {
          Factor* plane = image + z * p.tile_plane;
          int64_t y_begin[kMembers] = {}, y_end[kMembers] = {};  // rows that meet the input
          const T* next[kMembers] = {};                          // of those
          for (int m = 0; m < kMembers; ++m) {
            const bool alone = m == 1 && (b.first[0] + n >= last_image || c0 + c >= last_channel);
            if (alone || z < begin[m][0] || z >= end[m][0] || begin[m][2] == end[m][2]) continue;
            y_begin[m] = begin[m][1];
            y_end[m] = end[m][1];
            if (y_begin[m] == y_end[m]) continue;
            const int64_t z_in = (first[m][0] + z) * step[0] + residue[0];
            const int64_t y_in = (first[m][1] + y_begin[m]) * step[1] + residue[1];
            next[m] = corner[m] + c * p.in_channel + n * p.in_batch + z_in * p.in_axis[0] + y_in * p.in_axis[1];
            if (asks && c0 + c + ahead < p.channels) {
              prefetch_rows_of_input(next[m] + ahead * p.in_channel, y_end[m] - y_begin[m], step_y,
                                     step_in * (end[m][2] - begin[m][2]));
            }
          }
          for (int64_t y = 0, until = 0; y < cells[1]; y = until) {  // rows that the same members meet
            RowPart<T> part[kMembers] = {};
            bool meets = false;
            until = cells[1];
            for (int m = 0; m < kMembers; ++m) {
              if (y < y_begin[m]) {
                until = least(until, y_begin[m]);
              } else if (y < y_end[m]) {
                until = least(until, y_end[m]);
                part[m] = {next[m] + (y - y_begin[m]) * step_y, begin[m][2], end[m][2]};
                meets = true;
              }
            }
            Factor* rows = plane + y * p.tile_row;
            if (!meets) {
              for (int64_t j = 0; j < (kTransposed ? channels : 1); ++j) {
                for (int64_t i = 0; i < until - y; ++i) fill_zero(rows + j * p.tile_channel + i * p.tile_row, row_size);
              }
            } else if constexpr (kTransposed) {
              for_rows(part, step_y, until - y, [&](const RowPart<T>(&row)[kMembers], int64_t i) {
                transpose_cells(row[0], step_in, cells[2], channels, rows + i * p.tile_row, p.tile_channel);
              });
            } else if constexpr (kPixels) {
              for_rows(part, step_y, until - y, [&](const RowPart<T>(&row)[kMembers], int64_t i) {
                copy_part_cells(row, step_in, cells[2], channels, last_channel - c0, p.tile_cell,
                                rows + i * p.tile_row);
              });
            } else {
              copy_rows(part, step_y, until - y, rows, p.tile_row);
            }
          }
        }
      }
    }
  }
}

template <typename T, typename Factor>
void pad_tile(const GatherPlan& p, const Box& b, const T* in, int64_t g, int64_t c0, int64_t channels, Factor* tile) {
  if (p.tile_cell > 1) return pad_tile_along<Innermost::kChannels>(p, b, in, g, c0, channels, tile);
  if constexpr (FactorOf<T>::kMembers == 1) {
    const bool transposed = p.in_channel == 1 && channels > 1 && p.in_axis[2] != 1;
    if (transposed) return pad_tile_along<Innermost::kTransposed>(p, b, in, g, c0, channels, tile);
  }
  pad_tile_along<Innermost::kRows>(p, b, in, g, c0, channels, tile);
}

// The runs of a box. Columns count outputs; or, where the tile is read directly, they are the tile's cells.
inline int64_t list_runs(const GatherPlan& p, const Box& b, Run* runs) {
  Run* run = runs;
  int64_t column = 0;
  const int64_t pair_extent = p.pair_axis == 0 ? p.batch : p.pair_axis < 3 ? p.grid[p.pair_axis - 1] : 0;
  for (int64_t n = 0; n < b.size[0]; ++n) {
    for (int64_t z = 0; z < b.size[1]; ++z) {
      for (int64_t y = 0; y < b.size[2]; ++y, ++run) {
        const int64_t nb = b.first[0] + n, zb = b.first[1] + z, yb = b.first[2] + y;
        run->source = p.raw ? nb * p.in_batch + zb * p.stride[0] * p.in_axis[0] + yb * p.stride[1] * p.in_axis[1] +
                                  b.first[3] * p.stride[2] * p.in_axis[2]
                            : n * p.tile_image + z * p.move[0] * p.tile_plane + y * p.move[1] * p.tile_row;
        run->length = b.size[3];
        const int64_t at[3] = {nb, zb, yb};
        run->alone = p.pair_alone && p.pair_axis < 3 && at[p.pair_axis] + 1 == pair_extent;
        run->column = p.compact ? column : run->source;
        run->out =
            p.out_offset + nb * p.out_batch + zb * p.out_axis[0] + yb * p.out_axis[1] + b.first[3] * p.out_axis[2];
        column += b.size[3];
      }
    }
  }
  return run - runs;
}

// Outputs [begin, end) of a box, as far as they follow each other in memory too and are alike. Runs of a box are
// equally long.
inline Run merged_run(const Run* runs, int64_t begin, int64_t end, int64_t step) {
  const int64_t size = runs[0].length, first = begin / size, skip = begin % size;
  Run run = runs[first];
  run.column = begin;
  run.out += skip * step;
  run.length = size - skip;
  for (int64_t i = first + 1;
       run.length < end - begin && runs[i].out == run.out + run.length * step && runs[i].alone == run.alone; ++i) {
    run.length += size;
  }
  run.length = least(run.length, end - begin);
  return run;
}

// The sources of a box's outputs, counted from the first one's.
inline void list_pixels(const GatherPlan& p, const Run* runs, int64_t count, int32_t* pixels) {
  const int64_t step = p.raw ? p.stride[2] * p.in_axis[2] : p.move[2] * p.tile_cell;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t source = runs[i].source - runs[0].source;
    for (int64_t x = 0; x < runs[i].length; ++x) *pixels++ = static_cast<int32_t>(source + x * step);
  }
}

// Where a box's outputs go.
inline void list_places(const GatherPlan& p, const Run* runs, int64_t count, int64_t* places) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t x = 0; x < runs[i].length; ++x) *places++ = runs[i].out + x * p.out_axis[2];
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
