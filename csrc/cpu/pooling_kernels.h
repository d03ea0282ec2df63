// One family of kernels for every pooling: a window is reduced along axes 0 and 1 first, a whole line of inputs at a
// time, and then along the last axis. A policy says what is loaded, combined and stored. Plain C++.
//
// Both stages run over contiguous memory whatever the strides are, and every output has one owner and one order of
// summation, so results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../problem.h"

namespace convarith::cpu {

#define CONVARITH_RESTRICT __restrict__

// Where a row of a plane stands: a line of the last axis for one index of each other axis.
struct Row {
  int64_t plane;
  int64_t i0;
  int64_t i1;
};

inline Row row_of(int64_t row, int64_t size0, int64_t size1) {
  return {row / (size0 * size1), row / size1 % size0, row % size1};
}

// The last axis with its padding made real: windows then never leave the line, and one that looks outside finds the
// reduction's neutral element.
template <typename A>
struct PaddedLine {
  PaddedLine(const Windows& w, A neutral)
      : stride(w.axis[2].stride), first(std::max<int64_t>(0, -w.axis[2].lo)), data(width(w) * w.inner, neutral) {
    input = data.data() + std::max<int64_t>(0, w.axis[2].lo) * w.inner;
    window = data.data() + first * w.inner;
  }

  static int64_t width(const Windows& w) {
    const Axis& a = w.axis[2];
    const int64_t last_window = std::max<int64_t>(0, -a.lo) + (w.output[2] - 1) * a.stride + effective_kernel(a);
    return std::max<int64_t>({last_window, std::max<int64_t>(0, a.lo) + a.input, 0});
  }

