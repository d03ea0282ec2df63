// What the fast kernels are told: plain data, made by conv_engine.cpp, read by conv_kernels.h. No functions here and no
// std:: types: this header is compiled for every instruction set, and an inline function would be shared among them.
#pragma once

#include <cstdint>

namespace convarith::cpu {

// The half precisions as bits; the kernels convert while they pack.
struct Half16 {
  uint16_t bits;
};
struct Brain16 {
  uint16_t bits;
};

// A gather: one convolution of unit output stride, or one phase of a transposed one.
//
//   out[n, g, m, o] = sum over c, t of w[g, m, c, t] * in[n, g, c, o * stride + shift(t)]   (0 outside the input)
//
// Outputs are worked on in boxes. A box's source is a tile: the inputs that the box sees for a block of channels,
// padded. Tap t of channel c is one offset for the whole box. Where the lanes are along the outputs, or where not every
// input is seen, the tile is split by the inputs' residues modulo the stride, so that neighbouring outputs read
// neighbouring cells. Strides and offsets are in elements.
struct GatherPlan {
  int64_t batch, groups, rows, channels, taps;  // rows and channels of one group
  int64_t grid[3];                              // outputs
  int64_t stride[3];
  int64_t source[3];  // extent of the input
  int64_t in_batch, in_group, in_channel, in_axis[3];
  int64_t out_batch, out_group, out_channel, out_axis[3], out_offset;
  int64_t w_group, w_row, w_channel;
  const int64_t* tap_weight;  // [taps]: where a tap's weight stands

  // Phases of a transposed convolution whose taps see the same inputs are one plan, and more rows of it: row
  // ((m * phases[0] + z) * phases[1] + y) * phases[2] + x stands out_phase[0] * z + ... from row m, and so do its
  // weights.
  int64_t phases[3], out_phase[3], w_phase[3];

  // Where products are made of pairs (conv_factor.h), channels or, for the weight's gradient, outputs are halved along
  // an axis, and i counts the pair of i and i + pair_apart. The last of an odd number is alone.
  int64_t pair_axis;  // as `box`; 4: the channels
  int64_t pair_apart;
  bool pair_alone;
  // Or i counts the pair of channels 2 i and 2 i + 1, which memory has as a word: in_* count words then; and where the
  // weights have words as well, so do w_* and tap_weight.
  bool in_words, w_words;

  int64_t channel_block;  // channels of a tile
  int64_t box[4];         // batch, z, y, x
  int64_t boxes[4];
  bool raw;      // the tile is the input itself: nothing to pad, split or convert
  bool compact;  // runs count outputs; otherwise the tile's cells
  bool outer;    // lanes along the rows; otherwise along the outputs
  bool direct;   // sums are stored where they go, from registers; runs have a vector of them at least
  bool fills;    // a zero follows every output: the phase after has no taps

  bool one_tile;         // plans of a call that have this set see the same tile, of all channels
  int64_t tile_grid[3];  // outputs that tiles are for: of such plans, as many as any has

  int64_t move[3];  // cells between neighbouring outputs: the stride, or 1 where the tile is split
  int64_t low[3];   // first cell of a box's tile, relative to the box's first output's
  int64_t cells[3];
  int64_t residues;
  const int64_t* residue;  // [residues][3]
  int64_t tile_cell, tile_row, tile_plane, tile_image, tile_residue, tile_channel, tile_size;
  const int32_t* offset;  // [channel_block * taps], c-major

  int64_t packed;  // where the plan's weights begin in the packed ones

  const void* bias;    // of every row, or null
  int64_t bias_group;  // between groups

