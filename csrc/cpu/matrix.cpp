// The explicit matrix on the CPU: csr and csr_weight, and the three bilinear operators as products with it. The kernels
// are in matrix_csr.h.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <limits>
#include <tuple>

#include "../checks.h"
#include "dispatch.h"
#include "matrix_csr.h"

namespace convarith::cpu {
namespace {

// 32-bit indices where all of them fit.
at::ScalarType index_type(const CsrPlan& plan) {
  const int64_t largest = std::max({plan.nnz(), plan.row_count(), plan.column_count()});
  return largest <= std::numeric_limits<int32_t>::max() ? at::kInt : at::kLong;
}

struct Csr {
  at::Tensor crow;
  at::Tensor col;
  at::Tensor values;
};

// With an undefined w, the structure only: values of `options` are allocated and not written.
Csr assemble(const CsrPlan& plan, const at::Tensor& w, const at::TensorOptions& options) {
  const at::TensorOptions index = options.dtype(index_type(plan));
  Csr c = {at::empty({plan.row_count() + 1}, index), at::empty({plan.nnz()}, index), at::empty({plan.nnz()}, options)};
  AT_DISPATCH_INDEX_TYPES(c.crow.scalar_type(), "torch_convarith::csr", [&] {
    index_t* crow = c.crow.mutable_data_ptr<index_t>();
    index_t* col = c.col.mutable_data_ptr<index_t>();
    crow[0] = 0;
    CONVARITH_DISPATCH(c.values.scalar_type(), "torch_convarith::csr", [&] {
      const scalar_t* weight = w.defined() ? w.const_data_ptr<scalar_t>() : nullptr;
      scalar_t* values = w.defined() ? c.values.mutable_data_ptr<scalar_t>() : nullptr;
      const int64_t work = plan.nnz() / std::max<int64_t>(1, plan.spatial_rows());
      parallel_rows(plan.spatial_rows(), work, [&](int64_t begin, int64_t end) {
        csr_fill<scalar_t, Accumulate<scalar_t>::type, index_t>(plan, weight, crow, col, values, begin, end);
      });
    });
  });
  return c;
}

// The sum over each weight's entries.
at::Tensor sum_entries(const CsrPlan& plan, const Problem& p, const at::Tensor& values, at::IntArrayRef weight_size) {
  at::Tensor w = at::empty(weight_size, values.options());
  CONVARITH_DISPATCH(w.scalar_type(), "torch_convarith::csr_weight", [&] {
    using Acc = Accumulate<scalar_t>::type;
    parallel_rows(plan.groups * plan.row_channels, plan.entries_per_channel(), [&](int64_t begin, int64_t end) {
      csr_weight_rows<scalar_t, Acc>(plan, p.kernel_numel(), values.const_data_ptr<scalar_t>(),
                                     w.mutable_data_ptr<scalar_t>(), begin, end);
    });
  });
  return w;
}

// Plans of a contiguous weight know its strides without having one.
void set_contiguous_weight(Problem& p) {
  p.w.axis = {p.axis[1].kernel * p.axis[2].kernel, p.axis[2].kernel, 1};
  p.w.channel = p.kernel_numel();
  p.w.batch = p.in_channels * p.w.channel;
}

Problem matrix_problem(at::IntArrayRef weight_size, at::IntArrayRef input_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  TORCH_CHECK(weight_size.size() >= 3 && weight_size.size() <= 5,
              "expected a weight (out channels, in channels / groups, *kernel) with 1 to 3 axes, got shape ",
              weight_size);
  check_groups(groups);
  Sizes sizes = {shape(1, groups * weight_size[1], input_size), weight_size.vec(), {}};
  return make_problem(sizes, stride, padding, dilation, groups);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> csr(const at::Tensor& w, at::IntArrayRef input_size,
                                                   at::IntArrayRef stride, at::IntArrayRef padding,
                                                   at::IntArrayRef dilation, int64_t groups,
                                                   c10::string_view padding_mode, bool transposed) {
  TORCH_CHECK(w.layout() == at::kStrided, "expected a dense weight, got layout ", w.layout());
  Problem p = matrix_problem(w.sizes(), input_size, stride, padding, dilation, groups);
  p.w = strides_of(w);
  Csr c = assemble(csr_plan(p, check_padding_mode(padding_mode, p), transposed), w, w.options());
  return {c.crow, c.col, c.values};
}

at::Tensor csr_weight(const at::Tensor& values, at::IntArrayRef weight_size, at::IntArrayRef input_size,
                      at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                      c10::string_view padding_mode, bool transposed) {
  Problem p = matrix_problem(weight_size, input_size, stride, padding, dilation, groups);
  set_contiguous_weight(p);
  const CsrPlan plan = csr_plan(p, check_padding_mode(padding_mode, p), transposed);
  TORCH_CHECK(values.dim() == 1 && values.numel() == plan.nnz(), "expected ", plan.nnz(),
              " values, one per entry of the matrix, got shape ", values.sizes());
  return sum_entries(plan, p, values.contiguous(), weight_size);
}

// (N, *) -> (prod(*), N): the matrix's columns side by side, each a row of memory that an axpy or dot runs along.
at::Tensor as_columns(const at::Tensor& t) {
  return t.reshape({t.size(0), t.numel() / std::max<int64_t>(1, t.size(0))}).t().contiguous();
}

at::Tensor from_columns(const at::Tensor& columns, at::IntArrayRef size, at::MemoryFormat format) {
  return columns.t().reshape(size).contiguous(format);
}

at::Tensor multiply(const Csr& c, const at::Tensor& x) {
  const int64_t rows = c.crow.numel() - 1;
  at::Tensor y = at::empty({rows, x.size(1)}, x.options());
  AT_DISPATCH_INDEX_TYPES(c.crow.scalar_type(), "torch_convarith::conv_csr", [&] {
    CONVARITH_DISPATCH(x.scalar_type(), "torch_convarith::conv_csr", [&] {
      using Acc = Accumulate<scalar_t>::type;
      const int64_t work = c.col.numel() / std::max<int64_t>(1, rows) * x.size(1);
      parallel_rows(rows, work, [&](int64_t begin, int64_t end) {
        csr_matmul_rows<scalar_t, Acc, index_t>(c.crow.const_data_ptr<index_t>(), c.col.const_data_ptr<index_t>(),
                                                c.values.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(),
                                                x.size(1), y.mutable_data_ptr<scalar_t>(), begin, end);
      });
    });
  });
  return y;
}

at::Tensor conv_csr(const at::Tensor& x, const at::Tensor& w, at::IntArrayRef stride, at::IntArrayRef padding,
                    at::IntArrayRef dilation, int64_t groups) {
  check_tensors(x, "x", w, "w");
  Sizes sizes = {x.sizes().vec(), w.sizes().vec(), {}};
  Problem p = make_problem(sizes, stride, padding, dilation, groups);
  p.w = strides_of(w);
  const Csr c = assemble(csr_plan(p, PaddingMode::kZeros, /*transposed=*/false), w, w.options());
  return from_columns(multiply(c, as_columns(x)), sizes.y, output_format(x, w));
}

at::Tensor conv_transpose_csr(const at::Tensor& y, const at::Tensor& w, at::IntArrayRef input_size,
                              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                              int64_t groups) {
  check_tensors(y, "y", w, "w");
  Sizes sizes = {input_shape(y, w, input_size, groups), w.sizes().vec(), y.sizes().vec()};
  Problem p = make_problem(sizes, stride, padding, dilation, groups);
  p.w = strides_of(w);
  const Csr c = assemble(csr_plan(p, PaddingMode::kZeros, /*transposed=*/true), w, w.options());
  return from_columns(multiply(c, as_columns(y)), sizes.x, output_format(y, w));
}

at::Tensor conv_weight_csr(const at::Tensor& x, const at::Tensor& y, at::IntArrayRef kernel_size,
                           at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  check_tensors(x, "x", y, "y");
  Sizes sizes = {x.sizes().vec(), weight_shape(x, y, kernel_size, groups), y.sizes().vec()};
  Problem p = make_problem(sizes, stride, padding, dilation, groups);
  set_contiguous_weight(p);
  const CsrPlan plan = csr_plan(p, PaddingMode::kZeros, /*transposed=*/false);
  const Csr c = assemble(plan, /*w=*/{}, x.options());
  const at::Tensor inputs = as_columns(x), outputs = as_columns(y);
  AT_DISPATCH_INDEX_TYPES(c.crow.scalar_type(), "torch_convarith::conv_weight_csr", [&] {
    CONVARITH_DISPATCH(x.scalar_type(), "torch_convarith::conv_weight_csr", [&] {
      using Acc = Accumulate<scalar_t>::type;
      const int64_t work = plan.nnz() / std::max<int64_t>(1, plan.row_count()) * p.batch;
      parallel_rows(plan.row_count(), work, [&](int64_t begin, int64_t end) {
        csr_sampled_rows<scalar_t, Acc, index_t>(c.crow.const_data_ptr<index_t>(), c.col.const_data_ptr<index_t>(),
                                                 outputs.const_data_ptr<scalar_t>(), inputs.const_data_ptr<scalar_t>(),
                                                 p.batch, c.values.mutable_data_ptr<scalar_t>(), begin, end);
      });
    });
  });
  return sum_entries(plan, p, c.values, sizes.w).contiguous(output_format(x, y));
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_convarith, CPU, m) {
  m.impl("csr", csr);
  m.impl("csr_weight", csr_weight);
  m.impl("conv_csr", conv_csr);
  m.impl("conv_transpose_csr", conv_transpose_csr);
  m.impl("conv_weight_csr", conv_weight_csr);
}

}  // namespace convarith::cpu
