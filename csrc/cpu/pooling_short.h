// Short rows: of inputs and of outputs, each in two vectors at most with a lane to spare. The lines that a row sees are
// combined in registers, and shuffles pick from there what each tap of the last axis sees, whatever its stride,
// dilation and padding: the spare lane is for what sees nothing.
#pragma once

#include "pooling_lines.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

template <typename V, typename Index>
inline V picked(const V (&from)[1], Index index) {
  return __builtin_shuffle(from[0], index);
}
template <typename V, typename Index>
inline V picked(const V (&from)[2], Index index) {
  return __builtin_shuffle(from[0], from[1], index);
}

// Makes the spare lane, and others behind a row of `size` entries, neutral.
template <typename Sums, int kVectors>
inline void spare_lane(Sums (&line)[kVectors], int64_t size, decltype(Sums{}[0]) neutral) {
  constexpr int kLanes = sizeof(Sums) / sizeof(neutral);
  line[kVectors - 1] = first_or(line[kVectors - 1], static_cast<int>(size) - (kVectors - 1) * kLanes, neutral);
}

// What is read behind rows is not used, and what is written there the next row writes over: so vectors are whole but
// at the ends of a tensor, or of a thread's rows. Rows of these planes may read whole vectors.
inline int64_t planes_of_whole_vectors(const PoolPlan& plan, const int64_t (&size)[3]) {
  constexpr int64_t kMost = 2 * CONVARITH_BYTES / sizeof(float);  // entries behind a row's first
  return plan.planes - block_count(kMost, size[0] * size[1] * size[2]);
}

// Rows [begin, end) of planes of `size`, from lines of `width` entries that combine(row, line) makes; join(a, b) is of
// sums, finish(row, sum, e, left) of those from entry e on, where `left` are to come. `to` is for the first row.
template <int kVectors, typename Sum, typename T, typename Combine, typename Join, typename Finish>
inline void short_rows(const PoolPlan& plan, const int64_t (&size)[3], int64_t width, Sum neutral,
                       const Combine& combine, const Join& join, const Finish& finish, T* to, int64_t begin,
                       int64_t end) {
  typedef typename Simd<Sum>::Vec Sums;
  typedef decltype(Sums{} < Sums{}) Index;
  typedef decltype(+Index{}[0]) Lane;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const int64_t n = size[2], steps = plan.pick_steps;
  Row row(begin, size);
  for (int64_t left = (end - begin) * n; left > 0; left -= n, to += n, row.advance()) {
    Sums line[kVectors];
    combine(row, line);
    spare_lane(line, width, neutral);
    prefetch_ahead(to, kBytesAhead / sizeof(T), n);
    const Lane* pick = static_cast<const Lane*>(plan.picks);
    for (int64_t e = 0; e < n; e += kLanes, pick += steps * kLanes) {
      Sums sum = picked(line, load(pick));
      for (int64_t s = 1; s < steps; ++s) sum = join(sum, picked(line, load(pick + s * kLanes)));
      store_up_to(to + e, finish(row, sum, e, left - e), left - e);
    }
  }
}

// Calls body with the vectors of a line of `width` entries.
template <typename Sum, typename Body>
inline void with_short_line(int64_t width, const Body& body) {
  width < Simd<Sum>::kLanes ? body(Constant<1>{}) : body(Constant<2>{});
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