  // Scratch of a thread, in bytes from its start.
  int64_t at_tile, at_own, at_sums, at_runs, at_pixels, at_places, scratch;
  int64_t columns;  // sums per row: the box's outputs, rounded up to whole panels
};

// What stands in a thread's tile: plans and rows that take turns at a box copy it once.
struct HeldTile {
  int64_t box = -1, group = 0;
};

// Consecutive outputs of a box: where they read, where their sums stand, where they go.
struct Run {
  int64_t source, column, length, out;
  bool alone;  // pairs without a second member
};

// See conv_amx_plan.h.
struct AmxPlan;
struct AmxWeightPlan;

// The gradient of a gather in its weights: rows are (channel, tap), columns are the gather's rows. Where both are few,
// shares of the boxes have sums of their own, whose number does not depend on the threads, and which are added in
// order.
struct WeightPlan {
  GatherPlan gather;             // tile, boxes and offsets; `rows` are the columns here
  int64_t columns;               // with the zeros of the last vector
  int64_t first_row, row_count;  // (channel, tap) rows of this pass, of each group
  int64_t box_begin, box_end;    // boxes of this pass
  int64_t box_pixels;            // room for a box's outputs
  int64_t row_tasks;             // tasks that share a group's rows
  int64_t box_tasks;             // and tasks that share the boxes, which pack y for themselves
  bool dot;                      // few columns: lanes along the outputs instead of the columns
  bool in_place;                 // of dots: y is read where it stands
  bool patches;                  // columns are (channel, tap) instead, rows are y's, and sums are w itself
};

// Winograd's F(m, r) along y and x, m + r - 1 from 5 to 8: a tile of so many inputs gives m outputs of a kernel of r
// taps through as many products, instead of m * r; along both axes that is squared. Where r = 1, so are m and the tile.
// A stride s makes s kernels of r = ceil(kernel / s) taps, one for each residue of the taps modulo s: a convolution
// sums over them, so residues are more channels; a transposed one makes a phase of its result by each, so residues are
// more rows. So are, on the side that is summed over, the taps along z, and the parts of kernels that have too many
// taps. A dilation d makes d convolutions without one, of the cells modulo d: they are more images. The weight's
// gradient is F(r, m): tiles of y are its kernels.
constexpr int64_t kWinogradTiles[2] = {5, 8};  // the smallest and the largest
constexpr int64_t kWinogradTaps = 5;           // the most
constexpr int64_t kWinogradChunk = 64;  // channels: transformed inputs are [chunk][product][tile][channel of the chunk]
constexpr int64_t kWinogradPanel = 32;  // rows: products are [product][tile][row of the panel]
constexpr int64_t kKernelsAtOnce = 16;  // channels whose kernels are loaded together
// Between the products of a block: a multiple of 4 KB would put all of them into the same lines of the first cache.
constexpr int64_t kWinogradApart = 16;
constexpr int64_t kWinogradWeights = kWinogradChunk * kWinogradPanel + kWinogradApart;  // from product to product

// x or y as cells: along each of z, y and x, cell j of residue r and phase f is element
// j * step + r * apart + f + first, 0 outside. Residues and channels together are lanes: channels come in blocks, and
// lane = (((channel / block * residues[0] + r0) * residues[1] + r1) * residues[2] + r2) * block + channel % block.
// A block is a vector, or, where channels do not fill vectors and have residues, one channel.
struct WinogradSide {
  int64_t channels, lanes;  // of one group
  int64_t block;
  // Cells that are loaded or stored together because their elements follow each other along x: of all residues and all
  // phases, step[2] of them that take turns; or 1, each by itself.
  int64_t turns;
  int64_t step[3], residues[3], apart[3], first[3], extent[3];
  // Of the kernel, along y and x; r0 = (tap along z * kernel_parts[0] + part along y) * kernel_parts[1] + part along x.
  int64_t kernel_parts[2], part_apart[2];
  int64_t full[2];  // residues along y and x, the first ones, that have all of the taps; or where that is not used all
  int64_t batch, group, channel, axis[3];
};

// Of a pair of residues: where the weight of each of its taps stands, in w_tap, or -1 where it lacks that one; and
// where it has all, how far apart along y and x.
struct ResidueTaps {
  int32_t at[kWinogradTaps * kWinogradTaps];
  int32_t row, column;
  bool all;
};

struct WinogradPlan {
  WinogradSide in, out;  // what is transformed and what the products make; of the weight's gradient, x and y
  int64_t groups;
  int64_t images, planes, phases[2];  // image = ((batch * planes + z) * phases[0] + f0) * phases[1] + f1
  int64_t tile[2], products;          // m + r - 1 along y and x, and all of a tile
  int64_t outputs[2], taps[2];        // m and r
  int64_t missing[2];                 // row and column of a tile that only the tap which some residues lack makes
  int64_t cells[2];                   // of `out`: its extent in steps
  int64_t box[3];                     // tiles of a box: images, rows, columns
  int64_t boxes[3];
  int64_t box_tiles;  // room for a box's tiles
  int64_t w_group, w_out, w_in;
  const void* bias;            // of every channel of `out`, or null
  const ResidueTaps* taps_of;  // [residue of in][residue of out]
  int64_t kernel;              // the weight's taps, all residues together
  bool whole_kernel;           // they are w_tap apart; otherwise w_tap is 1
  bool kernels_follow;         // those of neighbouring channels of `in`, as memory has them
  int64_t w_tap;
  int64_t row_shares;  // tasks that share a box
  bool keeps_weights;  // a thread transforms the weights once; otherwise a panel's chunk before each use

