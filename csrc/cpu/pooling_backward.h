// The adjoint of summing windows: stage 1 sums the lines of y whose windows see a row of x, stage 2 goes along the last
// axis, where input s * m + r gets the outputs m + offset, for the few offsets of residue r. For L^p the summands are
// g * y^(1-p), and their sum is multiplied by |x|^(p-1) sign(x).
#pragma once

#include "pooling_flat.h"
#include "pooling_forward.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

template <typename T>
struct AverageBackward {
  typedef typename Lanes<T>::Sums Sums;
  static constexpr bool kIsAverage = true;

  explicit AverageBackward(const PoolPlan&) {}
  static Sums share(const T* g, const T*, int64_t count) { return load_up_to(g, count); }
  static Sums finish(Sums sum, const T*, int64_t) { return sum; }
};

template <int kPower, typename T>
struct NormBackward {
  typedef typename Lanes<T>::Sums Sums;
  static constexpr bool kIsAverage = false;

  NormBackward(const PoolPlan& plan, bool is_signed) : powers(plan.exponent, is_signed) {}
  Sums share(const T* g, const T* y, int64_t count) const {
    return load_up_to(g, count) * powers.inverse_slope(load_up_to(y, count));
  }
  Sums finish(Sums sum, const T* x, int64_t count) const { return sum * powers.slope(load_up_to(x, count)); }

  Powers<kPower, Sums> powers;
};

// A window's weight is that of its line (l0, l1), of those that a row sees, times that of its column.
template <typename Sum>
inline Sum weight_of(const PoolPlan& plan, const Lines& lines, int64_t l0, int64_t l1) {
  return static_cast<Sum>(plan.weight[0][lines.first0 + l0 * plan.lines[0].step] *
                          plan.weight[1][lines.first1 + l1 * plan.lines[1].step]);
}
template <typename Sum>
inline typename Simd<Sum>::Vec scale_of(const PoolPlan& plan, int64_t e) {
  if (plan.uniform) return every<typename Simd<Sum>::Vec>(static_cast<Sum>(plan.scale));
  return load(static_cast<const Sum*>(plan.column) + e);
}

// The shares that a row gets from a plane's lines, summed.
template <typename Policy, typename T, typename Sum>
CONVARITH_ONCE void sum_lines(const PoolPlan& plan, const Policy& policy, const Lines& lines, const T* g, const T* y,
                              Sum* line) {
  constexpr int kLanes = Lanes<T>::kLanes;
  const int64_t n = plan.output[2] * plan.inner;
  for (int64_t e = 0; e < n; e += kLanes) {
    typename Lanes<T>::Sums sum = {};
    for (int64_t l0 = 0; l0 < lines.count0; ++l0) {
      int64_t at = lines.start + l0 * lines.step0 + e;
      for (int64_t l1 = 0; l1 < lines.count1; ++l1, at += lines.step1) {
        const auto share = policy.share(g + at, y + at, n - e);
        sum += plan.uniform ? share : share * weight_of<Sum>(plan, lines, l0, l1);
      }
    }
    sum *= scale_of<Sum>(plan, e);
    Sum* to = line + plan.at_output + e;
    n - e >= kLanes ? store(to, sum) : store_first(to, sum, static_cast<int>(n - e));
  }
}

template <typename Policy, typename T>
struct BackwardRows {
  typedef typename Lanes<T>::Sum Sum;
  typedef typename Lanes<T>::Sums Sums;
  static constexpr int kLanes = Lanes<T>::kLanes;

  // `lines` are the plan's neutral ones.
  BackwardRows(const PoolPlan& p, const Policy& by, Sum* lines)
      : plan(p), policy(by), kept(lines), phases(kept + plan.rows_at_once * plan.line_size) {}

  const PoolPlan& plan;
  Policy policy;
  Sum* kept;    // [rows_at_once][line_size]: summed lines of y, from at_output on, between zeros
  Sum* phases;  // for strides that are not written out: a line of x

  // The offsets of one residue, apart from the plan: what is stored may reach that, for all that a compiler knows.
  struct Offsets {
    Offsets(const PoolPlan& plan, int64_t r)
        : begin(plan.offsets + plan.offsets_begin[r]), end(plan.offsets + plan.offsets_begin[r + 1]) {}

