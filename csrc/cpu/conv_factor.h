// What the direct products are made of: numbers of the sums' type; or, where the processor multiplies them, pairs of
// bfloat16, whose product is the sum of two products in float32. An instruction set with vdpbf16ps sets CONVARITH_BF16.
#pragma once

#include "simd.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// What tiles, weights and panels of T are packed as, of kMembers numbers each; at() is where they are read from.
template <typename T>
struct FactorOf {
  typedef typename SumOf<T>::type type;
  static constexpr int kMembers = 1;
  static const T* at(const T* first, const T*) { return first; }
};

template <typename V>
inline V multiply_add(V sum, V a, V b) {
  return sum + a * b;
}

#if CONVARITH_BF16
// The first number in the lower half. As in torch's own products, subnormal numbers and sums count as zeros.
template <>
struct SumOf<uint32_t> {
  typedef float type;
};
inline Floats multiply_add(Floats sum, Words a, Words b) {
  return reinterpret_cast<Floats>(
      _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
}

// To bfloat16, the first ones in the lower half.
inline __m512i round_sums(Floats first, Floats second) {
  return reinterpret_cast<__m512i>(
      _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first)));
}

struct Pair {
  uint32_t bits;
};
inline uint32_t widen(Pair pair) {
  return pair.bits;
}

// Pair i is made of first[i] and second[i]; a null pointer stands for zeros.
struct Pairs {
  const Brain16* first;
  const Brain16* second;

  Pair operator[](int64_t i) const {
    return {(first == nullptr ? 0u : first[i].bits) | (second == nullptr ? 0u : uint32_t{second[i].bits} << 16)};
  }
  Pairs operator+(int64_t i) const {
    return {first == nullptr ? nullptr : first + i, second == nullptr ? nullptr : second + i};
  }
};

template <>
struct FactorOf<Brain16> {
  typedef uint32_t type;
  static constexpr int kMembers = 2;
  static Pairs at(const Brain16* first, const Brain16* second) { return {first, second}; }
};

// Pairs that stand in memory as such, which begin at any number.
struct __attribute__((packed, may_alias)) Word {
  uint32_t bits;
};
template <>
struct SumOf<Word> {
  typedef uint32_t type;
};
inline uint32_t widen(Word word) {
  return word.bits;
}
inline Words load(const Word* p) {
  return reinterpret_cast<Words>(_mm512_loadu_si512(p));
}

inline void prefetch(Pairs from, int64_t count) {
  if (from.first != nullptr) prefetch(from.first, count);
  if (from.second != nullptr) prefetch(from.second, count);
}

// bfloat16 widened to float stands in the upper half.
inline Words pair_words(Floats first, Floats second) {
  return reinterpret_cast<Words>(first) >> 16 | reinterpret_cast<Words>(second);
}
inline Words load_wide(Pairs p) {
  return pair_words(p.first == nullptr ? Floats{} : load_wide(p.first),
                    p.second == nullptr ? Floats{} : load_wide(p.second));
}
inline Words load_wide_some(Pairs p, int64_t count) {
  return pair_words(p.first == nullptr ? Floats{} : load_wide_some(p.first, count),
                    p.second == nullptr ? Floats{} : load_wide_some(p.second, count));
}
inline void copy_run(Pairs from, int64_t step, int64_t count, uint32_t* to) {
  int64_t i = 0;
  if (step == 1) {
    for (; i + 16 <= count; i += 16) store(to + i, load_wide(from + i));
    store_some(to + i, load_wide_some(from + i, count - i), count - i);
    return;
  }
  for (; i < count; ++i) to[i] = widen(from[i * step]);
}
#endif

// Cells [begin, end) of a row hold the numbers from `at` on; the others are zeros.
template <typename T>
struct RowPart {
  const T* at;
  int64_t begin, end;
};

// A row of `size` cells of factors, numbers of a member `step` apart.
template <typename T, typename Factor>
inline void copy_parts(const RowPart<T> (&part)[1], int64_t step, int64_t size, Factor* row) {
  if (part[0].end - part[0].begin == size) return copy_run(part[0].at, step, size, row);
  copy_padded(part[0].at, step, part[0].begin, part[0].end, size, row);
}
#if CONVARITH_BF16
// Numbers of 16 cells, kStep apart, that a mask of halves has; the other cells are zeros, and nothing else is read.
inline uint32_t cells_mask(int64_t step, int64_t begin, int64_t end) {
  const uint64_t halves = (uint64_t{1} << step * end) - (uint64_t{1} << step * begin);
  return static_cast<uint32_t>(halves) & (step == 1 ? ~0u : 0x55555555u);
}
template <int kStep>
inline Words masked_cells(uintptr_t from, uint32_t mask) {
  const void* at = reinterpret_cast<const void*>(from);
  if constexpr (kStep == 2) return reinterpret_cast<Words>(_mm512_maskz_loadu_epi16(mask, at));
  return words_of(reinterpret_cast<Halves>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), at)));
}

