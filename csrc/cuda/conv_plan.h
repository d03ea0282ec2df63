// Which kernel a convolution gets on a GPU, and what the kernel is told. Plain host code, compiled with and without
// CUDA: the cost model can be asked, and tested, on any machine.
#pragma once

#include <cstdint>
#include <string>

#include "../gather.h"
#include "../problem.h"
#include "dtype.h"

namespace convarith::cuda {

enum class Pass : int { kOutput, kInput, kWeight };  // conv, conv_transpose, conv_weight

// conv_gemm.cuh, conv_direct.cu and conv_reference.cu. Tensor cores and plain multiply-adds run the same product.
enum class Algorithm : int { kReference, kDirect, kMultiplyAdd, kTensorCore };

// Output tiles of the product: pixels x rows for a gather, (tap, channel) columns x rows for a weight gradient.
enum class Tile : int { k128x128, k128x32, k64x64 };

struct TileSize {
  int columns;
  int rows;
  int threads;
};
constexpr TileSize tile_size(Tile tile) {
  return tile == Tile::k128x128  ? TileSize{128, 128, 256}
         : tile == Tile::k128x32 ? TileSize{128, 32, 128}
                                 : TileSize{64, 64, 128};
}

// How the product copies an operand to shared memory. An operand's lines are columns or rows of the tile; each has the
// depth that is summed over.
enum class Load : int {
  kElements,  // one by one
  kAlong,     // 16 bytes along the depth, to one line
  kAcross     // 16 bytes across the lines: as many lines get an element each
};

constexpr int kDepthBytes = 64;    // of one row or column in a stage of the product
constexpr int kMostPhases = 16;    // along one axis; more go to the reference kernel
constexpr int kDirectOutputs = 4;  // that a thread of the direct kernel has, one below the other
constexpr int kDirectRows = 4;     // likewise, where there is more than one
constexpr int kDirectColumns = 9;  // (channel, tap) columns that a thread of the direct weight gradient has
constexpr int kDirectThreads = 128;
constexpr int kDirectLanes = 32;  // threads side by side along the groups, where these are contiguous

// One phase along one axis; sizes as in GatherAxis.
struct PlanPhase {
  int32_t grid, taps, shift, first_tap, first_place;
  FastDivisor by_grid, by_taps;
};

struct PlanAxis {
  int32_t source, stride, shift_step, tap_step, place_step, phases;
  int64_t in, w, out;  // elements between neighbours
  PlanPhase phase[kMostPhases];
};

// A gather (see ../gather.h) of a whole convolution, of every phase:
//
//   out[n, g, m, place(o)] = sum over c, t of w[g, m, c, tap(t)] * in[n, g, c, o * stride + shift(t)]
//
// m counts the rows of a group. conv and conv_transpose compute out; conv_weight computes w from in and out.
struct ConvPlan {
  int32_t batch, groups, rows, channels;
  int32_t phases;
  PlanAxis axis[kAxes];
  int64_t in_batch, in_group, in_channel;
  int64_t out_batch, out_group, out_row;
  int64_t w_group, w_row, w_channel;
  FastDivisor by_channels, by_groups, by_batch;
  bool pads;  // some output meets padding

  // The product.
  int32_t splits;           // of the sum; each has its own sums, which a second kernel adds in order
  int32_t steps_per_split;  // stages of the product, or outputs of the direct weight gradient
  int32_t column_tiles, row_tiles;
  Load in_load, out_load;  // of the gather's input, and of its output where that is an operand
  bool in_along_depth;     // of elements, neighbouring threads read the depth; otherwise the lines
  bool out_along_depth;
  bool stores_along_rows;  // neighbouring threads write neighbouring rows

  // Weights as the product reads them, depth (tap, channel) contiguous: where they stand so already, or packed.
  bool packed;
  int64_t packed_phase, packed_group, packed_row;  // elements

  // The direct kernels.
  bool group_lanes;              // neighbouring threads have neighbouring groups; otherwise neighbouring outputs
  FastDivisor by_x, by_y, by_z;  // threads along the axes of a plane
  FastDivisor by_row_blocks;
};

// What a plan is run with, and what explain_kernel() says.
struct Kernel {
  Algorithm algorithm;
  Tile tile;
  bool tf32;
  ConvPlan plan;
  int64_t rows_at_once;  // of a group, by one launch: so many weights are packed at a time
  int64_t packed_bytes;  // scratch: packed weights, then partial sums
  int64_t partial_bytes;
  int64_t multiplications;

  int64_t scratch_bytes() const { return packed_bytes + partial_bytes; }
};

// What the cost model knows of a GPU.
struct DeviceLimits {
  int multiprocessors;
};
constexpr DeviceLimits kHopper = {132};

// Where tensors stand, as far as it matters: the largest powers of two, up to 16, that divide their addresses.
struct Alignment {
  int in;
  int w;
};
constexpr Alignment kAligned = {16, 16};

// The kernel for a pass over tensors of which none is empty.
Kernel choose_kernel(const Problem& problem, Pass pass, DType dtype, bool allow_tf32, Alignment alignment,
                     DeviceLimits device);

const char* algorithm_name(Algorithm algorithm);
const char* tile_name(Tile tile);

// For tests: an algorithm's name, with a tile after a colon or without, or "auto"; where it cannot do a problem, the
// cost model's choice is taken. `splits` of a sum, and the bytes of weights packed at a time, are the cost model's
// where they are 0. Unknown names throw.
void force_kernel(const std::string& name, int splits, int64_t packed_bytes);

}  // namespace convarith::cuda
