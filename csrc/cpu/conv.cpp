// conv, conv_transpose and conv_weight on the CPU: tensors in, tensors out. The fast engine does what it can
// (conv_engine.h), the plain kernels of conv_direct.h the rest.
#include "conv.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../bias.h"
#include "../checks.h"
#include "conv_direct.h"
#include "conv_engine.h"
#include "dispatch.h"

namespace convarith::cpu {
namespace {

// Elements from the first to the last, gaps included.
int64_t reach(const at::Tensor& t) {
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  return last + 1;
}

bool fast(const Problem& p, Pass pass, const at::Tensor& input, const at::Tensor& other,
          const std::optional<at::Tensor>& bias, const at::Tensor& output) {
  if (kernel_dtype(input.scalar_type()) < 0 || input.numel() == 0 || other.numel() == 0 || output.numel() == 0)
    return false;
  const Ran ran =
      run_fast(p, pass, kernel_dtype(input.scalar_type()), input.const_data_ptr(), reach(input), other.const_data_ptr(),
               reach(other), bias ? bias->const_data_ptr() : nullptr, output.mutable_data_ptr());
  if (ran == Ran::kWithoutBias) add_bias(output, *bias);
  return ran != Ran::kNothing;
}

template <typename T>
const T* data_or_null(const std::optional<at::Tensor>& bias) {
  return bias.has_value() ? bias->const_data_ptr<T>() : nullptr;
}

}  // namespace

at::Tensor conv(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  check_tensors(x, "x", w, "w");
  Sizes sizes = {x.sizes().vec(), w.sizes().vec(), {}};
  Problem p = make_problem(sizes, stride, padding, dilation, groups);
  at::Tensor y = at::empty(sizes.y, x.options(), output_format(x, w));
  set_strides(p, x, w, y);
  if (fast(p, Pass::kOutput, x, w, bias, y)) return y;
  const int64_t rows = p.batch * w.size(0) * p.output[0] * p.output[1];
  CONVARITH_DISPATCH(x.scalar_type(), "torch_convarith::conv", [&] {
    using Acc = Accumulate<scalar_t>::type;
    parallel_rows(rows, p.output[2] * p.in_channels * p.kernel_numel(), [&](int64_t begin, int64_t end) {
      conv_rows<scalar_t, Acc>(p, x.const_data_ptr<scalar_t>(), w.const_data_ptr<scalar_t>(),
                               data_or_null<scalar_t>(bias), y.mutable_data_ptr<scalar_t>(), begin, end);
    });
  });
  return y;
}

at::Tensor conv_transpose(const at::Tensor& y, const at::Tensor& w, const std::optional<at::Tensor>& bias,
                          at::IntArrayRef input_size, at::IntArrayRef stride, at::IntArrayRef padding,
                          at::IntArrayRef dilation, int64_t groups) {
  check_tensors(y, "y", w, "w");
  Sizes sizes = {input_shape(y, w, input_size, groups), w.sizes().vec(), y.sizes().vec()};
  Problem p = make_problem(sizes, stride, padding, dilation, groups);
  at::Tensor x = at::empty(sizes.x, y.options(), output_format(y, w));
  set_strides(p, x, w, y);
  if (fast(p, Pass::kInput, y, w, bias, x)) return x;
  const int64_t rows = p.batch * sizes.x[1] * p.axis[0].input * p.axis[1].input;
  CONVARITH_DISPATCH(y.scalar_type(), "torch_convarith::conv_transpose", [&] {
    using Acc = Accumulate<scalar_t>::type;
    parallel_rows(rows, p.axis[2].input * p.out_channels * p.kernel_numel(), [&](int64_t begin, int64_t end) {
      conv_transpose_rows<scalar_t, Acc>(p, y.const_data_ptr<scalar_t>(), w.const_data_ptr<scalar_t>(),
                                         data_or_null<scalar_t>(bias), x.mutable_data_ptr<scalar_t>(), begin, end);
    });
  });
  return x;
}

namespace {

at::Tensor conv_weight(const at::Tensor& x, const at::Tensor& y, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  check_tensors(x, "x", y, "y");
  Sizes sizes = {x.sizes().vec(), weight_shape(x, y, kernel_size, groups), y.sizes().vec()};
  Problem p = make_problem(sizes, stride, padding, dilation, groups);
  at::Tensor w = at::empty(sizes.w, x.options(), output_format(x, y));
  set_strides(p, x, w, y);
  if (fast(p, Pass::kWeight, x, y, std::nullopt, w)) return w;
  CONVARITH_DISPATCH(x.scalar_type(), "torch_convarith::conv_weight", [&] {
    using Acc = Accumulate<scalar_t>::type;
    parallel_rows(sizes.w[0] * sizes.w[1], p.batch * p.output_numel() * p.kernel_numel(),
                  [&](int64_t begin, int64_t end) {
                    conv_weight_pairs<scalar_t, Acc>(p, x.const_data_ptr<scalar_t>(), y.const_data_ptr<scalar_t>(),
                                                     w.mutable_data_ptr<scalar_t>(), begin, end);
                  });
  });
  return w;
}

at::Tensor conv_without_bias(const at::Tensor& x, const at::Tensor& w, at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef dilation, int64_t groups) {
  return conv(x, w, std::nullopt, stride, padding, dilation, groups);
}

at::Tensor conv_transpose_without_bias(const at::Tensor& y, const at::Tensor& w, at::IntArrayRef input_size,
                                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                       int64_t groups) {
  return conv_transpose(y, w, std::nullopt, input_size, stride, padding, dilation, groups);
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_convarith, CPU, m) {
  m.impl("conv", conv_without_bias);
  m.impl("conv_transpose", conv_transpose_without_bias);
  m.impl("conv_weight", conv_weight);
}

}  // namespace convarith::cpu
