// What the kernels of pooling, unfold, fold and normalisation are told: plain data, made by window_engine.h. No
// functions and no std:: types: compiled for every instruction set, as conv_plan.h.
#pragma once

#include <cstdint>

#include "conv_plan.h"

namespace convarith::cpu {

// One of the two leading axes, seen from one side: entry i of that side sees count[i] entries of the other, from
// first[i] on, `step` apart; those stand `pitch` elements from each other in a plane. It sees the first one through
// first_tap[i], and each next one tap_step further.
struct LineTable {
  const int64_t* first;
  const int64_t* count;
  const int64_t* first_tap;
  int64_t step, pitch, tap_step;
};

// Windows over x (planes, *input, inner), y (planes, *output, inner); see problem.h. A row of one is reduced in two
// stages: whole lines of the other are combined to one, and its entries along the last axis then.
struct PoolPlan {
  int64_t planes, inner;
  int64_t input[3], output[3], kernel[3];
  int64_t stride, dilation;  // of the last axis
  LineTable lines[2];

  // Forward: the combined line, with the last axis's padding made real, so that no window leaves it.
  int64_t line_size, at_input, at_window;  // in sums

  // So many rows go through the first stage before the second reads their lines: what has just been written, and not as
  // it is read, would have to wait for the cache.
  int64_t rows_at_once;

  // Backward: input s * m + r of the last axis sums the outputs m + offset, for the offsets of residue r. The combined
  // line has zeros on either side. By taps there is a line for each tap of the last axis, tap_line from the one before,
  // and offsets lead into them.
  const int64_t* offsets;            // in sums
  const int64_t* offsets_begin;      // [stride + 1]
  int64_t at_output, phase_columns;  // columns of one residue
  int64_t tap_line;                  // 0 where there is one line

  // Where rows share lines, so many of those (a power of two) are kept as wide as the rows that see them, ring_line
  // sums each; else 0.
  int64_t ring, ring_line;

  // What a window's sum is divided by (average), multiplied with (L^p), or shares (backward): weight0[o0] * weight1[o1]
  // * column[e], e an element of a row of y. Where all are alike they are `scale`, and no table is read.
  bool uniform;
  double scale;
  const double* weight[2];
  const void* column;  // of the sums' type, filled up to whole vectors
  double exponent;     // p

  // L^p, where powers are taken one by one: so many rows go through all stages together. Powers of the lines that they
  // see, chunk_size elements at most, and the rows' own stand from at_chunk (bytes) on.
  int64_t chunk_rows, chunk_size, at_chunk;

  // Short rows, see pooling_short.h: which lane of a line each entry of a row, or of two, picks in each step, [vector
  // of the row][pick_steps][lane], as integers of the sums' size; null for others.
  const void* picks;
  int64_t pick_steps;

  // Backward through many small planes, see pooling_flat.h: in each step of a vector of a plane of x, which entry of y
  // a lane picks, counted from flat_first, as integers of the sums' size; -1 where none. The weights of a plane's
  // windows are filled up to whole vectors. Null for others.
  const int64_t* flat_first;             // [vector * flat_steps + step]
  const void *flat_picks, *flat_weight;  // [vector * flat_steps + step][lane]; [output]
  int64_t flat_steps;

  // By taps where outputs are added one by one, see pooling_scatter.h: where in a plane of x a window begins, maybe in
  // front of it, and which of its taps are inputs, a bit for each; filled up to whole vectors. Null for others.
  const int32_t* places;      // [output]
  const uint32_t* seen_taps;  // [output]
  const int32_t* tap_offset;  // [32]: how far behind its window's beginning

  int64_t scratch;  // bytes of a thread
};

enum class Pooling : int { kMax, kMin, kAverage, kNorm, kSignedNorm };

// y = x * s^-beta with s = k + alpha * (sum of x^2 over the window of `size` channels around this one). Work is cut
// into blocks of neighbours within a channel, which are normalised together.
struct LrnPlan {
  int64_t channels, inner, size;
  double alpha, beta, k;
  int64_t block, blocks;  // neighbours of a block (whole vectors of them), blocks of a plane
};

constexpr int64_t kRingAhead = 4;  // lines that are added to a ring together

// The kernels of one instruction set for one dtype; sums are in a type of their own. Each works on rows of what it
// writes, on planes where a plan has small ones, or on what is said, [begin, end).
struct WindowKernels {
  int64_t lanes;           // of a vector of sums
  int64_t item, sum_item;  // bytes
  void (*pool)(Pooling kind, const PoolPlan& plan, const void* x, void* y, char* scratch, int64_t begin, int64_t end);
  void (*pool_backward)(Pooling kind, const PoolPlan& plan, const void* g, const void* x, const void* y, void* result,
                        char* scratch, int64_t begin, int64_t end);
  void (*max_pool_with_indices)(bool minimum, const PoolPlan& plan, const void* x, void* y, int64_t* indices,
                                char* scratch, int64_t begin, int64_t end);
  void (*max_pool_with_taps)(bool minimum, const PoolPlan& plan, const void* x, void* y, uint8_t* taps, char* scratch,
                             int64_t begin, int64_t end);
  bool (*are_taps)(const uint8_t* taps, int64_t count, int64_t kernel);  // from 0 to kernel - 1; for any dtype
  void (*tap_scatter)(const PoolPlan& plan, const void* g, const uint8_t* taps, const uint8_t* taps_end, void* result,
                      char* scratch, int64_t begin, int64_t end);
  bool (*are_indices)(const int64_t* indices, int64_t count, int64_t inputs);  // from 0 to inputs - 1; for any dtype
  bool (*scatter_add)(const void* y, const int64_t* indices, int64_t count, void* sums, int64_t inputs);
  // Blocks.
  void (*lrn)(const LrnPlan& plan, const void* x, void* y, int64_t begin, int64_t end);
  void (*lrn_backward)(const LrnPlan& plan, const void* g, const void* x, void* result, char* scratch, int64_t begin,
                       int64_t end);
};

}  // namespace convarith::cpu