  int64_t stride;
  int64_t first;
  std::vector<A> data;
  A* input;   // of the first input
  A* window;  // of the first window's first tap
};

// Stage 1: the lines that a row of windows sees, reduced to one.
template <int kLines, bool kFirst, typename Policy, typename T, typename A>
inline void combine_lines(const Policy& policy, const T* const* lines, int64_t n, A* CONVARITH_RESTRICT out) {
  const T* CONVARITH_RESTRICT l0 = lines[0];
  const T* CONVARITH_RESTRICT l1 = lines[kLines > 1 ? 1 : 0];
  const T* CONVARITH_RESTRICT l2 = lines[kLines > 2 ? 2 : 0];
  for (int64_t e = 0; e < n; ++e) {
    A v = policy.load(l0[e]);
    if constexpr (!kFirst) v = policy.combine(out[e], v);
    if constexpr (kLines > 1) v = policy.combine(v, policy.load(l1[e]));
    if constexpr (kLines > 2) v = policy.combine(v, policy.load(l2[e]));
    out[e] = v;
  }
}

template <typename Policy, typename T, typename A>
inline void reduce_lines(const Policy& policy, const std::vector<const T*>& lines, int64_t n, A* out) {
  const int64_t count = static_cast<int64_t>(lines.size());
  if (count == 0) {
    std::fill(out, out + n, policy.neutral());
    return;
  }
  const T* const* at = lines.data();
  int64_t done = std::min<int64_t>(3, count);
  if (done == 1) combine_lines<1, true>(policy, at, n, out);
  if (done == 2) combine_lines<2, true>(policy, at, n, out);
  if (done == 3) combine_lines<3, true>(policy, at, n, out);
  for (; done + 3 <= count; done += 3) combine_lines<3, false>(policy, at + done, n, out);
  if (count - done == 2) combine_lines<2, false>(policy, at + done, n, out);
  if (count - done == 1) combine_lines<1, false>(policy, at + done, n, out);
}

// Stage 2: along the line. The usual windows are written out, so that a compiler sees their constant strides.
template <int kKernel, int kStride, typename Policy, typename A>
inline void combine_taps(const Policy& policy, const A* CONVARITH_RESTRICT in, int64_t n, A* CONVARITH_RESTRICT out) {
  for (int64_t o = 0; o < n; ++o) {
    A v = in[o * kStride];
    for (int t = 1; t < kKernel; ++t) v = policy.combine(v, in[o * kStride + t]);
    out[o] = v;
  }
}

template <typename Policy, typename A>
inline void reduce_taps(const Policy& policy, const Windows& w, const A* CONVARITH_RESTRICT in,
                        A* CONVARITH_RESTRICT out) {
  const Axis& a = w.axis[2];
  const int64_t outputs = w.output[2], inner = w.inner;
  if constexpr (Policy::kUnrolled) {
    if (inner == 1 && a.dilation == 1) {
      if (a.kernel == 2 && a.stride == 2) return combine_taps<2, 2>(policy, in, outputs, out);
      if (a.kernel == 3 && a.stride == 2) return combine_taps<3, 2>(policy, in, outputs, out);
      if (a.kernel == 3 && a.stride == 1) return combine_taps<3, 1>(policy, in, outputs, out);
      if (a.kernel == 3 && a.stride == 3) return combine_taps<3, 3>(policy, in, outputs, out);
      if (a.kernel == 2 && a.stride == 1) return combine_taps<2, 1>(policy, in, outputs, out);
    }
  }
  const int64_t step = a.stride * inner, run = a.stride == 1 ? outputs * inner : inner;
  const int64_t runs = a.stride == 1 ? 1 : outputs;
  if (run == 1) {
    for (int64_t o = 0; o < outputs; ++o) out[o] = in[o * step];
    for (int64_t t = 1; t < a.kernel; ++t) {
      const A* CONVARITH_RESTRICT tap = in + t * a.dilation;
      for (int64_t o = 0; o < outputs; ++o) out[o] = policy.combine(out[o], tap[o * step]);
    }
    return;
  }
  for (int64_t r = 0; r < runs; ++r) {
    A* CONVARITH_RESTRICT to = out + r * inner;
    const A* CONVARITH_RESTRICT from = in + r * step;
    std::copy(from, from + run, to);
    for (int64_t t = 1; t < a.kernel; ++t) {
      const A* CONVARITH_RESTRICT tap = from + t * a.dilation * inner;
      for (int64_t e = 0; e < run; ++e) to[e] = policy.combine(to[e], tap[e]);
    }
  }
}

// The lines of x that windows (row.i0, row.i1) see.
template <typename T>
inline void lines_of_window(const Windows& w, const T* x, const Row& row, std::vector<const T*>& lines) {
  const auto& [a0, a1, a2] = w.axis;
  const Range taps0 = taps_of_output(a0, row.i0), taps1 = taps_of_output(a1, row.i1);
  lines.clear();
  for (int64_t t0 = taps0.begin; t0 < taps0.end; ++t0) {
    for (int64_t t1 = taps1.begin; t1 < taps1.end; ++t1) {
      lines.push_back(x +
                      ((row.plane * a0.input + input_index(a0, row.i0, t0)) * a1.input + input_index(a1, row.i1, t1)) *
                          a2.input * w.inner);
    }
  }
}

// Rows of y: (plane, o0, o1).
template <typename Policy, typename T>
void pool_rows(const Windows& w, const Policy& policy, const T* x, T* y, int64_t begin, int64_t end) {
  using A = typename Policy::Acc;
  PaddedLine<A> line(w, policy.neutral());
  std::vector<A> reduced(w.output[2] * w.inner);
  std::vector<const T*> lines;
  for (int64_t r = begin; r < end; ++r) {
    const Row row = row_of(r, w.output[0], w.output[1]);
    lines_of_window(w, x, row, lines);
    reduce_lines(policy, lines, w.axis[2].input * w.inner, line.input);
    reduce_taps(policy, w, line.window, reduced.data());
    policy.store(w, row, x, reduced.data(), y + r * w.output[2] * w.inner);
  }
}

// Calls body(input) with the flat index, within a plane, of every input that a window sees, in the order of its taps.
template <typename Body>
inline void for_each_input(const Windows& w, int64_t o0, int64_t o1, int64_t o2, const Body& body) {
  const auto& [a0, a1, a2] = w.axis;
  const Range taps0 = taps_of_output(a0, o0), taps1 = taps_of_output(a1, o1), taps2 = taps_of_output(a2, o2);
  for (int64_t t0 = taps0.begin; t0 < taps0.end; ++t0) {
    for (int64_t t1 = taps1.begin; t1 < taps1.end; ++t1) {
      const int64_t line = (input_index(a0, o0, t0) * a1.input + input_index(a1, o1, t1)) * a2.input;
      for (int64_t t2 = taps2.begin; t2 < taps2.end; ++t2) body(line + input_index(a2, o2, t2));
    }
  }
}

// Max and min ----------------------------------------------------------------------------------------------------

// The larger (kMinimum: the smaller) of two; a NaN is larger than anything, as in torch. Two selections and no branch:
// compilers turn this into vector instructions.
template <bool kMinimum, typename A>
struct Better {
  static bool is(A v, A than) { return kMinimum ? v < than : v > than; }
  static A of(A m, A v) {
    const A better = is(v, m) ? v : m;
    return v != v ? v : better;
  }
  static A neutral() {
    using Limits = std::numeric_limits<A>;
    if constexpr (Limits::has_infinity) return kMinimum ? Limits::infinity() : -Limits::infinity();
    return kMinimum ? Limits::max() : Limits::lowest();
  }
};

template <bool kMinimum, typename T, typename A>
struct MaxPolicy {
  using Acc = A;
  static constexpr bool kUnrolled = sizeof(A) >= 4;

