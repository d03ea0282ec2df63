// Boxes of outputs, and the padded tile of inputs that a box sees.
#pragma once

#include "conv_plan.h"
#include "simd.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

struct Box {
  int64_t first[4];  // batch, z, y, x
  int64_t size[4];
};

inline Box box_at(const GatherPlan& p, int64_t index) {
  Box b;
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

// Cells [begin, end) along one axis that hold an input; cell j stands at (first + j) * stride + residue.
inline void inside(int64_t first, int64_t stride, int64_t residue, int64_t source, int64_t cells, int64_t* begin,
                   int64_t* end) {
  const int64_t at = first * stride + residue;  // of cell 0
  *begin = at >= 0 ? 0 : least((-at + stride - 1) / stride, cells);
  *end = at >= source ? *begin : least((source - 1 - at) / stride + 1, cells);
  if (*end < *begin) *end = *begin;
}

// The tile of channels [c0, c0 + channels) under a box.
template <typename T, typename Sum>
void pad_tile(const GatherPlan& p, const Box& b, const T* in, int64_t g, int64_t c0, int64_t channels, Sum* tile) {
  const int64_t cells[3] = {b.size[1] + p.cells[0] - p.box[1], b.size[2] + p.cells[1] - p.box[2],
                            b.size[3] + p.cells[2] - p.box[3]};
  const int64_t first[3] = {b.first[1] + p.low[0], b.first[2] + p.low[1], b.first[3] + p.low[2]};
  for (int64_t r = 0; r < p.residues; ++r) {
    const int64_t* residue = p.residue + 3 * r;
    int64_t begin[3], end[3];
    for (int i = 0; i < 3; ++i) inside(first[i], p.stride[i], residue[i], p.source[i], cells[i], &begin[i], &end[i]);
    const int64_t step = p.stride[2] * p.in_axis[2];
    for (int64_t c = 0; c < channels; ++c) {
      const T* plane = in + (g * p.channels + c0 + c) * p.in_channel;
      for (int64_t n = 0; n < b.size[0]; ++n) {
        Sum* image = tile + c * p.tile_channel + r * p.tile_residue + n * p.tile_image;
        const T* from = plane + (b.first[0] + n) * p.in_batch;
        for (int64_t z = 0; z < cells[0]; ++z) {
          for (int64_t y = 0; y < cells[1]; ++y) {
            Sum* row = image + z * p.tile_plane + y * p.tile_row;
            if (z < begin[0] || z >= end[0] || y < begin[1] || y >= end[1] || begin[2] >= end[2]) {
              for (int64_t x = 0; x < cells[2]; ++x) row[x] = 0;
              continue;
            }
            const int64_t z_in = (first[0] + z) * p.stride[0] + residue[0];
            const int64_t y_in = (first[1] + y) * p.stride[1] + residue[1];
            const int64_t x_in = (first[2] + begin[2]) * p.stride[2] + residue[2];
            for (int64_t x = 0; x < begin[2]; ++x) row[x] = 0;
            copy_run(from + z_in * p.in_axis[0] + y_in * p.in_axis[1] + x_in * p.in_axis[2], step, end[2] - begin[2],
                     row + begin[2]);
            for (int64_t x = end[2]; x < cells[2]; ++x) row[x] = 0;
          }
        }
      }
    }
  }
}

// The runs of a box. Columns count outputs; or, where the tile is read directly, they are the tile's cells.
inline int64_t list_runs(const GatherPlan& p, const Box& b, Run* runs) {
  Run* run = runs;
  int64_t column = 0;
  for (int64_t n = 0; n < b.size[0]; ++n) {
    for (int64_t z = 0; z < b.size[1]; ++z) {
      for (int64_t y = 0; y < b.size[2]; ++y, ++run) {
        const int64_t nb = b.first[0] + n, zb = b.first[1] + z, yb = b.first[2] + y;
        run->source = p.raw ? nb * p.in_batch + zb * p.stride[0] * p.in_axis[0] + yb * p.stride[1] * p.in_axis[1] +
                                  b.first[3] * p.in_axis[2]
                            : n * p.tile_image + z * p.tile_plane + y * p.tile_row;
        run->length = b.size[3];
        run->column = p.panel ? column : run->source;
        run->out =
            p.out_offset + nb * p.out_batch + zb * p.out_axis[0] + yb * p.out_axis[1] + b.first[3] * p.out_axis[2];
        column += b.size[3];
      }
    }
  }
  return run - runs;
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
