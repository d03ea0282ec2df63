// The outer product, lanes along the columns: each step multiplies a number of every row with vectors of columns. Rows
// are read wherever they stand, so neither padding, stride nor the order of memory costs anything here.
#pragma once

#include "conv_factor.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Vectors of a block of columns, and the rows beside them that fill the registers: rows * vectors sums, the vectors,
// and one number. Rows are bounded by their pointers, which fill the other registers.
constexpr int kOuterVectors = CONVARITH_REGISTERS >= 32 ? 4 : 2;
constexpr int outer_rows(int64_t vectors) {
  if (CONVARITH_REGISTERS >= 32) return vectors == 4 ? 6 : 9;
  return vectors == 2 ? 6 : 8;
}

constexpr int kMostOuterRows = 9;

// Rows that are read from the input itself follow each other in its lines, which no prefetcher foresees across so many
// of them: a few rows further there will be the next.
constexpr int64_t kRowsAhead = 48;

// What is asked for with step k of multiply_outer(), `row` being where the first row is read.
struct RowsAhead {
  template <typename T>
  void ask(const T* row, int64_t) const {
    prefetch_ahead(row, kRowsAhead);
  }
};

// Or lines of what comes next, a few steps apart, into the second cache: the first one is full of what is multiplied.
struct LinesAhead {
  const void* const* lines;
  int64_t shift;
  template <typename T>
  void ask(const T*, int64_t k) const {
    prefetch_line<0, 2>(lines[k >> shift]);
  }
};

// Where sums go: one block, row by row.
template <typename Sum>
struct OuterBlock {
  Sum* sums;

  Sum* row(int r, int width) const { return sums + r * width; }
  int64_t columns_of(int width) const { return width; }
  const Sum* start() const { return nullptr; }
  bool is_past_caches() const { return false; }
};

// Or each row somewhere, `columns` of them, beginning with a bias if there is one; of T, to which nothing narrower than
// sums is added.
template <typename T>
struct OuterRows {
  typedef typename SumOf<T>::type Sum;
  T* const* rows;
  int64_t columns;
  const Sum* bias;   // of every column, or null
  bool past_caches;  // rows are whole lines, written once, which need not be read before

  T* row(int r, int) const { return rows[r]; }
  int64_t columns_of(int) const { return columns; }
  const Sum* start() const { return bias; }
  bool is_past_caches() const { return past_caches; }
};

// What stands at p: of pairs, in memory whose numbers are of another type.
template <typename T>
inline T number_at(const T* p) {
  T number;
  __builtin_memcpy(&number, p, sizeof(number));
  return number;
}

// Whole lines of sums.
template <int kVecs, typename T, typename Sums>
inline void store_lines_past_caches(T* to, const Sums (&sums)[kVecs]) {
  if constexpr (sizeof(Sums) / sizeof(sums[0][0]) * sizeof(T) == CONVARITH_BYTES) {
    CONVARITH_UNROLL for (const Sums& v : sums) {
      store_past_caches(to, v);
      to += sizeof(Sums) / sizeof(T);
    }
  }
#if CONVARITH_BF16
  if constexpr (sizeof(T) == 2 && kVecs % 2 == 0) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; j += 2, to += 32) {
      store_past_caches(reinterpret_cast<uint32_t*>(to), as<Words>(round_sums(sums[j], sums[j + 1])));
    }
  }
#endif
}

// to[r][x] (+)= sum over k of from[r][offset[k]] * columns[k][x], r < kRows, x < kVecs vectors.
template <typename T, int kRows, int kVecs, typename Ahead, typename To>
void multiply_outer(int64_t depth, const T* const* from, const int32_t* offset, const T* columns, const To& to,
                    bool add, Ahead ahead) {
  typedef typename Simd<T>::Vec V;
  typedef typename Simd<typename SumOf<T>::type>::Vec Sums;
  constexpr int kLanes = Simd<T>::kLanes;
  Sums acc[kRows][kVecs];
  const T* row[kRows];
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    row[r] = from[r];
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) acc[r][j] = Sums{};
  }
  for (int64_t k = 0; k < depth; ++k, columns += kVecs * kLanes) {
    const int64_t at = offset[k];
    ahead.ask(row[0] + at, k);
    V x[kVecs];
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) x[j] = load(columns + j * kLanes);
    CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
      const V v = number_at(row[r] + at) - V{};
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) acc[r][j] = multiply_add(acc[r][j], v, x[j]);
    }
  }
  const auto* start = to.start();
  const auto put = [&](int vectors) __attribute__((always_inline)) {
    CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
      CONVARITH_UNROLL for (int j = 0; j < vectors; ++j) {
        auto* out = to.row(r, kVecs * kLanes) + j * kLanes;
        store_narrow(out, add ? load_wide(out) + acc[r][j] : start ? load(start + j * kLanes) + acc[r][j] : acc[r][j]);
      }
    }
  };
  if (to.is_past_caches()) {
    CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
        if (start) acc[r][j] += load(start + j * kLanes);
      }
      store_lines_past_caches(to.row(r, kVecs * kLanes), acc[r]);
    }
    return;
  }
  constexpr int kLast = (kVecs - 1) * kLanes;
  const int64_t rest = to.columns_of(kVecs * kLanes) - kLast;
  if (rest == kLanes) return put(kVecs);
  put(kVecs - 1);
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    auto* out = to.row(r, kVecs * kLanes) + kLast;
    const Sums sum = acc[r][kVecs - 1];
    store_narrow_some(out, add ? load_wide_some(out, rest) + sum : start ? load(start + kLast) + sum : sum, rest);
  }
}

template <typename T, typename Ahead, typename To>
using MultiplyOuter = void (*)(int64_t, const T* const*, const int32_t*, const T*, const To&, bool, Ahead);

template <typename T, typename Ahead, typename To, int kVecs, int kRows = outer_rows(kVecs)>
MultiplyOuter<T, Ahead, To> outer_rows_for(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return outer_rows_for<T, Ahead, To, kVecs, kRows - 1>(rows);
  }
  return multiply_outer<T, kRows, kVecs, Ahead, To>;
}

// The microkernel for a block of rows, of outer_rows(vectors) at most.
template <typename T, typename Ahead, typename To = OuterBlock<typename SumOf<T>::type>, int kVecs = kOuterVectors>
MultiplyOuter<T, Ahead, To> outer_for(int64_t rows, int64_t vectors) {
  if constexpr (kVecs > 1) {
    if (vectors < kVecs) return outer_for<T, Ahead, To, kVecs - 1>(rows, vectors);
  }
  return outer_rows_for<T, Ahead, To, kVecs>(rows);
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
