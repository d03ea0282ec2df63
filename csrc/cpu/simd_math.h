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

// Highest power first.
template <int kCount>
inline Floats polynomial(Floats x, const float (&coefficients)[kCount]) {
  Floats value = every<Floats>(coefficients[0]);
  CONVARITH_UNROLL for (int i = 1; i < kCount; ++i) value = value * x + coefficients[i];
  return value;
}

// The first 12 bits of a float's 24: products of two such are exact.
inline Floats leading_bits(Floats v) {
  return (Floats)((Words)v & ~0xfffu);
}

// An exponent p other than 0, with what is the same for every power of it: of numbers, or of magnitudes alone.
struct PowerOf {
  static constexpr double kInverseLn2 = 1.4426950408889634;

  explicit PowerOf(double exponent, bool of_magnitudes = false)
      : p(exponent),
        nearest(static_cast<float>(p)),
        first(leading_bits(every<Floats>(nearest))[0]),
        rest(static_cast<float>(p - static_cast<double>(first))),
        c(static_cast<float>(p * kInverseLn2)),
        c_first(leading_bits(every<Floats>(c))[0]),
        c_rest(static_cast<float>(p * kInverseLn2 - static_cast<double>(c_first))),
        halves(__builtin_floor(2 * p) == 2 * p && p < 5 && p > -5 ? static_cast<int>(2 * p) : 0),
        is_integer(__builtin_floor(p) == p),
        is_even(of_magnitudes || __builtin_floor(p / 2) == p / 2) {}

  double p;
  float nearest, first, rest;  // p is first + rest
  float c, c_first, c_rest;    // p / ln 2 is c_first + c_rest
  int halves;                  // p is so many halves, where that is a short way; else 0
  bool is_integer, is_even;
};

// Square roots to a unit of the last place, where exact ones take several times as long.
#if CONVARITH_BYTES == 64
inline Floats quick_root(Floats v) {
  const Floats inverse = _mm512_maskz_rsqrt14_ps(0xffff, v), root = v * inverse;
  const Floats better = root + root * 0.5f * (1.0f - root * inverse);
  return _mm512_mask_mov_ps(better, _mm512_fpclass_ps_mask(v, 0x0e), v);  // zeros and infinity are their own
}
#else
inline Floats quick_root(Floats v) {
  return square_root(v);
}
#endif
inline Doubles quick_root(Doubles v) {
  return square_root(v);
}

// v^(halves / 2) for v >= 0: products, and a square root.
template <typename V>
inline V power_of_halves(V v, int halves) {
  const int count = halves < 0 ? -halves : halves;
  V result = count % 2 == 1 ? quick_root(v) : v;
  for (int i = 2 + (count % 2 == 0); i <= count; i += 2) result *= v;
  return halves < 0 ? 1 / result : result;
}

// v^p for v >= 0 is 2^(p log2 v). The error is below 3 units of the last place for |p| <= 4 and grows with |p|, that of
// its p-th root does not.
#if CONVARITH_BYTES == 64

// Of [1, 2), cut into 16 parts: a c near the inverse of each part's middle, -log2 c, and 2^(i / 16). Of the floats that
// may be c those are taken whose logarithm is a multiple of 2^-16 but for 2^-28 or so, so that a float has it all and
// its sum with an exponent is exact. Next to a power of 2 c is its inverse: so what is near 1 loses nothing.
struct PowerTables {
  constexpr PowerTables() {
    for (int i = 0; i < 16; ++i) {
      root[i] = static_cast<float>(__builtin_exp2(i / 16.0));
      const float middle = static_cast<float>(1 / (1 + (i + 0.5) / 16));
      double least = 1;
      for (int j = -1024; j < 1024; ++j) {
        const float c = middle + static_cast<float>(j) * 0x1p-24f;
        const double scaled = -__builtin_log2(c) * 65536, whole = __builtin_floor(scaled + 0.5);
        const double distance = scaled < whole ? whole - scaled : scaled - whole;
        if (distance >= least) continue;
        least = distance;
        inverse[i] = c;
        logarithm[i] = static_cast<float>(whole / 65536);
      }
    }
    inverse[0] = 1, logarithm[0] = 0;
    inverse[15] = 0.5f, logarithm[15] = 1;
  }
  alignas(64) float inverse[16] = {}, logarithm[16] = {}, root[16] = {};
};
constexpr PowerTables kPowerTables;

inline Floats fused(Floats a, Floats b, Floats c) {  // a b + c, rounded once
  return _mm512_maskz_fmadd_ps(0xffff, a, b, c);
}

inline Floats of_part(Words part, const float* table) {  // its last 4 bits count
  return __builtin_shuffle(load(table), part);
}

