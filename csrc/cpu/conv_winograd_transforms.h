// Winograd's transforms: squares of inputs, kernels and products to values at points and back, a vector of squares at
// once.
#pragma once

#include "conv_tile.h"
#include "simd.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// The matrices --------------------------------------------------------------------------------------------------------

// A row for every point. Its twin is another one with the same entries but for signs; or itself where there is none.
template <int kTile, int kSize>
struct Matrix {
  double at[kTile][kSize] = {};
  int twin[kTile] = {};

  constexpr void find_twins() {
    for (int i = 0; i < kTile; ++i) {
      twin[i] = i;
      for (int other = 0; other < kTile; ++other) {
        bool alike = other != i;
        for (int j = 0; j < kSize; ++j) alike = alike && (at[i][j] == at[other][j] || at[i][j] == -at[other][j]);
        if (alike) twin[i] = other;
      }
    }
  }
};

// F(m, r) by Toom and Cook: polynomials are multiplied by their values at these points and at infinity. Fractions keep
// the rounding error below that of 0, 1, -1, 2, -2. Where all have an opposite, two share their even and odd parts.
template <int kTile>
constexpr double point(int i) {
  constexpr double kPoints[] = {0, 1, -1, 0.5, -0.5, 2, -2};
  return kTile == 6 && i == 4 ? -2 : kPoints[i];
}

// A (tile x m): the points' powers.
template <int kTile, int kOutputs>
constexpr Matrix<kTile, kOutputs> output_matrix() {
  Matrix<kTile, kOutputs> m;
  for (int i = 0; i < kTile - 1; ++i) {
    double power = 1;
    for (int d = 0; d < kOutputs; ++d, power *= point<kTile>(i)) m.at[i][d] = power;
  }
  m.at[kTile - 1][kOutputs - 1] = 1;
  m.find_twins();
  return m;
}

// G (tile x r): the values at the points, over the product of their distances.
template <int kTile, int kTaps>
constexpr Matrix<kTile, kTaps> kernel_matrix() {
  Matrix<kTile, kTaps> m;
  for (int i = 0; i < kTile - 1; ++i) {
    double distances = 1;
    for (int j = 0; j < kTile - 1; ++j) distances *= j == i ? 1 : point<kTile>(i) - point<kTile>(j);
    double value = 1 / distances;
    for (int d = 0; d < kTaps; ++d, value *= point<kTile>(i)) m.at[i][d] = value;
  }
  m.at[kTile - 1][kTaps - 1] = 1;
  m.find_twins();
  return m;
}

// B^T (tile x tile): row i has the coefficients of the product of (x - point) over the other points.
template <int kTile>
constexpr Matrix<kTile, kTile> input_matrix() {
  Matrix<kTile, kTile> m;
  for (int i = 0; i < kTile; ++i) {
    double* poly = m.at[i];
    poly[0] = 1;
    int degree = 0;
    for (int j = 0; j < kTile - 1; ++j) {
      if (j == i) continue;
      ++degree;
      for (int d = degree; d >= 0; --d) poly[d] = (d > 0 ? poly[d - 1] : 0) - point<kTile>(j) * poly[d];
    }
  }
  m.find_twins();
  return m;
}

template <int kTile, int kOutputs>
constexpr Matrix<kTile, kOutputs> kOutput = output_matrix<kTile, kOutputs>();
template <int kTile, int kTaps>
constexpr Matrix<kTile, kTaps> kKernel = kernel_matrix<kTile, kTaps>();
template <int kTile>
constexpr Matrix<kTile, kTile> kInput = input_matrix<kTile>();

typedef Simd<float>::Vec Vector;

// A sum of constant multiples of vectors.
struct Sum {
  Vector value = {};
  bool empty = true;

  inline __attribute__((always_inline)) void add(Vector v, double by) {
    const float factor = static_cast<float>(by);
    if (factor == 0) return;
    const Vector term = factor == 1 ? v : (factor == -1 ? -v : v * factor);
    value = empty ? term : value + term;
    empty = false;
  }
};

