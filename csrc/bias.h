// A bias as a pass of its own, where it could not be added to the sums.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>

#include "problem.h"

namespace convarith {

// result (batch, channels, *axes) += bias (channels)
inline void add_bias(const at::Tensor& result, const at::Tensor& bias) {
  std::array<int64_t, kAxes + 1> shape = {bias.size(0), 1, 1, 1};
  result.add_(bias.view(at::IntArrayRef(shape.data(), result.dim() - 1)));
}

}  // namespace convarith
