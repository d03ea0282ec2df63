// What the kernels of AMX are told: as conv_plan.h, made by conv_amx*.cpp, read by conv_amx*.h.
#pragma once

#include "conv_plan.h"

namespace convarith::cpu {

// Lines: for each output the numbers of all channels that its taps see, next to each other, and zeros for what lies
// outside of the input and up to whole vectors of 32. A line's runs follow each other in memory: they are of the
// channels of a tap, or, where pixels have no others, of neighbouring taps; or of neighbouring taps of a channel.
struct LinePart {         // of a run, in a vector
  int64_t shift[3];       // from output 0 to the input that the run's first tap sees
  int64_t source;         // where lane 0 would stand in memory, from what output 0 sees by no tap
  int64_t vector, first;  // of the line; and which number of the run lane 0 would be
  uint32_t lanes;
};
struct AmxLines {
  int64_t parts;  // 0: there are no lines
  const LinePart* part;
  const int32_t* first;   // [vectors + 1]: of a vector's parts
  int64_t depth;          // numbers of a line
  int64_t tap;            // numbers of a run's tap
  int64_t low, high;      // least and largest shift along the last axis
  const int64_t* weight;  // [depth]: where the weight of each number stands
  bool straight;          // as the numbers do
};
struct LineLoad {  // a part, for a row of outputs
  int64_t source;
  uint32_t lanes, last;  // last: of its vector
};

// A gather by AMX: 32 rows by 32 cells of the tile at a time, 16 pairs of channels at a step. A step is 16 channels of
// a tap, which the tile has next to each other; or, where channels do not fill that well, 16 of the pairs of (channel,
// tap), which are copied for each block of cells, to a panel, as lines are for a block of outputs.
constexpr int64_t kAmxRows = 32, kAmxColumns = 32, kAmxPairs = 16, kAmxNumbers = 32;  // numbers: of a step, of pairs
constexpr int64_t kAmxRegister = 16;  // rows of a register, and words of each
constexpr int64_t kAmxPhases = 16;    // more are planned for longer than they take
enum class AmxInputs : int { kCells, kPanels, kLines };
struct AmxPlan {
  GatherPlan gather;
  AmxInputs inputs;
  AmxLines lines;
  bool in_place;      // lines stand in memory as they are needed
  int64_t row_split;  // tasks that share a box, each with its rows
  int64_t steps;
  const int32_t* step;       // where its first pair stands, from the block's first cell
  int64_t pitch;             // from cell to cell, or of panels from pair to pair
  int64_t tile_channels;     // with those of zeros that fill the last step
  int64_t w_pair, w_second;  // between the weights of pairs, and of a pair
  int64_t kernel;            // taps that follow each other in memory, those of all plans; or 0
  int64_t at_parts,
      at_panel;  // a panel, or 16 channels of a tile before they are next to each other, or loads of lines
};

// The gradient of a gather in its weights by AMX: rows are (channel, tap), columns are the gather's rows, and what is
// summed over are a box's outputs, 16 pairs of neighbours at a step. Of y all columns are packed, of x 32 rows at a
// time. Where rows of inputs and outputs follow each other, x is on the left, as it stands, [row][output], and y on the
// right, [16 columns][pair][column]; where channels do, y is on the left, [column][output], and x on the right,
// [16 rows][pair][row], a row being (tap, channel), or a number of a line. Shares of the boxes as in WeightPlan below.
struct AmxWeightPlan {
  GatherPlan gather;
  const int64_t* shift;  // [taps][3]: from output 0 to the input that it sees
  bool pixels;           // channels follow each other
  AmxLines lines;
  int64_t row_blocks;
  int64_t most_steps;    // of a box
  int64_t row_tasks;     // tasks that share the blocks of rows,
  int64_t column_tasks;  // those of columns,
  int64_t box_tasks;     // and the boxes
  bool own_panels;       // tasks pack y for themselves, box by box
  bool dense;            // w has what is on the left in its order; of pixels on the right
  int64_t at_panels, at_rows, at_pieces, at_sights, at_loads, at_sums, scratch;
};
constexpr int64_t kAmxOutputs = 512;  // most of a box

}  // namespace convarith::cpu
