// Local response normalisation across channels, and its derivative, on the CPU: tensors in, tensors out.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <memory>

#include "../window_checks.h"
#include "dispatch.h"
#include "isa.h"

namespace convarith::cpu {
namespace {

constexpr int64_t kBlock = 1024;  // neighbours that are normalised together: their window of channels stays in cache

const WindowKernels& lrn_kernels(at::ScalarType dtype) {
  const int known = kernel_dtype(dtype);
  TORCH_CHECK_NOT_IMPLEMENTED(known >= 0, "\"torch_convarith::lrn\" not implemented for '", dtype, "'");
  return active_window_kernels(known);
}

LrnPlan make_plan(const Lrn& p) {
  return {p.channels, p.inner, p.size, p.alpha, p.beta, p.k, kBlock, ceil_div(p.inner, kBlock)};
}

at::Tensor lrn(const at::Tensor& x, int64_t channel_dim, int64_t size, double alpha, double beta, double k) {
  const Lrn p = make_lrn(x, channel_dim, size, alpha, beta, k);
  const WindowKernels& kernels = lrn_kernels(x.scalar_type());
  const at::Tensor in = x.contiguous();
  at::Tensor y = at::empty_like(in);
  const LrnPlan plan = make_plan(p);
  parallel_rows(p.planes * plan.blocks, p.channels * kBlock * 8, [&](int64_t begin, int64_t end) {
    kernels.lrn(plan, in.const_data_ptr(), y.mutable_data_ptr(), begin, end);
  });
  return y;
}

at::Tensor lrn_backward(const at::Tensor& g, const at::Tensor& x, int64_t channel_dim, int64_t size, double alpha,
                        double beta, double k) {
  const Lrn p = make_lrn(x, channel_dim, size, alpha, beta, k);
  check_alike(x, "x", g, "g");
  check_shape(g, "g", x.sizes());
  const WindowKernels& kernels = lrn_kernels(x.scalar_type());
  const at::Tensor in = x.contiguous(), grad = g.contiguous();
  at::Tensor result = at::empty_like(in);
  const LrnPlan plan = make_plan(p);
  const int64_t scratch_size = 2 * (p.size + 1) * kBlock * kernels.sum_item;
  parallel_rows(p.planes * plan.blocks, p.channels * kBlock * 16, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<char[]> scratch(new char[scratch_size]);
    kernels.lrn_backward(plan, grad.const_data_ptr(), in.const_data_ptr(), result.mutable_data_ptr(), scratch.get(),
                         begin, end);
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_convarith, CPU, m) {
  m.impl("lrn", lrn);
  m.impl("lrn_backward", lrn_backward);
}

}  // namespace convarith::cpu