  static A neutral() { return Better<kMinimum, A>::neutral(); }
  static A load(T v) { return static_cast<A>(v); }
  static A combine(A m, A v) { return Better<kMinimum, A>::of(m, v); }
  static void store(const Windows& w, const Row&, const T*, const A* CONVARITH_RESTRICT in, T* CONVARITH_RESTRICT out) {
    for (int64_t e = 0; e < w.output[2] * w.inner; ++e) out[e] = static_cast<T>(in[e]);
  }
};

// A maximum and where it stands, in two arrays of equal element size. I counts inputs of a plane.
//
// Of equal values the first in the plane counts, which is the one with the smallest index: so stages may come in any
// order. NaNs are rare; a window with one is gone through again, in torch's order, which keeps the last.
template <bool kMinimum, typename T, typename A, typename I>
struct Indexed {
  using Is = Better<kMinimum, A>;

  static I mask(bool condition) { return condition ? I(-1) : I(0); }  // all bits or none

  template <bool kFirst>
  static void line(const T* CONVARITH_RESTRICT x, I index, int64_t n, A* CONVARITH_RESTRICT value,
                   I* CONVARITH_RESTRICT where) {
    for (int64_t e = 0; e < n; ++e) {
      const A v = static_cast<A>(x[e]);
      if constexpr (kFirst) {
        value[e] = v;
        where[e] = index;
      } else {
        const A best = value[e];
        const I take = mask(Is::is(v, best)) | mask(v != v);
        where[e] = (index & take) | (where[e] & ~take);
        value[e] = Is::of(best, v);
      }
    }
  }

  template <int kStride>
  static void tap(const A* CONVARITH_RESTRICT v, const I* CONVARITH_RESTRICT i, int64_t n, int64_t step,
                  A* CONVARITH_RESTRICT value, I* CONVARITH_RESTRICT where) {
    const int64_t stride = kStride > 0 ? kStride : step;
    for (int64_t o = 0; o < n; ++o) {
      const A candidate = v[o * stride];
      const I at = i[o * stride];
      const A best = value[o];
      const I held = where[o];
      const I take =
          mask(Is::is(candidate, best)) | mask(candidate != candidate) | (mask(candidate == best) & mask(at < held));
      where[o] = (at & take) | (held & ~take);
      value[o] = Is::of(best, candidate);
    }
  }

  static void copy(const A* v, const I* i, int64_t n, int64_t stride, A* value, I* where) {
    for (int64_t o = 0; o < n; ++o) {
      value[o] = v[o * stride];
      where[o] = i[o * stride];
    }
  }
};

template <bool kMinimum, typename T, typename A, typename I>
void max_pool_rows(const Windows& w, const T* x, T* y, int64_t* indices, int64_t begin, int64_t end) {
  using Ops = Indexed<kMinimum, T, A, I>;
  const auto& [a0, a1, a2] = w.axis;
  const int64_t outputs = w.output[2], inner = w.inner, n = a2.input * inner;
  PaddedLine<A> line(w, Ops::Is::neutral());
  PaddedLine<I> place(w, std::numeric_limits<I>::max());  // padding is behind every input
  std::vector<A> value(outputs * inner);
  std::vector<I> where(outputs * inner), column(n);
  for (int64_t e = 0; e < n; ++e) column[e] = static_cast<I>(e / inner);
  for (int64_t r = begin; r < end; ++r) {
    const Row row = row_of(r, w.output[0], w.output[1]);
    const Range taps0 = taps_of_output(a0, row.i0), taps1 = taps_of_output(a1, row.i1);
    const T* plane = x + row.plane * w.input_numel() * inner;
    bool first = true;
    for (int64_t t0 = taps0.begin; t0 < taps0.end; ++t0) {
      for (int64_t t1 = taps1.begin; t1 < taps1.end; ++t1) {
        const int64_t start = (input_index(a0, row.i0, t0) * a1.input + input_index(a1, row.i1, t1)) * a2.input;
        const T* from = plane + start * inner;
        if (first) {
          Ops::template line<true>(from, static_cast<I>(start), n, line.input, place.input);
        } else {
          Ops::template line<false>(from, static_cast<I>(start), n, line.input, place.input);
        }
        first = false;
      }
    }
    for (int64_t e = 0; e < n; ++e) place.input[e] += column[e];
    const int64_t runs = a2.stride == 1 || inner == 1 ? 1 : outputs;
    const int64_t run = runs == 1 ? outputs * inner : inner;
    const int64_t step = runs == 1 && inner == 1 ? a2.stride : 1;
    for (int64_t q = 0; q < runs; ++q) {
      const A* v = line.window + q * a2.stride * inner;
      const I* i = place.window + q * a2.stride * inner;
      A* best = value.data() + q * inner;
      I* at = where.data() + q * inner;
      Ops::copy(v, i, run, step, best, at);
      for (int64_t t = 1; t < a2.kernel; ++t) {
        const int64_t offset = t * a2.dilation * inner;
        if (step == 1) Ops::template tap<1>(v + offset, i + offset, run, 1, best, at);
        if (step == 2) Ops::template tap<2>(v + offset, i + offset, run, 2, best, at);
        if (step > 2) Ops::template tap<0>(v + offset, i + offset, run, step, best, at);
      }
    }
    T* out = y + r * outputs * inner;
    int64_t* out_index = indices + r * outputs * inner;
    bool has_nan = false;
    for (int64_t e = 0; e < outputs * inner; ++e) {
      out[e] = static_cast<T>(value[e]);
      out_index[e] = static_cast<int64_t>(where[e]);
      has_nan |= value[e] != value[e];
    }
    if (!has_nan) continue;
    for (int64_t e = 0; e < outputs * inner; ++e) {
      if (value[e] == value[e]) continue;
      for_each_input(w, row.i0, row.i1, e / inner, [&](int64_t i) {
        const A v = static_cast<A>(plane[i * inner + e % inner]);
        if (v != v) out_index[e] = i;
      });
    }
  }
}

// y[o] = x[index[o]], planes [begin, end); false where an index is not one.
template <typename T>
bool pool_select_planes(int64_t inputs, int64_t outputs, int64_t inner, const T* x, const int64_t* indices, T* y,
                        int64_t begin, int64_t end) {
  bool valid = true;
  for (int64_t p = begin; p < end; ++p) {
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t c = 0; c < inner; ++c) {
        const int64_t e = (p * outputs + o) * inner + c;
        const bool inside = static_cast<uint64_t>(indices[e]) < static_cast<uint64_t>(inputs);
        y[e] = inside ? x[(p * inputs + indices[e]) * inner + c] : T(0);
        valid &= inside;
      }
    }
  }
  return valid;
}