// To values at the points. Twins are the sum and the difference of what is the same and what is opposite.
template <int kTile, int kIn>
inline __attribute__((always_inline)) void to_points(const Matrix<kTile, kIn>& m, const Vector (&in)[kIn],
                                                     Vector (&out)[kTile]) {
  CONVARITH_UNROLL for (int i = 0; i < kTile; ++i) {
    const int twin = m.twin[i];
    if (twin < i) continue;
    Sum even, odd;
    CONVARITH_UNROLL for (int j = 0; j < kIn; ++j) {
      (m.at[twin][j] == m.at[i][j] ? even : odd).add(in[j], m.at[i][j]);
    }
    out[i] = odd.empty ? even.value : even.value + odd.value;
    if (twin > i) out[twin] = even.value - odd.value;
  }
}

// And from them, by the transposed matrix.
template <int kTile, int kOut>
inline __attribute__((always_inline)) void from_points(const Matrix<kTile, kOut>& m, const Vector (&in)[kTile],
                                                       Vector (&out)[kOut]) {
  Vector even[kTile], odd[kTile];
  CONVARITH_UNROLL for (int j = 0; j < kTile; ++j) {
    const int twin = m.twin[j];
    even[j] = twin == j ? in[j] : in[j] + in[twin];
    odd[j] = in[j] - in[twin];
  }
  CONVARITH_UNROLL for (int i = 0; i < kOut; ++i) {
    Sum sum;
    CONVARITH_UNROLL for (int j = 0; j < kTile; ++j) {
      const int twin = m.twin[j];
      if (twin >= j) sum.add(m.at[twin][i] == m.at[j][i] ? even[j] : odd[j], m.at[j][i]);
    }
    out[i] = sum.value;
  }
}

// The transforms along an axis ----------------------------------------------------------------------------------------

template <int kTile>
struct OfInputs {
  static constexpr int kIn = kTile, kOut = kTile;
  static constexpr bool kAsks = true;  // for what it writes, each in a page of its own, before it computes
  static inline __attribute__((always_inline)) void run(const Vector (&in)[kIn], Vector (&out)[kOut]) {
    to_points(kInput<kTile>, in, out);
  }
};

template <int kTile, int kTaps>
struct OfKernels {
  static constexpr int kIn = kTaps, kOut = kTile;
  static constexpr bool kAsks = false;
  static inline __attribute__((always_inline)) void run(const Vector (&in)[kIn], Vector (&out)[kOut]) {
    to_points(kKernel<kTile, kTaps>, in, out);
  }
};

template <int kTile, int kOutputs>
struct OfOutputs {
  static constexpr int kIn = kTile, kOut = kOutputs;
  static constexpr bool kAsks = false;
  static inline __attribute__((always_inline)) void run(const Vector (&in)[kIn], Vector (&out)[kOut]) {
    from_points(kOutput<kTile, kOutputs>, in, out);
  }
};

// M X M^T of kLanes squares X. Element (i, j) stands at from + i * row + j * column.
using SquareTransform = void (*)(const float* from, int64_t row, int64_t column, float* to, int64_t to_row,
                                 int64_t to_column);

template <typename Along>
void transform_square(const float* from, int64_t row, int64_t column, float* to, int64_t to_row, int64_t to_column) {
  constexpr int kIn = Along::kIn, kOut = Along::kOut;
  CONVARITH_UNROLL for (int i = 0; Along::kAsks && i < kOut; ++i) {
    CONVARITH_UNROLL for (int j = 0; j < kOut; ++j) prefetch<1>(to + i * to_row + j * to_column, 1);
  }
  Vector half[kIn][kOut];  // transposed
  for (int j = 0; j < kIn; ++j) {
    Vector in[kIn];
    CONVARITH_UNROLL for (int i = 0; i < kIn; ++i) in[i] = load(from + i * row + j * column);
    Along::run(in, half[j]);
  }
  for (int i = 0; i < kOut; ++i) {
    Vector in[kIn], out[kOut];
    CONVARITH_UNROLL for (int j = 0; j < kIn; ++j) in[j] = half[j][i];
    Along::run(in, out);
    CONVARITH_UNROLL for (int j = 0; j < kOut; ++j) store(to + i * to_row + j * to_column, out[j]);
  }
}