// v = 2^e m, m in [1, 2): log2 v = (e - log2 c) + log2(1 + r) with r = m c - 1 in [-1/32, 1/16], where the first part
// is exact. 2^k, k a multiple of 1/16, leaves 2^g with |g| <= 1/32.
inline Floats general_power(Floats v, const PowerOf& by) {
  const Floats e = _mm512_maskz_getexp_ps(0xffff, v);  // -Inf of 0, Inf of Inf
  const Floats m = _mm512_maskz_getmant_ps(0xffff, v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
  const Words part = (Words)m >> 19;
  const Floats r = fused(m, of_part(part, kPowerTables.inverse), every<Floats>(-1));
  const Floats first = e + of_part(part, kPowerTables.logarithm);
  const Floats rest =
      r * polynomial(r, {0.270103335f, -0.361030787f, 0.480940163f, -0.721347451f, 1.44269502f});  // to 2^-32

  constexpr float kRound = 0x1.8p19f;  // an addition rounds to multiples of 1/16
  const Floats p = every<Floats>(by.nearest), p_first = every<Floats>(by.first);
  const Floats rounded = fused(p, first + rest, every<Floats>(kRound)), k = rounded - kRound;
  Floats g = fused(p_first, first, -k) + (rest * p + first * by.rest);
  g = _mm512_maskz_range_ps(0xffff, g, every<Floats>(1), 2);  // not beyond 1 where k is, nor NaN where it is infinite
  const Floats root = of_part((Words)rounded, kPowerTables.root);
  const Floats grown = g * polynomial(g, {0.0555034168f, 0.240234286f, 0.693147182f});  // 2^g - 1, to 2^-29
  return _mm512_maskz_scalef_ps(0xffff, root + root * grown, k);
}

#else

// 2^n for n in [-126, 127].
inline Floats power_of_two(Words n) {
  return (Floats)((n + 127u) << 23);
}

// v = 2^e m, m in [sqrt(1/2), sqrt(2)): log2 v = e + log2 m. The large parts of the exponent, p e and
// (p / ln 2) (m - 1), are exact products; the rest is known to 2^-28 or so times p.
inline Floats general_power(Floats v, const PowerOf& by) {
  typedef int32_t Ints __attribute__((vector_size(CONVARITH_BYTES)));
  const auto is_subnormal = v < __FLT_MIN__;
  const Ints bits = (Ints)(is_subnormal ? v * 0x1p24f : v);
  const Ints from_root_half = bits - 0x3f3504f3;
  const Floats e = __builtin_convertvector((from_root_half >> 23) - (is_subnormal & 24), Floats);
  const Floats f = (Floats)(bits - (from_root_half >> 23 << 23)) - 1.0f, f_first = leading_bits(f);

  // ln(1 + f) = f + f^2 (-1/2 + f/3 - ...): a polynomial of least greatest error, 2^-30 absolute.
  const Floats series = polynomial(f, {-0.0760926093f, 0.13060613f, -0.133332805f, 0.141598892f, -0.165933597f,
                                       0.200028038f, -0.250024345f, 0.33333319f, -0.49999975f});
  const Floats rest = (f - f_first) + f * f * series;

  constexpr float kRound = 0x1.8p23f;  // an addition rounds to integers, in the low bits
  const Floats small = e * by.rest + f_first * by.c_rest + rest * by.c;
  const Floats exponent = e * by.first + f_first * by.c_first + small;
  const Floats rounded = exponent + kRound, n = rounded - kRound;
  const Floats g = ((e * by.first - n) + f_first * by.c_first) + small;

  // 2^g = 1 + g ln 2 + ..., 2^-29 absolute.
  Floats result =
      polynomial(g, {0.000154780221f, 0.00134004317f, 0.00961799451f, 0.0555032722f, 0.240226515f, 0.693147207f, 1});
  const Ints whole = (Ints)rounded - (Ints)every<Floats>(kRound), half = whole >> 1;  // n; 2^n may not be a float
  result = result * power_of_two((Words)half) * power_of_two((Words)(whole - half));

  constexpr float kInfinity = __builtin_inff();
  result = exponent > 129.0f ? every<Floats>(kInfinity) : result;
  result = exponent < -151.0f ? Floats{} : result;
  result = v == 0.0f ? every<Floats>(by.p > 0 ? 0.0f : kInfinity) : result;
  result = v == kInfinity ? every<Floats>(by.p > 0 ? kInfinity : 0.0f) : result;
  return v != v ? v : result;
}
#endif

inline Doubles general_power(Doubles v, const PowerOf& by) {
  for (int i = 0; i < Simd<double>::kLanes; ++i) v[i] = __builtin_pow(v[i], by.p);
  return v;
}

template <typename V>
inline V power(V v, const PowerOf& by) {
  return by.halves != 0 ? power_of_halves(v, by.halves) : general_power(v, by);
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
