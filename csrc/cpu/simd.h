// Vectors of the compiler and what every fast kernel does with them: loads, conversions, transposes, copies with a
// step. Compiled for every instruction set: target_*.h sets the target and defines CONVARITH_ISA (the namespace),
// CONVARITH_BYTES (of a vector) and CONVARITH_REGISTERS. Nothing inline may be shared between those files, so there is
// no std:: and no torch here.
#pragma once

#include <cstdint>

#include "conv_plan.h"

#if CONVARITH_BYTES >= 32
#include <immintrin.h>  // for masks and conversions, which the compiler's vectors have not
#endif

namespace convarith::cpu::CONVARITH_ISA {
namespace {

#define CONVARITH_UNROLL _Pragma("GCC unroll 16")
// What many kernels call for long enough to be compiled once, not in each of them.
#define CONVARITH_ONCE __attribute__((noinline))

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

constexpr int64_t kPastCaches = int64_t{1} << 22;  // bytes of a result of which little is left when it is read

// A whole aligned vector past the caches; fence_past_caches() before another thread reads it.
template <typename T>
inline void store_past_caches(T* p, typename Simd<T>::Vec v) {
#if CONVARITH_BYTES == 64
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#elif CONVARITH_BYTES == 32 && defined(__x86_64__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
#else
  *reinterpret_cast<typename Simd<T>::Vec*>(p) = v;
#endif
}
inline void fence_past_caches() {
#if CONVARITH_BYTES >= 32 && defined(__x86_64__)
  _mm_sfence();
#endif
}

// Has a value loaded once and kept in a register; compilers would rather load it again for each of its uses.
template <typename V>
inline void keep(V& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

// p + step, counted when it is needed; compilers would rather count all of a row of such places first, and keep them.
template <typename T>
inline T* next_place(T* p, int64_t step) {
  p += step;
  asm("" : "+r"(p));
  return p;
}

template <typename T>
inline T least(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
inline T most(T a, T b) {
  return a < b ? b : a;
}

// Asks for a line, to be written where kWrite is 1. A locality of 3 is the first cache's, 2 the second's.
template <int kWrite = 0, int kLocality = 3>
inline __attribute__((always_inline)) void prefetch_line(const void* p) {
  __builtin_prefetch(p, kWrite, kLocality);
  asm volatile("");  // GCC takes a function that only prefetches for one that does nothing, and leaves out its calls
}

// Asks for the lines of `count` entries.
template <int kWrite = 0, typename T>
inline void prefetch(const T* p, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(p);
  for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(T)); i += 64) prefetch_line<kWrite>(bytes + i);
}

// Asks for the lines of `count` entries from the one `ahead` of p on; they may be past the last one.
template <int kLocality = 3, typename T>
inline void prefetch_ahead(const T* p, int64_t ahead, int64_t count = 1) {
  for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(T))) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(ahead + i) * sizeof(T);
    prefetch_line<0, kLocality>(reinterpret_cast<const void*>(at));
  }
}

// The first lanes of v to p: halves of what is left, for processors that have masked stores may take long about them.
template <int kPart, typename T, typename V>
inline __attribute__((always_inline)) void store_parts(T* p, V v, int64_t count) {
  if constexpr (kPart > 0) {
    if (count & kPart) {
      __builtin_memcpy(p, &v, kPart * sizeof(T));
      p += kPart;
      decltype(v < v) rest;
      for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) rest[i] = static_cast<decltype(+rest[0])>(i | kPart);
      v = __builtin_shuffle(v, rest);
    }
    store_parts<kPart / 2>(p, v, count);
  }
}

// The first `count` lanes, fewer than a vector has: nothing past them is touched, and a load gives zeros there.
template <typename T>
inline typename Simd<T>::Vec load_some(const T* p, int64_t count) {
#if CONVARITH_BYTES == 64
  const uint32_t mask = (uint32_t{1} << count) - 1;
  if constexpr (sizeof(T) == 4) {
    return reinterpret_cast<typename Simd<T>::Vec>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p));
  } else {
    return reinterpret_cast<typename Simd<T>::Vec>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p));
  }