// Cells [x, x + 16) of a part.
template <int kStep>
inline Words load_cells(const RowPart<Brain16>& part, int64_t x) {
  const int64_t begin = most<int64_t>(0, part.begin - x), end = least<int64_t>(part.end - x, 16);
  if (begin >= end) return Words{};  // a masked load is slow where there is no memory, even if it loads nothing
  const uintptr_t p = reinterpret_cast<uintptr_t>(part.at) + static_cast<uintptr_t>((x - part.begin) * kStep * 2);
  return masked_cells<kStep>(p, cells_mask(kStep, begin, end));
}

// The same of numbers further apart. A word is read for each, but not for the last, behind which nothing may be read.
inline Words load_far_cells(const RowPart<Brain16>& part, int64_t x, int64_t step) {
  const int64_t begin = most<int64_t>(0, part.begin - x), end = least<int64_t>(part.end - 1 - x, 16);
  const uintptr_t p = reinterpret_cast<uintptr_t>(part.at) + static_cast<uintptr_t>((x - part.begin) * step * 2);
  Words cells = {};
  if (begin < end) {
    const uint32_t mask = (uint32_t{1} << end) - (uint32_t{1} << begin);
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i at = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(step)));
    cells = reinterpret_cast<Words>(_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), static_cast<__mmask16>(mask),
                                                                at, reinterpret_cast<const void*>(p), 2));
    cells &= 0xffffu;
  }
  const int64_t last = part.end - 1 - x;
  if (last >= most<int64_t>(0, part.begin - x) && last < 16)
    cells[last] = part.at[(part.end - 1 - part.begin) * step].bits;
  return cells;
}

template <int kStep>
inline void copy_cells(const RowPart<Brain16> (&part)[2], int64_t size, uint32_t* row) {
  for (int64_t x = 0; x < size; x += 16) {
    const Words cells = load_cells<kStep>(part[0], x) | load_cells<kStep>(part[1], x) << 16;
    x + 16 <= size ? store(row + x, cells) : store_some(row + x, cells, size - x);
  }
}

inline void copy_parts(const RowPart<Brain16> (&part)[2], int64_t step, int64_t size, uint32_t* row) {
  if (step == 1) return copy_cells<1>(part, size, row);
  if (step == 2) return copy_cells<2>(part, size, row);
  for (int64_t x = 0; x < size; x += 16) {
    const Words cells = load_far_cells(part[0], x, step) | load_far_cells(part[1], x, step) << 16;
    x + 16 <= size ? store(row + x, cells) : store_some(row + x, cells, size - x);
  }
}
#endif

// Parts of rows whose numbers are `step_y` apart.
template <typename T, int kMembers, typename Use>
inline void for_rows(const RowPart<T> (&part)[kMembers], int64_t step_y, int64_t rows, const Use& use) {
  for (int64_t i = 0; i < rows; ++i) {
    RowPart<T> row[kMembers];
    for (int m = 0; m < kMembers; ++m) {
      row[m] = part[m];
      if (part[m].at != nullptr) row[m].at += i * step_y;
    }
    use(row, i);
  }
}

// Rows of `size` cells, `pitch` apart, whose members have numbers, if any, in cells [begin[m], end[m]).
template <typename T>
class CopyRows {
 public:
  CopyRows(const int64_t*, const int64_t*, int64_t step, int64_t size) : step_(step), size_(size) {}

  template <typename Factor>
  void operator()(const RowPart<T> (&part)[1], int64_t step_y, int64_t rows, Factor* to, int64_t pitch) const {
    for_rows(part, step_y, rows, [&](const auto& row, int64_t i) { copy_parts(row, step_, size_, to + i * pitch); });
  }

 private:
  int64_t step_, size_;
};
#if CONVARITH_BF16
template <>
class CopyRows<Brain16> {
 public:
  CopyRows(const int64_t* begin, const int64_t* end, int64_t step, int64_t size)
      : step_(step), size_(size), is_short_(size <= 16 && (step == 1 || step == 2)) {
    if (!is_short_) return;
    for (int m = 0; m < 2; ++m) {
      shift_[m] = static_cast<uintptr_t>(begin[m] * step) * sizeof(Brain16);
      mask_[m] = cells_mask(step, begin[m], end[m]);
    }
  }

