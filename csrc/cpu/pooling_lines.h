// Where the rows of pooling stand, and the lines that they see.
#pragma once

#include "simd_lanes.h"
#include "window_plan.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Where a row of a plane stands: a line of the last axis for one index of each other axis.
struct Row {
  Row(int64_t row, const int64_t* size)
      : plane(row / (size[0] * size[1])), i0(row / size[1] % size[0]), i1(row % size[1]), size_(size) {}

  void advance() {
    if (++i1 < size_[1]) return;
    i1 = 0;
    if (++i0 < size_[0]) return;
    i0 = 0;
    ++plane;
  }

  int64_t plane, i0, i1;

 private:
  const int64_t* size_;
};

// The lines that row (i0, i1) sees: count0 times count1 of them, from `start` on.
struct Lines {
  Lines(const LineTable* tables, int64_t i0, int64_t i1)
      : first0(tables[0].first[i0]),
        first1(tables[1].first[i1]),
        count0(tables[0].count[i0]),
        count1(tables[1].count[i1]),
        start(first0 * tables[0].pitch + first1 * tables[1].pitch),
        step0(tables[0].step * tables[0].pitch),
        step1(tables[1].step * tables[1].pitch) {}

  int64_t first0, first1, count0, count1;
  int64_t start, step0, step1;  // in elements of a plane
};

constexpr int64_t kBytesAhead = 2048, kMostBytesAhead = 4096;  // longer runs wake the processor's own prefetching

// Rows of y see about as much of x each, one row's share behind another's: what a later one sees first is asked for
// while a row is at work.
struct Ahead {
  Ahead(const PoolPlan& plan, int64_t item)
      : rows(plan.output[1]),
        plane(plan.input[0] * plan.input[1] * plan.input[2] * plan.inner),
        share(plane / (plan.output[0] * plan.output[1])),
        reach((plan.kernel[1] - 1) * plan.lines[1].step * plan.lines[1].pitch + kBytesAhead / item) {
    if (share * item > kMostBytesAhead) share = 0;
  }

  template <typename T>
  void prefetch(const Row& row, const T* x) const {
    prefetch_ahead(x, row.plane * plane + (row.i0 * rows + row.i1) * share + reach, share);
  }

  int64_t rows;                 // of a plane's index of axis 0
  int64_t plane, share, reach;  // in elements
};

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