#elif CONVARITH_BYTES == 32
  typedef decltype(typename Simd<T>::Vec{} < typename Simd<T>::Vec{}) Index;
  Index lane;
  for (int i = 0; i < Simd<T>::kLanes; ++i) lane[i] = i;
  const auto mask = reinterpret_cast<__m256i>(lane < static_cast<decltype(+lane[0])>(count));
  if constexpr (sizeof(T) == 4) {
    return reinterpret_cast<typename Simd<T>::Vec>(_mm256_maskload_ps(reinterpret_cast<const float*>(p), mask));
  } else {
    return reinterpret_cast<typename Simd<T>::Vec>(_mm256_maskload_pd(reinterpret_cast<const double*>(p), mask));
  }
#else
  typename Simd<T>::Vec v = {};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
#endif
}

template <typename T>
inline void store_some(T* p, typename Simd<T>::Vec v, int64_t count) {
#if CONVARITH_BYTES == 64
  const uint32_t mask = (uint32_t{1} << count) - 1;
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), reinterpret_cast<__m512>(v));
  } else {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), reinterpret_cast<__m512d>(v));
  }
#else
  store_parts<Simd<T>::kLanes / 2>(p, v, count);
#endif
}

template <typename T>
inline void fill_zero(T* to, int64_t count) {
  constexpr int kLanes = Simd<T>::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, typename Simd<T>::Vec{});
  store_some(to + i, typename Simd<T>::Vec{}, count - i);
}

// Half precisions -----------------------------------------------------------------------------------------------------

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

