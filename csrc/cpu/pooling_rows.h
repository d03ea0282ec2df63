// Rows of pooling on threads, each with its scratch.
#pragma once

#include <atomic>
#include <memory>

#include "dispatch.h"
#include "isa.h"
#include "pooling_planning.h"

namespace convarith::cpu {

inline int64_t pooled_rows(const Windows& w) {
  return w.planes * w.output[0] * w.output[1];
}
inline int64_t pooled_row_work(const Windows& w) {
  return w.output[2] * w.inner * w.kernel_numel();
}
// What backward passes take in turn: rows of x, or planes that are small.
inline bool takes_planes(const PoolPlan& plan) {
  return plan.flat_first != nullptr || plan.places != nullptr;
}
inline int64_t input_units(const PoolPlan& plan, const Windows& w) {
  return takes_planes(plan) ? w.planes : w.planes * w.axis[0].input * w.axis[1].input;
}
inline int64_t input_unit_work(const PoolPlan& plan, const Windows& w) {
  return (takes_planes(plan) ? w.input_numel() : w.axis[2].input * w.inner) * w.axis[2].kernel;
}

// Calls body(scratch, begin, end).
template <typename Body>
void parallel_pool_rows(const PoolPlan& plan, int64_t rows, int64_t work, const Body& body) {
  parallel_rows(rows, work, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<char[]> scratch(new char[plan.scratch]);
    body(scratch.get(), begin, end);
  });
}

// x -> y; L^p has an exponent, and what sums are multiplied with or divided by are weights.
inline void run_pool(const WindowKernels& kernels, Pooling kind, const Windows& w, const Weights& weights,
                     double exponent, const void* x, void* y) {
  Planned planned = Planned::forward(w, kernels, weights, exponent);
  const PoolPlan& plan = planned.plan();
  parallel_pool_rows(plan, pooled_rows(w), pooled_row_work(w), [&](char* scratch, int64_t begin, int64_t end) {
    kernels.pool(kind, plan, x, y, scratch, begin, end);
  });
}

// The gradient g of y -> that of x; x and y themselves are needed by L^p.
inline void run_pool_backward(const WindowKernels& kernels, Pooling kind, const Windows& w, const Weights& weights,
                              double exponent, const void* g, const void* x, const void* y, void* result) {
  Planned planned = Planned::backward(w, kernels, weights, exponent);
  const PoolPlan& plan = planned.plan();
  parallel_pool_rows(plan, input_units(plan, w), input_unit_work(plan, w),
                     [&](char* scratch, int64_t begin, int64_t end) {
                       kernels.pool_backward(kind, plan, g, x, y, result, scratch, begin, end);
                     });
}

// Whether rows of inputs gather outputs by taps: they need a line for each tap of the last axis, and scratch is
// bounded.
inline bool tap_lines_fit(const Windows& w, const WindowKernels& kernels) {
  constexpr int64_t kMostBytes = 1 << 22;
  const Axis& a = w.axis[2];
  const int64_t columns = std::max(w.output[2], (a.input + effective_kernel(a)) / a.stride);
  return a.kernel * columns * w.inner * kernels.sum_item <= kMostBytes;
}

// The gradient g of y -> that of x, by the taps of a maximum; false where one is none of its window's.
inline bool run_tap_scatter(const WindowKernels& kernels, const Windows& w, const void* g, const uint8_t* taps,
                            void* result) {
  Planned planned = Planned::backward_by_taps(w, kernels);
  const PoolPlan& plan = planned.plan();
  const int64_t rows = input_units(plan, w), count = w.planes * w.output_numel() * w.inner;
  const uint8_t* taps_end = taps + count;
  const int64_t share = ceil_div(count, std::max<int64_t>(1, rows));  // of the taps, looked at with a row
  std::atomic<bool> valid = true;
  parallel_pool_rows(plan, rows, input_unit_work(plan, w), [&](char* scratch, int64_t begin, int64_t end) {
    const int64_t from = std::min(begin * share, count), to = std::min(end * share, count);
    if (!kernels.are_taps(taps + from, to - from, w.kernel_numel())) {
      valid = false;
      return;
    }
    kernels.tap_scatter(plan, g, taps, taps_end, result, scratch, begin, end);
  });
  return valid;
}

}  // namespace convarith::cpu