// x[index[o]] += y[o]: channels [first, last) of planes [begin, end). `sum` holds a plane where T is too narrow to sum
// in.
template <typename T, typename A>
bool pool_scatter_planes(int64_t inputs, int64_t outputs, int64_t inner, const T* y, const int64_t* indices, T* x,
                         int64_t begin, int64_t end, int64_t first, int64_t last) {
  bool valid = true;
  std::vector<A> sums(std::is_same_v<T, A> ? 0 : inputs * inner);
  for (int64_t p = begin; p < end; ++p) {
    A* to;
    if constexpr (std::is_same_v<T, A>) {
      to = x + p * inputs * inner;
    } else {
      to = sums.data();
    }
    if (first == 0 && last == inner) {
      std::fill(to, to + inputs * inner, A(0));
    } else {
      for (int64_t i = 0; i < inputs; ++i) std::fill(to + i * inner + first, to + i * inner + last, A(0));
    }
    for (int64_t o = 0; o < outputs; ++o) {
      const int64_t e = (p * outputs + o) * inner;
      for (int64_t c = first; c < last; ++c) {
        const int64_t index = indices[e + c];
        if (static_cast<uint64_t>(index) < static_cast<uint64_t>(inputs)) {
          to[index * inner + c] += static_cast<A>(y[e + c]);
        } else {
          valid = false;
        }
      }
    }
    if constexpr (!std::is_same_v<T, A>) {
      for (int64_t i = 0; i < inputs; ++i) {
        for (int64_t c = first; c < last; ++c) x[(p * inputs + i) * inner + c] = static_cast<T>(to[i * inner + c]);
      }
    }
  }
  return valid;
}

// Ties: the 0/1 matrix of the inputs that equal their window's y (a NaN equals a NaN), rows divided by their count.
template <bool kTransposed, typename T, typename A>
void pool_ties_planes(const Windows& w, bool split, const T* v, const T* x, const T* y, T* result, int64_t begin,
                      int64_t end) {
  const int64_t inputs = w.input_numel(), outputs = w.output_numel(), inner = w.inner;
  std::vector<A> sum(kTransposed ? inputs : 1);
  for (int64_t p = begin; p < end; ++p) {
    for (int64_t c = 0; c < inner; ++c) {
      const T* in = x + p * inputs * inner + c;
      std::fill(sum.begin(), sum.end(), A(0));
      for (int64_t o = 0; o < outputs; ++o) {
        const int64_t o2 = o % w.output[2], o1 = o / w.output[2] % w.output[1], o0 = o / (w.output[2] * w.output[1]);
        const int64_t e = (p * outputs + o) * inner + c;
        const A best = static_cast<A>(y[e]);
        const auto equal = [&](int64_t i) {
          const A value = static_cast<A>(in[i * inner]);
          return value == best || (value != value && best != best);
        };
        int64_t count = 0;
        for_each_input(w, o0, o1, o2, [&](int64_t i) { count += equal(i); });
        const A share = split && count > 0 ? A(1) / static_cast<A>(count) : A(1);
        if constexpr (kTransposed) {
          const A g = static_cast<A>(v[e]) * share;
          for_each_input(w, o0, o1, o2, [&](int64_t i) { sum[i] += equal(i) ? g : A(0); });
        } else {
          A total(0);
          const T* values = v + p * inputs * inner + c;
          for_each_input(w, o0, o1, o2,
                         [&](int64_t i) { total += equal(i) ? static_cast<A>(values[i * inner]) : A(0); });
          result[e] = static_cast<T>(total * share);
        }
      }
      if constexpr (kTransposed) {
        for (int64_t i = 0; i < inputs; ++i) result[(p * inputs + i) * inner + c] = static_cast<T>(sum[i]);
      }
    }
  }
}