typedef Simd<float>::Vec Floats;
typedef uint32_t Words __attribute__((vector_size(CONVARITH_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(CONVARITH_BYTES / 2)));
typedef uint16_t LooseHalves __attribute__((vector_size(CONVARITH_BYTES / 2), aligned(2), may_alias));

template <typename To, typename From>
inline To as(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// One conversion each way, for a number (Word is uint32_t) and for a vector (Words); tags choose the format.
template <typename Float, typename Word>
inline Float widen_bits(Word bits, Brain16) {
  return as<Float>(bits << 16);
}
template <typename Float, typename Word>
inline Float widen_bits(Word bits, Half16) {
  const Word magnitude = bits & 0x7fffu;
  // The exponent is rebased by a multiplication, which also makes subnormals right; infinities and NaNs separately.
  const Float scaled = as<Float>(magnitude << 13) * as<float>(0x77800000u);  // 2^112
  const Word special = (magnitude << 13) | 0x7f800000u;
  const Word finite = as<Word>(scaled);
  return as<Float>((magnitude >= 0x7c00u ? special : finite) | (bits & 0x8000u) << 16);
}

template <typename Word, typename Float>
inline Word narrow_bits(Float v, Brain16) {  // to nearest, ties to even
  const Word bits = as<Word>(v);
  const Word rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? Word{} + 0x7fc0u : rounded;
}
template <typename Word, typename Float>
inline Word narrow_bits(Float v, Half16) {  // to nearest, ties to even
  const Word bits = as<Word>(v), sign = bits & 0x80000000u, magnitude = bits ^ sign;
  // Normal: rebase the exponent and round in integers. Subnormal: an addition aligns and rounds. Overflow and Inf.
  const Word normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const Word small = as<Word>(as<Float>(magnitude) + 0.5f) - 0x3f000000u;
  Word half = magnitude < 0x38800000u ? small : normal;
  half = magnitude >= 0x477ff000u ? Word{} + 0x7c00u : half;
  half = magnitude > 0x7f800000u ? Word{} + 0x7e00u : half;
  return half | sign >> 16;
}

inline float widen(float v) {
  return v;
}
inline double widen(double v) {
  return v;
}
template <typename T>
inline float widen(T v) {
  return widen_bits<float>(uint32_t{v.bits}, v);
}

inline void narrow(float v, float& out) {
  out = v;
}
inline void narrow(double v, double& out) {
  out = v;
}
template <typename T>
inline void narrow(float v, T& out) {
  out.bits = static_cast<uint16_t>(narrow_bits<uint32_t>(v, out));
}

// Vectors: by the processor's own conversions where it has them.
inline Words words_of(Halves bits) {
#if CONVARITH_BYTES == 64
  return as<Words>(_mm512_maskz_cvtepu16_epi32(0xffff, as<__m256i>(bits)));
#else
  return __builtin_convertvector(bits, Words);
#endif
}
inline Halves halves_of(Words words) {
#if CONVARITH_BYTES == 64
  return as<Halves>(_mm512_maskz_cvtepi32_epi16(0xffff, as<__m512i>(words)));
#else
  return __builtin_convertvector(words, Halves);
#endif
}

template <typename T>
inline Floats widen_halves(Halves bits, T format) {
  return widen_bits<Floats>(words_of(bits), format);
}
template <typename T>
inline Halves narrow_floats(Floats v, T format) {
  return halves_of(narrow_bits<Words>(v, format));
}
#if CONVARITH_BYTES == 64
inline Floats widen_halves(Halves bits, Half16) {
  return as<Floats>(_mm512_maskz_cvtph_ps(0xffff, as<__m256i>(bits)));
}
inline Halves narrow_floats(Floats v, Half16) {
  return as<Halves>(_mm512_maskz_cvtps_ph(0xffff, as<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif CONVARITH_BYTES == 32
inline Floats widen_halves(Halves bits, Half16) {
  return as<Floats>(_mm256_cvtph_ps(as<__m128i>(bits)));
}
inline Halves narrow_floats(Floats v, Half16) {
  return as<Halves>(_mm256_cvtps_ph(as<__m256>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#endif

#if CONVARITH_BF16
inline Halves narrow_floats(Floats v, Brain16) {  // of subnormal numbers zeros, as of their products
  return reinterpret_cast<Halves>(_mm512_maskz_cvtneps_pbh(0xffff, as<__m512>(v)));
}
#endif

// Vectors of sums from memory and to memory, converted.
template <typename T>
inline typename Simd<typename SumOf<T>::type>::Vec load_wide(const T* p) {
  if constexpr (sizeof(T) == 2) {
    return widen_halves(*reinterpret_cast<const LooseHalves*>(p), T{});
  } else {
    return load(p);
  }
}

#if CONVARITH_BYTES == 64
// Lanes [begin, end) of the vector at p, zeros elsewhere: where nothing else is read, p may be off the tensor's ends.
template <typename T>
inline typename Simd<typename SumOf<T>::type>::Vec load_between(uintptr_t p, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = Simd<typename SumOf<T>::type>::kLanes;
  begin = most<int64_t>(0, least(begin, kLanes));
  end = most(begin, least(end, kLanes));
  const uint32_t mask = (uint32_t{1} << end) - (uint32_t{1} << begin);
  if constexpr (sizeof(T) == 2) {
    const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), reinterpret_cast<const void*>(p));
    return widen_halves(reinterpret_cast<Halves>(bits), T{});
  } else if constexpr (sizeof(T) == 4) {
    const __m512 v = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), reinterpret_cast<const void*>(p));
    return reinterpret_cast<typename Simd<typename SumOf<T>::type>::Vec>(v);
  } else {
    const __m512d v = _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), reinterpret_cast<const void*>(p));
    return reinterpret_cast<typename Simd<T>::Vec>(v);
  }
}
#endif

#if CONVARITH_BYTES < 64
// Fewer than a vector has, in words of four.
template <typename T>
inline Halves some_halves(const T* p, int64_t count) {
  uint64_t words[sizeof(Halves) / 8] = {};
  int64_t word = 0;
  for (; count >= 4; count -= 4, p += 4) __builtin_memcpy(&words[word++], p, 8);
  uint32_t two = 0;
  uint16_t one = 0;
  if (count & 2) __builtin_memcpy(&two, p, 4);
  if (count & 1) __builtin_memcpy(&one, p + (count & 2), 2);
  if (count > 0) words[word] = count & 2 ? two | uint64_t{one} << 32 : one;
  Halves bits;
  __builtin_memcpy(&bits, words, sizeof(bits));
  return bits;
}
#endif

template <typename T>
inline typename Simd<typename SumOf<T>::type>::Vec load_wide_some(const T* p, int64_t count) {
#if CONVARITH_BYTES == 64
  return load_between<T>(reinterpret_cast<uintptr_t>(p), 0, count);
#else
  if constexpr (sizeof(T) == 2) {
    return widen_halves(some_halves(p, count), T{});
  } else {
    return load_some(p, count);
  }
#endif
}

template <typename T>
inline void store_narrow(T* p, typename Simd<typename SumOf<T>::type>::Vec v) {
  if constexpr (sizeof(T) == 2) {
    *reinterpret_cast<LooseHalves*>(p) = narrow_floats(v, T{});
  } else {
    store(p, v);
  }
}

template <typename T>
inline void store_narrow_some(T* p, typename Simd<typename SumOf<T>::type>::Vec v, int64_t count) {
  if constexpr (sizeof(T) == 2) {
#if CONVARITH_BYTES == 64
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    _mm256_mask_storeu_epi16(p, mask, as<__m256i>(narrow_floats(v, T{})));
#else
    store_parts<Simd<float>::kLanes / 2>(p, narrow_floats(v, T{}), count);
#endif
  } else {
    store_some(p, v, count);
  }
}

// The bits of a half precision that are all ones in infinities and NaNs only.
inline uint16_t exponent_bits(Brain16) {
  return 0x7f80;
}
inline uint16_t exponent_bits(Half16) {
  return 0x7c00;
}

template <typename T>
bool finite(const void* data, int64_t count) {
  const T* v = static_cast<const T*>(data);
  int64_t i = 0;
  if constexpr (sizeof(T) == 2) {
    typedef typename Simd<uint16_t>::Vec V;
    const uint16_t exponent = exponent_bits(T{});
    V smallest = V{} + exponent;  // how far an exponent is from all ones
    for (; i + Simd<uint16_t>::kLanes <= count; i += Simd<uint16_t>::kLanes) {
      const V rest = ~load(&v[i].bits) & exponent;
      smallest = rest < smallest ? rest : smallest;
    }
    bool ok = true;
    for (int j = 0; j < Simd<uint16_t>::kLanes; ++j) ok = ok && smallest[j] != 0;
    for (; i < count; ++i) ok = ok && (~v[i].bits & exponent) != 0;
    return ok;
  } else {
    typedef typename Simd<T>::Vec V;
    T bad = 0;  // v - v is 0, or NaN for an infinity or a NaN
    V sums[4] = {};
    for (; i + 4 * Simd<T>::kLanes <= count; i += 4 * Simd<T>::kLanes) {
      CONVARITH_UNROLL for (int j = 0; j < 4; ++j) {
        const V x = load(v + i + j * Simd<T>::kLanes);
        sums[j] += x - x;
      }
    }
    const V sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int j = 0; j < Simd<T>::kLanes; ++j) bad += sum[j];
    for (; i < count; ++i) bad += v[i] - v[i];
    return bad == 0;
  }
}

// Divisions by steps, which mostly are 1.
inline int64_t steps_up(int64_t size, int64_t step) {
  return step == 1 ? size : (size + step - 1) / step;
}

inline int64_t block_count(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}
inline int64_t block_begin(int64_t index, int64_t size, int64_t blocks) {
  return index * size / blocks;
}

// A number that a generic lambda takes as a type.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Copies ------------------------------------------------------------------------------------------------------------

// Vectors as the rows of a matrix, transposed: first the squares within the 16 bytes that processors shuffle at the
// least cost, by perfect shuffles; then these parts of the vectors change places.
template <typename T>
inline __attribute__((always_inline)) void transpose_vectors(typename Simd<T>::Vec (&v)[Simd<T>::kLanes]) {
  constexpr int kLanes = Simd<T>::kLanes, kSquare = 16 / sizeof(T), kParts = kLanes / kSquare;
  static_assert(kParts == 1 || kParts == 2 || kParts == 4, "a vector has 16, 32 or 64 bytes");
  typedef typename Simd<T>::Vec V;
  typedef decltype(V{} < V{}) Index;
  Index low, high;
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i / kSquare * kSquare + i % kSquare / 2 + i % 2 * kLanes;
    high[i] = low[i] + kSquare / 2;
  }
  CONVARITH_UNROLL for (int stage = 1; stage < kSquare; stage *= 2) {
    V next[kLanes];
    CONVARITH_UNROLL for (int i = 0; i < kLanes / 2; ++i) {
      const int first = i / (kSquare / 2) * kSquare + i % (kSquare / 2);
      next[2 * i] = __builtin_shuffle(v[first], v[first + kSquare / 2], low);
      next[2 * i + 1] = __builtin_shuffle(v[first], v[first + kSquare / 2], high);
    }
    CONVARITH_UNROLL for (int i = 0; i < kLanes; ++i) v[i] = next[i];
  }
  if constexpr (kParts == 4) {  // the halves of two neighbours
    for (int i = 0; i < kLanes; ++i) {
      low[i] = i % (kLanes / 2) + i / (kLanes / 2) * kLanes;
      high[i] = low[i] + kLanes / 2;
    }
    CONVARITH_UNROLL for (int i = 0; i < kLanes; ++i) {
      if (i / kSquare % 2 == 1) continue;
      const V first = v[i];
      v[i] = __builtin_shuffle(first, v[i + kSquare], low);
      v[i + kSquare] = __builtin_shuffle(first, v[i + kSquare], high);
    }
  }
  if constexpr (kParts > 1) {  // every second part of those that stand half of all apart
    for (int i = 0; i < kLanes; ++i) {
      low[i] = i / kSquare * 2 * kSquare + i % kSquare;
      high[i] = low[i] + kSquare;
    }
    V next[kLanes];
    CONVARITH_UNROLL for (int i = 0; i < kLanes / 2; ++i) {
      const int to = i / kSquare * 2 * kSquare + i % kSquare;
      next[to] = __builtin_shuffle(v[i], v[i + kLanes / 2], low);
      next[to + kSquare] = __builtin_shuffle(v[i], v[i + kLanes / 2], high);
    }
    CONVARITH_UNROLL for (int i = 0; i < kLanes; ++i) v[i] = next[i];
  }
}

