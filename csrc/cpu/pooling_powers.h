// L^p pooling for a p that has no shorter way. A power costs more than all else, so it is taken once of every element
// that a chunk of rows sees, along contiguous memory; what is summed then are the powers, and of the sums come the
// roots. The same for the adjoint, whose windows sum g y^(1-p).
#pragma once

#include "pooling_backward.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Rows that follow each other within a plane and an index of axis 0, and the lines of the other side that they see:
// lines [first, end) of axis 1, for each of the indices of axis 0.
struct Chunk {
  Chunk(const PoolPlan& plan, const Row& from, int64_t left, const int64_t* size)
      : row(from), count(least(plan.chunk_rows, least(left, size[1] - from.i1))) {
    const LineTable& table = plan.lines[1];
    for (int64_t i1 = row.i1; i1 < row.i1 + count; ++i1) {
      if (table.count[i1] == 0) continue;
      const int64_t after = table.first[i1] + (table.count[i1] - 1) * table.step + 1;
      first = end == 0 ? table.first[i1] : least(first, table.first[i1]);
      end = end == 0 ? after : most(end, after);
    }
  }

  // Of one of the rows, where the lines of the chunk stand one behind the other.
  Lines lines(const PoolPlan& plan, const Row& at) const {
    Lines l(plan.lines, at.i0, at.i1);
    l.start = l.count1 == 0 ? 0 : (l.first1 - first) * plan.lines[1].pitch;
    l.step0 = size(plan);
    return l;
  }

  // Elements of the lines at one index of axis 0.
  int64_t size(const PoolPlan& plan) const { return (end - first) * plan.lines[1].pitch; }

  // Calls body(start in the plane, start among the chunk's elements) for each index of axis 0.
  template <typename Body>
  void for_each_index(const PoolPlan& plan, const Body& body) const {
    const LineTable& table = plan.lines[0];
    for (int64_t l0 = 0; l0 < table.count[row.i0]; ++l0) {
      body((table.first[row.i0] + l0 * table.step) * table.pitch + first * plan.lines[1].pitch, l0 * size(plan));
    }
  }

  Row row;
  int64_t count, first = 0, end = 0;
};

// What is summed are powers already; what comes out are sums, times the weights that torch's reading has.
template <bool kSigned, typename Sum>
struct PowerSum {
  typedef typename Simd<Sum>::Vec Sums;
  static constexpr double kNeutral = 0;

  Sums add(Sums sum, Sums v) const { return sum + v; }
  Sums join(Sums sum, Sums v) const { return sum + v; }
  Sums finish(const Row& row, const Sum*, Sums sum, int64_t e, int64_t) const {
    return kSigned ? weighted(plan, row, sum, e) : sum;
  }

  const PoolPlan& plan;
};

constexpr int kShortRows = -2;  // as a stride: see pooling_short.h

template <int kStride, bool kSigned, typename T>
void general_norm_rows(const PoolPlan& plan, const T* x, T* y, char* scratch, int64_t begin, int64_t end) {
  typedef typename Lanes<T>::Sum Sum;
  typedef typename Lanes<T>::Sums Sums;
  constexpr int kLanes = Lanes<T>::kLanes;
  const Norm<0, kSigned, T> norm(plan);
  const PowerSum<kSigned, Sum> sum = {plan};
  Sum* line = neutral_lines<T>(plan, 0, scratch);
  Sum* powers = reinterpret_cast<Sum*>(scratch + plan.at_chunk);
  Sum* sums = powers + plan.chunk_size;
  const int64_t inputs = plan.input[2] * plan.inner, outputs = plan.output[2] * plan.inner;
  const int64_t plane_size = plan.input[0] * plan.input[1] * inputs;
  for (int64_t r = begin; r < end;) {
    const Chunk chunk(plan, Row(r, plan.output), end - r, plan.output);
    const T* plane = x + chunk.row.plane * plane_size;
    chunk.for_each_index(plan, [&](int64_t from, int64_t to) {
      for (int64_t e = 0; e < chunk.size(plan); e += kLanes) {
        const int64_t count = chunk.size(plan) - e;
        store_up_to(powers + to + e, norm.powers.of(load_up_to(plane + from + e, count)), count);
      }
    });
    if constexpr (kStride == kShortRows) {
      with_short_line<Sum>(inputs, [&](auto vectors) {
        constexpr int kVectors = decltype(vectors)::value;
        const auto combine = [&](const Row& row, Sums(&in)[kVectors]) {
          reduce_short_lines(sum, chunk.lines(plan, row), powers, true, inputs, in);
        };
        const auto join = [&](Sums a, Sums b) { return sum.join(a, b); };
        const auto finish = [&](const Row& row, Sums v, int64_t e, int64_t) {
          return sum.finish(row, powers, v, e, 0);
        };
        short_rows<kVectors>(plan, plan.output, inputs, Sum(0), combine, join, finish, sums, r, r + chunk.count);
      });
    } else {
      Stream<Sum> pixels(sums, chunk.count * outputs);
      Row row = chunk.row;
      for (int64_t j = 0; j < chunk.count; ++j, row.advance()) {
        const Lines lines = chunk.lines(plan, row);
        if constexpr (kStride < 0) {
          if (plan.inner >= kLanes) {
            pool_pixels(sum, plan, row, powers, lines, powers + lines.start, pixels);
            continue;
          }
        }
        reduce_lines(sum, lines, powers + lines.start, inputs, line + plan.at_input);
        if constexpr (kStride < 0) {
          pool_row_of_pixels(sum, plan, row, powers, line + plan.at_window, sums + j * outputs);
        } else {
          pool_row<0, kStride>(sum, plan, row, powers, line + plan.at_window, sums + j * outputs);
        }
      }
    }
    for (int64_t e = 0; e < chunk.count * outputs; e += kLanes) {
      const int64_t count = chunk.count * outputs - e;
      const auto v = load_up_to(sums + e, count);
      auto root = norm.powers.root(v);
      if (!kSigned && any(norm.is_doubtful(v))) {
        for (int64_t i = 0; i < least<int64_t>(kLanes, count); ++i) {
          if (!norm.is_doubtful(v)[i]) continue;
          root[i] = norm.rescaled(Row(r + (e + i) / outputs, plan.output), x, (e + i) % outputs);
        }
      }
      store_up_to(y + r * outputs + e, root, count);
    }
    r += chunk.count;
  }
}