  void operator()(const RowPart<Brain16> (&part)[2], int64_t step_y, int64_t rows, uint32_t* to, int64_t pitch) const {
    if (!is_short_) {
      for_rows(part, step_y, rows, [&](const auto& row, int64_t i) { copy_parts(row, step_, size_, to + i * pitch); });
    } else if (step_ == 1) {
      copy_short<1>(part, step_y, rows, to, pitch);
    } else {
      copy_short<2>(part, step_y, rows, to, pitch);
    }
  }

 private:
  // Rows of a vector's cells, for all of which the masks are the same.
  template <int kStep>
  void copy_short(const RowPart<Brain16> (&part)[2], int64_t step_y, int64_t rows, uint32_t* to, int64_t pitch) const {
    uintptr_t from[2];
    uint32_t mask[2];
    for (int m = 0; m < 2; ++m) {
      const bool meets = part[m].at != nullptr;
      from[m] = meets ? reinterpret_cast<uintptr_t>(part[m].at) - shift_[m] : reinterpret_cast<uintptr_t>(this);
      mask[m] = meets ? mask_[m] : 0;
    }
    const uintptr_t next[2] = {part[0].at == nullptr ? 0 : static_cast<uintptr_t>(step_y) * sizeof(Brain16),
                               part[1].at == nullptr ? 0 : static_cast<uintptr_t>(step_y) * sizeof(Brain16)};
    for (int64_t i = 0; i < rows; ++i, to += pitch) {
      store_some(to, masked_cells<kStep>(from[0], mask[0]) | masked_cells<kStep>(from[1], mask[1]) << 16, size_);
      from[0] += next[0];
      from[1] += next[1];
    }
  }

  int64_t step_, size_;
  bool is_short_;
  uintptr_t shift_[2];
  uint32_t mask_[2];
};
#endif

#if CONVARITH_BF16
// Pixels of three channels that follow each other, to two pairs each: of the first and the third, and the second alone.
inline void copy_pixels(const Brain16* from, int64_t count, uint32_t* to) {
  constexpr int64_t kPixels = 8;  // of a vector of pairs
  uint16_t lane[4 * kPixels];
  for (int64_t i = 0; i < 4 * kPixels; ++i) lane[i] = static_cast<uint16_t>(i / 4 * 3 + i % 2 * 2 + i % 4 / 2);
  const __m512i lanes = _mm512_loadu_si512(lane);
  for (int64_t i = 0; i < count; i += kPixels, from += 3 * kPixels, to += 2 * kPixels) {
    const int64_t pixels = least(count - i, kPixels);
    const uint32_t read = (1u << 3 * pixels) - 1;
    const __m512i pairs = _mm512_maskz_permutexvar_epi16(0x77777777u, lanes, _mm512_maskz_loadu_epi16(read, from));
    _mm512_mask_storeu_epi32(to, static_cast<__mmask16>((1u << 2 * pixels) - 1), pairs);
  }
}
#endif

// A row of `size` cells, `pitch` apart, of `channels` factors; in memory the channels follow each other. Factors from
// `whole` on have no second member.
template <typename T, int kMembers, typename Factor>
inline void copy_part_cells(const RowPart<T> (&part)[kMembers], int64_t step, int64_t size, int64_t channels,
                            int64_t whole, int64_t pitch, Factor* row) {
  whole = least(whole, channels);
  if constexpr (kMembers == 1) {
    if (step == pitch && channels == pitch) {  // no other channels and no gaps between pixels
      return copy_padded(part[0].at, 1, part[0].begin * pitch, part[0].end * pitch, size * pitch, row);
    }
  }
#if CONVARITH_BF16
  if constexpr (kMembers == 2) {
    const int64_t begin = part[0].begin, end = part[0].end;
    const bool of_channels = part[0].at != nullptr && part[1].at == part[0].at + channels;
    if (of_channels && channels == 2 && whole == 1 && pitch == 2 && step == 3 && end - begin > 1) {
      fill_zero(row, 2 * begin);
      copy_pixels(part[0].at, end - begin, row + 2 * begin);
      return fill_zero(row + 2 * end, 2 * (size - end));
    }
  }
#endif
  for (int64_t x = 0; x < size; ++x, row += pitch) {
    const T* at[kMembers];
    bool meets = false;
    for (int m = 0; m < kMembers; ++m) {
      const bool in = x >= part[m].begin && x < part[m].end;
      at[m] = in ? part[m].at + (x - part[m].begin) * step : nullptr;
      meets = meets || in;
    }
    if (!meets) {
      fill_zero(row, pitch);
      continue;
    }
    const auto from = FactorOf<T>::at(at[0], at[kMembers - 1]);
    copy_run(from, 1, whole, row);
    if constexpr (kMembers == 2) {
      copy_run(FactorOf<T>::at((from + whole).first, nullptr), 1, channels - whole, row + whole);
    }
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
