// Rows of pooling on threads, each with its scratch.
#pragma once

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
inline int64_t input_rows(const Windows& w) {
  return w.planes * w.axis[0].input * w.axis[1].input;
}
inline int64_t input_row_work(const Windows& w) {
  return w.axis[2].input * w.inner * w.axis[2].kernel;
}

// Calls body(scratch, begin, end).
template <typename Body>
void parallel_pool_rows(const PoolPlan& plan, int64_t rows, int64_t work, const Body& body) {
  parallel_rows(rows, work, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<char[]> scratch(new char[plan.scratch]);
    body(scratch.get(), begin, end);
  });
}

}  // namespace convarith::cpu
