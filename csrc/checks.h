// Tensors and integers -> Problem. Every TORCH_CHECK of an operator lives here, so that a kernel can trust its Problem.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/MemoryFormat.h>

#include <algorithm>
#include <string>
#include <vector>

#include "problem.h"

namespace convarith {

// Below this, no product of two sizes along an axis leaves 64 bits.
constexpr int64_t kLargest = int64_t{1} << 31;

inline const char* axis_name(size_t axis, size_t axes) {
  static constexpr const char* names[] = {"axis 2 (length)", "axis 2 (height)", "axis 3 (width)",
                                          "axis 2 (depth)",  "axis 3 (height)", "axis 4 (width)"};
  return names[axes * (axes - 1) / 2 + axis];
}

inline std::string show_padding(const Axis& a) {
  return a.lo == a.hi ? std::to_string(a.lo) : "(" + std::to_string(a.lo) + ", " + std::to_string(a.hi) + ")";
}

// Integers that arithmetic is safe with.
inline void check_sizes(const Axis& a, const char* name) {
  TORCH_CHECK(a.kernel > 0, "non-positive kernel is not supported: kernel ", a.kernel, " along ", name);
  TORCH_CHECK(a.stride > 0, "non-positive stride is not supported: stride ", a.stride, " along ", name);
  TORCH_CHECK(a.dilation > 0, "non-positive dilation is not supported: dilation ", a.dilation, " along ", name);
  TORCH_CHECK(a.input >= 0, "input size ", a.input, " along ", name, " is negative");
  for (const int64_t size : {a.input, a.kernel, a.stride, a.dilation, a.lo, a.hi}) {
    TORCH_CHECK(-kLargest < size && size < kLargest, "sizes of 2^31 and more along one axis are not supported: ", size,
                " along ", name);
  }
}

inline void check_fits(const Axis& a, const char* name) {
  const int64_t reach = effective_kernel(a);
  TORCH_CHECK(fits(a), "kernel ", a.kernel,
              a.dilation > 1
                  ? " with dilation " + std::to_string(a.dilation) + " (effective kernel " + std::to_string(reach) + ")"
                  : std::string(),
              " does not fit input ", a.input, " with padding ", show_padding(a), " along ", name, ": relationship ",
              a.dilation > 1 ? "15 needs i + 2p >= k + (k-1)(d-1)" : "6 needs i + 2p >= k", ", but ", padded_size(a),
              " < ", reach, ". Kernel size can't be greater than actual input size");
}

inline void check_tensors(const at::Tensor& a, const char* a_name, const at::Tensor& b, const char* b_name) {
  TORCH_CHECK(a.dim() == b.dim() && a.dim() >= 3 && a.dim() <= 5, "expected ", a_name, " and ", b_name,
              " with 3, 4 or 5 dimensions each (batch or out channels, channels, 1 to 3 axes), got ", a_name,
              " of shape ", a.sizes(), " and ", b_name, " of shape ", b.sizes());
  TORCH_CHECK(a.layout() == at::kStrided && b.layout() == at::kStrided, "expected dense tensors, got ", a_name,
              " with layout ", a.layout(), " and ", b_name, " with layout ", b.layout());
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), "expected ", a_name, " and ", b_name, " of the same dtype, got ",
              a.scalar_type(), " and ", b.scalar_type());
  TORCH_CHECK(a.device() == b.device(), "expected ", a_name, " and ", b_name, " on the same device, got ", a.device(),
              " and ", b.device());
}

// The axes of an operator, in front-padded form. `sizes` are spatial.
inline std::array<Axis, kAxes> check_axes(at::IntArrayRef input, at::IntArrayRef kernel, at::IntArrayRef stride,
                                          at::IntArrayRef padding, at::IntArrayRef dilation) {
  const size_t axes = kernel.size();
  TORCH_CHECK(axes >= 1 && axes <= kAxes, "expected 1 to 3 axes, got a kernel of ", axes);
  TORCH_CHECK(input.size() == axes && stride.size() == axes && dilation.size() == axes && padding.size() == 2 * axes,
              "expected ", axes, " input sizes, strides and dilations and ", 2 * axes,
              " paddings (lo and hi per axis), got input ", input, ", stride ", stride, ", dilation ", dilation,
              " and padding ", padding);
  std::array<Axis, kAxes> result = {kTrivialAxis, kTrivialAxis, kTrivialAxis};
  for (size_t i = 0; i < axes; ++i) {
    Axis& a = result[kAxes - axes + i];
    a = {input[i], kernel[i], stride[i], padding[2 * i], padding[2 * i + 1], dilation[i]};
    check_sizes(a, axis_name(i, axes));
    check_fits(a, axis_name(i, axes));
  }
  return result;
}

inline void check_groups(int64_t groups) {
  TORCH_CHECK(groups > 0, "non-positive groups is not supported: groups ", groups);
  TORCH_CHECK(groups < kLargest, "2^31 groups and more are not supported: groups ", groups);
}

struct Sizes {  // whole shapes of phi's three tensors
  std::vector<int64_t> x;
  std::vector<int64_t> w;
  std::vector<int64_t> y;
};

inline std::vector<int64_t> shape(int64_t first, int64_t second, at::IntArrayRef spatial) {
  std::vector<int64_t> result = {first, second};
  result.insert(result.end(), spatial.begin(), spatial.end());
  return result;
}