// M x of `count` lines x, whose elements stand `step` apart.
using LineTransform = void (*)(const float* from, int64_t step, int64_t line, int64_t count, float* to, int64_t to_step,
                               int64_t to_line);

template <typename Along>
void transform_lines(const float* from, int64_t step, int64_t line, int64_t count, float* to, int64_t to_step,
                     int64_t to_line) {
  for (int64_t n = 0; n < count; ++n, from += line, to += to_line) {
    Vector in[Along::kIn], out[Along::kOut];
    CONVARITH_UNROLL for (int i = 0; i < Along::kIn; ++i) in[i] = load(from + i * step);
    Along::run(in, out);
    CONVARITH_UNROLL for (int i = 0; i < Along::kOut; ++i) store(to + i * to_step, out[i]);
  }
}

// Of an axis: along both, where the other is like it, and along itself.
struct AxisTransform {
  SquareTransform square = nullptr;
  LineTransform lines = nullptr;
};
template <typename Along>
constexpr AxisTransform kAxisTransform = {transform_square<Along>, transform_lines<Along>};

template <int kTile = kWinogradTiles[1]>
AxisTransform input_transform(int64_t tile) {
  if constexpr (kTile > kWinogradTiles[0]) {
    if (tile < kTile) return input_transform<kTile - 1>(tile);
  }
  return kAxisTransform<OfInputs<kTile>>;
}

// Of kernels or outputs, by their size.
template <template <int, int> typename Of, int kTile = kWinogradTiles[1], int kSize = kTile - 1>
AxisTransform sized_transform(int64_t tile, int64_t size) {
  if constexpr (kTile > kWinogradTiles[0]) {
    if (tile < kTile) return sized_transform<Of, kTile - 1>(tile, size);
  }
  if constexpr (kSize > 2) {
    if (size < kSize) return sized_transform<Of, kTile, kSize - 1>(tile, size);
  }
  return kAxisTransform<Of<kTile, kSize>>;
}

// Of rectangles, or of lines where a tile is 1 along the other axis.
class Transform {
 public:
  // From `columns` to `rows` of a rectangle; along(i) is the transform of an axis where its tile is not 1.
  template <typename Along>
  Transform(const int64_t (&tile)[2], int64_t columns, int64_t rows, const Along& along)
      : columns_(columns), rows_(rows) {
    const AxisTransform y = tile[0] == 1 ? AxisTransform{} : along(0), x = tile[1] == 1 ? AxisTransform{} : along(1);
    square_ = y.square == x.square ? x.square : nullptr;
    y_ = y.lines;
    x_ = x.lines;
  }

  void operator()(const float* from, int64_t row, int64_t column, float* to, int64_t to_row, int64_t to_column) const {
    if (square_ != nullptr) return square_(from, row, column, to, to_row, to_column);
    if (y_ == nullptr) return x_(from, column, 0, 1, to, to_column, 0);
    if (x_ == nullptr) return y_(from, row, 0, 1, to, to_row, 0);
    constexpr int64_t kVector = Simd<float>::kLanes, kColumn = kWinogradTiles[1] * kVector;
    float half[kWinogradTiles[1] * kColumn];
    y_(from, row, column, columns_, half, kVector, kColumn);
    x_(half, kColumn, kVector, rows_, to, to_column, to_row);
  }

 private:
  int64_t columns_, rows_;
  SquareTransform square_;
  LineTransform y_, x_;
};

inline Transform input_transform(const int64_t (&tile)[2]) {
  return {tile, tile[1], tile[0], [&](int i) { return input_transform(tile[i]); }};
}

inline Transform kernel_transform(const int64_t (&tile)[2], const int64_t (&taps)[2]) {
  return {tile, taps[1], tile[0], [&](int i) { return sized_transform<OfKernels>(tile[i], taps[i]); }};
}

inline Transform output_transform(const int64_t (&tile)[2], const int64_t (&outputs)[2]) {
  return {tile, tile[1], outputs[0], [&](int i) { return sized_transform<OfOutputs>(tile[i], outputs[i]); }};
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