  // The weight's gradient: shares of the boxes, whose number does not depend on the threads, have gradients of their
  // own where there are several; a task has a block of the chunks and of the panels.
  int64_t shares, in_blocks, out_blocks, w_count;
  int64_t workers;      // threads that there is scratch for
  bool stores_kernels;  // whole ones of several channels; otherwise their taps one by one
  int64_t chunk_taps;   // of those of a chunk's channels

  int64_t chunk_size;  // elements of a chunk of a box's transformed inputs
  // Of a thread, in bytes.
  int64_t at_cells, at_line, at_inputs, at_outputs, at_weights, at_products, at_sums, at_kernels, scratch;
};

// Depthwise convolutions and small groups. A strip, the padded inputs that a box of outputs sees, is swept by blocks of
// a few rows x vectors of outputs, whose sums stay in registers until all taps are added.
//
// Outputs are split into phases along both axes such that, within a phase, the next output sees through the same tap
// the next input: output first + j * out_step of phase (row, column) reads
//   row    source + j * in_step[0] of the strip, and
//   column shift + j: a row of the strip is split by the residues modulo in_step[1], each contiguous.
// Phases of the rows are those of a transposed convolution's stride, or the residues modulo the dilation.
struct TapRows {   // taps of a kernel's column whose inputs follow each other as those of a phase's outputs do
  int64_t source;  // of the first
  int64_t height;
};

struct RowPhase {
  int64_t first;
  int64_t rows_begin, rows_end;  // of tap_rows
};

struct ColumnPhase {
  int64_t first;
  int64_t shift_begin, shift_end;
};

struct DepthwisePlan {
  int64_t batch, groups, rows, channels, taps;  // rows and channels of one group
  int64_t grid[2], source[2];                   // outputs and inputs
  int64_t in_batch, in_channel, in_axis[2];
  int64_t out_batch, out_channel, out_axis[2];
  int64_t w_group, w_row, w_channel;
  const void* bias;  // of every row of every group, or null

  // Rows are read where they stand. A row of zeros stands in for the strip, boxes are whole rows, and there is one
  // phase, with the taps of a column of the kernel together: of outputs that are 2 apart the kernels tell which see
  // what. Kernels are 3 x 3 with steps of 1 or 2, the same along both axes, and first taps at one of the first three
  // inputs; or larger squares of odd sides and no steps.
  bool in_place;