// to[i] = sum of the lanes of vectors[i].
template <typename Sum>
inline void add_lanes(const Sum* vectors, int64_t count, Sum* to) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  typename Simd<Sum>::Vec v[kLanes];
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t some = least<int64_t>(kLanes, count - i);
    CONVARITH_UNROLL for (int j = 0; j < kLanes; ++j) {
      v[j] = j < some ? load(vectors + (i + j) * kLanes) : typename Simd<Sum>::Vec{};
    }
    transpose_vectors<Sum>(v);
    CONVARITH_UNROLL for (int apart = kLanes / 2; apart > 0; apart /= 2) {
      CONVARITH_UNROLL for (int j = 0; j < apart; ++j) v[j] += v[j + apart];
    }
    some == kLanes ? store(to + i, v[0]) : store_some(to + i, v[0], some);
  }
}

// Transposing: to[i * to_pitch + r] = from[r * from_pitch + i]. From is a pointer, or Pairs of conv_factor.h. Where
// kFar, whole vectors, which must be aligned, go past the caches.
template <bool kFar = false, typename From, typename Sum>
inline __attribute__((always_inline)) void transpose(From from, int64_t from_pitch, int64_t rows, int64_t count,
                                                     Sum* to, int64_t to_pitch) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  typename Simd<Sum>::Vec v[kLanes];
  for (int64_t row = 0; row < rows; row += kLanes) {
    const int64_t high = least<int64_t>(kLanes, rows - row);
    for (int64_t i = 0; i < count; i += kLanes) {
      const int64_t wide = least<int64_t>(kLanes, count - i);
      const From in = from + (row * from_pitch + i);
      Sum* out = to + i * to_pitch + row;
      if (high == kLanes && wide == kLanes) {
        CONVARITH_UNROLL for (int r = 0; r < kLanes; ++r) v[r] = load_wide(in + r * from_pitch);
      } else {
        CONVARITH_UNROLL for (int r = 0; r < kLanes; ++r) {
          v[r] = r >= high        ? typename Simd<Sum>::Vec{}
                 : wide == kLanes ? load_wide(in + r * from_pitch)
                                  : load_wide_some(in + r * from_pitch, wide);
        }
      }
      transpose_vectors<Sum>(v);
      if (high == kLanes && wide == kLanes) {
        CONVARITH_UNROLL for (int c = 0; c < kLanes; ++c) {
          kFar ? store_past_caches(out + c * to_pitch, v[c]) : store(out + c * to_pitch, v[c]);
        }
      } else {
        CONVARITH_UNROLL for (int c = 0; c < kLanes; ++c) {
          if (c >= wide) break;
          high == kLanes ? store(out + c * to_pitch, v[c]) : store_some(out + c * to_pitch, v[c], high);
        }
      }
    }
  }
}

