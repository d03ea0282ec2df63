// Pooling straight from the pattern, window by window: for the dtypes that no fast kernel has (integers, complex
// numbers) and for what is not in a hurry. Plain C++.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../problem.h"
#include "isa.h"
#include "pooling_planning.h"

namespace convarith::cpu {

// Calls body(input, tap) with the flat index, within a plane, of every input that a window sees, in the order of its
// taps.
template <typename Body>
inline void for_each_tap(const Windows& w, int64_t o0, int64_t o1, int64_t o2, const Body& body) {
  const auto& [a0, a1, a2] = w.axis;
  const Range taps0 = taps_of_output(a0, o0), taps1 = taps_of_output(a1, o1), taps2 = taps_of_output(a2, o2);
  for (int64_t t0 = taps0.begin; t0 < taps0.end; ++t0) {
    for (int64_t t1 = taps1.begin; t1 < taps1.end; ++t1) {
      const int64_t line = (input_index(a0, o0, t0) * a1.input + input_index(a1, o1, t1)) * a2.input;
      const int64_t tap = (t0 * a1.kernel + t1) * a2.kernel;
      for (int64_t t2 = taps2.begin; t2 < taps2.end; ++t2) body(line + input_index(a2, o2, t2), tap + t2);
    }
  }
}

template <typename Body>
inline void for_each_input(const Windows& w, int64_t o0, int64_t o1, int64_t o2, const Body& body) {
  for_each_tap(w, o0, o1, o2, [&](int64_t i, int64_t) { body(i); });
}

// Calls body(output, o0, o1, o2) for every window of a plane.
template <typename Body>
inline void for_each_window(const Windows& w, const Body& body) {
  int64_t o = 0;
  for (int64_t o0 = 0; o0 < w.output[0]; ++o0) {
    for (int64_t o1 = 0; o1 < w.output[1]; ++o1) {
      for (int64_t o2 = 0; o2 < w.output[2]; ++o2) body(o++, o0, o1, o2);
    }
  }
}

// Max and min of integers: no NaN. `places` are indices (int64_t), taps (uint8_t), or null.
template <typename T, typename Place>
void max_pool_planes(const Windows& w, bool minimum, const T* x, T* y, Place* places, int64_t begin, int64_t end) {
  const int64_t inputs = w.input_numel(), outputs = w.output_numel(), inner = w.inner;
  for (int64_t p = begin; p < end; ++p) {
    for_each_window(w, [&](int64_t o, int64_t o0, int64_t o1, int64_t o2) {
      for (int64_t c = 0; c < inner; ++c) {
        const T* in = x + p * inputs * inner + c;
        T best = 0;
        int64_t place = -1;
        for_each_tap(w, o0, o1, o2, [&](int64_t i, int64_t tap) {
          const T v = in[i * inner];
          if (place >= 0 && !(minimum ? v < best : v > best)) return;
          best = v;
          place = std::is_same_v<Place, uint8_t> ? tap : i;
        });
        const int64_t e = (p * outputs + o) * inner + c;
        y[e] = best;
        if (places != nullptr) places[e] = static_cast<Place>(place);
      }
    });
  }
}

// Means, and their adjoint. A sums; integers are divided as torch divides them, towards zero.
template <typename T, typename A>
void average_planes(const Windows& w, const Divisors& divisors, const T* x, T* y, int64_t begin, int64_t end) {
  const int64_t inputs = w.input_numel(), outputs = w.output_numel(), inner = w.inner;
  for (int64_t p = begin; p < end; ++p) {
    for_each_window(w, [&](int64_t o, int64_t o0, int64_t o1, int64_t o2) {
      const int64_t divisor = divisors.of_window(o0, o1, o2);
      for (int64_t c = 0; c < inner; ++c) {
        const T* in = x + p * inputs * inner + c;
        A sum(0);
        for_each_input(w, o0, o1, o2, [&](int64_t i) { sum += static_cast<A>(in[i * inner]); });
        T& to = y[(p * outputs + o) * inner + c];
        if constexpr (std::is_integral_v<T>) {  // A is unsigned, division is not
          to = static_cast<T>(static_cast<int64_t>(sum) / divisor);
        } else {
          to = static_cast<T>(sum / static_cast<A>(divisor));
        }
      }
    });
  }
}

template <typename T>
void average_transpose_planes(const Windows& w, const Divisors& divisors, const T* y, T* x, int64_t begin,
                              int64_t end) {
  const int64_t inputs = w.input_numel(), outputs = w.output_numel(), inner = w.inner;
  std::fill(x + begin * inputs * inner, x + end * inputs * inner, T(0));
  for (int64_t p = begin; p < end; ++p) {
    for_each_window(w, [&](int64_t o, int64_t o0, int64_t o1, int64_t o2) {
      for (int64_t c = 0; c < inner; ++c) {
        const T share = y[(p * outputs + o) * inner + c] / static_cast<T>(divisors.of_window(o0, o1, o2));
        for_each_input(w, o0, o1, o2, [&](int64_t i) { x[(p * inputs + i) * inner + c] += share; });
      }
    });
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

// x[index[o]] += y[o]: channels [first, last) of planes [begin, end); false where an index is not one. `sums` holds a
// plane where T is too narrow to sum in.
template <typename T, typename A>
bool pool_scatter_planes(int64_t inputs, int64_t outputs, int64_t inner, const T* y, const int64_t* indices, T* x,
                         int64_t begin, int64_t end, int64_t first, int64_t last) {
  const auto are_indices = active_window_kernels(0).are_indices;
  const int dtype = kernel_dtype(c10::CppTypeToScalarType<T>::value);
  const auto scatter_add = dtype < 0 ? nullptr : active_window_kernels(dtype).scatter_add;
  std::vector<A> sums(std::is_same_v<T, A> ? 0 : inputs * inner);
  for (int64_t p = begin; p < end; ++p) {
    const int64_t* at = indices + p * outputs * inner;
    const T* from = y + p * outputs * inner;
    A* to;
    if constexpr (std::is_same_v<T, A>) {
      to = x + p * inputs * inner;
    } else {
      to = sums.data();
    }
    const bool whole = first == 0 && last == inner;
    const bool looks_itself = inner == 1 && scatter_add != nullptr;
    for (int64_t o = 0; !looks_itself && o < (whole ? 1 : outputs); ++o) {
      if (!are_indices(at + o * inner + first, whole ? outputs * inner : last - first, inputs)) return false;
    }
    for (int64_t i = 0; i < (whole ? 1 : inputs); ++i) {
      std::fill_n(to + i * inner + first, whole ? inputs * inner : last - first, A(0));
    }
    if (looks_itself) {
      if (!scatter_add(from, at, outputs, to, inputs)) return false;
    } else if (inner == 1) {
      for (int64_t o = 0; o < outputs; ++o) to[at[o]] += static_cast<A>(from[o]);
    } else {
      for (int64_t o = 0; o < outputs; ++o) {
        for (int64_t c = first; c < last; ++c) to[at[o * inner + c] * inner + c] += static_cast<A>(from[o * inner + c]);
      }
    }
    if constexpr (!std::is_same_v<T, A>) {
      for (int64_t i = 0; i < inputs; ++i) {
        for (int64_t c = first; c < last; ++c) x[(p * inputs + i) * inner + c] = static_cast<T>(to[i * inner + c]);
      }
    }
  }
  return true;
}

// Calls body(e, i) for every element e of a plane of y, i that of x's plane which its tap names, or -1 on padding;
// false where a tap is none of its window's.
template <typename Body>
bool for_each_named(const Windows& w, const uint8_t* taps, const Body& body) {
  const auto& [a0, a1, a2] = w.axis;
  const auto kernel = static_cast<uint32_t>(w.kernel_numel());  // at most 256
  const auto kernel1 = static_cast<uint32_t>(a1.kernel), kernel2 = static_cast<uint32_t>(a2.kernel);
  const auto is_input = [](const Axis& a, int64_t i) { return 0 <= i && i < a.input; };
  bool valid = true;
  for_each_window(w, [&](int64_t o, int64_t o0, int64_t o1, int64_t o2) {
    for (int64_t c = 0; c < w.inner; ++c) {
      const uint32_t tap = taps[o * w.inner + c];
      valid &= tap < kernel;
      const int64_t i0 = input_index(a0, o0, tap / kernel2 / kernel1);
      const int64_t i1 = input_index(a1, o1, tap / kernel2 % kernel1);
      const int64_t i2 = input_index(a2, o2, tap % kernel2);
      const bool is_seen = is_input(a0, i0) && is_input(a1, i1) && is_input(a2, i2);
      body(o * w.inner + c, is_seen ? ((i0 * a1.input + i1) * a2.input + i2) * w.inner + c : -1);
    }
  });
  return valid;
}

// y[o] = x[the input at taps[o]], 0 on padding; false where a tap is none of its window's.
template <typename T>
bool tap_select_planes(const Windows& w, const T* x, const uint8_t* taps, T* y, int64_t begin, int64_t end) {
  const int64_t inputs = w.input_numel() * w.inner, outputs = w.output_numel() * w.inner;
  bool valid = true;
  for (int64_t p = begin; p < end; ++p) {
    const T* from = x + p * inputs;
    T* to = y + p * outputs;
    valid &= for_each_named(w, taps + p * outputs, [&](int64_t e, int64_t i) { to[e] = i < 0 ? T(0) : from[i]; });
  }
  return valid;
}

// x[the input at taps[o]] += y[o], likewise.
template <typename T, typename A>
bool tap_scatter_planes(const Windows& w, const T* y, const uint8_t* taps, T* x, int64_t begin, int64_t end) {
  const int64_t inputs = w.input_numel() * w.inner, outputs = w.output_numel() * w.inner;
  std::vector<A> sums(inputs);
  bool valid = true;
  for (int64_t p = begin; p < end; ++p) {
    const T* from = y + p * outputs;
    std::fill(sums.begin(), sums.end(), A(0));
    valid &= for_each_named(w, taps + p * outputs, [&](int64_t e, int64_t i) {
      if (i >= 0) sums[i] += static_cast<A>(from[e]);
    });
    std::transform(sums.begin(), sums.end(), x + p * inputs, [](A sum) { return static_cast<T>(sum); });
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
      for_each_window(w, [&](int64_t o, int64_t o0, int64_t o1, int64_t o2) {
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
      });
      if constexpr (kTransposed) {
        for (int64_t i = 0; i < inputs; ++i) result[(p * inputs + i) * inner + c] = static_cast<T>(sum[i]);
      }
    }
  }
}

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
      for_each_window(w, [&](int64_t o, int64_t o0, int64_t o1, int64_t o2) {
        const int64_t e = (plane * outputs + o) * inner + c;
        const A norm = static_cast<A>(y[e]), grad = static_cast<A>(g[e]);
        if (norm == 0) return;
        for_each_input(w, o0, o1, o2, [&](int64_t i) {
          const A v = static_cast<A>(in[i * inner]);
          sum[i] += grad * std::copysign(std::pow(std::abs(v) / norm, static_cast<A>(p - 1)), v);
        });
      });
      for (int64_t i = 0; i < inputs; ++i) result[(plane * inputs + i) * inner + c] = static_cast<T>(sum[i]);
    }
  }
}

}  // namespace convarith::cpu
