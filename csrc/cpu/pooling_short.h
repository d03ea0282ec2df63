// Short rows: of inputs and of outputs, each in two vectors at most with a lane to spare. The lines that a row sees are
// combined in registers, and shuffles pick from there what each tap of the last axis sees, whatever its stride,
// dilation and padding: the spare lane is for what sees nothing. A shuffle picks from two vectors, of one row or two.
#pragma once

#include "pooling_lines.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

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

// Rows [begin, end) of planes of `size`, two at a time where a line is one vector, from lines of `width` entries that
// combine(row, line) makes; join(a, b) is of sums, finish(row, sum, e, left) of those from entry e of a row and the one
// behind it on, where `left` are to come. `to` is for the first row.
template <int kRows, typename Sum, typename T, typename Combine, typename Join, typename Finish>
inline void short_rows(const PoolPlan& plan, const int64_t (&size)[3], int64_t width, Sum neutral,
                       const Combine& combine, const Join& join, const Finish& finish, T* to, int64_t begin,
                       int64_t end) {
  typedef typename Simd<Sum>::Vec Sums;
  typedef decltype(Sums{} < Sums{}) Index;
  typedef decltype(+Index{}[0]) Lane;
  constexpr int kLanes = Simd<Sum>::kLanes, kVectors = 2 / kRows;
  const int64_t n = size[2], steps = plan.pick_steps;
  Row row(begin, size);
  for (int64_t left = (end - begin) * n; left > 0; left -= kRows * n, to += kRows * n) {
    const Row first = row;
    Sums lines[kRows][kVectors];
    CONVARITH_UNROLL for (int j = 0; j < kRows; ++j, row.advance()) {
      if (j * n < left) {
        combine(row, lines[j]);
      } else {
        lines[j][0] = Sums{};
      }
      spare_lane(lines[j], width, neutral);
    }
    const int64_t count = least(kRows * n, left);
    prefetch_ahead(to, kBytesAhead / sizeof(T), count);
    const Lane* pick = static_cast<const Lane*>(plan.picks);
    for (int64_t e = 0; e < count; e += kLanes, pick += steps * kLanes) {
      const auto picked = [&](int64_t s) {
        return __builtin_shuffle(lines[0][0], lines[kRows - 1][kVectors - 1], (Index)load(pick + s * kLanes));
      };
      Sums sum = picked(0);
      for (int64_t s = 1; s < steps; ++s) sum = join(sum, picked(s));
      store_up_to(to + e, finish(first, sum, e, left - e), left - e);
    }
  }
}

// Calls body with the rows that are taken together, for lines of `width` entries.
template <typename Sum, typename Body>
inline void with_short_lines(int64_t width, const Body& body) {
  width < Simd<Sum>::kLanes ? body(Constant<2>{}) : body(Constant<1>{});
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