// Every second entry of two vectors; and those beginning with the second.
template <typename T>
inline typename Simd<T>::Vec evens(typename Simd<T>::Vec a, typename Simd<T>::Vec b) {
  typedef decltype(a < b) Index;
  Index index;
  for (int i = 0; i < Simd<T>::kLanes; ++i) index[i] = 2 * i;
  return __builtin_shuffle(a, b, index);
}

template <typename T>
inline typename Simd<T>::Vec odds(typename Simd<T>::Vec a, typename Simd<T>::Vec b) {
  typedef decltype(a < b) Index;
  Index index;
  for (int i = 0; i < Simd<T>::kLanes; ++i) index[i] = 2 * i + 1;
  return __builtin_shuffle(a, b, index);
}

// Columns of a dense matrix, [row][column]: to[column][row] = from[row * columns + column], where `to` has a place for
// the column. kWide columns at a time: fewer leave lanes empty, of more the last are taken again. Rows that fill a
// vector are split into evens and odds until every vector is of one column.
template <int kWide, typename From, typename To>
inline void split_columns_by(From from, int64_t rows, int64_t columns, To* const* to) {
  constexpr int kLanes = Simd<To>::kLanes, kTogether = kLanes / kWide;  // rows of a vector
  typedef typename Simd<To>::Vec V;
  typedef decltype(V{} < V{}) Index;
  const int64_t wide = least<int64_t>(columns, kWide);
  Index places;
  for (int i = 0; i < kLanes; ++i) places[i] = i / kWide * wide + i % kWide;
  for (int64_t row = 0; row < rows; row += kLanes) {
    const int64_t high = least<int64_t>(kLanes, rows - row);
    for (int64_t begin = 0; begin < columns; begin += kWide) {
      const int64_t first = least(begin, columns - wide);
      V v[kWide];
      const int64_t at = row * columns + first, apart = kTogether * columns;
      if (high == kLanes) {  // all but the last are whole, for kWide <= 2 * columns
        CONVARITH_UNROLL for (int i = 0; i < kWide - 1; ++i) v[i] = load_wide(from + (at + i * apart));
        const int64_t last = at + (kWide - 1) * apart, left = rows * columns - last;
        v[kWide - 1] = left >= kLanes ? load_wide(from + last) : load_wide_some(from + last, left);
      } else {
        CONVARITH_UNROLL for (int i = 0; i < kWide; ++i) {
          const int64_t left = rows * columns - at - i * apart;
          v[i] = left >= kLanes ? load_wide(from + (at + i * apart))
                 : left > 0     ? load_wide_some(from + (at + i * apart), left)
                                : V{};
        }
      }
      if (kTogether > 1) {
        CONVARITH_UNROLL for (int i = 0; i < kWide; ++i) v[i] = __builtin_shuffle(v[i], places);
      }
      CONVARITH_UNROLL for (int stage = 1; stage < kWide; stage *= 2) {
        V next[kWide];
        CONVARITH_UNROLL for (int i = 0; i < kWide / 2; ++i) {
          next[i] = evens<To>(v[2 * i], v[2 * i + 1]);
          next[i + kWide / 2] = odds<To>(v[2 * i], v[2 * i + 1]);
        }
        CONVARITH_UNROLL for (int i = 0; i < kWide; ++i) v[i] = next[i];
      }
      CONVARITH_UNROLL for (int i = 0; i < kWide; ++i) {
        if (i >= wide || to[first + i] == nullptr) continue;
        high == kLanes ? store(to[first + i] + row, v[i]) : store_some(to[first + i] + row, v[i], high);
      }
    }
  }
}

