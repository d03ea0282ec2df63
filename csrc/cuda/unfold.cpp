// unfold and fold on CUDA: tensors in, tensors out.
#include "unfold.h"

#include <ATen/ops/empty.h>

#include "../window_checks.h"
#include "glue.h"

namespace convarith::cuda {
namespace {

at::Tensor unfold(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                  at::IntArrayRef dilation) {
  const WindowShapes s = make_unfold(x, kernel_size, stride, padding, dilation);
  const DType dtype = dtype_of(x, DTypes::kAny, "torch_convarith::unfold");
  const OnDeviceOf device(x);
  const at::Tensor in = x.contiguous();
  at::Tensor y = at::empty(unfold_shape(s, kernel_size.size()), x.options());
  check_launch(launch_unfold(s.windows, dtype, in.const_data_ptr(), y.mutable_data_ptr(), device.stream()), "unfold");
  return y;
}

at::Tensor fold(const at::Tensor& y, at::IntArrayRef input_size, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                at::IntArrayRef padding, at::IntArrayRef dilation) {
  const WindowShapes s = make_fold(y, input_size, kernel_size, stride, padding, dilation);
  const DType dtype = dtype_of(y, DTypes::kAny, "torch_convarith::fold");
  const OnDeviceOf device(y);
  const at::Tensor from = y.contiguous();
  at::Tensor x = at::empty(s.x, y.options());
  check_launch(launch_fold(s.windows, dtype, from.const_data_ptr(), x.mutable_data_ptr(), device.stream()), "fold");
  return x;
}

}  // namespace

CONVARITH_CUDA_IMPL(m) {
  m.impl("unfold", unfold);
  m.impl("fold", fold);
}

}  // namespace convarith::cuda
