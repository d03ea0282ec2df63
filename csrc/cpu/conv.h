// The operators on the CPU with a bias, which is added where results are stored. The registered operators have none: a
// bias is no argument of phi, and its derivatives need no convolution.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace convarith::cpu {

// y = C(w) x + bias; the bias (out channels), if any, must have the dtype of x and w.
at::Tensor conv(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups);

// x = C(w)^T y + bias (in channels).
at::Tensor conv_transpose(const at::Tensor& y, const at::Tensor& w, const std::optional<at::Tensor>& bias,
                          at::IntArrayRef input_size, at::IntArrayRef stride, at::IntArrayRef padding,
                          at::IntArrayRef dilation, int64_t groups);

}  // namespace convarith::cpu
