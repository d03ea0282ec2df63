// Tensors and integers -> Windows: the checks of pooling, unfold and fold, so that a kernel can trust its Windows.
#pragma once

#include <limits>
#include <optional>

#include "checks.h"

namespace convarith {

inline void check_dense(const at::Tensor& t, const char* name) {
  TORCH_CHECK(t.layout() == at::kStrided, "expected a dense ", name, ", got layout ", t.layout());
}

inline void check_alike(const at::Tensor& a, const char* a_name, const at::Tensor& b, const char* b_name) {
  check_dense(a, a_name);
  check_dense(b, b_name);
  TORCH_CHECK(a.scalar_type() == b.scalar_type() && a.device() == b.device(), "expected ", a_name, " and ", b_name,
              " of the same dtype and device, got ", a.scalar_type(), " on ", a.device(), " and ", b.scalar_type(),
              " on ", b.device());
}

inline void check_shape(const at::Tensor& t, const char* name, at::IntArrayRef expected) {
  TORCH_CHECK(t.sizes() == expected, "expected ", name, " of shape ", expected, ", got ", t.sizes());
}

// The channels_last format of a tensor (N, C, *axes) that is stored so, else contiguous.
inline at::MemoryFormat window_format(const at::Tensor& t, size_t axes) {
  return t.dim() == static_cast<int64_t>(axes) + 2 ? t.suggest_memory_format() : at::MemoryFormat::Contiguous;
}

struct WindowShapes {
  Windows windows;
  std::vector<int64_t> x;
  std::vector<int64_t> y;
};

// Windows over a tensor of shape (*leading, *input). With ceil_mode incomplete windows count.
inline WindowShapes make_windows(at::IntArrayRef x, at::MemoryFormat format, at::IntArrayRef kernel,
                                 at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                 bool ceil_mode) {
  const size_t axes = kernel.size();
  TORCH_CHECK(axes >= 1 && axes <= kAxes && x.size() >= axes,
              "expected a kernel of 1 to 3 axes and at least as many dimensions, got kernel ", kernel, " and shape ",
              x);
  TORCH_CHECK(stride.size() == axes && dilation.size() == axes && padding.size() == 2 * axes, "expected ", axes,
              " strides and dilations and ", 2 * axes, " paddings (lo and hi per axis), got stride ", stride,
              ", dilation ", dilation, " and padding ", padding);
  const size_t leading = x.size() - axes;
  WindowShapes s = {{1, 1, {kTrivialAxis, kTrivialAxis, kTrivialAxis}, {1, 1, 1}}, x.vec(), x.vec()};
  for (size_t i = 0; i < axes; ++i) {
    Axis a = {x[leading + i], kernel[i], stride[i], padding[2 * i], padding[2 * i + 1], dilation[i]};
    check_sizes(a, axis_name(i, axes));
    Axis rounded = a;
    if (ceil_mode) rounded.hi += a.stride - 1;
    check_fits(rounded, axis_name(i, axes));
    const size_t place = kAxes - axes + i;
    s.windows.axis[place] = a;
    s.windows.output[place] = s.y[leading + i] = pooling_output_size(a, ceil_mode);
  }
  const bool channels_last = format != at::MemoryFormat::Contiguous;
  for (size_t i = 0; i < leading; ++i) (channels_last && i == 1 ? s.windows.inner : s.windows.planes) *= x[i];
  return s;
}

inline WindowShapes make_windows(const at::Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                                 at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  check_dense(x, "x");
  return make_windows(x.sizes(), window_format(x, kernel.size()), kernel, stride, padding, dilation, ceil_mode);
}

// The same from y and input_size, for adjoints.
inline WindowShapes make_windows_of_output(const at::Tensor& y, at::MemoryFormat format, at::IntArrayRef input_size,
                                           at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                                           at::IntArrayRef dilation, bool ceil_mode) {
  check_dense(y, "y");
  TORCH_CHECK(input_size.size() == kernel.size() && y.dim() >= static_cast<int64_t>(kernel.size()),
              "expected one input size per axis of the kernel ", kernel, ", got ", input_size, " and y of shape ",
              y.sizes());
  std::vector<int64_t> x = y.sizes().vec();
  std::copy(input_size.begin(), input_size.end(), x.end() - static_cast<int64_t>(input_size.size()));
  WindowShapes s = make_windows(x, format, kernel, stride, padding, dilation, ceil_mode);
  check_shape(y, "y", s.y);
  return s;
}

inline WindowShapes make_windows_of_output(const at::Tensor& y, at::IntArrayRef input_size, at::IntArrayRef kernel,
                                           at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                           bool ceil_mode) {
  return make_windows_of_output(y, window_format(y, kernel.size()), input_size, kernel, stride, padding, dilation,
                                ceil_mode);
}

// A maximum over nothing is no number, and has no index.
inline void check_no_empty_window(const Windows& w) {
  for (const Axis& a : w.axis) {
    const int64_t output = w.output[&a - w.axis.data()];
    for (int64_t o = 0; o < output; ++o) {
      const Range taps = taps_of_output(a, o);
      TORCH_CHECK(taps.begin < taps.end, "window ", o, " of kernel ", a.kernel, " with stride ", a.stride,
                  ", dilation ", a.dilation, " and padding ", show_padding(a), " lies wholly in the padding of input ",
                  a.input, ": its maximum is not defined");
      // Past the left padding every window starts on an input, as pooling_output_size() counts them.
      if (input_index(a, o, 0) >= 0 && (output - 1) * a.stride - a.lo < a.input) break;
    }
  }
}

// Indices of a maximum, and the planes that they are of; `format` is their memory's.
inline Selection make_selection(const at::Tensor& indices, at::IntArrayRef input, int64_t axes,
                                at::MemoryFormat& format) {
  check_dense(indices, "indices");
  TORCH_CHECK(axes >= 1 && axes <= kAxes && indices.dim() >= axes && input.size() == static_cast<size_t>(axes),
              "expected indices with 1 to 3 axes and as many input sizes, got indices of shape ", indices.sizes(),
              ", input sizes ", input, " and axes ", axes);
  TORCH_CHECK(indices.scalar_type() == at::kLong, "expected indices of dtype torch.int64, got ", indices.scalar_type());
  format = window_format(indices, axes);
  Selection s = {1, 1, 1, 1};
  const int64_t leading = indices.dim() - axes;
  for (int64_t i = 0; i < leading; ++i) {
    (format != at::MemoryFormat::Contiguous && i == 1 ? s.inner : s.planes) *= indices.size(i);
  }
  for (int64_t i = 0; i < axes; ++i) {
    TORCH_CHECK(input[i] >= 0, "input size ", input[i], " is negative");
    s.inputs *= input[i];
    s.outputs *= indices.size(leading + i);
  }
  return s;
}

inline Selection make_pool_select(const at::Tensor& x, const at::Tensor& indices, int64_t axes,
                                  at::MemoryFormat& format) {
  TORCH_CHECK(x.device() == indices.device(), "expected x and indices on the same device");
  TORCH_CHECK(axes >= 1 && axes <= kAxes && x.dim() == indices.dim() && x.dim() >= axes &&
                  x.sizes().slice(0, x.dim() - axes) == indices.sizes().slice(0, x.dim() - axes),
              "expected x and indices that differ in the last ", axes, " dimensions only, got ", x.sizes(), " and ",
              indices.sizes());
  check_dense(x, "x");
  return make_selection(indices, x.sizes().slice(x.dim() - axes), axes, format);
}

inline Selection make_pool_scatter(const at::Tensor& y, at::IntArrayRef input_size, const at::Tensor& indices,
                                   int64_t axes, at::MemoryFormat& format) {
  TORCH_CHECK(y.device() == indices.device(), "expected y and indices on the same device");
  check_shape(y, "y", indices.sizes());
  check_dense(y, "y");
  return make_selection(indices, input_size, axes, format);
}

// Taps count in a byte.
inline void check_counts_taps(const Windows& w) {
  TORCH_CHECK(w.kernel_numel() <= 256, "a tap is a byte: expected windows of at most 256 elements, got ",
              w.kernel_numel());
}

inline void check_taps(const at::Tensor& taps, const at::Tensor& other, const WindowShapes& s) {
  TORCH_CHECK(taps.scalar_type() == at::kByte, "expected taps of dtype torch.uint8, got ", taps.scalar_type());
  TORCH_CHECK(taps.device() == other.device(), "expected taps on ", other.device(), ", got them on ", taps.device());
  check_shape(taps, "taps", s.y);
  check_counts_taps(s.windows);
}

// `format` is that of the taps' memory.
inline WindowShapes make_tap_select(const at::Tensor& x, const at::Tensor& taps, at::IntArrayRef kernel,
                                    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                    bool ceil_mode, at::MemoryFormat& format) {
  check_dense(x, "x");
  check_dense(taps, "taps");
  format = window_format(taps, kernel.size());
  WindowShapes s = make_windows(x.sizes(), format, kernel, stride, padding, dilation, ceil_mode);
  check_taps(taps, x, s);
  return s;
}

inline WindowShapes make_tap_scatter(const at::Tensor& y, at::IntArrayRef input_size, const at::Tensor& taps,
                                     at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                                     at::IntArrayRef dilation, bool ceil_mode, at::MemoryFormat& format) {
  check_dense(taps, "taps");
  format = window_format(taps, kernel.size());
  WindowShapes s = make_windows_of_output(y, format, input_size, kernel, stride, padding, dilation, ceil_mode);
  check_taps(taps, y, s);
  return s;
}

inline WindowShapes make_pool_ties(const at::Tensor& v, const at::Tensor& x, const at::Tensor& y, bool transposed,
                                   at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                                   at::IntArrayRef dilation, bool ceil_mode) {
  WindowShapes s = make_windows(x, kernel, stride, padding, dilation, ceil_mode);
  check_alike(v, "v", x, "x");
  check_alike(v, "v", y, "y");
  check_shape(v, "v", transposed ? s.y : s.x);
  check_shape(y, "y", s.y);
  return s;
}

// The power of L^p pooling.
inline void check_power(double p, bool is_signed) {
  TORCH_CHECK(p == p && p != 0 && -std::numeric_limits<double>::max() <= p && p <= std::numeric_limits<double>::max(),
              "L^p pooling needs a finite p other than 0, got ", p);
  TORCH_CHECK(is_signed || p >= 1, "(sum |x|^p)^(1/p) needs p >= 1, got ", p);
}

inline void check_divisor(const Windows& w, bool count_include_pad, std::optional<int64_t> divisor_override) {
  TORCH_CHECK(!divisor_override || *divisor_override != 0, "divisor must be not zero");
  if (!divisor_override && !count_include_pad) check_no_empty_window(w);
}

// (*leading, taps, outputs) of windows over (*leading, *input).
inline std::vector<int64_t> unfold_shape(const WindowShapes& s, size_t axes) {
  std::vector<int64_t> shape(s.x.begin(), s.x.end() - static_cast<int64_t>(axes));
  shape.push_back(s.windows.kernel_numel());
  shape.push_back(s.windows.output_numel());
  return shape;
}

inline WindowShapes make_unfold(const at::Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                                at::IntArrayRef padding, at::IntArrayRef dilation) {
  check_dense(x, "x");
  return make_windows(x.sizes(), at::MemoryFormat::Contiguous, kernel, stride, padding, dilation, false);
}

inline WindowShapes make_fold(const at::Tensor& y, at::IntArrayRef input_size, at::IntArrayRef kernel,
                              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  check_dense(y, "y");
  TORCH_CHECK(y.dim() >= 2, "expected y (*leading, taps, outputs), got shape ", y.sizes());
  TORCH_CHECK(input_size.size() == kernel.size(), "expected one input size per axis of the kernel ", kernel, ", got ",
              input_size);
  std::vector<int64_t> x(y.sizes().begin(), y.sizes().end() - 2);
  x.insert(x.end(), input_size.begin(), input_size.end());
  WindowShapes s = make_windows(x, at::MemoryFormat::Contiguous, kernel, stride, padding, dilation, false);
  check_shape(y, "y", unfold_shape(s, kernel.size()));
  return s;
}

inline Lrn make_lrn(const at::Tensor& x, int64_t channel_dim, int64_t size, double alpha, double beta, double k) {
  check_dense(x, "x");
  TORCH_CHECK(channel_dim >= 0 && channel_dim < x.dim(), "expected a channel dimension among 0 to ", x.dim() - 1,
              ", got ", channel_dim);
  TORCH_CHECK(size >= 1, "a normalisation window needs at least 1 channel, got size ", size);
  Lrn p = {1, x.size(channel_dim), 1, std::min(size, 2 * x.size(channel_dim) + 1), alpha, beta, k};
  for (int64_t i = 0; i < x.dim(); ++i) {
    if (i != channel_dim) (i < channel_dim ? p.planes : p.inner) *= x.size(i);
  }
  return p;
}

}  // namespace convarith