// Average -----------------------------------------------------------------------------------------------------------

// What each window's sum is divided by: the product of its axes' counts, or one number for all.
struct Divisors {
  std::array<std::vector<int64_t>, kAxes> count;

  static Divisors of(const Windows& w, bool count_include_pad) {
    Divisors d;
    for (int i = 0; i < kAxes; ++i) {
      const Axis& a = w.axis[i];
      for (int64_t o = 0; o < w.output[i]; ++o) {
        const Range taps = taps_of_output(a, o);
        const int64_t past_padding = ceil_div(a.input + a.hi - input_index(a, o, 0), a.dilation);
        const int64_t padded = std::max<int64_t>(0, std::min(a.kernel, past_padding));
        d.count[i].push_back(std::max<int64_t>(1, count_include_pad ? padded : taps.end - taps.begin));
      }
    }
    return d;
  }

  static Divisors constant(const Windows& w, int64_t divisor) {
    Divisors d;
    for (int i = 0; i < kAxes; ++i) d.count[i].assign(w.output[i], i == 0 ? divisor : 1);
    return d;
  }

  int64_t lines(const Row& row) const { return count[0][row.i0] * count[1][row.i1]; }
};

template <typename T, typename A>
struct AveragePolicy {
  using Acc = A;
  static constexpr bool kUnrolled = sizeof(T) >= 4;

  AveragePolicy(const Windows& w, Divisors d) : divisors(std::move(d)) {
    for (int64_t o = 0; o < w.output[2]; ++o) {
      for (int64_t c = 0; c < w.inner; ++c) columns.push_back(static_cast<A>(divisors.count[2][o]));
    }
  }

  static A neutral() { return A(0); }
  static A load(T v) { return static_cast<A>(v); }
  static A combine(A a, A b) { return a + b; }
  void store(const Windows& w, const Row& row, const T*, const A* CONVARITH_RESTRICT in,
             T* CONVARITH_RESTRICT out) const {
    const A lines = static_cast<A>(divisors.lines(row));
    const A* CONVARITH_RESTRICT of = columns.data();
    for (int64_t e = 0; e < w.output[2] * w.inner; ++e) {
      if constexpr (std::is_integral_v<T>) {  // Acc is unsigned, division is not
        out[e] = static_cast<T>(static_cast<int64_t>(in[e]) / static_cast<int64_t>(lines * of[e]));
      } else {
        out[e] = static_cast<T>(in[e] / (lines * of[e]));
      }
    }
  }

  Divisors divisors;
  std::vector<A> columns;  // the last axis's counts, once per element of a line
};

// The adjoint of summing windows. Stage 1 sums the lines of y whose windows see a row of x, stage 2 goes along the
// line: input q * s + r, counted from the padding on, gets the taps t with t * d = r + s * j of windows q - j.
template <typename A>
class Spread {
 public:
  explicit Spread(const Windows& w) : w_(w), a_(w.axis[2]) {
    for (int64_t r = 0; r < a_.stride; ++r) {
      phases_.emplace_back();
      for (int64_t t = 0; t < a_.kernel; ++t) {
        if (t * a_.dilation % a_.stride == r) phases_.back().push_back(t * a_.dilation / a_.stride);
      }
    }
    const int64_t reach = (a_.kernel - 1) * a_.dilation / a_.stride;
    const int64_t lo = std::max<int64_t>(0, a_.lo);
    groups_ = std::max(w.output[2], (lo + a_.input + a_.stride - 1) / a_.stride);
    line_.assign((reach + groups_) * w.inner, A(0));
    spread_.assign(groups_ * a_.stride * w.inner + std::max<int64_t>(0, -a_.lo) * w.inner, A(0));
    phase_.assign(groups_, A(0));
    outputs = line_.data() + reach * w.inner;
    inputs = spread_.data() + a_.lo * w.inner;
  }