  int64_t out_step[2], in_step[2];
  int64_t row_phases, column_phases;
  const RowPhase* row_phase;
  const ColumnPhase* column_phase;
  const TapRows* tap_rows;
  const int64_t* shift;
  // The taps in the order in which blocks add them, [row phase][column phase][tap rows][shift][height]: where each
  // phase's begin, and where their weights stand. Phases with the same taps share them.
  const int64_t* phase_taps;
  const int64_t* tap_weight;

  int64_t low[2];  // what the first phase output of a box at 0 sees first
  int64_t box[2], boxes[2];
  int64_t chunk;              // rows of each phase that are filled before they are swept
  int64_t ahead, ahead_line;  // what is prefetched meanwhile: elements from a row, and its length
  int64_t window;             // rows of the strip that a phase's first outputs see
  int64_t cells;              // of a row and residue
  int64_t lead;               // cells before the first, so that inputs begin at whole vectors
  int64_t strip_rows, residue_pitch, row_pitch, channel_pitch;
  int64_t at_weights, at_bounce, scratch;  // in bytes; a strip stands at 0

  // The weight's gradient: a strip of y, and the parts into which batch and boxes are cut.
  int64_t gradient_pitch, gradient_rows, parts;
};

// Depthwise convolutions, and groups of as many outputs as inputs, with lanes along the channels, which are neighbours
// in memory. Phases as in DepthwisePlan. A tile, the padded inputs that a box of outputs of some channels sees, has a
// vector for every pixel, and of groups one for every member: lane l of member m is the group's m-th channel, the group
// being that of channel l.
struct RowTap {
  int64_t input, weight;  // row of the input that output 0 of the phase sees, row of the kernel
};

// Taps of a row of the kernel, by which an output sees neighbours: 1, or of outputs that are neighbours as well 3, 5
// or 7.
struct ColumnRun {
  int64_t taps, column;  // of the first tap: column of the input, or of the tile, that output 0 of the phase sees
  int64_t member;        // elements from the pixel
  int64_t weight, weight_step;  // elements from the row's, and from one tap to the next
};

struct ChannelwisePlan {
  int64_t batch, channels, members;
  int64_t kernel[2], grid[2], source[2];
  int64_t in_batch, in_channel, in_axis[2];
  int64_t out_batch, out_channel, out_axis[2];
  int64_t w_group, w_row, w_member, w_axis[2];
  const void* bias;  // of every channel, or null
  bool direct;       // pixels are read where they stand; otherwise from a copy
  bool asks;         // ahead, for pixels that are read and written far from the caches
  int64_t blocks;    // of channels
  int64_t box[2], boxes[2];

  int64_t out_step[2], in_step[2];
  // Of bfloat16 in place, where products are of pairs: the taps of a row of the kernel, 3, 5 or 7 that see neighbours,
  // two of which are multiplied together, and where they stand among the row's weights of a vector; or 0.
  int64_t pair_taps, pair_weight[7];
  const RowTap* row_tap;
  const int64_t* row_begin;  // [phase]: first of row_tap
  const ColumnRun* column_run;
  const int64_t* column_begin;

  // Outputs. The tile is a ring of rows, as many as a row of outputs sees.
  int64_t low[2], high[2];               // of the inputs that output 0 of all phases sees
  int64_t cells, tile_pitch, tile_rows;  // cells of a row; the pitch in elements

  // The weight's gradient: pixels are not copied, and those beside the edges see fewer taps.
  int64_t parts;  // of images and boxes

