// avg_pool, lp_pool and their adjoints on the CPU: tensors in, tensors out.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>

#include "../window_checks.h"
#include "dispatch.h"
#include "pooling_direct.h"
#include "pooling_rows.h"

namespace convarith::cpu {
namespace {

Divisors divisors_of(const Windows& w, bool count_include_pad, std::optional<int64_t> divisor_override) {
  check_divisor(w, count_include_pad, divisor_override);
  return divisor_override ? Divisors::constant(w, *divisor_override) : Divisors::of(w, count_include_pad);
}

// weight(axis, count) of every axis's counts.
template <typename Weight>
Weights weights_of(const Divisors& divisors, const Weight& weight) {
  Weights weights;
  for (int i = 0; i < kAxes; ++i) {
    for (const int64_t count : divisors.count[i]) weights[i].push_back(weight(i, static_cast<double>(count)));
  }
  return weights;
}

at::Tensor avg_pool(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                    at::IntArrayRef dilation, bool ceil_mode, bool count_include_pad,
                    std::optional<int64_t> divisor_override) {
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  const Windows& w = s.windows;
  const Divisors divisors = divisors_of(w, count_include_pad, divisor_override);
  const auto format = window_format(x, kernel_size.size());
  const at::Tensor in = x.contiguous(format);
  at::Tensor y = at::empty(s.y, x.options(), format);
  const int dtype = kernel_dtype(x.scalar_type());
  if (dtype >= 0) {
    const Weights weights = weights_of(divisors, [](int, double count) { return count; });
    run_pool(active_window_kernels(dtype), Pooling::kAverage, w, weights, 0, in.const_data_ptr(), y.mutable_data_ptr());
    return y;
  }
  CONVARITH_DISPATCH(x.scalar_type(), "torch_convarith::avg_pool", [&] {
    parallel_rows(w.planes, w.output_numel() * w.inner * w.kernel_numel(), [&](int64_t begin, int64_t end) {
      average_planes<scalar_t, Accumulate<scalar_t>::type>(w, divisors, in.const_data_ptr<scalar_t>(),
                                                           y.mutable_data_ptr<scalar_t>(), begin, end);
    });
  });
  return y;
}

at::Tensor avg_pool_transpose(const at::Tensor& y, at::IntArrayRef input_size, at::IntArrayRef kernel_size,
                              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode,
                              bool count_include_pad, std::optional<int64_t> divisor_override) {
  const WindowShapes s = make_windows_of_output(y, input_size, kernel_size, stride, padding, dilation, ceil_mode);
  const Windows& w = s.windows;
  const Divisors divisors = divisors_of(w, count_include_pad, divisor_override);
  const auto format = window_format(y, kernel_size.size());
  const at::Tensor from = y.contiguous(format);
  at::Tensor x = at::empty(s.x, y.options(), format);
  const int dtype = kernel_dtype(y.scalar_type());
  if (dtype >= 0) {
    const Weights weights = weights_of(divisors, [](int, double count) { return 1 / count; });
    run_pool_backward(active_window_kernels(dtype), Pooling::kAverage, w, weights, 0, from.const_data_ptr(), nullptr,
                      nullptr, x.mutable_data_ptr());
    return x;
  }
  AT_DISPATCH_V2(y.scalar_type(), "torch_convarith::avg_pool_transpose", AT_WRAP([&] {
                   parallel_rows(w.planes, w.output_numel() * w.inner * w.kernel_numel(),
                                 [&](int64_t begin, int64_t end) {
                                   average_transpose_planes(w, divisors, from.const_data_ptr<scalar_t>(),
                                                            x.mutable_data_ptr<scalar_t>(), begin, end);
                                 });
                 }),
                 AT_EXPAND(AT_FLOATING_TYPES), AT_EXPAND(AT_COMPLEX_TYPES), at::kHalf, at::kBFloat16);
  return x;
}

const WindowKernels& norm_kernels(at::ScalarType dtype) {
  const int known = kernel_dtype(dtype);
  TORCH_CHECK_NOT_IMPLEMENTED(known >= 0, "\"torch_convarith::lp_pool\" not implemented for '", dtype, "'");
  return active_window_kernels(known);
}

// torch: the mean of what ceil_mode leaves of a window, times the whole window's count. The norm: the sum as it is.
Weights norm_weights(const Windows& w, bool is_signed) {
  if (!is_signed) return {};
  return weights_of(Divisors::of(w, true), [&](int i, double count) { return w.axis[i].kernel / count; });
}

at::Tensor lp_pool(const at::Tensor& x, double p, bool is_signed, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                   at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  check_power(p, is_signed);
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  const Windows& w = s.windows;
  const WindowKernels& kernels = norm_kernels(x.scalar_type());
  const auto format = window_format(x, kernel_size.size());
  const at::Tensor in = x.contiguous(format);
  at::Tensor y = at::empty(s.y, x.options(), format);
  run_pool(kernels, is_signed ? Pooling::kSignedNorm : Pooling::kNorm, w, norm_weights(w, is_signed), p,
           in.const_data_ptr(), y.mutable_data_ptr());
  return y;
}

constexpr double kSafePower = 4;      // up to which powers of ordinary floats are floats
constexpr double kLargestPower = 16;  // likewise of doubles

at::Tensor lp_pool_backward(const at::Tensor& g, const at::Tensor& x, const at::Tensor& y, double p, bool is_signed,
                            at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                            at::IntArrayRef dilation, bool ceil_mode) {
  check_power(p, is_signed);
  check_alike(x, "x", g, "g");
  check_alike(x, "x", y, "y");
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  const Windows& w = s.windows;
  check_shape(g, "g", s.y);
  check_shape(y, "y", s.y);
  const auto format = window_format(x, kernel_size.size());
  const at::ScalarType wide = p > kSafePower ? at::kDouble : x.scalar_type();
  const at::Tensor in = x.contiguous(format).to(wide), grad = g.contiguous(format).to(wide),
                   out = y.contiguous(format).to(wide);
  const WindowKernels& kernels = norm_kernels(wide);
  at::Tensor result = at::empty(s.x, in.options(), format);
  if (!is_signed && p > kLargestPower) {
    parallel_rows(w.planes, w.output_numel() * w.kernel_numel() * w.inner * 16, [&](int64_t begin, int64_t end) {
      lp_backward_planes<double, double>(w, p, grad.const_data_ptr<double>(), in.const_data_ptr<double>(),
                                         out.const_data_ptr<double>(), result.mutable_data_ptr<double>(), begin, end);
    });
    return result.to(x.scalar_type());
  }
  run_pool_backward(kernels, is_signed ? Pooling::kSignedNorm : Pooling::kNorm, w, norm_weights(w, is_signed), p,
                    grad.const_data_ptr(), in.const_data_ptr(), out.const_data_ptr(), result.mutable_data_ptr());
  return result.to(x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_convarith, CPU, m) {
  m.impl("avg_pool", avg_pool);
  m.impl("avg_pool_transpose", avg_pool_transpose);
  m.impl("lp_pool", lp_pool);
  m.impl("lp_pool_backward", lp_pool_backward);
}

}  // namespace convarith::cpu