  void run() {
    if (w_.inner == 1 && a_.dilation == 1) {
      if (a_.kernel == 2 && a_.stride == 2) return unrolled<2, 2>();
      if (a_.kernel == 3 && a_.stride == 2) return unrolled<3, 2>();
      if (a_.kernel == 3 && a_.stride == 3) return unrolled<3, 3>();
      if (a_.kernel == 3 && a_.stride == 1) return unrolled<3, 1>();
      if (a_.kernel == 2 && a_.stride == 1) return unrolled<2, 1>();
    }
    const int64_t inner = w_.inner, step = a_.stride * inner;
    for (int64_t r = 0; r < a_.stride; ++r) {
      if (inner == 1) {  // one phase at a time: its sums are contiguous
        A* CONVARITH_RESTRICT sum = phase_.data();
        std::fill(sum, sum + groups_, A(0));
        for (const int64_t j : phases_[r]) {
          const A* CONVARITH_RESTRICT from = outputs - j;
          for (int64_t q = 0; q < groups_; ++q) sum[q] += from[q];
        }
        A* CONVARITH_RESTRICT to = spread_.data() + r;
        for (int64_t q = 0; q < groups_; ++q) to[q * step] = sum[q];
        continue;
      }
      for (int64_t q = 0; q < groups_; ++q) {
        A* CONVARITH_RESTRICT to = spread_.data() + q * step + r * inner;
        for (int64_t c = 0; c < inner; ++c) to[c] = A(0);
        for (const int64_t j : phases_[r]) {
          const A* CONVARITH_RESTRICT from = outputs + (q - j) * inner;
          for (int64_t c = 0; c < inner; ++c) to[c] += from[c];
        }
      }
    }
  }

  A* outputs;  // to be filled: the summed lines, output[2] * inner
  A* inputs;   // the answer, input * inner

 private:
  template <int kKernel, int kStride>
  void unrolled() {
    const A* CONVARITH_RESTRICT from = outputs;
    A* CONVARITH_RESTRICT to = spread_.data();
    for (int64_t q = 0; q < groups_; ++q) {
      for (int r = 0; r < kStride; ++r) {
        A v = from[q];
        for (int j = 1; r + kStride * j < kKernel; ++j) v += from[q - j];
        to[q * kStride + r] = v;
      }
    }
  }

  const Windows& w_;
  const Axis& a_;
  std::vector<std::vector<int64_t>> phases_;
  int64_t groups_;
  std::vector<A> line_;
  std::vector<A> spread_;
  std::vector<A> phase_;
};

// Rows of x: (plane, i0, i1). The policy scales what it adds from a row of y, and finishes a row of x.
template <typename Policy, typename T>
void pool_transpose_rows(const Windows& w, const Policy& policy, T* x, int64_t begin, int64_t end) {
  using A = typename Policy::Acc;
  const auto& [a0, a1, a2] = w.axis;
  const int64_t n = w.output[2] * w.inner;
  Spread<A> spread(w);
  for (int64_t r = begin; r < end; ++r) {
    const Row row = row_of(r, a0.input, a1.input);
    std::fill(spread.outputs, spread.outputs + n, A(0));
    for (int64_t t0 = 0; t0 < a0.kernel; ++t0) {
      const int64_t o0 = output_index(a0, w.output[0], row.i0, t0);
      if (o0 < 0) continue;
      for (int64_t t1 = 0; t1 < a1.kernel; ++t1) {
        const int64_t o1 = output_index(a1, w.output[1], row.i1, t1);
        if (o1 < 0) continue;
        policy.add(Row{row.plane, o0, o1}, ((row.plane * w.output[0] + o0) * w.output[1] + o1) * n, n, spread.outputs);
      }
    }
    policy.scale(n, spread.outputs);
    spread.run();
    policy.store(r * a2.input * w.inner, a2.input * w.inner, spread.inputs, x);
  }
}

template <typename T, typename A>
struct AverageTransposePolicy {
  using Acc = A;

  AverageTransposePolicy(const Windows& w, Divisors d, const T* y) : divisors(std::move(d)), y(y) {
    for (int64_t o = 0; o < w.output[2]; ++o) {
      for (int64_t c = 0; c < w.inner; ++c) columns.push_back(A(1) / static_cast<A>(divisors.count[2][o]));
    }
  }

  void add(const Row& row, int64_t first, int64_t n, A* CONVARITH_RESTRICT sum) const {
    const A share = A(1) / static_cast<A>(divisors.lines(row));
    const T* CONVARITH_RESTRICT from = y + first;
    for (int64_t e = 0; e < n; ++e) sum[e] += static_cast<A>(from[e]) * share;
  }
  void scale(int64_t n, A* CONVARITH_RESTRICT sum) const {
    const A* CONVARITH_RESTRICT share = columns.data();
    for (int64_t e = 0; e < n; ++e) sum[e] *= share[e];
  }
  void store(int64_t first, int64_t n, const A* CONVARITH_RESTRICT sum, T* CONVARITH_RESTRICT x) const {
    for (int64_t e = 0; e < n; ++e) x[first + e] = static_cast<T>(sum[e]);
  }

