// The values of C in compressed sparse rows, and products with it. Plain C++.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../matrix_plan.h"

namespace convarith::cpu {

// One spatial row of one channel pair: its columns within a channel, and the weight offsets that each entry sums.
struct SpatialRow {
  std::vector<int64_t> column;
  std::vector<int64_t> offset_begin;
  std::vector<int64_t> offset;
  int64_t entries_before = 0;
  bool one_to_one = true;  // one tap per entry: offset[e] is entry e's

  void load(const CsrPlan& plan, int64_t row) {
    column.clear();
    offset.clear();
    offset_begin.assign(1, 0);
    const int64_t r2 = row % plan.rows[2];
    const int64_t r1 = row / plan.rows[2] % plan.rows[1];
    const int64_t r0 = row / (plan.rows[2] * plan.rows[1]);
    const auto& [table0, table1, table2] = plan.table;
    entries_before = plan.entries_before(r0, r1, r2);
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
        const int64_t first = channel * plan.entries_per_channel() + row.entries_before * plan.column_channels;
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
// plan belongs to a contiguous weight.
template <typename T, typename Acc>
void csr_weight_rows(const CsrPlan& plan, const T* values, T* w, int64_t begin, int64_t end) {
  SpatialRow row;
  const int64_t taps = plan.tap_count();
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