  int64_t at_input, at_pairs, at_lines, scratch;  // in bytes; weights or their sums stand at 0
};

// Depthwise convolutions of small planes with lanes along the channels: a tile has a vector for every input of some
// rows of the planes, padded, and columns are split by their residues modulo the step, so that neighbouring outputs of
// a phase see neighbouring cells. Phases as in DepthwisePlan.
struct PlaneRun {  // taps of a row of the kernel that see neighbouring cells, as many as the kernels take together
  int64_t row;     // of the input that a phase's output row 0 sees
  int64_t in;      // elements from where the tile's first row and column stand
  int64_t weight, weight_step;  // elements of the packed weights, and from one tap to the next
  int64_t taps;
};

struct PlanePhase {
  int64_t first[2];              // output
  int64_t runs_begin, runs_end;  // by rows
};

// Of the weight's gradient: taps of a few rows of the kernel, neighbours as in a PlaneRun.
struct PlaneTaps {
  int64_t row, in, weight, weight_step;  // as in a PlaneRun, of the first row; sums stand as weights do
  int64_t rows, columns;
};

struct PlanesPlan {
  int64_t batch, channels;
  int64_t kernel[2], grid[2], source[2];
  int64_t in_batch, in_channel, out_batch, out_channel;  // planes are dense
  int64_t w_channel, w_axis[2];
  const void* bias;       // of every channel, or null
  int64_t blocks;         // vectors of channels
  int64_t packed_blocks;  // whose weights a thread keeps: all, or one
  int64_t box, boxes;     // rows of outputs
  int64_t out_step[2], in_step[2];
  int64_t phases;
  const PlanePhase* phase;
  const PlaneRun* run;
  const PlaneTaps* tap_block;
  int64_t tap_blocks, tap_apart;  // tap_apart: rows of the input between rows of taps
  int64_t parts;                  // of the images, which have sums of their own; 0 but for the weight's gradient
  const int32_t* column;          // where a column of the input stands in a row of the tile
  int64_t low;                    // first row that output row 0 sees
  int64_t tile_rows, tile_row;
  int64_t at_places, at_tile, at_results, scratch;  // in bytes; weights stand at 0
};

// The kernels of one instruction set for one dtype. Pointers are to the dtype, `packed` and sums to the sums' type.
struct ConvKernels {
  int64_t lanes;  // of the sums' type
  int64_t row_block;
  int64_t vectors;                     // of a sweep
  int64_t outer_vectors;               // of a block of columns of the outer product
  int64_t dot_columns;                 // of a block of dots
  int64_t item, sum_item;              // bytes; packed operands take those of sums
  bool pairs;                          // products are made of pairs
  int64_t sweep_rows, sweep_vectors;   // of a block of depthwise outputs
  int64_t most_in_place;               // side of the largest kernel whose rows are read in place, or 0
  int64_t sweep_height, weigh_height;  // most taps of TapRows, in a sweep and for the weight's gradient
  int64_t plane_taps;                  // most taps of a PlaneRun
  int64_t tap_rows, tap_columns;       // most of PlaneTaps
  int64_t tap_sums;                    // and of both together

