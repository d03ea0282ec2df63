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

// The first 12 bits of a float's 24: products of two such are exact.
inline Floats leading_bits(Floats v) {
  return (Floats)((Words)v & ~0xfffu);
}

// 2^n for n in [-126, 127].
inline Floats power_of_two(Words n) {
  return (Floats)((n + 127u) << 23);
}

// An exponent p other than 0, with what is the same for every power of it.
struct PowerOf {
  static constexpr double kInverseLn2 = 1.4426950408889634;

  explicit PowerOf(double exponent)
      : p(exponent),
        p_first(leading_bits(every<Floats>(static_cast<float>(p)))[0]),
        p_rest(static_cast<float>(p - static_cast<double>(p_first))),
        c(static_cast<float>(p * kInverseLn2)),
        c_first(leading_bits(every<Floats>(c))[0]),
        c_rest(static_cast<float>(p * kInverseLn2 - static_cast<double>(c_first))),
        is_integer(__builtin_floor(p) == p),
        is_even(__builtin_floor(p / 2) == p / 2) {}

  double p;
  float p_first, p_rest;     // p = p_first + p_rest
  float c, c_first, c_rest;  // p / ln 2 = c_first + c_rest
  bool is_integer, is_even;
};

// v^p for v >= 0: 2^(p log2 v) with log2 v = e + log2 m, v = 2^e m, m in [sqrt(1/2), sqrt(2)). The large parts of the
// exponent, p e and (p / ln 2) (m - 1), are exact products; the rest is known to 2^-28 or so times p. The error is
// below 3 units of the last place for |p| <= 4 and grows with |p|, that of its p-th root does not.
inline Floats power(Floats v, const PowerOf& by) {
  typedef int32_t Ints __attribute__((vector_size(CONVARITH_BYTES)));
  const auto is_subnormal = v < __FLT_MIN__;
  const Ints bits = (Ints)(is_subnormal ? v * 0x1p24f : v);
  const Ints from_root_half = bits - 0x3f3504f3;
  const Floats e = __builtin_convertvector((from_root_half >> 23) - (is_subnormal & 24), Floats);
  const Floats f = (Floats)(bits - (from_root_half >> 23 << 23)) - 1.0f, f_first = leading_bits(f);

  // ln(1 + f) = f + f^2 (-1/2 + f/3 - ...): a polynomial of least greatest error, 2^-30 absolute.
  constexpr float kLogarithm[] = {-0.0760926093f, 0.13060613f,   -0.133332805f, 0.141598892f, -0.165933597f,
                                  0.200028038f,   -0.250024345f, 0.33333319f,   -0.49999975f};
  Floats series = every<Floats>(kLogarithm[0]);
  CONVARITH_UNROLL for (int i = 1; i < 9; ++i) series = series * f + kLogarithm[i];
  const Floats rest = (f - f_first) + f * f * series;

  constexpr float kRound = 0x1.8p23f;  // an addition rounds to integers, in the low bits
  const Floats small = e * by.p_rest + f_first * by.c_rest + rest * by.c;
  const Floats exponent = e * by.p_first + f_first * by.c_first + small;
  const Floats rounded = exponent + kRound, n = rounded - kRound;
  const Floats g = ((e * by.p_first - n) + f_first * by.c_first) + small;

  // 2^g = 1 + g ln 2 + ..., 2^-29 absolute.
  constexpr float kExponential[] = {
      0.000154780221f, 0.00134004317f, 0.00961799451f, 0.0555032722f, 0.240226515f, 0.693147207f, 1};
  Floats result = every<Floats>(kExponential[0]);
  CONVARITH_UNROLL for (int i = 1; i < 7; ++i) result = result * g + kExponential[i];
  const Ints whole = (Ints)rounded - (Ints)every<Floats>(kRound), half = whole >> 1;  // n; 2^n may not be a float
  result = result * power_of_two((Words)half) * power_of_two((Words)(whole - half));

  constexpr float kInfinity = __builtin_inff();
  result = exponent > 129.0f ? every<Floats>(kInfinity) : result;
  result = exponent < -151.0f ? Floats{} : result;
  result = v == 0.0f ? every<Floats>(by.p > 0 ? 0.0f : kInfinity) : result;
  result = v == kInfinity ? every<Floats>(by.p > 0 ? kInfinity : 0.0f) : result;
  return v != v ? v : result;
}
inline Doubles power(Doubles v, const PowerOf& by) {
  for (int i = 0; i < Simd<double>::kLanes; ++i) v[i] = __builtin_pow(v[i], by.p);
  return v;
}

// v^p for every v, as pow() has it: of a negative v not a number, unless p is an integer.
template <typename V>
inline V signed_power(V v, const PowerOf& by) {
  const V result = power(magnitude(v), by);
  if (by.is_even) return result;
  typedef decltype(v < v) Bits;
  if (by.is_integer) return (Bits)v < 0 ? -result : result;
  return v < 0 ? every<V>(static_cast<decltype(+v[0])>(__builtin_nan(""))) : result;
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