    // Inputs of the residue, m of them on.
    Sums sum(const Sum* from) const {
      Sums sum = {};
      for (const int64_t* offset = begin; offset < end; ++offset) sum += load(from + *offset);
      return sum;
    }

    const int64_t *begin, *end;
  };

  // Stage 2 of a row.
  CONVARITH_ONCE void spread(const Sum* line, const T* x, T* result) const {
    const int64_t n = plan.input[2];
    const Sum* from = line + plan.at_output;
    if (plan.stride == 1) {
      const Offsets offsets(plan, 0);
      for (int64_t e = 0, count = n * plan.inner; count > 0; e += kLanes, count -= kLanes) {
        store_up_to(result + e, policy.finish(offsets.sum(from + e), x + e, count), count);
      }
    } else if (plan.inner == 1 && plan.stride == 2) {
      const Offsets even(plan, 0), odd(plan, 1);
      for (int64_t m = 0; 2 * m < n; m += kLanes) {
        Sums a = even.sum(from + m), b = odd.sum(from + m);
        interleave<Sum>(a, b);
        const int64_t i = 2 * m, count = n - i;
        store_up_to(result + i, policy.finish(a, x + i, count), count);
        if (count <= kLanes) break;
        store_up_to(result + i + kLanes, policy.finish(b, x + i + kLanes, count - kLanes), count - kLanes);
      }
    } else if (plan.inner != 1) {
      for (int64_t i = 0, r = 0; i < n; ++i) {
        for (int64_t c = 0; c < plan.inner; c += kLanes) {
          const Sums sum = Offsets(plan, r).sum(from + c);
          const int64_t e = i * plan.inner + c, count = plan.inner - c;
          store_up_to(result + e, policy.finish(sum, x + e, count), count);
        }
        if (++r < plan.stride) continue;
        r = 0;
        from += plan.inner;
      }
    } else {
      for (int64_t r = 0; r < plan.stride; ++r) {
        for (int64_t m = 0; m < plan.phase_columns; m += kLanes) {
          const Sums sum = Offsets(plan, r).sum(from + m);
          for (int l = 0; l < kLanes; ++l) phases[(m + l) * plan.stride + r] = sum[l];
        }
      }
      for (int64_t i = 0; i < n; i += kLanes) {
        store_up_to(result + i, policy.finish(load(phases + i), x + i, n - i), n - i);
      }
    }
  }

  // combine(row, line) is stage 1.
  template <typename Combine>
  void rows(Combine& combine, const T* x, T* result, int64_t begin, int64_t end) const {
    const int64_t n = plan.input[2] * plan.inner;
    const bool fetches = n * static_cast<int64_t>(sizeof(T)) <= kMostBytesAhead, asks_ahead = fetches && x != nullptr;
    Row row(begin, plan.input);
    for (int64_t first = begin; first < end; first += plan.rows_at_once) {
      const int64_t count = least(plan.rows_at_once, end - first);
      for (int64_t j = 0; j < count; ++j, row.advance()) {
        if (fetches) prefetch<1>(result + (first + j) * n, n);  // what stage 2 writes comes while stage 1 is at work
        combine(row, kept + j * plan.line_size);
      }
      for (int64_t j = 0; j < count; ++j) {
        const int64_t at = (first + j) * n;
        const T* inputs = x == nullptr ? nullptr : x + at;
        if (asks_ahead) prefetch_ahead(inputs, kBytesAhead / sizeof(T), n);
        spread(kept + j * plan.line_size, inputs, result + at);
      }
    }
  }
};

