// zero_insert and its adjoint on CUDA: tensors in, tensors out.
#include "zero_insert.h"

#include <ATen/ops/empty.h>

#include "../checks.h"
#include "glue.h"

namespace convarith::cuda {
namespace {

at::Tensor zero_insert(const at::Tensor& x, at::IntArrayRef stride, at::IntArrayRef padding) {
  std::vector<int64_t> stretched;
  const Stretch s = make_stretch(x.sizes(), stride, padding, stretched);
  const DType dtype = dtype_of(x, DTypes::kNumber, "torch_convarith::zero_insert");
  const OnDeviceOf device(x);
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::empty(stretched, x.options());
  check_launch(launch_zero_insert(s, dtype, in.const_data_ptr(), out.mutable_data_ptr(), device.stream()),
               "zero_insert");
  return out;
}

at::Tensor zero_remove(const at::Tensor& x, at::IntArrayRef size, at::IntArrayRef stride, at::IntArrayRef padding) {
  std::vector<int64_t> stretched;
  const Stretch s = make_stretch(size, stride, padding, stretched);
  TORCH_CHECK(x.sizes() == at::IntArrayRef(stretched), "expected a stretched tensor of shape ", stretched, ", got ",
              x.sizes());
  const DType dtype = dtype_of(x, DTypes::kNumber, "torch_convarith::zero_remove");
  const OnDeviceOf device(x);
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::empty(size, x.options());
  check_launch(launch_zero_remove(s, dtype, in.const_data_ptr(), out.mutable_data_ptr(), device.stream()),
               "zero_remove");
  return out;
}

}  // namespace

CONVARITH_CUDA_IMPL(m) {
  m.impl("zero_insert", zero_insert);
  m.impl("zero_remove", zero_remove);
}

}  // namespace convarith::cuda
