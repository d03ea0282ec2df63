// C in compressed sparse rows before its values: where entries stand. Plain C++, without torch.
//
// Along one axis the pattern is a table: output o, tap t -> input i. Over several axes it is the product of the axes'
// tables, so a row of C needs no search: its columns are the product of three short sorted lists. Row (k, o) and row
// (k', o) of one group have the same columns; their values are the weights w[k, c, taps of the entry].
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "problem.h"

namespace convarith {

// One axis's table by row: row r meets the columns column[begin[r]] ... in ascending order, each through the taps
// tap[tap_begin[e]] ... Several taps meet one column only where padding repeats inputs.
struct AxisTable {
  std::vector<int64_t> begin = {0};
  std::vector<int64_t> column;
  std::vector<int64_t> tap_begin = {0};
  std::vector<int64_t> tap;

  int64_t size(int64_t row) const { return begin[row + 1] - begin[row]; }
  int64_t entries() const { return begin.back(); }
};

// Rows are outputs and columns inputs, or with `transposed` the other way round.
inline AxisTable axis_table(const Axis& a, int64_t outputs, PaddingMode mode, bool transposed) {
  struct Entry {
    int64_t column, tap;
  };
  std::vector<std::vector<Entry>> rows(transposed ? a.input : outputs);
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t t = 0; t < a.kernel; ++t) {
      const int64_t i = source_index(input_index(a, o, t), a.input, mode);
      if (i < 0) continue;
      rows[transposed ? i : o].push_back(transposed ? Entry{o, t} : Entry{i, t});
    }
  }
  AxisTable table;
  for (auto& row : rows) {
    std::stable_sort(row.begin(), row.end(), [](const Entry& a, const Entry& b) { return a.column < b.column; });
    int64_t last = -1;  // not the previous row's: every row starts anew
    for (const Entry& e : row) {
      if (e.column != last) {
        table.column.push_back(last = e.column);
        table.tap_begin.push_back(table.tap_begin.back());
      }
      table.tap.push_back(e.tap);
      ++table.tap_begin.back();
    }
    table.begin.push_back(static_cast<int64_t>(table.column.size()));
  }
  return table;
}

// C (or C^T) before its values: everything that rows, columns and entries are counted with.
struct CsrPlan {
  bool transposed;
  int64_t groups;
  int64_t row_channels;     // per group
  int64_t column_channels;  // per group
  int64_t row_stride;       // of the weight, in elements, from one row channel of a group to the next
  int64_t column_stride;
  int64_t group_stride;
  std::array<int64_t, kAxes> tap_stride;
  std::array<int64_t, kAxes> rows;
  std::array<int64_t, kAxes> columns;
  std::array<int64_t, kAxes> outputs;
  std::array<int64_t, kAxes> taps;
  std::array<AxisTable, kAxes> table;

  int64_t spatial_rows() const { return rows[0] * rows[1] * rows[2]; }
  int64_t spatial_columns() const { return columns[0] * columns[1] * columns[2]; }
  int64_t tap_count() const { return taps[0] * taps[1] * taps[2]; }
  int64_t row_count() const { return groups * row_channels * spatial_rows(); }
  int64_t column_count() const { return groups * column_channels * spatial_columns(); }
  int64_t entries_per_channel() const {  // of one row channel
    return table[0].entries() * table[1].entries() * table[2].entries() * column_channels;
  }
  int64_t nnz() const { return groups * row_channels * entries_per_channel(); }

  // Entries of one channel pair in front of a spatial row: of the planes, lines and rows before it.
  int64_t entries_before(int64_t r0, int64_t r1, int64_t r2) const {
    const auto& [t0, t1, t2] = table;
    return t0.begin[r0] * t1.entries() * t2.entries() +
           t0.size(r0) * (t1.begin[r1] * t2.entries() + t1.size(r1) * t2.begin[r2]);
  }
};

// p.w holds the weight's strides: batch is its out channel.
inline CsrPlan csr_plan(const Problem& p, PaddingMode mode, bool transposed) {
  CsrPlan plan = {};
  plan.transposed = transposed;
  plan.groups = p.groups;
  plan.row_channels = transposed ? p.in_channels : p.out_channels;
  plan.column_channels = transposed ? p.out_channels : p.in_channels;
  plan.row_stride = transposed ? p.w.channel : p.w.batch;
  plan.column_stride = transposed ? p.w.batch : p.w.channel;
  plan.group_stride = p.out_channels * p.w.batch;
  plan.tap_stride = p.w.axis;
  for (int i = 0; i < kAxes; ++i) {
    plan.rows[i] = transposed ? p.axis[i].input : p.output[i];
    plan.columns[i] = transposed ? p.output[i] : p.axis[i].input;
    plan.outputs[i] = p.output[i];
    plan.taps[i] = p.axis[i].kernel;
    plan.table[i] = axis_table(p.axis[i], p.output[i], mode, transposed);
  }
  return plan;
}

}  // namespace convarith