// find(row, whole) has a row's lines as they stand in g and y, and says whether whole vectors may be read there.
template <typename Policy, typename T, typename Find>
void short_backward_rows(const Policy& policy, const PoolPlan& plan, const Find& find, const T* g, const T* x,
                         const T* y, T* to, int64_t begin, int64_t end) {
  typedef typename Lanes<T>::Sum Sum;
  typedef typename Lanes<T>::Sums Sums;
  constexpr int kLanes = Lanes<T>::kLanes;
  const int64_t width = plan.output[2];
  with_short_lines<Sum>(width, [&](auto rows) {
    constexpr int kRows = decltype(rows)::value, kVectors = 2 / kRows;
    const auto combine = [&](const Row& row, Sums(&line)[kVectors]) {
      bool whole;
      const Lines lines = find(row, whole);
      for (Sums& sums : line) sums = Sums{};
      for (int64_t l0 = 0; l0 < lines.count0; ++l0) {
        int64_t at = lines.start + l0 * lines.step0;
        for (int64_t l1 = 0; l1 < lines.count1; ++l1, at += lines.step1) {
          const Sum weight = plan.uniform ? 1 : weight_of<Sum>(plan, lines, l0, l1);
          CONVARITH_UNROLL for (int v = 0; v < kVectors; ++v) {
            const int64_t e = v * kLanes;
            const Sums share = policy.share(g + at + e, y + at + e, whole ? kLanes : width - e);
            line[v] += plan.uniform ? share : share * weight;
          }
        }
      }
      CONVARITH_UNROLL for (int v = 0; v < kVectors; ++v) line[v] *= scale_of<Sum>(plan, v * kLanes);
    };
    const auto join = [&](Sums a, Sums b) { return a + b; };  // not a function: those take no vectors
    const int64_t size = (end - begin) * plan.input[2];
    const auto finish = [&](const Row&, Sums sum, int64_t e, int64_t left) {
      return policy.finish(sum, x + (size - left), left);
    };
    short_rows<kRows>(plan, plan.input, width, Sum(0), combine, join, finish, to, begin, end);
  });
}

// With many channels behind the last axis, means: pixels of y are summed as they stand, all with the same weight.
template <typename T>
void average_pixels_backward(const PoolPlan& plan, const T* g, T* result, int64_t begin, int64_t end) {
  typedef typename Lanes<T>::Sums Sums;
  constexpr int kLanes = Lanes<T>::kLanes;
  const int64_t inner = plan.inner, line_size = plan.output[2] * inner, n = plan.input[2] * inner;
  const auto scale = every<Sums>(static_cast<typename Lanes<T>::Sum>(plan.scale));
  Stream<T> out(result + begin * n, (end - begin) * n);
  for (Row row(begin, plan.input); begin < end; ++begin, row.advance()) {
    const Lines lines(plan.lines, row.i0, row.i1);
    const T* from = g + row.plane * plan.output[0] * plan.output[1] * line_size + lines.start;
    for (int64_t i = 0; i < plan.input[2]; ++i) {
      const int64_t *offset = plan.offsets + plan.offsets_begin[i % plan.stride],
                    *offsets_end = plan.offsets + plan.offsets_begin[i % plan.stride + 1];
      const int64_t column = i / plan.stride * inner;
      while (offset < offsets_end && column + *offset < 0) ++offset;  // they rise
      while (offset < offsets_end && column + offsets_end[-1] >= line_size) --offsets_end;
      for_each_run<Sums, kPixelRun>(0, inner, [&](auto vectors, int64_t e, int64_t count) {
        constexpr int kVectors = decltype(vectors)::value, kWhole = (kVectors - 1) * kLanes;
        Sums sums[kVectors] = {};
        for (int64_t l0 = 0; l0 < lines.count0; ++l0) {
          const T* line = from + l0 * lines.step0 + column + e;
          for (int64_t l1 = 0; l1 < lines.count1; ++l1, line += lines.step1) {
            for (const int64_t* o = offset; o < offsets_end; ++o) {
              CONVARITH_UNROLL for (int v = 0; v < kVectors - 1; ++v) sums[v] += load_sums(line + *o + v * kLanes);
              sums[kVectors - 1] += load_up_to(line + *o + kWhole, count - kWhole);
            }
          }
        }
        T* to = out.next(count);
        CONVARITH_UNROLL for (int v = 0; v < kVectors; ++v) store_sums(to + v * kLanes, sums[v] * scale);
      });
    }
  }
}