  Divisors divisors;
  const T* y;
  std::vector<A> columns;
};

// L^p ---------------------------------------------------------------------------------------------------------------

// kPower is p where it is 1, 2 or 3, else 0; kSigned is torch's reading, which takes powers of x instead of |x|.
template <int kPower, bool kSigned, typename A>
struct Powers {
  double p;

  A power(A v) const {  // |v|^p
    const A u = kSigned ? v : std::abs(v);
    if constexpr (kPower == 1) return u;
    if constexpr (kPower == 2) return u * u;
    if constexpr (kPower == 3) return u * u * u;
    return std::pow(u, static_cast<A>(p));
  }

  A root(A s) const {  // s^(1/p)
    if constexpr (kPower == 1) return s;
    if constexpr (kPower == 2) return std::sqrt(s);
    return std::pow(s, static_cast<A>(1 / p));
  }

  A slope(A v) const {  // |v|^(p-1) sign(v)
    if constexpr (kPower == 1) return kSigned ? A(1) : static_cast<A>((v > 0) - (v < 0));
    if constexpr (kPower == 2) return v;
    if constexpr (kPower == 3) return kSigned ? v * v : v * std::abs(v);
    if constexpr (kSigned) return std::pow(v, static_cast<A>(p - 1));
    return std::copysign(std::pow(std::abs(v), static_cast<A>(p - 1)), v);
  }

  A inverse_slope(A y) const {  // y^(1-p); 0 where the sum is 0
    if constexpr (kPower == 1) return kSigned && y == 0 ? A(0) : A(1);
    if constexpr (kPower == 2) return y == 0 ? A(0) : A(1) / y;
    if constexpr (kPower == 3) return y == 0 ? A(0) : A(1) / (y * y);
    return y == 0 ? A(0) : std::pow(y, static_cast<A>(1 - p));
  }
};

template <int kPower, bool kSigned, typename T, typename A>
struct LpPolicy {
  using Acc = A;
  static constexpr bool kUnrolled = kPower != 0;

  LpPolicy(const Windows& w, double p) : powers{p} {
    if constexpr (!kSigned) return;
    const Divisors d =
        Divisors::of(w, true);  // torch: the mean of what ceil_mode leaves, times the whole window's count
    for (int i = 0; i < kAxes; ++i) {
      for (const int64_t count : d.count[i]) {
        weights[i].push_back(static_cast<A>(w.axis[i].kernel) / static_cast<A>(count));
      }
    }
  }

  static A neutral() { return A(0); }
  A load(T v) const { return powers.power(static_cast<A>(v)); }
  static A combine(A a, A b) { return a + b; }

  void store(const Windows& w, const Row& row, const T* x, const A* CONVARITH_RESTRICT in,
             T* CONVARITH_RESTRICT out) const {
    const int64_t n = w.output[2] * w.inner;
    if constexpr (kSigned) {
      const A lines = weights[0][row.i0] * weights[1][row.i1];
      if (w.inner == 1) {
        const A* CONVARITH_RESTRICT of = weights[2].data();
        for (int64_t e = 0; e < n; ++e) out[e] = static_cast<T>(powers.root(in[e] * lines * of[e]));
      } else {
        for (int64_t e = 0; e < n; ++e) out[e] = static_cast<T>(powers.root(in[e] * lines * weights[2][e / w.inner]));
      }
    } else {
      for (int64_t e = 0; e < n; ++e) out[e] = static_cast<T>(powers.root(in[e]));
      if constexpr (kPower != 1) rescale(w, row, x, in, out);
    }
  }

  // A sum that left the range of its type is taken again, with the window divided by its largest element.
  void rescale(const Windows& w, const Row& row, const T* x, const A* CONVARITH_RESTRICT in,
               T* CONVARITH_RESTRICT out) const {
    constexpr A least = std::numeric_limits<A>::min() * 1024, most = std::numeric_limits<A>::max();
    const int64_t n = w.output[2] * w.inner;
    int outside = 0, zeros = 0;
    for (int64_t e = 0; e < n; ++e) {
      outside |= (in[e] > most ? 1 : 0) | (in[e] < least ? 1 : 0);
      zeros |= in[e] == 0 ? 1 : 0;
    }
    if (outside == 0) return;
    const bool keep_zeros = zeros != 0 && !vanishes(w, row, x);  // sums of zeros, most likely
    for (int64_t e = 0; e < n; ++e) {
      if ((in[e] > most || in[e] < least) && !(in[e] == 0 && keep_zeros)) out[e] = scaled(w, row, x, e);
    }
  }

