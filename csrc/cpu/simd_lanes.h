// Vectors of sums from memory of any dtype, whole or in part, and back. As simd.h, whose rules hold here.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "simd.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// What T is computed in: `Sum` one by one, `Sums` in vectors of kLanes.
template <typename T>
struct Lanes {
  typedef typename SumOf<T>::type Sum;
  typedef typename Simd<Sum>::Vec Sums;
  static constexpr int kLanes = Simd<Sum>::kLanes;
};

typedef Simd<double>::Vec Doubles;

template <typename V>
inline V every(decltype(V{}[0]) value) {  // value in every lane
  return value - V{};
}

// Whole vectors.
inline Floats load_sums(const float* p) {
  return load(p);
}
inline Doubles load_sums(const double* p) {
  return load(p);
}
template <typename T>
inline Floats load_sums(const T* p) {
  return widen_halves(*reinterpret_cast<const LooseHalves*>(p), T{});
}

inline void store_sums(float* p, Floats v) {
  store(p, v);
}
inline void store_sums(double* p, Doubles v) {
  store(p, v);
}
template <typename T>
inline void store_sums(T* p, Floats v) {
  *reinterpret_cast<LooseHalves*>(p) = narrow_floats(v, T{});
}

// Lanes [begin, end) of a vector at p, zeros in the others. Memory of the others is not touched.
#if CONVARITH_BYTES == 64
inline uint32_t lane_mask(int begin, int end) {
  return ((1u << end) - 1u) & ~((1u << begin) - 1u);  // at most 16 lanes
}
inline Floats load_masked(const float* p, uint32_t mask) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p);
}
inline Doubles load_masked(const double* p, uint32_t mask) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p);
}
template <typename T>
inline Floats load_masked(const T* p, uint32_t mask) {
  return widen_halves((Halves)_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), p), T{});
}
template <typename T>
inline typename Lanes<T>::Sums load_lanes(const T* p, int begin, int end) {
  return load_masked(p, lane_mask(begin, end));
}
inline void store_masked(float* p, Floats v, uint32_t mask) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), v);
}
inline void store_masked(double* p, Doubles v, uint32_t mask) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), v);
}
template <typename T>
inline void store_masked(T* p, Floats v, uint32_t mask) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(mask), (__m256i)narrow_floats(v, T{}));
}
template <typename T>
inline void store_first(T* p, typename Lanes<T>::Sums v, int count) {
  store_masked(p, v, lane_mask(0, count));
}
#else
template <typename T>
inline typename Lanes<T>::Sums load_lanes(const T* p, int begin, int end) {
  T lanes[Lanes<T>::kLanes] = {};
  for (int i = begin; i < end; ++i) lanes[i] = p[i];
  return load_sums(lanes);
}
template <typename T>
inline void store_first(T* p, typename Lanes<T>::Sums v, int count) {
  if constexpr (sizeof(T) == 2) {
    store_parts<Lanes<T>::kLanes / 2>(p, narrow_floats(v, T{}), count);
  } else {
    store_some(p, v, count);
  }
}
#if CONVARITH_BYTES == 32 && defined(__x86_64__)
typedef int32_t Ints32 __attribute__((vector_size(32)));
typedef int64_t Ints64 __attribute__((vector_size(32)));
inline Floats load_lanes(const float* p, int begin, int end) {
  const Ints32 lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return _mm256_maskload_ps(p, (__m256i)((lane >= begin) & (lane < end)));
}
inline Doubles load_lanes(const double* p, int begin, int end) {
  const Ints64 lane = {0, 1, 2, 3};
  return _mm256_maskload_pd(p, (__m256i)((lane >= begin) & (lane < end)));
}
#endif
#endif

template <typename T>
inline typename Lanes<T>::Sums load_first(const T* p, int count) {
  return load_lanes(p, 0, count);
}

// Up to a vector's lanes: the usual whole vector without a mask.
template <typename T>
inline typename Lanes<T>::Sums load_up_to(const T* p, int64_t count) {
  return count >= Lanes<T>::kLanes ? load_sums(p) : load_first(p, static_cast<int>(count));
}
template <typename T>
inline void store_up_to(T* p, typename Lanes<T>::Sums v, int64_t count) {
  if (count >= Lanes<T>::kLanes) {
    store_sums(p, v);
  } else {
    store_first(p, v, static_cast<int>(count));
  }
}

// The first `count` lanes of v, and `other` in those behind.
template <typename V>
inline V first_or(V v, int count, decltype(V{}[0]) other) {
  typedef decltype(v < v) Index;
  Index lane;
  for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) lane[i] = static_cast<decltype(+lane[0])>(i);
  return lane < count ? v : every<V>(other);
}

// Whether a comparison held in some lane.
template <typename Mask>
inline bool any(Mask mask) {
#if CONVARITH_BYTES == 64
  return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
#elif CONVARITH_BYTES == 32 && defined(__x86_64__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#elif defined(__x86_64__)
  return _mm_movemask_epi8((__m128i)mask) != 0;
#else
  auto found = mask[0];
  for (unsigned i = 1; i < sizeof(mask) / sizeof(found); ++i) found |= mask[i];
  return found != 0;
#endif
}

// a / b from b's inverse, rounded as a division is where it is normal: dividers of long registers take several times as
// long. What is left of a is exact, and no number where the quotient is infinite.
#if CONVARITH_BYTES == 64
inline Floats quotient(Floats a, float b, float inverse) {
  const Floats q = a * inverse, rest = _mm512_fnmadd_ps(q, every<Floats>(b), a);
  return _mm512_mask3_fmadd_ps(rest, every<Floats>(inverse), q, _mm512_cmp_ps_mask(rest, rest, _CMP_ORD_Q));
}
#else
inline Floats quotient(Floats a, float b, float) {
  return a / b;
}
#endif
inline Doubles quotient(Doubles a, double b, double) {
  return a / b;
}

// The two vectors that have a and b in turn.
template <typename T>
inline void interleave(typename Simd<T>::Vec& a, typename Simd<T>::Vec& b) {
  typedef decltype(a < b) Index;
  Index low, high;
  for (int i = 0; i < Simd<T>::kLanes; ++i) {
    low[i] = i / 2 + i % 2 * Simd<T>::kLanes;
    high[i] = low[i] + Simd<T>::kLanes / 2;
  }
  const typename Simd<T>::Vec first = __builtin_shuffle(a, b, low);
  b = __builtin_shuffle(a, b, high);
  a = first;
}

// A vector of entries `stride` apart. With stride 2 the entry behind the last is read too.
template <int kStride, typename T>
inline typename Simd<T>::Vec load_strided(const T* p, int64_t stride) {
  if constexpr (kStride == 1) return load(p);
  if constexpr (kStride == 2) return evens<T>(load(p), load(p + Simd<T>::kLanes));
  typename Simd<T>::Vec v;
  for (int i = 0; i < Simd<T>::kLanes; ++i) v[i] = p[i * stride];
  return v;
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
