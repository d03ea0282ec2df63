// C in compressed sparse rows, assembled from the pattern, and products with it. Plain C++.
//
// Along one axis the pattern is a table: output o, tap t -> input i. Over several axes it is the product of the axes'
// tables, so a row of C needs no search: its columns are the product of three short sorted lists. Row (k, o) and row
// (k', o) of one group have the same columns; their values are the weights w[k, c, taps of the entry].
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../problem.h"

namespace convarith::cpu {

// One axis's table by row: row r meets the columns column[begin[r]] ... in ascending order, each through the taps
// tap[tap_begin[e]] ... Several taps meet one column only where padding repeats inputs.
struct AxisTable {
  std::vector<int64_t> begin = {0};
  std::vector<int64_t> column;
  std::vector<int64_t> tap_begin = {0};
  std::vector<int64_t> tap;

  int64_t size(int64_t row) const { return begin[row + 1] - begin[row]; }
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
  int64_t groups;
  int64_t row_channels;     // per group
  int64_t column_channels;  // per group
  int64_t row_stride;       // of the weight, in elements, from one row channel of a group to the next
  int64_t column_stride;
  int64_t group_stride;
  std::array<int64_t, kAxes> tap_stride;
  std::array<int64_t, kAxes> rows;
  std::array<int64_t, kAxes> columns;
  std::array<AxisTable, kAxes> table;
  std::vector<int64_t> entries_before;  // per spatial row of one channel pair, and the total

  int64_t spatial_rows() const { return rows[0] * rows[1] * rows[2]; }
  int64_t spatial_columns() const { return columns[0] * columns[1] * columns[2]; }
  int64_t row_count() const { return groups * row_channels * spatial_rows(); }
  int64_t column_count() const { return groups * column_channels * spatial_columns(); }
  int64_t entries_per_channel() const { return entries_before.back() * column_channels; }  // of one row channel
  int64_t nnz() const { return groups * row_channels * entries_per_channel(); }
};

// p.w holds the weight's strides: batch is its out channel.
inline CsrPlan csr_plan(const Problem& p, PaddingMode mode, bool transposed) {
  CsrPlan plan = {};
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
    plan.table[i] = axis_table(p.axis[i], p.output[i], mode, transposed);
  }
  plan.entries_before.reserve(plan.spatial_rows() + 1);
  int64_t total = 0;
  plan.entries_before.push_back(0);
  for (int64_t r0 = 0; r0 < plan.rows[0]; ++r0) {
    for (int64_t r1 = 0; r1 < plan.rows[1]; ++r1) {
      const int64_t lines = plan.table[0].size(r0) * plan.table[1].size(r1);
      for (int64_t r2 = 0; r2 < plan.rows[2]; ++r2) {
        plan.entries_before.push_back(total += lines * plan.table[2].size(r2));
      }
    }
  }
  return plan;
}

// One spatial row of one channel pair: its columns within a channel, and the weight offsets that each entry sums.
struct SpatialRow {
  std::vector<int64_t> column;
  std::vector<int64_t> offset_begin;
  std::vector<int64_t> offset;
  bool one_to_one = true;  // one tap per entry: offset[e] is entry e's

  void load(const CsrPlan& plan, int64_t row) {
    column.clear();
    offset.clear();
    offset_begin.assign(1, 0);
    const int64_t r2 = row % plan.rows[2];
    const int64_t r1 = row / plan.rows[2] % plan.rows[1];
    const int64_t r0 = row / (plan.rows[2] * plan.rows[1]);
    const auto& [table0, table1, table2] = plan.table;
    for (int64_t e0 = table0.begin[r0]; e0 < table0.begin[r0 + 1]; ++e0) {
      for (int64_t e1 = table1.begin[r1]; e1 < table1.begin[r1 + 1]; ++e1) {
        const int64_t line = (table0.column[e0] * plan.columns[1] + table1.column[e1]) * plan.columns[2];
        for (int64_t e2 = table2.begin[r2]; e2 < table2.begin[r2 + 1]; ++e2) {
          column.push_back(line + table2.column[e2]);
          for (int64_t a = table0.tap_begin[e0]; a < table0.tap_begin[e0 + 1]; ++a) {
            for (int64_t b = table1.tap_begin[e1]; b < table1.tap_begin[e1 + 1]; ++b) {
              for (int64_t c = table2.tap_begin[e2]; c < table2.tap_begin[e2 + 1]; ++c) {
                offset.push_back(table0.tap[a] * plan.tap_stride[0] + table1.tap[b] * plan.tap_stride[1] +
                                 table2.tap[c] * plan.tap_stride[2]);
              }
            }
          }
          offset_begin.push_back(static_cast<int64_t>(offset.size()));
        }
      }
    }
    one_to_one = offset.size() == column.size();
  }

  int64_t size() const { return static_cast<int64_t>(column.size()); }
};

