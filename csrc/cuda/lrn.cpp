// Local response normalisation on CUDA: tensors in, tensors out.
#include "lrn.h"

#include <ATen/ops/empty_like.h>

#include "../window_checks.h"
#include "glue.h"

namespace convarith::cuda {
namespace {

at::Tensor lrn(const at::Tensor& x, int64_t channel_dim, int64_t size, double alpha, double beta, double k) {
  const Lrn p = make_lrn(x, channel_dim, size, alpha, beta, k);
  const DType dtype = dtype_of(x, DTypes::kFloating, "torch_convarith::lrn");
  const OnDeviceOf device(x);
  const at::Tensor in = x.contiguous();
  at::Tensor y = at::empty_like(in);
  check_launch(launch_lrn(p, dtype, in.const_data_ptr(), y.mutable_data_ptr(), device.stream()), "lrn");
  return y;
}

at::Tensor lrn_backward(const at::Tensor& g, const at::Tensor& x, int64_t channel_dim, int64_t size, double alpha,
                        double beta, double k) {
  const Lrn p = make_lrn(x, channel_dim, size, alpha, beta, k);
  check_alike(x, "x", g, "g");
  check_shape(g, "g", x.sizes());
  const DType dtype = dtype_of(x, DTypes::kFloating, "torch_convarith::lrn_backward");
  const OnDeviceOf device(x);
  const at::Tensor in = x.contiguous(), grad = g.contiguous();
  at::Tensor result = at::empty_like(in);
  check_launch(launch_lrn_backward(p, dtype, grad.const_data_ptr(), in.const_data_ptr(), result.mutable_data_ptr(),
                                   device.stream()),
               "lrn_backward");
  return result;
}

}  // namespace

CONVARITH_CUDA_IMPL(m) {
  m.impl("lrn", lrn);
  m.impl("lrn_backward", lrn_backward);
}

}  // namespace convarith::cuda
