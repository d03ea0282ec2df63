// The maximum of a window and where in its plane it stands, in the two stages of pooling_forward.h.
//
// Of equal values the first in the plane counts, which is the one with the smallest index: so stages may come in any
// order. NaNs are rare; a window with one is gone through again, in torch's order, which keeps the last.
#pragma once

#include "pooling_forward.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Indices in vectors are as wide as the values: 32 bits for floats.
template <typename Sum>
struct PlaceOf {
  typedef int32_t type;
};
template <>
struct PlaceOf<double> {
  typedef int64_t type;
};

inline void store_indices(int64_t* p, Simd<int64_t>::Vec places, int64_t count) {
  store_up_to(reinterpret_cast<double*>(p), (Doubles)places, count);
}
inline void store_indices(int64_t* p, Simd<int32_t>::Vec places, int64_t count) {
  constexpr int kHalf = Simd<int64_t>::kLanes;
  typedef int32_t Half __attribute__((vector_size(CONVARITH_BYTES / 2)));
  Half parts[2];
  __builtin_memcpy(parts, &places, sizeof(places));
  store_indices(p, __builtin_convertvector(parts[0], Simd<int64_t>::Vec), count);
  if (count > kHalf) {
    store_indices(p + kHalf, __builtin_convertvector(parts[1], Simd<int64_t>::Vec), count - kHalf);
  }
}

// A vector of values and of their places, against which another is held.
template <bool kMinimum, typename Sum>
struct Best {
  typedef typename Simd<Sum>::Vec Values;
  typedef typename Simd<typename PlaceOf<Sum>::type>::Vec Where;

  // One that stands behind.
  void follow(Values v, Where at) {
    const auto take = is_better<kMinimum>(v, value) | (v != v);
    value = take ? v : value;
    where = take ? at : where;
  }
  // One that stands anywhere.
  void meet(Values v, Where at) {
    const auto take = is_better<kMinimum>(v, value) | (v != v) | ((v == value) & (at < where));
    value = take ? v : value;
    where = take ? at : where;
  }

  Values value;
  Where where;
};

template <bool kMinimum, typename T>
struct IndexedMaximum {
  typedef typename Lanes<T>::Sum Sum;
  typedef typename Lanes<T>::Sums Sums;
  typedef typename PlaceOf<Sum>::type Place;
  typedef typename Simd<Place>::Vec Where;
  static constexpr int kLanes = Lanes<T>::kLanes;

  const PoolPlan& plan;
  Sum* kept;            // [rows_at_once][line_size], and as many
  Place* kept_places;   // of their entries; padding's stands behind every input
  const Place* column;  // of the entries of a line of x, filled up to whole vectors

  // Stage 1, a vector of it.
  void combine(const Lines& lines, const T* plane, int64_t e, int64_t count, int64_t line) const {
    const Where first = load(column + e);
    const auto at = [&](int64_t start) {
      return first + static_cast<Place>(plan.inner == 1 ? start : start / plan.inner);
    };
    Best<kMinimum, Sum> best = {load_up_to(plane + lines.start + e, count), at(lines.start)};
    for (int64_t l0 = 0; l0 < lines.count0; ++l0) {
      for (int64_t l1 = l0 == 0 ? 1 : 0; l1 < lines.count1; ++l1) {
        const int64_t start = lines.start + l0 * lines.step0 + l1 * lines.step1;
        best.follow(load_up_to(plane + start + e, count), at(start));
      }
    }
    Sum* to = kept + line + plan.at_input + e;
    Place* to_place = kept_places + line + plan.at_input + e;
    if (count >= kLanes) {
      store(to, best.value);
      store(to_place, best.where);
      return;
    }
    store_first(to, best.value, static_cast<int>(count));
    store_first(reinterpret_cast<Sum*>(to_place), (Sums)best.where, static_cast<int>(count));
  }

  // Stage 2, a vector of outputs from their first tap on; true where there is a NaN among them.
  template <int kStride>
  bool reduce(int64_t window, int64_t tap, int64_t kernel, T* y, int64_t* indices, int64_t count) const {
    const Sum* in = kept + window;
    const Place* at = kept_places + window;
    const auto place = [&](int64_t offset) {  // moved as floats, whose lanes are as wide
      return (Where)load_strided<kStride>(reinterpret_cast<const Sum*>(at) + offset, plan.stride);
    };
    Best<kMinimum, Sum> best = {load_strided<kStride>(in, plan.stride), place(0)};
    for (int64_t t = 1; t < kernel; ++t) {
      best.meet(load_strided<kStride>(in + t * tap, plan.stride), place(t * tap));
    }
    store_up_to(y, best.value, count);
    store_indices(indices, best.where, count);
    return any(best.value != best.value);
  }

  // torch's order over one row, for windows that have a NaN.
  __attribute__((noinline)) void find_nans(const Lines& lines, const T* plane, const T* y, int64_t* indices) const {
    const int64_t inner = plan.inner;
    for (int64_t e = 0; e < plan.output[2] * inner; ++e) {
      const Sum found = widen(y[e]);
      if (found == found) continue;
      const int64_t first = e / inner * plan.stride - (plan.at_input - plan.at_window) / inner;
      for (int64_t l0 = 0; l0 < lines.count0; ++l0) {
        for (int64_t l1 = 0; l1 < lines.count1; ++l1) {
          const int64_t start = lines.start + l0 * lines.step0 + l1 * lines.step1;
          for (int64_t t = 0; t < plan.kernel[2]; ++t) {
            const int64_t at = first + t * plan.dilation;
            if (at < 0 || at >= plan.input[2]) continue;
            const Sum v = widen(plane[start + at * inner + e % inner]);
            if (v != v) indices[e] = start / inner + at;
          }
        }
      }
    }
  }