template <typename From, typename To, int kWide = 2>
inline void split_columns(From from, int64_t rows, int64_t columns, To* const* to) {
  if constexpr (kWide < Simd<To>::kLanes) {
    if (columns > kWide) return split_columns<From, To, 2 * kWide>(from, rows, columns, to);
  }
  split_columns_by<kWide>(from, rows, columns, to);
}

// `count` entries, `step` apart, converted.
template <typename T, typename Sum>
inline void copy_run(const T* from, int64_t step, int64_t count, Sum* to) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  int64_t i = 0;
  if (step == 1) {
    for (; i + kLanes <= count; i += kLanes) store(to + i, load_wide(from + i));
    // A load of nothing would still bring a line.
    if (i < count) store_some(to + i, load_wide_some(from + i, count - i), count - i);
    return;
  }
  if constexpr (sizeof(T) == sizeof(Sum)) {
    // The entry after the last vector is read too, so that nothing past the last entry is.
    if (step == 2) {
      for (; i + kLanes < count; i += kLanes) {
        store(to + i, evens<Sum>(load(from + 2 * i), load(from + 2 * i + kLanes)));
      }
#if CONVARITH_BYTES >= 32
      if (i < count) {
        const int64_t rest = count - i, more = 2 * rest - 1 - kLanes;  // more: of the second vector
        const auto low = more < 0 ? load_wide_some(from + 2 * i, 2 * rest - 1) : load(from + 2 * i);
        const auto v = evens<Sum>(low, more > 0 ? load_wide_some(from + 2 * i + kLanes, more) : low);
        return rest == kLanes ? store(to + i, v) : store_some(to + i, v, rest);
      }
#endif
    } else if (step == 4) {
      for (; i + kLanes < count; i += kLanes) {
        const T* in = from + 4 * i;
        store(to + i, evens<Sum>(evens<Sum>(load(in), load(in + kLanes)),
                                 evens<Sum>(load(in + 2 * kLanes), load(in + 3 * kLanes))));
      }
      typedef Sum V4 __attribute__((vector_size(4 * sizeof(Sum))));
      typedef Sum Loose4 __attribute__((vector_size(4 * sizeof(Sum)), aligned(alignof(Sum)), may_alias));
      for (; i + 4 <= count; i += 4) {
        const T* in = from + 4 * i;
        *reinterpret_cast<Loose4*>(to + i) = V4{widen(in[0]), widen(in[4]), widen(in[8]), widen(in[12])};
      }
    }
  }
  if (step == 2) {
    for (; i < count; ++i) to[i] = widen(from[2 * i]);
  } else {
    for (; i < count; ++i) to[i] = widen(from[i * step]);
  }
}

