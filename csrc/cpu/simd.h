// Vectors of the compiler and what every fast kernel does with them: loads, conversions, transposes, copies with a
// step. Compiled for every instruction set; the including file sets the target and defines CONVARITH_ISA (the
// namespace), CONVARITH_BYTES (of a vector) and CONVARITH_REGISTERS. Nothing inline may be shared between those files,
// so there is no std:: and no torch here.
#pragma once

#include <cstdint>

#include "conv_plan.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

#define CONVARITH_UNROLL _Pragma("GCC unroll 16")

// Vectors of T; Loose ones may stand anywhere in memory.
template <typename T>
struct Simd {
  typedef T Vec __attribute__((vector_size(CONVARITH_BYTES)));
  typedef T Loose __attribute__((vector_size(CONVARITH_BYTES), aligned(alignof(T)), may_alias));
  static constexpr int kLanes = CONVARITH_BYTES / sizeof(T);
};

template <typename T>
inline typename Simd<T>::Vec load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Loose*>(p);
}

template <typename T>
inline void store(T* p, typename Simd<T>::Vec v) {
  *reinterpret_cast<typename Simd<T>::Loose*>(p) = v;
}

template <typename T>
inline T least(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
inline T most(T a, T b) {
  return a < b ? b : a;
}

// Sums of floats for the half precisions.
template <typename T>
struct SumOf {
  typedef T type;
};
template <>
struct SumOf<Half16> {
  typedef float type;
};
template <>
struct SumOf<Brain16> {
  typedef float type;
};

inline float as_float(uint32_t bits) {
  float f;
  __builtin_memcpy(&f, &bits, sizeof(f));
  return f;
}

inline uint32_t as_bits(float f) {
  uint32_t bits;
  __builtin_memcpy(&bits, &f, sizeof(bits));
  return bits;
}

inline float widen(float v) {
  return v;
}
inline double widen(double v) {
  return v;
}
inline float widen(Brain16 v) {
  return as_float(static_cast<uint32_t>(v.bits) << 16);
}
inline float widen(Half16 v) {
  const uint32_t magnitude = v.bits & 0x7fffu;
  // The exponent is rebased by a multiplication, which also makes subnormals right; infinities and NaNs separately.
  const float scaled = as_float(magnitude << 13) * as_float(0x77800000u);  // 2^112
  const uint32_t bits = magnitude >= 0x7c00u ? (magnitude << 13) | 0x7f800000u : as_bits(scaled);
  return as_float(bits | static_cast<uint32_t>(v.bits & 0x8000u) << 16);
}

inline void narrow(float v, float& out) {
  out = v;
}
inline void narrow(double v, double& out) {
  out = v;
}
inline void narrow(float v, Brain16& out) {  // to nearest, ties to even
  const uint32_t bits = as_bits(v);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
inline void narrow(float v, Half16& out) {  // to nearest, ties to even
  const uint32_t bits = as_bits(v), sign = bits & 0x80000000u, magnitude = bits ^ sign;
  // Normal: rebase the exponent and round in integers. Subnormal: an addition aligns and rounds. Overflow and Inf.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t small = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? small : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  out.bits = static_cast<uint16_t>(half | sign >> 16);
}

template <typename T>
bool finite(const void* data, int64_t count) {
  const T* v = static_cast<const T*>(data);
  typedef typename SumOf<T>::type Sum;
  Sum bad = 0;  // v - v is 0, or NaN for an infinity or a NaN
  int64_t i = 0;
  if constexpr (sizeof(T) == sizeof(Sum)) {
    typedef typename Simd<T>::Vec V;
    V sums[4] = {};
    for (; i + 4 * Simd<T>::kLanes <= count; i += 4 * Simd<T>::kLanes) {
      CONVARITH_UNROLL for (int j = 0; j < 4; ++j) {
        const V x = load(v + i + j * Simd<T>::kLanes);
        sums[j] += x - x;
      }
    }
    const V sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int j = 0; j < Simd<T>::kLanes; ++j) bad += sum[j];
  }
  for (; i < count; ++i) {
    const Sum x = widen(v[i]);
    bad += x - x;
  }
  return bad == 0;
}

inline int64_t block_count(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}
inline int64_t block_begin(int64_t index, int64_t size, int64_t blocks) {
  return index * size / blocks;
}

// Transposing: to[i * to_pitch + r] = from[r * from_pitch + i].
template <typename T, typename Sum>
inline void transpose(const T* from, int64_t from_pitch, int64_t rows, int64_t count, Sum* to, int64_t to_pitch) {
  int64_t row = 0;
  if constexpr (sizeof(T) == 4) {
    typedef float V4 __attribute__((vector_size(16)));
    typedef float Loose4 __attribute__((vector_size(16), aligned(4), may_alias));
    typedef int32_t I4 __attribute__((vector_size(16)));
    const auto load4 = [](const T* p) { return static_cast<V4>(*reinterpret_cast<const Loose4*>(p)); };
    const auto store4 = [](Sum* p, V4 v) { *reinterpret_cast<Loose4*>(p) = v; };
    for (; row + 4 <= rows; row += 4) {
      const T* in = from + row * from_pitch;
      Sum* out = to + row;
      int64_t i = 0;
      for (; i + 4 <= count; i += 4) {
        const V4 a = load4(in + i), b = load4(in + from_pitch + i);
        const V4 c = load4(in + 2 * from_pitch + i), d = load4(in + 3 * from_pitch + i);
        const V4 ab_lo = __builtin_shuffle(a, b, I4{0, 4, 1, 5}), ab_hi = __builtin_shuffle(a, b, I4{2, 6, 3, 7});
        const V4 cd_lo = __builtin_shuffle(c, d, I4{0, 4, 1, 5}), cd_hi = __builtin_shuffle(c, d, I4{2, 6, 3, 7});
        store4(out + i * to_pitch, __builtin_shuffle(ab_lo, cd_lo, I4{0, 1, 4, 5}));
        store4(out + (i + 1) * to_pitch, __builtin_shuffle(ab_lo, cd_lo, I4{2, 3, 6, 7}));
        store4(out + (i + 2) * to_pitch, __builtin_shuffle(ab_hi, cd_hi, I4{0, 1, 4, 5}));
        store4(out + (i + 3) * to_pitch, __builtin_shuffle(ab_hi, cd_hi, I4{2, 3, 6, 7}));
      }
      for (; i < count; ++i) {
        for (int r = 0; r < 4; ++r) out[i * to_pitch + r] = widen(in[r * from_pitch + i]);
      }
    }
  }
  for (; row < rows; ++row) {
    for (int64_t i = 0; i < count; ++i) to[i * to_pitch + row] = widen(from[row * from_pitch + i]);
  }
}

// Every second entry of two vectors.
template <typename T>
inline typename Simd<T>::Vec evens(typename Simd<T>::Vec a, typename Simd<T>::Vec b) {
  typedef decltype(a < b) Index;
  Index index;
  for (int i = 0; i < Simd<T>::kLanes; ++i) index[i] = 2 * i;
  return __builtin_shuffle(a, b, index);
}

// `count` entries, `step` apart, converted.
template <typename T, typename Sum>
inline void copy_run(const T* from, int64_t step, int64_t count, Sum* to) {
  int64_t i = 0;
  if constexpr (sizeof(T) == sizeof(Sum)) {
    constexpr int kLanes = Simd<Sum>::kLanes;
    // The entry after the last vector is read too, so that nothing past the last entry is.
    if (step == 2) {
      for (; i + kLanes < count; i += kLanes) {
        store(to + i, evens<Sum>(load(from + 2 * i), load(from + 2 * i + kLanes)));
      }
    } else if (step == 4) {
      for (; i + kLanes < count; i += kLanes) {
        const Sum* in = from + 4 * i;
        store(to + i, evens<Sum>(evens<Sum>(load(in), load(in + kLanes)),
                                 evens<Sum>(load(in + 2 * kLanes), load(in + 3 * kLanes))));
      }
      typedef Sum V4 __attribute__((vector_size(4 * sizeof(Sum))));
      typedef Sum Loose4 __attribute__((vector_size(4 * sizeof(Sum)), aligned(alignof(Sum)), may_alias));
      for (; i + 4 <= count; i += 4) {
        const Sum* in = from + 4 * i;
        *reinterpret_cast<Loose4*>(to + i) = V4{in[0], in[4], in[8], in[12]};
      }
    }
  }
  if (step == 1) {
    for (; i < count; ++i) to[i] = widen(from[i]);
  } else if (step == 2) {
    for (; i < count; ++i) to[i] = widen(from[2 * i]);
  } else {
    for (; i < count; ++i) to[i] = widen(from[i * step]);
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