  template <int kStride>
  void rows(const T* x, T* y, int64_t* indices, int64_t begin, int64_t end) const {
    const int64_t inner = plan.inner, inputs = plan.input[2] * inner, outputs = plan.output[2] * inner;
    const bool runs = inner != 1 && plan.stride != 1;  // of channels; else all outputs are one
    const int64_t run = runs ? inner : outputs, stride = runs ? plan.stride * inner : 0;
    const int64_t step = runs || inner != 1 ? 1 : plan.stride, tap = plan.dilation * inner;
    const int64_t kernel = plan.kernel[2];
    const int64_t plane_size = plan.input[0] * plan.input[1] * inputs;
    Row ahead(begin, plan.output), row = ahead;
    for (int64_t first = begin; first < end; first += plan.rows_at_once) {
      const int64_t count = least(plan.rows_at_once, end - first);
      for (int64_t j = 0; j < count; ++j, ahead.advance()) {
        const Lines lines(plan.lines, ahead.i0, ahead.i1);
        const T* plane = x + ahead.plane * plane_size;
        for (int64_t e = 0; e < inputs; e += kLanes) combine(lines, plane, e, inputs - e, j * plan.line_size);
      }
      for (int64_t j = 0; j < count; ++j, row.advance()) {
        T* out = y + (first + j) * outputs;
        int64_t* out_index = indices + (first + j) * outputs;
        const int64_t window = j * plan.line_size + plan.at_window;
        bool has_nan = false;
        for (int64_t q = 0; q * run < outputs; ++q) {
          for (int64_t c = 0; c < run; c += kLanes) {
            has_nan |= reduce<kStride>(window + q * stride + c * step, tap, kernel, out + q * run + c,
                                       out_index + q * run + c, run - c);
          }
        }
        if (has_nan) find_nans(Lines(plan.lines, row.i0, row.i1), x + row.plane * plane_size, out, out_index);
      }
    }
  }
};

template <bool kMinimum, typename T>
void indexed_rows(const PoolPlan& plan, const T* x, T* y, int64_t* indices, char* scratch, int64_t begin, int64_t end) {
  typedef IndexedMaximum<kMinimum, T> Maximum_;
  typedef typename Maximum_::Place Place;
  const int64_t size = plan.rows_at_once * plan.line_size;
  auto* kept = neutral_lines<T>(plan, Maximum<kMinimum, T>::kNeutral, scratch);
  Place* places = reinterpret_cast<Place*>(kept + size);
  Place* column = places + size;
  for (int64_t e = 0; e < size; ++e) places[e] = static_cast<Place>(~(uint64_t{1} << (8 * sizeof(Place) - 1)));
  for (int64_t e = 0; e < plan.line_size; ++e) column[e] = static_cast<Place>(e / plan.inner);
  const Maximum_ kernel = {plan, kept, places, column};
  const int64_t stride = plan.inner == 1 ? plan.stride : 1;
  if (stride == 1) return kernel.template rows<1>(x, y, indices, begin, end);
  if (stride == 2) return kernel.template rows<2>(x, y, indices, begin, end);
  kernel.template rows<0>(x, y, indices, begin, end);
}

template <typename T>
void max_pool_with_indices(bool minimum, const PoolPlan& plan, const void* x, void* y, int64_t* indices, char* scratch,
                           int64_t begin, int64_t end) {
  (minimum ? indexed_rows<true, T> : indexed_rows<false, T>)(plan, static_cast<const T*>(x), static_cast<T*>(y),
                                                             indices, scratch, begin, end);
}

inline bool are_indices(const int64_t* indices, int64_t count, int64_t inputs) {
  typedef Simd<int64_t>::Vec Places;
  constexpr int kLanes = Simd<int64_t>::kLanes;
  Places bad[2] = {};
  int64_t e = 0;
  for (; e + 2 * kLanes <= count; e += 2 * kLanes) {
    CONVARITH_UNROLL for (int i = 0; i < 2; ++i) {
      const Places at = load(indices + e + i * kLanes);
      bad[i] |= at | (inputs - 1 - at);  // the sign says so
    }
  }
  bool valid = !any((bad[0] | bad[1]) < 0);
  for (; e < count; ++e) valid &= indices[e] >= 0 && indices[e] < inputs;
  return valid;
}

// sums[index[o]] += y[o]; false where an index is not one. Indices are looked at just before they are used: a pass of
// its own would cost as much as memory lets them pass.
template <typename T>
bool scatter_add(const void* y_data, const int64_t* indices, int64_t count, void* sums_data, int64_t inputs) {
  typedef Simd<int64_t>::Vec Places;
  constexpr int kLanes = Simd<int64_t>::kLanes, kAtOnce = 2 * kLanes;
  const T* y = static_cast<const T*>(y_data);
  auto* sums = static_cast<typename Lanes<T>::Sum*>(sums_data);
  int64_t o = 0;
  for (; o + kAtOnce <= count; o += kAtOnce) {
    const Places a = load(indices + o), b = load(indices + o + kLanes);
    if (any((a | b | (inputs - 1 - a) | (inputs - 1 - b)) < 0)) return false;  // the sign says so
    CONVARITH_UNROLL for (int i = 0; i < kAtOnce; ++i) sums[indices[o + i]] += widen(y[o + i]);
  }
  if (!are_indices(indices + o, count - o, inputs)) return false;
  for (; o < count; ++o) sums[indices[o]] += widen(y[o]);
  return true;
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