// And back: `count` sums to entries `step` apart.
template <typename Sum, typename T>
inline void scatter_run(const Sum* from, int64_t count, T* to, int64_t step) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  int64_t i = 0;
#if CONVARITH_BYTES == 64
  if constexpr (sizeof(T) == 2) {
    if (step == 2) {  // every second half of a vector's words; the others are not touched
      for (; i < count; i += kLanes) {
        const uint32_t mask = count - i >= kLanes ? ~0u : (1u << 2 * (count - i)) - 1;
        const Words words =
            words_of(narrow_floats(count - i >= kLanes ? load(from + i) : load_some(from + i, count - i), T{}));
        _mm512_mask_storeu_epi16(to + 2 * i, mask & 0x55555555u, as<__m512i>(words));
      }
      return;
    }
  }
#endif
  if (step != 1) {
    for (; i < count; ++i) narrow(from[i], to[i * step]);
    return;
  }
  for (; i + kLanes <= count; i += kLanes) store_narrow(to + i, load(from + i));
  if (i < count) store_narrow_some(to + i, load_some(from + i, count - i), count - i);
}

// Transposing to narrower numbers.
template <typename Sum, typename T>
inline void transpose_narrow(const Sum* from, int64_t from_pitch, int64_t rows, int64_t count, T* to,
                             int64_t to_pitch) {
  if constexpr (sizeof(T) == sizeof(Sum)) {
    transpose(from, from_pitch, rows, count, to, to_pitch);
  } else {
    constexpr int kStrip = 32, kLanes = Simd<Sum>::kLanes;
    Sum strip[kLanes * kStrip];
    for (int64_t r = 0; r < rows; r += kStrip) {
      const int64_t high = least<int64_t>(kStrip, rows - r);
      for (int64_t begin = 0; begin < count; begin += kLanes) {
        const int64_t wide = least<int64_t>(kLanes, count - begin);
        transpose(from + r * from_pitch + begin, from_pitch, high, wide, strip, kStrip);
        for (int64_t i = 0; i < wide; ++i) scatter_run(strip + i * kStrip, high, to + (begin + i) * to_pitch + r, 1);
      }
    }
  }
}

// A row of `size` cells, zeros but for [begin, end), which hold the entries from `from` on.
template <typename T, typename Sum>
inline void copy_padded(const T* from, int64_t step, int64_t begin, int64_t end, int64_t size, Sum* to) {
#if CONVARITH_BYTES == 64
  if (step == 1) {
    constexpr int64_t kLanes = Simd<Sum>::kLanes;
    const uintptr_t row = reinterpret_cast<uintptr_t>(from) - static_cast<uintptr_t>(begin) * sizeof(T);
    for (int64_t x = 0; x < size; x += kLanes) {
      const auto v = load_between<T>(row + static_cast<uintptr_t>(x) * sizeof(T), begin - x, end - x);
      if (x + kLanes <= size) {
        store(to + x, v);
      } else {
        store_some(to + x, v, size - x);
      }
    }
    return;
  }
#endif
  fill_zero(to, begin);
  copy_run(from, step, end - begin, to + begin);
  fill_zero(to + end, size - end);
}

template <typename T>
inline void add_run(const T* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
