// Pooling straight from the pattern, window by window: for the dtypes that no fast kernel has (integers, complex
// numbers) and for what is not in a hurry. Plain C++.
#pragma once

#include <algorithm>
#include <array>
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

// Where a window's taps stand, from its first one on.
class WindowTaps {
 public:
  explicit WindowTaps(const Windows& w) : w_(w) {
    const auto& [a0, a1, a2] = w.axis;
    for (int64_t t0 = 0; t0 < a0.kernel; ++t0) {
      for (int64_t t1 = 0; t1 < a1.kernel; ++t1) {
        for (int64_t t2 = 0; t2 < a2.kernel; ++t2) {
          const int64_t d0 = t0 * a0.dilation, d1 = t1 * a1.dilation, d2 = t2 * a2.dilation;
          taps_.push_back({d0, d1, d2});
          offsets_.push_back(((d0 * a1.input + d1) * a2.input + d2) * w.inner);
        }
      }
    }
    for (int i = 0; i < kAxes; ++i) {
      const Axis& a = w.axis[i];
      const Range first = outputs_of_tap(a, w.output[i], 0), last = outputs_of_tap(a, w.output[i], a.kernel - 1);
      inside_[i] = {std::max(first.begin, last.begin), std::min(first.end, last.end)};
    }
    constexpr int64_t kMost = 4096;  // a small part of the first cache, and of the time
    if (w.output_numel() * w.kernel_numel() > kMost) return;
    places_.assign(w.output_numel() * w.kernel_numel(), -1);
    for_each_window(w, [&](int64_t o, int64_t o0, int64_t o1, int64_t o2) {
      for_each_tap(w, o0, o1, o2,
                   [&](int64_t i, int64_t tap) { places_[o * w.kernel_numel() + tap] = static_cast<int32_t>(i); });
    });
  }

  // Calls body(e, i), e an element of y's plane and i that of x's which its tap names, or -1 on padding; false where a
  // tap is none of the window's.
  template <typename Body>
  bool for_each(const uint8_t* taps, const Body& body) const {
    if (!places_.empty() && w_.inner == 1) return look_up(taps, body);
    int64_t line = 0;  // of y
    for (int64_t o0 = 0; o0 < w_.output[0]; ++o0) {
      for (int64_t o1 = 0; o1 < w_.output[1]; ++o1, line += w_.output[2]) {
        const bool is_inside = contains(inside_[0], o0) && contains(inside_[1], o1);
        const int64_t begin = is_inside ? inside_[2].begin : w_.output[2];
        const int64_t end = is_inside ? std::max(inside_[2].end, begin) : w_.output[2];
        if (!run<true>(o0, o1, 0, begin, line, taps, body) || !run<false>(o0, o1, begin, end, line, taps, body) ||
            !run<true>(o0, o1, end, w_.output[2], line, taps, body)) {
          return false;
        }
      }
    }
    return true;
  }

 private:
  static bool contains(const Range& range, int64_t i) { return range.begin <= i && i < range.end; }

  template <typename Body>
  bool look_up(const uint8_t* taps, const Body& body) const {
    const int32_t* places = places_.data();
    const int64_t kernel = w_.kernel_numel(), outputs = w_.output_numel();
    for (int64_t o = 0; o < outputs; ++o, places += kernel) {
      const int64_t tap = taps[o];
      if (tap >= kernel) return false;
      body(o, places[tap]);
    }
    return true;
  }

  template <bool kMeetsPadding, typename Body>
  bool run(int64_t o0, int64_t o1, int64_t begin, int64_t end, int64_t line, const uint8_t* taps,
           const Body& body) const {
    if (begin == end) return true;
    const auto& [a0, a1, a2] = w_.axis;
    const int64_t i0 = input_index(a0, o0, 0), i1 = input_index(a1, o1, 0), inner = w_.inner;
    int64_t i2 = input_index(a2, begin, 0), first = ((i0 * a1.input + i1) * a2.input + i2) * inner;
    const int64_t* offsets = offsets_.data();
    const int64_t kernel = static_cast<int64_t>(offsets_.size()), stride = a2.stride;
    for (int64_t e = (line + begin) * inner, last = (line + end) * inner; e < last;
         i2 += stride, first += stride * inner) {
      for (int64_t c = 0; c < inner; ++c, ++e) {
        const int64_t tap = taps[e];
        if (tap >= kernel) return false;
        const auto is_input = [&](const std::array<int64_t, kAxes>& d) {
          return contains({0, a0.input}, i0 + d[0]) && contains({0, a1.input}, i1 + d[1]) &&
                 contains({0, a2.input}, i2 + d[2]);
        };
        body(e, !kMeetsPadding || is_input(taps_[tap]) ? first + c + offsets[tap] : -1);
      }
    }
    return true;
  }

  const Windows& w_;
  std::vector<std::array<int64_t, kAxes>> taps_;  // inputs from the window's first one, along each axis
  std::vector<int64_t> offsets_;                  // the same in elements of a plane
  Range inside_[kAxes];                           // outputs whose windows have no padding
  std::vector<int32_t> places_;                   // [output][tap] of small planes: the input, or -1
};

// y[o] = x[the input at taps[o]], 0 on padding; false where a tap is none of the window's.
template <typename T>
bool tap_select_planes(const Windows& w, const WindowTaps& table, const T* x, const uint8_t* taps, T* y, int64_t begin,
                       int64_t end) {
  const int64_t inputs = w.input_numel() * w.inner, outputs = w.output_numel() * w.inner;
  for (int64_t p = begin; p < end; ++p) {
    const T* from = x + p * inputs;
    T* to = y + p * outputs;
    if (!table.for_each(taps + p * outputs, [&](int64_t e, int64_t i) { to[e] = i < 0 ? T(0) : from[i]; })) {
      return false;
    }
  }
  return true;
}

// x[the input at taps[o]] += y[o], likewise. `sums` holds a plane where T is too narrow to sum in.
template <typename T, typename A>
bool tap_scatter_planes(const Windows& w, const WindowTaps& table, const T* y, const uint8_t* taps, T* x, int64_t begin,
                        int64_t end) {
  const int64_t inputs = w.input_numel() * w.inner, outputs = w.output_numel() * w.inner;
  std::vector<A> sums(std::is_same_v<T, A> ? 0 : inputs);
  for (int64_t p = begin; p < end; ++p) {
    const T* from = y + p * outputs;
    A* to;
    if constexpr (std::is_same_v<T, A>) {
      to = x + p * inputs;
    } else {
      to = sums.data();
    }
    std::fill_n(to, inputs, A(0));
    const bool valid = table.for_each(taps + p * outputs, [to, from](int64_t e, int64_t i) {
      if (i >= 0) to[i] += static_cast<A>(from[e]);
    });
    if (!valid) return false;
    if constexpr (!std::is_same_v<T, A>) {
      std::transform(to, to + inputs, x + p * inputs, [](A sum) { return static_cast<T>(sum); });
    }
  }
  return true;
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
