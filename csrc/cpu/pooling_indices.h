// The maximum of a window and its place, in the two stages of pooling_forward.h: its index in the plane, or its tap,
// the number in the window.
//
// Of equal values the first in the window counts, which is the one with the smallest index, and tap: so stages may come
// in any order. NaNs are rare; a window with one is gone through again, in torch's order, which keeps the last.
#pragma once

#include "pooling_forward.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Places in vectors are as wide as the values: 32 bits for floats.
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

#if CONVARITH_BYTES == 64
inline void store_taps(uint8_t* p, Simd<int32_t>::Vec places, int64_t count) {
  _mm512_mask_cvtepi32_storeu_epi8(p, static_cast<__mmask16>(lane_mask(0, least<int64_t>(count, 16))), (__m512i)places);
}
inline void store_taps(uint8_t* p, Simd<int64_t>::Vec places, int64_t count) {
  _mm512_mask_cvtepi64_storeu_epi8(p, static_cast<__mmask8>(lane_mask(0, least<int64_t>(count, 8))), (__m512i)places);
}
#else
template <typename Places>
inline void store_taps(uint8_t* p, Places places, int64_t count) {
  constexpr int64_t kLanes = sizeof(Places) / sizeof(places[0]);
  if (count >= kLanes) {
    CONVARITH_UNROLL for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint8_t>(places[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) p[i] = static_cast<uint8_t>(places[i]);
  }
}
#endif

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

// Places as the two stages know them: `of_line` of the entries from e on of line (l0, l1), `of_tap` of what stage 2
// meets through tap t of the last axis, whose place of_line has been. kBehind stands behind every place.
template <typename T>
struct ByIndex {
  typedef int64_t Stored;
  typedef typename PlaceOf<typename Lanes<T>::Sum>::type Place;
  typedef typename Simd<Place>::Vec Where;
  static constexpr Place kBehind = static_cast<Place>(~(uint64_t{1} << (8 * sizeof(Place) - 1)));

  // `column`: room for places of the entries of a line of x, filled up to whole vectors.
  ByIndex(const PoolPlan& p, Place* c) : plan(p), column(c) {
    for (int64_t e = 0; e < plan.line_size; ++e) c[e] = static_cast<Place>(e / plan.inner);
  }
  Where of_line(const Row&, const Lines& lines, int64_t l0, int64_t l1, int64_t e) const {
    const int64_t start = lines.start + l0 * lines.step0 + l1 * lines.step1;
    return load(column + e) + static_cast<Place>(plan.inner == 1 ? start : start / plan.inner);
  }
  static Where of_tap(Where line, int64_t) { return line; }
  static void store(Stored* p, Where places, int64_t count) { store_indices(p, places, count); }
  Stored of(const Row&, const Lines& lines, int64_t l0, int64_t l1, int64_t, int64_t i) const {
    return (lines.start + l0 * lines.step0 + l1 * lines.step1) / plan.inner + i;
  }

  const PoolPlan& plan;
  const Place* column;
};

template <typename T>
struct ByTap {
  typedef uint8_t Stored;
  typedef typename PlaceOf<typename Lanes<T>::Sum>::type Place;
  typedef typename Simd<Place>::Vec Where;
  static constexpr Place kBehind = 1 << 30;  // still so where a tap is added

  ByTap(const PoolPlan& p, Place*) : plan(p) {}
  Where of_line(const Row& row, const Lines&, int64_t l0, int64_t l1, int64_t) const {
    return every<Where>(static_cast<Place>(first_tap(row, l0, l1)));
  }
  static Where of_tap(Where line, int64_t t) { return line + static_cast<Place>(t); }
  static void store(Stored* p, Where places, int64_t count) { store_taps(p, places, count); }
  Stored of(const Row& row, const Lines&, int64_t l0, int64_t l1, int64_t t, int64_t) const {
    return static_cast<Stored>(first_tap(row, l0, l1) + t);
  }
  int64_t first_tap(const Row& row, int64_t l0, int64_t l1) const {
    return ((plan.lines[0].first_tap[row.i0] + l0) * plan.kernel[1] + plan.lines[1].first_tap[row.i1] + l1) *
           plan.kernel[2];
  }

  const PoolPlan& plan;
};

template <bool kMinimum, typename Places, typename T>
struct PlacedMaximum {
  typedef typename Lanes<T>::Sum Sum;
  typedef typename Lanes<T>::Sums Sums;
  typedef typename Places::Place Place;
  typedef typename Places::Where Where;
  typedef typename Places::Stored Stored;
  static constexpr int kLanes = Lanes<T>::kLanes;

  const PoolPlan& plan;
  const Places& places;
  Sum* kept;           // [rows_at_once][line_size], and as many
  Place* kept_places;  // of their entries; padding's stands behind every input

  // Stage 1, a vector of it.
  void combine(const Row& row, const Lines& lines, const T* plane, int64_t e, int64_t count, int64_t line) const {
    Best<kMinimum, Sum> best = {load_up_to(plane + lines.start + e, count), places.of_line(row, lines, 0, 0, e)};
    for (int64_t l0 = 0; l0 < lines.count0; ++l0) {
      for (int64_t l1 = l0 == 0 ? 1 : 0; l1 < lines.count1; ++l1) {
        const int64_t start = lines.start + l0 * lines.step0 + l1 * lines.step1;
        best.follow(load_up_to(plane + start + e, count), places.of_line(row, lines, l0, l1, e));
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
  bool reduce(int64_t window, int64_t tap, int64_t kernel, T* y, Stored* out, int64_t count) const {
    const Sum* in = kept + window;
    const Place* at = kept_places + window;
    const auto place = [&](int64_t t) {  // moved as floats, whose lanes are as wide
      const auto line = load_strided<kStride>(reinterpret_cast<const Sum*>(at) + t * tap, plan.stride);
      return places.of_tap((Where)line, t);
    };
    Best<kMinimum, Sum> best = {load_strided<kStride>(in, plan.stride), place(0)};
    for (int64_t t = 1; t < kernel; ++t) {
      best.meet(load_strided<kStride>(in + t * tap, plan.stride), place(t));
    }
    store_up_to(y, best.value, count);
    Places::store(out, best.where, count);
    return any(best.value != best.value);
  }

  // torch's order over one row, for windows that have a NaN.
  __attribute__((noinline)) void find_nans(const Row& row, const T* plane, const T* y, Stored* out) const {
    const Lines lines(plan.lines, row.i0, row.i1);
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
            if (v != v) out[e] = places.of(row, lines, l0, l1, t, at);
          }
        }
      }
    }
  }

  template <int kStride>
  void rows(const T* x, T* y, Stored* stored, int64_t begin, int64_t end) const {
    const int64_t inner = plan.inner, inputs = plan.input[2] * inner, outputs = plan.output[2] * inner;
    const bool runs = inner != 1 && plan.stride != 1;  // of channels; else all outputs are one
    const int64_t run = runs ? inner : outputs, stride = runs ? plan.stride * inner : 0;
    const int64_t step = runs || inner != 1 ? 1 : plan.stride, tap = plan.dilation * inner;
    const int64_t kernel = plan.kernel[2];
    const int64_t plane_size = plan.input[0] * plan.input[1] * inputs;
    const Ahead later(plan, sizeof(T));
    Row ahead(begin, plan.output), row = ahead;
    for (int64_t first = begin; first < end; first += plan.rows_at_once) {
      const int64_t count = least(plan.rows_at_once, end - first);
      for (int64_t j = 0; j < count; ++j, ahead.advance()) {
        const Lines lines(plan.lines, ahead.i0, ahead.i1);
        const T* plane = x + ahead.plane * plane_size;
        later.prefetch(ahead, x);
        for (int64_t e = 0; e < inputs; e += kLanes) combine(ahead, lines, plane, e, inputs - e, j * plan.line_size);
      }
      for (int64_t j = 0; j < count; ++j, row.advance()) {
        T* out = y + (first + j) * outputs;
        Stored* out_place = stored + (first + j) * outputs;
        const int64_t window = j * plan.line_size + plan.at_window;
        bool has_nan = false;
        for (int64_t q = 0; q * run < outputs; ++q) {
          for (int64_t c = 0; c < run; c += kLanes) {
            has_nan |= reduce<kStride>(window + q * stride + c * step, tap, kernel, out + q * run + c,
                                       out_place + q * run + c, run - c);
          }
        }
        if (has_nan) find_nans(row, x + row.plane * plane_size, out, out_place);
      }
    }
  }
};