  int64_t (*multiply_adds)(int64_t rounds, void* result);  // the ceiling: see ceiling.h; result has room for lanes
  bool (*finite)(const void* data, int64_t count);
  // to[i * to_pitch + r] = from[r * from_pitch + i]; null for the half precisions.
  void (*transpose)(const void* from, int64_t from_pitch, int64_t rows, int64_t count, void* to, int64_t to_pitch);
  int64_t (*pack_tasks)(const GatherPlan& plan);
  void (*pack)(const GatherPlan* plans, int64_t count, const void* w, void* packed, int64_t begin, int64_t end);
  // A task is a slice of the work of every plan, between two of its cuts, [plan][slices + 1]: in row blocks, of every
  // group of every box.
  void (*gather)(const GatherPlan* plans, int64_t count, const int64_t* cuts, int64_t slices, const void* in,
                 const void* packed, void* out, char* scratch, HeldTile& held, int64_t begin, int64_t end);
  // The same by AMX; null without it.
  int64_t (*amx_pack_tasks)(const AmxPlan& plan);
  void (*amx_pack)(const AmxPlan* plans, int64_t count, const void* w, void* packed, int64_t begin, int64_t end);
  void (*amx_gather)(const AmxPlan* plans, int64_t count, int64_t turns, const void* in, const void* packed, void* out,
                     char* scratch, int64_t begin, int64_t end);
  // The weight's gradient: y to panels, sums to w; or, of several shares, to sums, which are added and stored then.
  int64_t (*amx_weight_pack_tasks)(const AmxWeightPlan& plan);
  void (*amx_weight_pack)(const AmxWeightPlan& plan, const void* y, void* panels, int64_t begin, int64_t end);
  void (*amx_weight_sum)(const AmxWeightPlan& plan, const void* x, const void* y, const void* panels, float* shares,
                         void* w, char* scratch, int64_t begin, int64_t end);
  int64_t (*amx_weight_store_tasks)(const AmxWeightPlan& plan);
  void (*amx_weight_store)(const AmxWeightPlan& plan, float* shares, void* w, int64_t begin, int64_t end);
  // Weight gradient: columns of y to panels, sums of rows, sums to w.
  int64_t (*weight_pack_tasks)(const WeightPlan& plan);
  void (*weight_pack)(const WeightPlan& plan, const void* y, void* panels, char* scratch, int64_t begin, int64_t end);
  void (*weight_sum)(const WeightPlan& plan, const void* x, const void* y, const void* panels, void* sums,
                     char* scratch, int64_t begin, int64_t end);
  int64_t (*weight_store_tasks)(const WeightPlan& plan);
  void (*weight_store)(const WeightPlan& plan, void* sums, void* w, int64_t begin, int64_t end);
  // Winograd: a task is a (box, group, share of the panels). False where a weight is not finite.
  bool (*winograd)(const WinogradPlan& plan, const void* in, const void* w, void* out, char* scratch, int64_t begin,
                   int64_t end);
  // The weight's gradient: a task is a (share of the boxes, group, block of the panels, block of the chunks). Several
  // shares write gradients of their own, [share][w], which are added afterwards, elements [begin, end) at a time. False
  // where an element of the gradient is not finite.
  bool (*winograd_gradient)(const WinogradPlan& plan, const void* x, const void* y, float* gradients, void* w,
                            char* scratch, int64_t begin, int64_t end);
  void (*winograd_add_shares)(const WinogradPlan& plan, const float* gradients, void* w, int64_t begin, int64_t end);
  void (*depthwise)(const DepthwisePlan& plan, const void* in, const void* w, void* out, char* scratch, int64_t begin,
                    int64_t end);
  // Weight gradient: sums of each part, sums to w.
  void (*depthwise_sum)(const DepthwisePlan& plan, const void* x, const void* y, void* sums, char* scratch,
                        int64_t begin, int64_t end);
  // The same of a plan that has rows in place.
  void (*depthwise_in_place)(const DepthwisePlan& plan, const void* in, const void* w, void* out, char* scratch,
                             int64_t begin, int64_t end);
  void (*depthwise_in_place_sum)(const DepthwisePlan& plan, const void* x, const void* y, void* sums, char* scratch,
                                 int64_t begin, int64_t end);
  void (*depthwise_store)(const DepthwisePlan& plan, const void* sums, void* w, int64_t begin, int64_t end);
  // The same with lanes along the channels; of the half precisions' gradients of the weight these follow each other.
  void (*channelwise)(const ChannelwisePlan& plan, const void* in, const void* w, void* out, char* scratch,
                      int64_t begin, int64_t end);
  void (*channelwise_sum)(const ChannelwisePlan& plan, const void* x, const void* y, void* sums, char* scratch,
                          int64_t begin, int64_t end);
  void (*channelwise_store)(const ChannelwisePlan& plan, const void* sums, void* w, int64_t begin, int64_t end);
  // Null for float64.
  void (*planes)(const PlanesPlan& plan, const void* in, const void* w, void* out, char* scratch, int64_t begin,
                 int64_t end);
  void (*planes_sum)(const PlanesPlan& plan, const void* x, const void* y, void* sums, char* scratch, int64_t begin,
                     int64_t end);
  void (*planes_store)(const PlanesPlan& plan, void* sums, void* w, int64_t begin, int64_t end);  // of blocks
};

}  // namespace convarith::cpu
