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

// M X M^T of kLanes squares X, by M's one-dimensional transform. Element (i, j) stands at from + i * row + j * column.
template <int kOut, int kIn, typename Transform1d>
inline __attribute__((always_inline)) void transform_2d(const Transform1d& transform_1d, const float* from, int64_t row,
                                                        int64_t column, float* to, int64_t to_row, int64_t to_column) {
  Vector half[kIn][kOut];  // transposed
  for (int j = 0; j < kIn; ++j) {
    Vector in[kIn];
    CONVARITH_UNROLL for (int i = 0; i < kIn; ++i) in[i] = load(from + i * row + j * column);
    transform_1d(in, half[j]);
  }
  for (int i = 0; i < kOut; ++i) {
    Vector in[kIn], out[kOut];
    CONVARITH_UNROLL for (int j = 0; j < kIn; ++j) in[j] = half[j][i];
    transform_1d(in, out);
    CONVARITH_UNROLL for (int j = 0; j < kOut; ++j) store(to + i * to_row + j * to_column, out[j]);
  }
}

// Asks for what a transform to products writes, each in a page of its own, while it computes.
template <int kOut>
inline __attribute__((always_inline)) void ask_for(const float* to, int64_t to_row, int64_t to_column) {
  for (int i = 0; i < kOut; ++i) {
    CONVARITH_UNROLL for (int j = 0; j < kOut; ++j) prefetch<1>(to + i * to_row + j * to_column, 1);
  }
}

using Transform = void (*)(const float* from, int64_t row, int64_t column, float* to, int64_t to_row,
                           int64_t to_column);

template <int kTile>
void transform_input(const float* from, int64_t row, int64_t column, float* to, int64_t to_row, int64_t to_column) {
  ask_for<kTile>(to, to_row, to_column);
  const auto one = [](const auto& in, auto& out) { to_points(kInput<kTile>, in, out); };
  transform_2d<kTile, kTile>(one, from, row, column, to, to_row, to_column);
}

template <int kTile, int kTaps>
void transform_kernel(const float* from, int64_t row, int64_t column, float* to, int64_t to_row, int64_t to_column) {
  ask_for<kTile>(to, to_row, to_column);
  const auto one = [](const auto& in, auto& out) { to_points(kKernel<kTile, kTaps>, in, out); };
  transform_2d<kTile, kTaps>(one, from, row, column, to, to_row, to_column);
}

template <int kTile, int kOutputs>
void transform_output(const float* from, int64_t row, int64_t column, float* to, int64_t to_row, int64_t to_column) {
  const auto one = [](const auto& in, auto& out) { from_points(kOutput<kTile, kOutputs>, in, out); };
  transform_2d<kOutputs, kTile>(one, from, row, column, to, to_row, to_column);
}

// Calls body with a tile and a size of kernels, or of outputs, as constants.
template <int kTile, int kSize, typename Body>
inline Transform with_size(int64_t size, const Body& body) {
  if constexpr (kSize > 2) {
    if (size < kSize) return with_size<kTile, kSize - 1>(size, body);
  }
  return body(Constant<kTile>{}, Constant<kSize>{});
}

template <int kTile = kWinogradTiles[1], typename Body>
inline Transform with_sizes(int64_t tile, int64_t size, const Body& body) {
  if constexpr (kTile > kWinogradTiles[0]) {
    if (tile < kTile) return with_sizes<kTile - 1>(tile, size, body);
  }
  return with_size<kTile, kTile - 1>(size, body);
}

inline Transform input_transform(int64_t tile) {
  return with_sizes(tile, 2, [](auto t, auto) -> Transform { return transform_input<decltype(t)::value>; });
}

inline Transform kernel_transform(int64_t tile, int64_t taps) {
  return with_sizes(
      tile, taps, [](auto t, auto s) -> Transform { return transform_kernel<decltype(t)::value, decltype(s)::value>; });
}

inline Transform output_transform(int64_t tile, int64_t outputs) {
  return with_sizes(tile, outputs, [](auto t, auto s) -> Transform {
    return transform_output<decltype(t)::value, decltype(s)::value>;
  });
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
