// L^p pooling for a p that has no shorter way. A power costs more than all else, so it is taken once of every element
// that a chunk of rows sees, along contiguous memory; what is summed then are the powers, and of the sums come the
// roots. The same for the adjoint, whose windows sum g y^(1-p). Forward, kernels of their own would be no faster for a
// p of 1 or 3.
#pragma once

#include "pooling_backward.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Rows that follow each other within a plane and an index of axis 0, and the lines of the other side that they see:
// lines [first, end) of axis 1, for each of the indices of axis 0.
struct Chunk {
  Chunk(const PoolPlan& plan, int64_t first_row, int64_t end_row, const int64_t* size)
      : begin(first_row), row(begin, size), count(least(plan.chunk_rows, least(end_row - begin, size[1] - row.i1))) {
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

  int64_t begin;
  Row row;  // the first one
  int64_t count, first = 0, end = 0;
};

// What is summed are powers already; what comes out are sums, times the weights that torch's reading has.
template <typename Sum>
struct PowerSum {
  typedef typename Simd<Sum>::Vec Sums;
  static constexpr double kNeutral = 0;
  static constexpr bool kIsUsual = true;

  static Sums add(Sums sum, Sums v) { return sum + v; }
  static Sums join(Sums sum, Sums v) { return sum + v; }
  Sums finish(const Row& row, const Sum*, Sums sum, int64_t e, int64_t) const { return weighted(plan, row, sum, e); }

  const PoolPlan& plan;
};

// Where a chunk's elements stand between its stages, which are apart from each other: sums know of no power.
template <typename Sum>
struct ChunkRoom {
  ChunkRoom(const PoolPlan& plan, char* scratch)
      : line(reinterpret_cast<Sum*>(scratch)),
        elements(reinterpret_cast<Sum*>(scratch + plan.at_chunk)),
        sums(elements + plan.chunk_size) {
    for (int64_t e = 0; e < plan.rows_at_once * plan.line_size; ++e) line[e] = 0;
  }