// Spatial rows [begin, end) of every channel, straight into the three arrays. crow[0] is the caller's;
// without values, only the structure.
template <typename T, typename Acc, typename Index>
void csr_fill(const CsrPlan& plan, const T* w, Index* crow, Index* col, T* values, int64_t begin, int64_t end) {
  SpatialRow row;
  std::vector<Index> columns;    // of all column channels of group 0
  std::vector<int64_t> offsets;  // likewise, into the weight, of entries with one tap
  const int64_t channel_rows = plan.spatial_rows();
  for (int64_t r = begin; r < end; ++r) {
    row.load(plan, r);
    const int64_t size = row.size() * plan.column_channels;
    columns.resize(size);
    offsets.resize(row.one_to_one ? size : 0);
    for (int64_t c = 0, e = 0; c < plan.column_channels; ++c) {
      for (int64_t i = 0; i < row.size(); ++i, ++e) {
        columns[e] = static_cast<Index>(c * plan.spatial_columns() + row.column[i]);
        if (row.one_to_one) offsets[e] = c * plan.column_stride + row.offset[i];
      }
    }
    // Where the weight lies as the entries do, a row of values is one copy of it.
    const bool is_run = row.one_to_one && size > 0 && offsets.back() == size - 1 &&
                        std::adjacent_find(offsets.begin(), offsets.end(),
                                           [](int64_t a, int64_t b) { return b != a + 1; }) == offsets.end();
    for (int64_t g = 0; g < plan.groups; ++g) {
      for (int64_t k = 0; k < plan.row_channels; ++k) {
        const int64_t channel = g * plan.row_channels + k;
        const int64_t first = channel * plan.entries_per_channel() + plan.entries_before[r] * plan.column_channels;
        crow[channel * channel_rows + r + 1] = static_cast<Index>(first + size);
        std::copy(columns.begin(), columns.end(), col + first);
        if (values == nullptr) continue;
        const T* taps = w + g * plan.group_stride + k * plan.row_stride;
        T* out = values + first;
        if (is_run) {
          std::copy(taps, taps + size, out);
        } else if (row.one_to_one) {
          for (int64_t e = 0; e < size; ++e) out[e] = taps[offsets[e]];
        } else {
          for (int64_t c = 0, e = 0; c < plan.column_channels; ++c) {
            for (int64_t i = 0; i < row.size(); ++i, ++e) {
              Acc sum(0);
              for (int64_t t = row.offset_begin[i]; t < row.offset_begin[i + 1]; ++t) {
                sum += static_cast<Acc>(taps[c * plan.column_stride + row.offset[t]]);
              }
              out[e] = static_cast<T>(sum);
            }
          }
        }
      }
      const Index next_group = static_cast<Index>(plan.column_channels * plan.spatial_columns());
      if (g + 1 < plan.groups) {
        for (Index& c : columns) c += next_group;
      }
    }
  }
}

// The adjoint of w -> values, for row channels [begin, end): each weight gets the sum of its entries' values. The
// plan and w belong to a contiguous weight of `taps` taps.
template <typename T, typename Acc>
void csr_weight_rows(const CsrPlan& plan, int64_t taps, const T* values, T* w, int64_t begin, int64_t end) {
  SpatialRow row;
  std::vector<Acc> sum(plan.column_channels * taps);
  for (int64_t channel = begin; channel < end; ++channel) {
    std::fill(sum.begin(), sum.end(), Acc(0));
    const T* v = values + channel * plan.entries_per_channel();
    for (int64_t r = 0; r < plan.spatial_rows(); ++r) {
      row.load(plan, r);
      for (int64_t c = 0; c < plan.column_channels; ++c) {
        for (int64_t i = 0; i < row.size(); ++i, ++v) {
          for (int64_t t = row.offset_begin[i]; t < row.offset_begin[i + 1]; ++t) {
            sum[c * taps + row.offset[t]] += static_cast<Acc>(*v);
          }
        }
      }
    }
    T* out = w + channel / plan.row_channels * plan.group_stride + channel % plan.row_channels * plan.row_stride;
    for (int64_t c = 0; c < plan.column_channels; ++c) {
      for (int64_t t = 0; t < taps; ++t) out[c * plan.column_stride + t] = static_cast<T>(sum[c * taps + t]);
    }
  }
}

// Rows [begin, end) of the product with a row-major x of `width` columns. A row is summed in the order of its entries.
template <typename T, typename Acc, typename Index>
void csr_matmul_rows(const Index* crow, const Index* col, const T* values, const T* x, int64_t width, T* y,
                     int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 64;
  Acc sum[kBlock];
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t first = 0; first < width; first += kBlock) {
      const int64_t n = std::min(kBlock, width - first);
      std::fill(sum, sum + n, Acc(0));
      for (int64_t e = crow[row]; e < crow[row + 1]; ++e) {
        const Acc v = static_cast<Acc>(values[e]);
        const T* line = x + col[e] * width + first;
        for (int64_t b = 0; b < n; ++b) sum[b] += v * static_cast<Acc>(line[b]);
      }
      for (int64_t b = 0; b < n; ++b) y[row * width + first + b] = static_cast<T>(sum[b]);
    }
  }
}

// values[e] = <y[row], x[column]>: the product y x^T, sampled where the pattern has an entry.
template <typename T, typename Acc, typename Index>
void csr_sampled_rows(const Index* crow, const Index* col, const T* y, const T* x, int64_t width, T* values,
                      int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* out = y + row * width;
    for (int64_t e = crow[row]; e < crow[row + 1]; ++e) {
      const T* in = x + col[e] * width;
      Acc sum(0);
      for (int64_t b = 0; b < width; ++b) sum += static_cast<Acc>(out[b]) * static_cast<Acc>(in[b]);
      values[e] = static_cast<T>(sum);
    }
  }
}

}  // namespace convarith::cpu
