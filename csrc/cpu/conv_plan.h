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
// padded, and split by their residue modulo the stride, so that neighbouring outputs always read neighbouring cells and
// tap t of channel c is one offset for the whole box. Strides and offsets are in elements.
struct GatherPlan {
  int64_t batch, groups, rows, channels, taps;  // rows and channels of one group
  int64_t grid[3];                              // outputs
  int64_t stride[3];
  int64_t source[3];  // extent of the input
  int64_t in_batch, in_channel, in_axis[3];
  int64_t out_batch, out_group, out_channel, out_axis[3], out_offset;
  int64_t w_group, w_row, w_channel;
  const int64_t* tap_weight;  // [taps]: where a tap's weight stands

  int64_t channel_block;  // channels of a tile
  int64_t row_split;      // tasks that share a box, each with its rows
  int64_t box[4];         // batch, z, y, x
  int64_t boxes[4];
  bool raw;    // the tile is the input itself: nothing to pad, split or convert
  bool panel;  // the tile is copied to panels before it is multiplied; otherwise it is read through the offsets

  int64_t low[3];  // first cell of a box's tile, relative to the box, in steps of the stride
  int64_t cells[3];
  int64_t residues;
  const int64_t* residue;  // [residues][3]
  int64_t tile_row, tile_plane, tile_image, tile_residue, tile_channel;
  const int32_t* offset;  // [channel_block * taps], c-major

  int64_t packed;  // where the plan's weights begin in the packed ones

  // Scratch of a thread, in bytes from its start.
  int64_t at_tile, at_panel, at_sums, at_runs, scratch;
  int64_t columns;  // sums per row: the box's outputs, rounded up to whole panels
};

// Consecutive outputs of a box: where they read, where their sums stand, where they go.
struct Run {
  int64_t source, column, length, out;
};

// The gradient of a gather in its weights: rows are (channel, tap), columns are the gather's rows.
struct WeightPlan {
  GatherPlan gather;     // tile, boxes and offsets; `rows` are the columns here
  int64_t column_block;  // columns of a block: vectors * lanes
  int64_t column_blocks;
  int64_t columns;               // rounded up to whole blocks
  int64_t first_row, row_count;  // (channel, tap) rows of this pass, of each group
  int64_t box_begin, box_end;    // boxes of this pass
  int64_t box_pixels;            // room for a box's outputs
  int64_t row_tasks;             // tasks that share a group's rows
  bool dot;                      // few columns: lanes along the outputs instead of the columns
};

// Winograd's F(4 x 4, 3 x 3) for dense 3 x 3 kernels of stride 1. The gather's grid counts tiles of 4 x 4 outputs, its
// taps are the 6 x 6 inputs of a tile.
// Few tiles and many weights: the inputs of all tiles are transformed first (kInputs) and kept, then rows of weights
// are transformed and used a few at a time (kProducts). Otherwise a task does both (kFused).
enum Stage : int { kFused, kInputs, kProducts };

struct WinogradPlan {
  GatherPlan gather;
  int64_t height, width;             // outputs
  int64_t row_chunk;                 // rows whose products are held at a time
  int64_t pitch;                     // of transformed inputs and of products: tiles of a box
  int64_t input_step, product_step;  // between the 36 of each
  int64_t tap_of[9];                 // where the weight of tap (i, j) of the 3 x 3 stands
  const int32_t* channel_offset;     // [channels]: multiples of pitch
  int64_t at_inputs, at_products, at_strip;
  Stage stage;
  void* shared;         // the transformed inputs of all tiles, unless fused
  int64_t shared_size;  // of a box, in elements
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

// Depthwise convolutions with lanes along the channels, in the sums' own type. Phases as in DepthwisePlan.
struct RowTap {
  int64_t input, weight;  // row of the input that output 0 of the phase sees, row of the kernel
};

struct ColumnTap {
  int64_t column, weight;  // as above
  int64_t input;           // elements from pixel 0
};

struct ChannelwisePlan {
  int64_t batch, channels;
  int64_t kernel[2], grid[2], source[2];
  int64_t in_batch, in_channel, in_axis[2];
  int64_t out_batch, out_channel, out_axis[2];
  int64_t w_channel;
  bool transposing;    // planes are transposed to pixels of one vector; otherwise channels are neighbours in memory
  int64_t blocks;      // of channels
  int64_t box, boxes;  // rows of outputs
  int64_t parts;       // of images and boxes, for the weight's gradient

  int64_t out_step[2], in_step[2], column_phases;
  const RowTap* row_tap;
  const int64_t* row_begin;  // [phase]: first of row_tap
  const ColumnTap* column_tap;
  const int64_t* column_begin;
  const int64_t *inner_begin, *inner_end;  // [column phase]: the outputs that meet the input with all taps

  int64_t at_input, at_output, at_lines, scratch;  // in bytes; weights or their sums stand at 0
};

// The kernels of one instruction set for one dtype. Pointers are to the dtype, `packed` and sums to the sums' type.
struct ConvKernels {
  int64_t lanes;  // of the sums' type
  int64_t row_block;
  int64_t vectors;                     // of a panel
  int64_t item, sum_item;              // bytes
  int64_t sweep_rows, sweep_vectors;   // of a block of depthwise outputs
  int64_t sweep_height, weigh_height;  // most taps of TapRows, in a sweep and for the weight's gradient

  bool (*finite)(const void* data, int64_t count);
  int64_t (*pack_tasks)(const GatherPlan& plan);
  void (*pack)(const GatherPlan& plan, const void* w, void* packed, int64_t begin, int64_t end);
  void (*gather)(const GatherPlan* plans, int64_t count, const void* in, int64_t in_count, const void* packed,
                 void* out, char* scratch, int64_t begin, int64_t end);
  // Weight gradient: columns of y to panels, sums of rows, sums to w.
  void (*weight_pack)(const WeightPlan& plan, const void* y, void* panels, int64_t begin, int64_t end);
  void (*weight_sum)(const WeightPlan& plan, const void* x, const void* y, const void* panels, void* sums,
                     char* scratch, int64_t begin, int64_t end);
  int64_t (*weight_store_tasks)(const WeightPlan& plan);
  void (*weight_store)(const WeightPlan& plan, const void* sums, void* w, int64_t begin, int64_t end);
  void (*winograd_pack)(const WinogradPlan& plan, const void* w, void* packed, int64_t begin, int64_t end);
  void (*winograd)(const WinogradPlan& plan, const void* in, const void* packed, void* out, char* scratch,
                   int64_t begin, int64_t end);
  void (*depthwise)(const DepthwisePlan& plan, const void* in, const void* w, void* out, char* scratch, int64_t begin,
                    int64_t end);
  // Weight gradient: sums of each part, sums to w.
  void (*depthwise_sum)(const DepthwisePlan& plan, const void* x, const void* y, void* sums, char* scratch,
                        int64_t begin, int64_t end);
  void (*depthwise_store)(const DepthwisePlan& plan, const void* sums, void* w, int64_t begin, int64_t end);
  // The same with lanes along the channels; null for the half precisions.
  void (*channelwise)(const ChannelwisePlan& plan, const void* in, const void* w, void* out, char* scratch,
                      int64_t begin, int64_t end);
  void (*channelwise_sum)(const ChannelwisePlan& plan, const void* x, const void* y, void* sums, char* scratch,
                          int64_t begin, int64_t end);
  void (*channelwise_store)(const ChannelwisePlan& plan, const void* sums, void* w, int64_t begin, int64_t end);
};

}  // namespace convarith::cpu