  Sum *line, *elements, *sums;  // of one row; of the lines that the chunk sees; of its rows
};

template <typename Sum>
void sum_chunk(const PoolPlan& plan, const Chunk& chunk, const ChunkRoom<Sum>& room) {
  typedef typename Simd<Sum>::Vec Sums;
  const PowerSum<Sum> policy = {plan};
  const int64_t inputs = plan.input[2] * plan.inner, outputs = plan.output[2] * plan.inner;
  if (plan.picks != nullptr) {
    return with_short_lines<Sum>(inputs, [&](auto rows) {
      constexpr int kRows = decltype(rows)::value;
      const auto combine = [&](const Row& row, Sums(&in)[2 / kRows]) {
        reduce_short_lines(policy, chunk.lines(plan, row), room.elements, true, inputs, in);
      };
      const auto join = [&](Sums a, Sums b) { return policy.join(a, b); };
      const auto finish = [&](const Row& row, Sums v, int64_t e, int64_t) {
        return policy.finish(row, room.elements, v, e, 0);
      };
      short_rows<kRows>(plan, plan.output, inputs, Sum(0), combine, join, finish, room.sums, chunk.begin,
                        chunk.begin + chunk.count);
    });
  }
  Stream<Sum> pixels(room.sums, chunk.count * outputs);
  Row row = chunk.row;
  for (int64_t j = 0; j < chunk.count; ++j, row.advance()) {
    const Lines lines = chunk.lines(plan, row);
    const Sum* from = room.elements + lines.start;
    if (plan.inner >= Simd<Sum>::kLanes) {
      pool_pixels(policy, plan, row, room.elements, lines, from, pixels);
      continue;
    }
    reduce_lines(policy, lines, from, inputs, room.line + plan.at_input);
    pool_row(policy, plan, row, room.elements, room.line + plan.at_window, room.sums + j * outputs);
  }
}

template <typename T, typename Policy>
void norm_by_chunks(const Policy& norm, const PoolPlan& plan, const void* x_data, void* y_data, char* scratch,
                    int64_t begin, int64_t end) {
  constexpr int kLanes = Lanes<T>::kLanes;
  const T* x = static_cast<const T*>(x_data);
  T* y = static_cast<T*>(y_data);
  const ChunkRoom<typename Lanes<T>::Sum> room(plan, scratch);
  const int64_t outputs = plan.output[2] * plan.inner;
  const int64_t plane_size = plan.input[0] * plan.input[1] * plan.input[2] * plan.inner;
  for (int64_t r = begin; r < end;) {
    const Chunk chunk(plan, r, end, plan.output);
    const T* plane = x + chunk.row.plane * plane_size;
    chunk.for_each_index(plan, [&](int64_t from, int64_t to) {
      for (int64_t e = 0; e < chunk.size(plan); e += kLanes) {
        const int64_t count = chunk.size(plan) - e;
        store_up_to(room.elements + to + e, norm.powers.of(load_up_to(plane + from + e, count)), count);
      }
    });
    sum_chunk(plan, chunk, room);
    for (int64_t e = 0; e < chunk.count * outputs; e += kLanes) {
      const int64_t count = chunk.count * outputs - e;
      const auto v = load_up_to(room.sums + e, count);
      auto root = norm.powers.root(v);
      if (norm.needs_rescaling(v, count)) {
        norm.rescale(Row(r + e / outputs, plan.output), x, v, e % outputs, count, &root);
      }
      store_up_to(y + r * outputs + e, root, count);
    }
    r += chunk.count;
  }
}

template <typename Sum>
void spread_chunk(const PoolPlan& plan, const Chunk& chunk, const ChunkRoom<Sum>& room) {
  typedef AverageBackward<Sum> Policy;  // the shares are as they shall be
  const Policy policy(plan);
  if (plan.picks != nullptr) {
    const auto find = [&](const Row& row, bool& whole) {
      whole = true;
      return chunk.lines(plan, row);
    };
    return short_backward_rows(policy, plan, find, room.elements, room.sums, room.elements, room.sums, chunk.begin,
                               chunk.begin + chunk.count);
  }
  const BackwardRows<Policy, Sum> kernel(plan, policy, room.line);
  Row row = chunk.row;
  for (int64_t j = 0; j < chunk.count; ++j, row.advance()) {
    sum_lines(plan, policy, chunk.lines(plan, row), room.elements, room.elements, room.line);
    kernel.spread(room.line, room.sums, room.sums + j * plan.input[2] * plan.inner);
  }
}

template <typename T, typename Policy>
void norm_backward_by_chunks(const Policy& norm, const PoolPlan& plan, const void* g_data, const void* x_data,
                             const void* y_data, void* result_data, char* scratch, int64_t begin, int64_t end) {
  if (plan.flat_first != nullptr) {
    return flat_backward<T>(norm, plan, g_data, x_data, y_data, result_data, scratch, begin, end);
  }
  constexpr int kLanes = Lanes<T>::kLanes;
  const T* g = static_cast<const T*>(g_data);
  const T* x = static_cast<const T*>(x_data);
  const T* y = static_cast<const T*>(y_data);
  const ChunkRoom<typename Lanes<T>::Sum> room(plan, scratch);
  const int64_t inputs = plan.input[2] * plan.inner;
  const int64_t plane_size = plan.output[0] * plan.output[1] * plan.output[2] * plan.inner;
  Stream<T> out(static_cast<T*>(result_data) + begin * inputs, (end - begin) * inputs);
  for (int64_t r = begin; r < end;) {
    const Chunk chunk(plan, r, end, plan.input);
    const int64_t plane = chunk.row.plane * plane_size;
    chunk.for_each_index(plan, [&](int64_t from, int64_t to) {
      for (int64_t e = 0; e < chunk.size(plan); e += kLanes) {
        const int64_t at = plane + from + e, count = chunk.size(plan) - e;
        store_up_to(room.elements + to + e, norm.share(g + at, y + at, count), count);
      }
    });
    spread_chunk(plan, chunk, room);
    for (int64_t e = 0; e < chunk.count * inputs; e += kLanes) {
      const int64_t count = chunk.count * inputs - e;
      store_sums(out.next(least<int64_t>(count, kLanes)),
                 norm.finish(load_up_to(room.sums + e, count), x + r * inputs + e, count));
    }
    r += chunk.count;
  }
}

template <typename T>
void pool_backward(Pooling kind, const PoolPlan& plan, const void* g, const void* x, const void* y, void* result,
                   char* scratch, int64_t begin, int64_t end) {
  if (kind == Pooling::kAverage) {
    return backward_rows<T>(AverageBackward<T>(plan), plan, g, x, y, result, scratch, begin, end);
  }
  with_power(plan.exponent, [&](auto power) {
    constexpr int kPower = decltype(power)::value;
    const NormBackward<kPower, T> norm(plan, kind == Pooling::kSignedNorm);
    if constexpr (kPower == 0) {
      norm_backward_by_chunks<T>(norm, plan, g, x, y, result, scratch, begin, end);
    } else {
      backward_rows<T>(norm, plan, g, x, y, result, scratch, begin, end);
    }
  });
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