template <bool kSigned, typename T>
void general_norm(const PoolPlan& plan, const void* x_data, void* y_data, char* scratch, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(x_data);
  T* y = static_cast<T*>(y_data);
  if (plan.picks != nullptr) return general_norm_rows<kShortRows, kSigned>(plan, x, y, scratch, begin, end);
  if (plan.inner != 1) return general_norm_rows<-1, kSigned>(plan, x, y, scratch, begin, end);
  if (plan.stride == 1) return general_norm_rows<1, kSigned>(plan, x, y, scratch, begin, end);
  if (plan.stride == 2) return general_norm_rows<2, kSigned>(plan, x, y, scratch, begin, end);
  general_norm_rows<0, kSigned>(plan, x, y, scratch, begin, end);
}

template <bool kSigned, typename T>
void general_norm_backward(const PoolPlan& plan, const void* g_data, const void* x_data, const void* y_data,
                           void* result_data, char* scratch, int64_t begin, int64_t end) {
  if (plan.flat_first != nullptr) {
    typedef NormBackward<0, kSigned, T> Policy;
    return flat_backward<Policy, T>(plan, g_data, x_data, y_data, result_data, scratch, begin, end);
  }
  typedef typename Lanes<T>::Sum Sum;
  typedef AverageBackward<Sum> Policy;  // the shares are as they shall be
  constexpr int kLanes = Lanes<T>::kLanes;
  const T* g = static_cast<const T*>(g_data);
  const T* x = static_cast<const T*>(x_data);
  const T* y = static_cast<const T*>(y_data);
  const Powers<0, kSigned, typename Lanes<T>::Sums> powers(plan.exponent);
  Sum* line = neutral_lines<T>(plan, 0, scratch);
  Sum* phases = line + plan.rows_at_once * plan.line_size;
  Sum* shares = reinterpret_cast<Sum*>(scratch + plan.at_chunk);
  Sum* sums = shares + plan.chunk_size;
  const int64_t inputs = plan.input[2] * plan.inner;
  const int64_t plane_size = plan.output[0] * plan.output[1] * plan.output[2] * plan.inner;
  Stream<T> out(static_cast<T*>(result_data) + begin * inputs, (end - begin) * inputs);
  with_backward_stride(plan, [&](auto stride) {
    const BackwardRows<decltype(stride)::value, Policy, Sum> kernel = {plan, Policy(plan), line, phases};
    for (int64_t r = begin; r < end;) {
      const Chunk chunk(plan, Row(r, plan.input), end - r, plan.input);
      const int64_t plane = chunk.row.plane * plane_size;
      chunk.for_each_index(plan, [&](int64_t from, int64_t to) {
        for (int64_t e = 0; e < chunk.size(plan); e += kLanes) {
          const int64_t at = plane + from + e, count = chunk.size(plan) - e;
          store_up_to(shares + to + e, load_up_to(g + at, count) * powers.inverse_slope(load_up_to(y + at, count)),
                      count);
        }
      });
      if (plan.picks != nullptr) {
        const auto find = [&](const Row& row, bool& whole) {
          whole = true;
          return chunk.lines(plan, row);
        };
        short_backward_rows(kernel.policy, plan, find, shares, sums, shares, sums, r, r + chunk.count);
      } else {
        Row row = chunk.row;
        for (int64_t j = 0; j < chunk.count; ++j, row.advance()) {
          kernel.sum_lines(chunk.lines(plan, row), shares, shares, line);
          kernel.spread(line, sums, sums + j * inputs);
        }
      }
      for (int64_t e = 0; e < chunk.count * inputs; e += kLanes) {
        const int64_t count = chunk.count * inputs - e;
        store_sums(out.next(least<int64_t>(count, kLanes)),
                   load_up_to(sums + e, count) * powers.slope(load_up_to(x + r * inputs + e, count)));
      }
      r += chunk.count;
    }
  });
}

template <bool kSigned, typename T>
void norm_backward_rows(const PoolPlan& plan, const void* g, const void* x, const void* y, void* result, char* scratch,
                        int64_t begin, int64_t end) {
  with_power(plan.exponent, [&](auto power) {
    constexpr int kPower = decltype(power)::value;
    if constexpr (kPower == 0) {
      general_norm_backward<kSigned, T>(plan, g, x, y, result, scratch, begin, end);
    } else {
      backward_rows<NormBackward<kPower, kSigned, T>, T>(plan, g, x, y, result, scratch, begin, end);
    }
  });
}

template <typename T>
void pool_backward(Pooling kind, const PoolPlan& plan, const void* g, const void* x, const void* y, void* result,
                   char* scratch, int64_t begin, int64_t end) {
  const auto by = kind == Pooling::kAverage ? backward_rows<AverageBackward<T>, T>
                  : kind == Pooling::kNorm  ? norm_backward_rows<false, T>
                                            : norm_backward_rows<true, T>;
  by(plan, g, x, y, result, scratch, begin, end);
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