template <bool kMinimum, template <typename> class Places, typename T>
void placed_rows(const PoolPlan& plan, const T* x, T* y, typename Places<T>::Stored* stored, char* scratch,
                 int64_t begin, int64_t end) {
  typedef typename Places<T>::Place Place;
  const int64_t size = plan.rows_at_once * plan.line_size;
  auto* kept = neutral_lines<T>(plan, Maximum<kMinimum, T>::kNeutral, scratch);
  Place* kept_places = reinterpret_cast<Place*>(kept + size);
  for (int64_t e = 0; e < size; ++e) kept_places[e] = Places<T>::kBehind;
  const Places<T> places(plan, kept_places + size);
  const PlacedMaximum<kMinimum, Places<T>, T> kernel = {plan, places, kept, kept_places};
  const int64_t stride = plan.inner == 1 ? plan.stride : 1;
  if (stride == 1) return kernel.template rows<1>(x, y, stored, begin, end);
  if (stride == 2) return kernel.template rows<2>(x, y, stored, begin, end);
  kernel.template rows<0>(x, y, stored, begin, end);
}

template <template <typename> class Places, typename T>
void max_pool_with(bool minimum, const PoolPlan& plan, const void* x, void* y, typename Places<T>::Stored* stored,
                   char* scratch, int64_t begin, int64_t end) {
  (minimum ? placed_rows<true, Places, T> : placed_rows<false, Places, T>)(plan, static_cast<const T*>(x),
                                                                           static_cast<T*>(y), stored, scratch, begin,
                                                                           end);
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