  // Whether a power of something is nothing, in the lines that a row of windows sees.
  bool vanishes(const Windows& w, const Row& row, const T* x) const {
    std::vector<const T*> lines;
    lines_of_window(w, x, row, lines);
    bool found = false;
    for (const T* line : lines) {
      for (int64_t e = 0; e < w.axis[2].input * w.inner; ++e) {
        const A v = static_cast<A>(line[e]);
        found |= (v != 0) & (powers.power(v) == 0);
      }
    }
    return found;
  }

  T scaled(const Windows& w, const Row& row, const T* x, int64_t e) const {
    const T* plane = x + row.plane * w.input_numel() * w.inner + e % w.inner;
    A largest = 0, sum = 0;
    for_each_input(w, row.i0, row.i1, e / w.inner,
                   [&](int64_t i) { largest = std::max(largest, std::abs(static_cast<A>(plane[i * w.inner]))); });
    if (largest == 0 || largest > std::numeric_limits<A>::max()) return static_cast<T>(largest);
    for_each_input(w, row.i0, row.i1, e / w.inner,
                   [&](int64_t i) { sum += powers.power(static_cast<A>(plane[i * w.inner]) / largest); });
    return static_cast<T>(largest * powers.root(sum));
  }

  Powers<kPower, kSigned, A> powers;
  std::array<std::vector<A>, kAxes> weights;
};

// The gradient of the norm for any p, pair by pair: (|x| / y)^(p-1) never leaves its type's range.
template <typename T, typename A>
void lp_backward_planes(const Windows& w, double p, const T* g, const T* x, const T* y, T* result, int64_t begin,
                        int64_t end) {
  const int64_t inputs = w.input_numel(), outputs = w.output_numel(), inner = w.inner;
  std::vector<A> sum(inputs);
  for (int64_t plane = begin; plane < end; ++plane) {
    for (int64_t c = 0; c < inner; ++c) {
      const T* in = x + plane * inputs * inner + c;
      std::fill(sum.begin(), sum.end(), A(0));
      for (int64_t o = 0; o < outputs; ++o) {
        const int64_t o2 = o % w.output[2], o1 = o / w.output[2] % w.output[1], o0 = o / (w.output[2] * w.output[1]);
        const int64_t e = (plane * outputs + o) * inner + c;
        const A norm = static_cast<A>(y[e]), grad = static_cast<A>(g[e]);
        if (norm == 0) continue;
        for_each_input(w, o0, o1, o2, [&](int64_t i) {
          const A v = static_cast<A>(in[i * inner]);
          sum[i] += grad * std::copysign(std::pow(std::abs(v) / norm, static_cast<A>(p - 1)), v);
        });
      }
      for (int64_t i = 0; i < inputs; ++i) result[(plane * inputs + i) * inner + c] = static_cast<T>(sum[i]);
    }
  }
}

// x's gradient: |x|^(p-1) sign(x) times the windows' sum of g * y^(1-p).
template <int kPower, bool kSigned, typename T, typename A>
struct LpTransposePolicy {
  using Acc = A;

  LpTransposePolicy(const Windows& w, double p, const T* g, const T* x, const T* y)
      : forward(w, p), g(g), x(x), y(y), inner(w.inner) {}

  void add(const Row& row, int64_t first, int64_t n, A* CONVARITH_RESTRICT sum) const {
    const A lines = kSigned ? forward.weights[0][row.i0] * forward.weights[1][row.i1] : A(1);
    const T* CONVARITH_RESTRICT from = g + first;
    const T* CONVARITH_RESTRICT of = y + first;
    for (int64_t e = 0; e < n; ++e) {
      sum[e] += static_cast<A>(from[e]) * forward.powers.inverse_slope(static_cast<A>(of[e])) * lines;
    }
  }
  void scale(int64_t n, A* CONVARITH_RESTRICT sum) const {
    if constexpr (kSigned) {
      for (int64_t e = 0; e < n; ++e) sum[e] *= forward.weights[2][inner == 1 ? e : e / inner];
    }
  }
  void store(int64_t first, int64_t n, const A* CONVARITH_RESTRICT sum, T* CONVARITH_RESTRICT out) const {
    const T* CONVARITH_RESTRICT at = x + first;
    for (int64_t e = 0; e < n; ++e) {
      out[first + e] = static_cast<T>(sum[e] * forward.powers.slope(static_cast<A>(at[e])));
    }
  }

  LpPolicy<kPower, kSigned, T, A> forward;
  const T* g;
  const T* x;
  const T* y;
  int64_t inner;
};

}  // namespace convarith::cpu