// Sizes and geometry of a whole problem; strides are set by set_strides() once the third tensor exists.
// Where y is given (conv_transpose, conv_weight), it must have the size that x gives.
inline Problem make_problem(Sizes& sizes, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                            int64_t groups) {
  const at::IntArrayRef x = sizes.x, w = sizes.w;
  Problem p = {};
  p.axis = check_axes(x.slice(2), w.slice(2), stride, padding, dilation);
  check_groups(groups);
  TORCH_CHECK(w[0] % groups == 0, "expected out channels to be divisible by groups, got weight of shape ", w,
              " and groups ", groups);
  TORCH_CHECK(x[1] == w[1] * groups, "expected input with groups * weight.size(1) = ", groups, " * ", w[1],
              " channels, got ", x[1], ": weight of shape ", w, ", input of shape ", x);
  p.batch = x[0];
  p.groups = groups;
  p.in_channels = w[1];
  p.out_channels = w[0] / groups;
  for (int i = 0; i < kAxes; ++i) p.output[i] = output_size(p.axis[i]);
  const size_t axes = w.size() - 2;
  const std::vector<int64_t> y = shape(x[0], w[0], at::IntArrayRef(p.output.data() + (kAxes - axes), axes));
  TORCH_CHECK(sizes.y.empty() || sizes.y == y, "relationship 15 gives an output of shape ", at::IntArrayRef(y),
              " for input of shape ", x, ", weight of shape ", w, ", stride ", stride, ", padding ", padding,
              ", dilation ", dilation, " and groups ", groups, "; got ", at::IntArrayRef(sizes.y));
  sizes.y = y;
  return p;
}

// The input that y and w belong to, for conv_transpose.
inline std::vector<int64_t> input_shape(const at::Tensor& y, const at::Tensor& w, at::IntArrayRef input_size,
                                        int64_t groups) {
  check_groups(groups);
  return shape(y.size(0), groups * w.size(1), input_size);
}

// The weight between x and y, for conv_weight.
inline std::vector<int64_t> weight_shape(const at::Tensor& x, const at::Tensor& y, at::IntArrayRef kernel_size,
                                         int64_t groups) {
  check_groups(groups);
  TORCH_CHECK(x.size(1) % groups == 0, "expected input channels to be divisible by groups, got input of shape ",
              x.sizes(), " and groups ", groups);
  return shape(y.size(1), x.size(1) / groups, kernel_size);
}

inline Strides strides_of(const at::Tensor& t) {
  Strides s = {t.stride(0), t.stride(1), {0, 0, 0}};
  const int64_t axes = t.dim() - 2;
  for (int64_t i = 0; i < axes; ++i) s.axis[kAxes - axes + i] = t.stride(2 + i);
  return s;
}

inline void set_strides(Problem& p, const at::Tensor& x, const at::Tensor& w, const at::Tensor& y) {
  p.x = strides_of(x);
  p.w = strides_of(w);
  p.y = strides_of(y);
}

// channels_last in, channels_last out, as torch.nn.functional has it: either operand decides.
inline at::MemoryFormat output_format(const at::Tensor& a, const at::Tensor& b) {
  const auto format = a.suggest_memory_format();
  return format == at::MemoryFormat::Contiguous ? b.suggest_memory_format() : format;
}

inline PaddingMode padding_mode_of(c10::string_view mode) {
  if (mode == "zeros") return PaddingMode::kZeros;
  if (mode == "reflect") return PaddingMode::kReflect;
  if (mode == "replicate") return PaddingMode::kReplicate;
  if (mode == "circular") return PaddingMode::kCircular;
  TORCH_CHECK_VALUE(false, "padding_mode must be one of zeros, reflect, replicate, circular, not '", mode, "'");
}

// What a mode repeats must be there: reflection leaves out the edge, so it reaches one element less than a copy.
inline PaddingMode check_padding_mode(c10::string_view name, const Problem& p) {
  const PaddingMode mode = padding_mode_of(name);
  if (mode == PaddingMode::kZeros) return mode;
  for (const Axis& a : p.axis) {
    const int64_t most = std::max(a.lo, a.hi);
    const bool repeats = mode == PaddingMode::kReflect    ? most < a.input
                         : mode == PaddingMode::kCircular ? most <= a.input
                                                          : a.input > 0;
    TORCH_CHECK(repeats && a.input > 0, "padding_mode '", name, "' cannot make padding ", show_padding(a), " of input ",
                a.input, ": reflect needs p < i, circular p <= i, replicate i > 0");
  }
  return mode;
}

// A tensor of shape `size` and how its last axes are stretched; sets the stretched tensor's whole shape.
inline Stretch make_stretch(at::IntArrayRef size, at::IntArrayRef stride, at::IntArrayRef padding,
                            std::vector<int64_t>& stretched) {
  const size_t axes = stride.size();
  TORCH_CHECK(axes >= 1 && axes <= kAxes && padding.size() == 2 * axes && size.size() >= axes,
              "expected 1 to 3 strides, lo and hi per axis and at least as many dimensions, got stride ", stride,
              ", padding ", padding, " and shape ", size);
  Stretch s = {1, {kTrivialAxis, kTrivialAxis, kTrivialAxis}, {1, 1, 1}};
  stretched = size.vec();
  const size_t first = size.size() - axes;
  for (size_t i = 0; i < first; ++i) s.leading *= size[i];
  for (size_t i = 0; i < axes; ++i) {
    const int64_t lo = padding[2 * i], hi = padding[2 * i + 1], units = size[first + i];
    Axis a = {units, 1, stride[i], -lo, -hi, 1};
    check_sizes(a, axis_name(i, axes));
    a.input = (units > 0 ? (units - 1) * stride[i] + 1 : 0) + lo + hi;
    TORCH_CHECK(a.input >= 0, "padding (", lo, ", ", hi, ") crops more than the ", a.input - lo - hi,
                " units of the stretched input along ", axis_name(i, axes));
    s.axis[kAxes - axes + i] = a;
    s.units[kAxes - axes + i] = units;
    stretched[first + i] = a.input;
  }
  return s;
}

}  // namespace convarith