// Means of two axes whose rows share lines of y: each line is scaled and spread along the last axis once, and rows of x
// sum what they see of a ring of such lines.
template <typename T>
void average_rows_backward(const PoolPlan& plan, const T* g, T* result, char* scratch, int64_t begin, int64_t end) {
  typedef typename Lanes<T>::Sum Sum;
  typedef typename Lanes<T>::Sums Sums;
  typedef AverageBackward<Sum> Policy;
  constexpr int kLanes = Lanes<T>::kLanes;
  const int64_t n = plan.input[2], width = plan.output[2], at_once = least<int64_t>(plan.rows_at_once, kRingAhead);
  const LineTable& table = plan.lines[1];
  const BackwardRows<Policy, Sum> kernel(plan, Policy(plan), neutral_lines<T>(plan, 0, scratch));
  Sum* ring = kernel.phases + plan.phase_columns * plan.stride;
  Stream<T> out(result + begin * n, (end - begin) * n);
  const auto spread = [&](const T* plane, int64_t first, int64_t last) {
    for (int64_t l = first; l < last; ++l) {
      const Sum weight = plan.uniform ? 1 : static_cast<Sum>(plan.weight[0][0] * plan.weight[1][l]);
      Sum* to = kernel.kept + (l - first) * plan.line_size + plan.at_output;
      for (int64_t e = 0; e < width; e += kLanes) {
        const Sums share = load_up_to(plane + l * width + e, width - e) * (scale_of<Sum>(plan, e) * weight);
        width - e >= kLanes ? store(to + e, share) : store_first(to + e, share, static_cast<int>(width - e));
      }
    }
    for (int64_t l = first; l < last; ++l) {
      kernel.spread(kernel.kept + (l - first) * plan.line_size, nullptr, ring + (l & (plan.ring - 1)) * plan.ring_line);
    }
  };
  Row row(begin, plan.input);
  int64_t ready = 0;  // lines of the plane
  for (int64_t r = begin; r < end; ++r, row.advance()) {
    const int64_t count = table.count[row.i1], first = count == 0 ? 0 : table.first[row.i1], last = first + count;
    if (r == begin || row.i1 == 0) ready = first;
    while (ready < last) {
      const int64_t next = least(plan.output[1], ready + at_once);
      spread(g + row.plane * plan.output[1] * width, ready, next);
      ready = next;
    }
    for_each_run<Sums, kPixelRun>(0, n, [&](auto vectors, int64_t e, int64_t left) {
      constexpr int kVectors = decltype(vectors)::value;
      Sums sums[kVectors] = {};
      for (int64_t l = first; l < last; ++l) {
        const Sum* line = ring + (l & (plan.ring - 1)) * plan.ring_line + e;
        CONVARITH_UNROLL for (int v = 0; v < kVectors; ++v) sums[v] += load(line + v * kLanes);
      }
      T* to = out.next(left);
      CONVARITH_UNROLL for (int v = 0; v < kVectors; ++v) store_sums(to + v * kLanes, sums[v]);
    });
  }
}

template <typename T, typename Policy>
void backward_rows(const Policy& policy, const PoolPlan& plan, const void* g_data, const void* x_data,
                   const void* y_data, void* result_data, char* scratch, int64_t begin, int64_t end) {
  if (plan.flat_first != nullptr) {
    return flat_backward<T>(policy, plan, g_data, x_data, y_data, result_data, scratch, begin, end);
  }
  const T* g = static_cast<const T*>(g_data);
  const T* x = static_cast<const T*>(x_data);
  const T* y = static_cast<const T*>(y_data);
  T* result = static_cast<T*>(result_data);
  if constexpr (Policy::kIsAverage) {
    if (plan.ring != 0) return average_rows_backward(plan, g, result, scratch, begin, end);
    if (plan.inner >= Lanes<T>::kLanes && plan.uniform) {
      return average_pixels_backward(plan, g, result, begin, end);
    }
  }
  const int64_t plane_size = plan.output[0] * plan.output[1] * plan.output[2] * plan.inner;
  if (plan.picks != nullptr) {
    const int64_t whole_planes = planes_of_whole_vectors(plan, plan.output), at = begin * plan.input[2];
    const auto find = [&](const Row& row, bool& whole) {
      Lines lines(plan.lines, row.i0, row.i1);
      lines.start += row.plane * plane_size;
      whole = row.plane < whole_planes;
      return lines;
    };
    return short_backward_rows(policy, plan, find, g, x + at, y, result + at, begin, end);
  }
  const BackwardRows<Policy, T> kernel(plan, policy, neutral_lines<T>(plan, 0, scratch));
  const auto combine = [&](const Row& row, typename Lanes<T>::Sum* line) {
    const int64_t plane = row.plane * plane_size;
    sum_lines(plan, kernel.policy, Lines(plan.lines, row.i0, row.i1), g + plane, y + plane, line);
  };
  kernel.rows(combine, x, result, begin, end);
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
