// Square roots and powers in vectors. As simd.h, whose rules hold here.
#pragma once

#include "simd_lanes.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

#if defined(__x86_64__) && CONVARITH_BYTES == 64
inline Floats square_root(Floats v) {
  return _mm512_maskz_sqrt_ps(0xffff, v);
}
inline Doubles square_root(Doubles v) {
  return _mm512_maskz_sqrt_pd(0xff, v);
}
#elif defined(__x86_64__) && CONVARITH_BYTES == 32
inline Floats square_root(Floats v) {
  return _mm256_sqrt_ps(v);
}
inline Doubles square_root(Doubles v) {
  return _mm256_sqrt_pd(v);
}
#elif defined(__x86_64__)
inline Floats square_root(Floats v) {
  return _mm_sqrt_ps(v);
}
inline Doubles square_root(Doubles v) {
  return _mm_sqrt_pd(v);
}
#else
template <typename V>
inline V square_root(V v) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) v[i] = static_cast<decltype(+v[0])>(__builtin_sqrt(v[i]));
  return v;
}
#endif

template <typename V>
inline V magnitude(V v) {
  typedef decltype(v < v) Bits;
  constexpr int kShift = 8 * sizeof(v[0]) - 1;
  const Bits sign = every<Bits>(1) << kShift;
  return (V)((Bits)v & ~sign);
}

// v^p for v >= 0 and finite p other than 0: 2^(p log2 v), in doubles, so that the float is right to its last place but
// for rounding. With v = 2^e m, m near 1, and t = (m - 1) / (m + 1), log2 m = 2 / ln 2 (t + t^3 / 3 + t^5 / 5 + ...).
inline Doubles power_of_floats(Doubles v, double p) {
  typedef int64_t Bits __attribute__((vector_size(CONVARITH_BYTES)));
  const Bits bits = (Bits)v;
  const Bits to_root_half = bits - 0x3fe6a09e667f3bcd;  // counted from sqrt(1/2), so that m is in [sqrt(1/2), sqrt(2))
  const Bits e = to_root_half >> 52;
  const Doubles m = (Doubles)(bits - (e << 52));
  const Doubles t = (m - 1.0) / (m + 1.0), t2 = t * t;
  Doubles series = every<Doubles>(1.0 / 15);
  CONVARITH_UNROLL for (int n = 13; n >= 1; n -= 2) series = series * t2 + 1.0 / n;
  constexpr double kTwoOverLn2 = 2.8853900817779268, kLn2 = 0.6931471805599453;
  Doubles z = (series * t * kTwoOverLn2 + __builtin_convertvector(e, Doubles)) * p;
  z = z > 300.0 ? every<Doubles>(300.0) : z;  // beyond what a float holds
  z = z < -300.0 ? every<Doubles>(-300.0) : z;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: an addition rounds to integers, in the low bits
  const Doubles rounded = z + kRound;
  const Doubles f = (z - (rounded - kRound)) * kLn2;
  Doubles exponential = every<Doubles>(1.0 / 362880);
  constexpr double kInverse[] = {1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1, 1};
  CONVARITH_UNROLL for (int n = 0; n < 9; ++n) exponential = exponential * f + kInverse[n];
  return (Doubles)((Bits)exponential + ((Bits)rounded << 52));
}

inline Floats power(Floats v, double p) {
  constexpr int kHalf = CONVARITH_BYTES / 8;  // lanes
  typedef float HalfFloats __attribute__((vector_size(CONVARITH_BYTES / 2)));
  HalfFloats part[2];
  __builtin_memcpy(part, &v, sizeof(v));
  static_assert(sizeof(HalfFloats) == kHalf * sizeof(float), "");
  for (HalfFloats& h : part) {
    h = __builtin_convertvector(power_of_floats(__builtin_convertvector(h, Doubles), p), HalfFloats);
  }
  Floats result;
  __builtin_memcpy(&result, part, sizeof(v));
  constexpr float kInfinity = __builtin_inff();
  result = v == 0.0f ? every<Floats>(p > 0 ? 0.0f : kInfinity) : result;
  result = v == kInfinity ? every<Floats>(p > 0 ? kInfinity : 0.0f) : result;
  return v != v ? v : result;
}
inline Doubles power(Doubles v, double p) {
  for (int i = 0; i < Simd<double>::kLanes; ++i) v[i] = __builtin_pow(v[i], p);
  return v;
}

// v^p for every v, as pow() has it: of a negative v not a number, unless p is an integer.
template <typename V>
inline V signed_power(V v, double p) {
  const V result = power(magnitude(v), p);
  const bool whole = __builtin_floor(p) == p;
  if (whole && __builtin_floor(p / 2) == p / 2) return result;
  typedef decltype(v < v) Bits;
  if (whole) return (Bits)v < 0 ? -result : result;
  return v < 0 ? every<V>(static_cast<decltype(+v[0])>(__builtin_nan(""))) : result;
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
