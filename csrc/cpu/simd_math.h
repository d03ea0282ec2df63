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
inline void to_doubles(Floats v, Doubles& low, Doubles& high) {
  low = _mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, v, 0));
  high = _mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, v, 1));
}
inline Floats to_floats(Doubles low, Doubles high) {
  const __m256 part[] = {_mm512_maskz_cvtpd_ps(0xff, low), _mm512_maskz_cvtpd_ps(0xff, high)};
  return _mm512_maskz_insertf32x8(0xffff, _mm512_castps256_ps512(part[0]), part[1], 1);
}
#elif defined(__x86_64__) && CONVARITH_BYTES == 32
inline Floats square_root(Floats v) {
  return _mm256_sqrt_ps(v);
}
inline Doubles square_root(Doubles v) {
  return _mm256_sqrt_pd(v);
}
inline void to_doubles(Floats v, Doubles& low, Doubles& high) {
  low = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
  high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
}
inline Floats to_floats(Doubles low, Doubles high) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(low)), _mm256_cvtpd_ps(high), 1);
}
#elif defined(__x86_64__)
inline Floats square_root(Floats v) {
  return _mm_sqrt_ps(v);
}
inline Doubles square_root(Doubles v) {
  return _mm_sqrt_pd(v);
}
inline void to_doubles(Floats v, Doubles& low, Doubles& high) {
  low = _mm_cvtps_pd(v);
  high = _mm_cvtps_pd(_mm_movehl_ps(v, v));
}
inline Floats to_floats(Doubles low, Doubles high) {
  return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
}
#else
template <typename V>
inline V square_root(V v) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) v[i] = static_cast<decltype(+v[0])>(__builtin_sqrt(v[i]));
  return v;
}
typedef float HalfFloats __attribute__((vector_size(CONVARITH_BYTES / 2)));
inline void to_doubles(Floats v, Doubles& low, Doubles& high) {
  HalfFloats part[2];
  __builtin_memcpy(part, &v, sizeof(v));
  low = __builtin_convertvector(part[0], Doubles);
  high = __builtin_convertvector(part[1], Doubles);
}
inline Floats to_floats(Doubles low, Doubles high) {
  const HalfFloats part[] = {__builtin_convertvector(low, HalfFloats), __builtin_convertvector(high, HalfFloats)};
  Floats v;
  __builtin_memcpy(&v, part, sizeof(v));
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
  // Both series by Estrin's scheme: short chains of operations that wait for each other.
  const Doubles t4 = t2 * t2, low = t2 * (1.0 / 3) + 1.0, middle = t2 * (1.0 / 7) + 1.0 / 5,
                high = t2 * (1.0 / 11) + 1.0 / 9;
  const Doubles series = (t4 * (1.0 / 13) + high) * (t4 * t4) + (middle * t4 + low);  // the next term is below 2^-39
  constexpr double kTwoOverLn2 = 2.8853900817779268, kLn2 = 0.6931471805599453;
  Doubles z = (series * t * kTwoOverLn2 + __builtin_convertvector(e, Doubles)) * p;
  z = z > 300.0 ? every<Doubles>(300.0) : z;  // beyond what a float holds
  z = z < -300.0 ? every<Doubles>(-300.0) : z;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: an addition rounds to integers, in the low bits
  const Doubles rounded = z + kRound;
  const Doubles f = (z - (rounded - kRound)) * kLn2;
  const Doubles f2 = f * f, f4 = f2 * f2;
  const Doubles first = (f * (1.0 / 6) + 0.5) * f2 + (f + 1.0);
  const Doubles second = (f * (1.0 / 5040) + 1.0 / 720) * f2 + (f * (1.0 / 120) + 1.0 / 24);
  const Doubles exponential = (f4 * (1.0 / 40320) + second) * f4 + first;  // the next term is below 2^-32
  return (Doubles)((Bits)exponential + ((Bits)rounded << 52));
}

inline Floats power(Floats v, double p) {
  Doubles low, high;
  to_doubles(v, low, high);
  Floats result = to_floats(power_of_floats(low, p), power_of_floats(high, p));
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
