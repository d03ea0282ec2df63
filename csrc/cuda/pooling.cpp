// Pooling on CUDA: tensors in, tensors out.
#include "pooling.h"

#include <ATen/ops/empty.h>

#include <optional>
#include <tuple>

#include "../window_checks.h"
#include "glue.h"

namespace convarith::cuda {
namespace {

// Max and min ---------------------------------------------------------------------------------------------------------

at::Tensor max_pool(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                    at::IntArrayRef dilation, bool ceil_mode, bool minimum) {
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  check_no_empty_window(s.windows);
  const DType dtype = dtype_of(x, DTypes::kReal, "torch_convarith::max_pool");
  const OnDeviceOf device(x);
  const auto format = window_format(x, kernel_size.size());
  const at::Tensor in = x.contiguous(format);
  at::Tensor y = at::empty(s.y, x.options(), format);
  check_launch(launch_max_pool(s.windows, dtype, minimum, in.const_data_ptr(), y.mutable_data_ptr(), nullptr, nullptr,
                               device.stream()),
               "max_pool");
  return y;
}

std::tuple<at::Tensor, at::Tensor> max_pool_with_indices(const at::Tensor& x, at::IntArrayRef kernel_size,
                                                         at::IntArrayRef stride, at::IntArrayRef padding,
                                                         at::IntArrayRef dilation, bool ceil_mode, bool minimum) {
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  check_no_empty_window(s.windows);
  const DType dtype = dtype_of(x, DTypes::kReal, "torch_convarith::max_pool_with_indices");
  const OnDeviceOf device(x);
  const auto format = window_format(x, kernel_size.size());
  const at::Tensor in = x.contiguous(format);
  at::Tensor y = at::empty(s.y, x.options(), format);
  at::Tensor indices = at::empty(s.y, x.options().dtype(at::kLong), format);
  check_launch(launch_max_pool(s.windows, dtype, minimum, in.const_data_ptr(), y.mutable_data_ptr(),
                               indices.mutable_data_ptr<int64_t>(), nullptr, device.stream()),
               "max_pool_with_indices");
  return {y, indices};
}

std::tuple<at::Tensor, at::Tensor> max_pool_with_taps(const at::Tensor& x, at::IntArrayRef kernel_size,
                                                      at::IntArrayRef stride, at::IntArrayRef padding,
                                                      at::IntArrayRef dilation, bool ceil_mode, bool minimum) {
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  check_no_empty_window(s.windows);
  check_counts_taps(s.windows);
  const DType dtype = dtype_of(x, DTypes::kReal, "torch_convarith::max_pool_with_taps");
  const OnDeviceOf device(x);
  const auto format = window_format(x, kernel_size.size());
  const at::Tensor in = x.contiguous(format);
  at::Tensor y = at::empty(s.y, x.options(), format);
  at::Tensor taps = at::empty(s.y, x.options().dtype(at::kByte), format);
  check_launch(launch_max_pool(s.windows, dtype, minimum, in.const_data_ptr(), y.mutable_data_ptr(), nullptr,
                               taps.mutable_data_ptr<uint8_t>(), device.stream()),
               "max_pool_with_taps");
  return {y, taps};
}

at::Tensor pool_select(const at::Tensor& x, const at::Tensor& indices, int64_t axes) {
  at::MemoryFormat format;
  const Selection s = make_pool_select(x, indices, axes, format);
  const DType dtype = dtype_of(x, DTypes::kNumber, "torch_convarith::pool_select");
  const OnDeviceOf device(x);
  const at::Tensor from = x.contiguous(format), at = indices.contiguous(format);
  at::Tensor y = at::empty(indices.sizes(), x.options(), format);
  check_launch(launch_pool_select(s, dtype, from.const_data_ptr(), at.const_data_ptr<int64_t>(), y.mutable_data_ptr(),
                                  device.stream()),
               "pool_select");
  return y;
}

at::Tensor pool_scatter(const at::Tensor& y, at::IntArrayRef input_size, const at::Tensor& indices, int64_t axes) {
  at::MemoryFormat format;
  const Selection s = make_pool_scatter(y, input_size, indices, axes, format);
  const DType dtype = dtype_of(y, DTypes::kNumber, "torch_convarith::pool_scatter");
  const OnDeviceOf device(y);
  std::vector<int64_t> size = y.sizes().vec();
  std::copy(input_size.begin(), input_size.end(), size.end() - axes);
  const at::Tensor from = y.contiguous(format), at = indices.contiguous(format);
  at::Tensor x = at::empty(size, y.options(), format);
  at::Tensor scratch = at::empty({pool_scatter_scratch(s)}, y.options().dtype(at::kByte));
  check_launch(launch_pool_scatter(s, dtype, from.const_data_ptr(), at.const_data_ptr<int64_t>(), x.mutable_data_ptr(),
                                   scratch.mutable_data_ptr(), device.stream()),
               "pool_scatter");
  return x;
}

at::Tensor tap_select(const at::Tensor& x, const at::Tensor& taps, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  at::MemoryFormat format;
  const WindowShapes s = make_tap_select(x, taps, kernel_size, stride, padding, dilation, ceil_mode, format);
  const DType dtype = dtype_of(x, DTypes::kNumber, "torch_convarith::tap_select");
  const OnDeviceOf device(x);
  const at::Tensor from = x.contiguous(format), at = taps.contiguous(format);
  at::Tensor y = at::empty(s.y, x.options(), format);
  check_launch(launch_tap_select(s.windows, dtype, from.const_data_ptr(), at.const_data_ptr<uint8_t>(),
                                 y.mutable_data_ptr(), device.stream()),
               "tap_select");
  return y;
}

at::Tensor tap_scatter(const at::Tensor& y, at::IntArrayRef input_size, const at::Tensor& taps,
                       at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                       at::IntArrayRef dilation, bool ceil_mode) {
  at::MemoryFormat format;
  const WindowShapes s =
      make_tap_scatter(y, input_size, taps, kernel_size, stride, padding, dilation, ceil_mode, format);
  const DType dtype = dtype_of(y, DTypes::kNumber, "torch_convarith::tap_scatter");
  const OnDeviceOf device(y);
  const at::Tensor from = y.contiguous(format), at = taps.contiguous(format);
  at::Tensor x = at::empty(s.x, y.options(), format);
  check_launch(launch_tap_scatter(s.windows, dtype, from.const_data_ptr(), at.const_data_ptr<uint8_t>(),
                                  x.mutable_data_ptr(), device.stream()),
               "tap_scatter");
  return x;
}

at::Tensor ties(const at::Tensor& v, const at::Tensor& x, const at::Tensor& y, bool transposed,
                at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                bool ceil_mode, bool split) {
  const WindowShapes s = make_pool_ties(v, x, y, transposed, kernel_size, stride, padding, dilation, ceil_mode);
  const DType dtype = dtype_of(v, DTypes::kFloating, "torch_convarith::pool_ties");
  const OnDeviceOf device(v);
  const auto format = window_format(x, kernel_size.size());
  const at::Tensor values = v.contiguous(format), in = x.contiguous(format), best = y.contiguous(format);
  at::Tensor result = at::empty(transposed ? s.x : s.y, v.options(), format);
  const auto launch = transposed ? launch_pool_ties_transpose : launch_pool_ties;
  check_launch(launch(s.windows, dtype, split, values.const_data_ptr(), in.const_data_ptr(), best.const_data_ptr(),
                      result.mutable_data_ptr(), device.stream()),
               "pool_ties");
  return result;
}

at::Tensor pool_ties(const at::Tensor& v, const at::Tensor& x, const at::Tensor& y, at::IntArrayRef kernel_size,
                     at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode,
                     bool split) {
  return ties(v, x, y, /*transposed=*/false, kernel_size, stride, padding, dilation, ceil_mode, split);
}

at::Tensor pool_ties_transpose(const at::Tensor& v, at::IntArrayRef input_size, const at::Tensor& x,
                               const at::Tensor& y, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                               at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode, bool split) {
  TORCH_CHECK(x.dim() >= static_cast<int64_t>(kernel_size.size()) &&
                  x.sizes().slice(x.dim() - static_cast<int64_t>(kernel_size.size())) == input_size,
              "expected x with sizes ", input_size, ", got ", x.sizes());
  return ties(v, x, y, /*transposed=*/true, kernel_size, stride, padding, dilation, ceil_mode, split);
}

// Averages and norms --------------------------------------------------------------------------------------------------

at::Tensor avg_pool(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                    at::IntArrayRef dilation, bool ceil_mode, bool count_include_pad,
                    std::optional<int64_t> divisor_override) {
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  check_divisor(s.windows, count_include_pad, divisor_override);
  const DType dtype = dtype_of(x, DTypes::kNumber, "torch_convarith::avg_pool");
  const OnDeviceOf device(x);
  const auto format = window_format(x, kernel_size.size());
  const at::Tensor in = x.contiguous(format);
  at::Tensor y = at::empty(s.y, x.options(), format);
  const Divisor divisor = {count_include_pad, divisor_override.value_or(0)};
  check_launch(launch_avg_pool(s.windows, dtype, divisor, in.const_data_ptr(), y.mutable_data_ptr(), device.stream()),
               "avg_pool");
  return y;
}

at::Tensor avg_pool_transpose(const at::Tensor& y, at::IntArrayRef input_size, at::IntArrayRef kernel_size,
                              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode,
                              bool count_include_pad, std::optional<int64_t> divisor_override) {
  const WindowShapes s = make_windows_of_output(y, input_size, kernel_size, stride, padding, dilation, ceil_mode);
  check_divisor(s.windows, count_include_pad, divisor_override);
  const DType dtype = dtype_of(y, DTypes::kFloatingOrComplex, "torch_convarith::avg_pool_transpose");
  const OnDeviceOf device(y);
  const auto format = window_format(y, kernel_size.size());
  const at::Tensor from = y.contiguous(format);
  at::Tensor x = at::empty(s.x, y.options(), format);
  const Divisor divisor = {count_include_pad, divisor_override.value_or(0)};
  check_launch(launch_avg_pool_transpose(s.windows, dtype, divisor, from.const_data_ptr(), x.mutable_data_ptr(),
                                         device.stream()),
               "avg_pool_transpose");
  return x;
}

at::Tensor lp_pool(const at::Tensor& x, double p, bool is_signed, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                   at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  check_power(p, is_signed);
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  const DType dtype = dtype_of(x, DTypes::kFloating, "torch_convarith::lp_pool");
  const OnDeviceOf device(x);
  const auto format = window_format(x, kernel_size.size());
  const at::Tensor in = x.contiguous(format);
  at::Tensor y = at::empty(s.y, x.options(), format);
  check_launch(
      launch_lp_pool(s.windows, dtype, p, is_signed, in.const_data_ptr(), y.mutable_data_ptr(), device.stream()),
      "lp_pool");
  return y;
}

at::Tensor lp_pool_backward(const at::Tensor& g, const at::Tensor& x, const at::Tensor& y, double p, bool is_signed,
                            at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                            at::IntArrayRef dilation, bool ceil_mode) {
  check_power(p, is_signed);
  check_alike(x, "x", g, "g");
  check_alike(x, "x", y, "y");
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  check_shape(g, "g", s.y);
  check_shape(y, "y", s.y);
  const DType dtype = dtype_of(x, DTypes::kFloating, "torch_convarith::lp_pool_backward");
  const OnDeviceOf device(x);
  const auto format = window_format(x, kernel_size.size());
  const at::Tensor in = x.contiguous(format), grad = g.contiguous(format), out = y.contiguous(format);
  at::Tensor result = at::empty(s.x, x.options(), format);
  check_launch(launch_lp_pool_backward(s.windows, dtype, p, is_signed, grad.const_data_ptr(), in.const_data_ptr(),
                                       out.const_data_ptr(), result.mutable_data_ptr(), device.stream()),
               "lp_pool_backward");
  return result;
}

}  // namespace

CONVARITH_CUDA_IMPL(m) {
  m.impl("max_pool", max_pool);
  m.impl("max_pool_with_indices", max_pool_with_indices);
  m.impl("max_pool_with_taps", max_pool_with_taps);
  m.impl("pool_select", pool_select);
  m.impl("pool_scatter", pool_scatter);
  m.impl("tap_select", tap_select);
  m.impl("tap_scatter", tap_scatter);
  m.impl("pool_ties", pool_ties);
  m.impl("pool_ties_transpose", pool_ties_transpose);
  m.impl("avg_pool", avg_pool);
  m.impl("avg_pool_transpose", avg_pool_transpose);
  m.impl("lp_pool", lp_pool);
  m.impl("lp_pool_backward", lp_pool_backward);
}

}  // namespace convarith::cuda
