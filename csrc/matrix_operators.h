// csr, csr_weight and the three bilinear operators as products with the explicit matrix: what all devices have in
// common.
#pragma once

#include <ATen/ops/empty.h>

#include <limits>
#include <tuple>

#include "checks.h"
#include "matrix_plan.h"

namespace convarith {

// 32-bit indices where all of them fit.
inline at::ScalarType index_type(const CsrPlan& plan) {
  const int64_t largest = std::max({plan.nnz(), plan.row_count(), plan.column_count()});
  return largest <= std::numeric_limits<int32_t>::max() ? at::kInt : at::kLong;
}

struct Csr {
  at::Tensor crow;
  at::Tensor col;
  at::Tensor values;

  Csr(const CsrPlan& plan, const at::TensorOptions& options)
      : crow(at::empty({plan.row_count() + 1}, options.dtype(index_type(plan)))),
        col(at::empty({plan.nnz()}, crow.options())),
        values(at::empty({plan.nnz()}, options)) {}
};

// Plans of a contiguous weight know its strides without having one.
inline void set_contiguous_weight(Problem& p) {
  p.w.axis = {p.axis[1].kernel * p.axis[2].kernel, p.axis[2].kernel, 1};
  p.w.channel = p.kernel_numel();
  p.w.batch = p.in_channels * p.w.channel;
}

inline Problem matrix_problem(at::IntArrayRef weight_size, at::IntArrayRef input_size, at::IntArrayRef stride,
                              at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  TORCH_CHECK(weight_size.size() >= 3 && weight_size.size() <= 5,
              "expected a weight (out channels, in channels / groups, *kernel) with 1 to 3 axes, got shape ",
              weight_size);
  check_groups(groups);
  Sizes sizes = {shape(1, groups * weight_size[1], input_size), weight_size.vec(), {}};
  return make_problem(sizes, stride, padding, dilation, groups);
}

// (N, *) -> (prod(*), N): the matrix's columns side by side, each a row of memory that an axpy or dot runs along.
inline at::Tensor as_columns(const at::Tensor& t) {
  return t.reshape({t.size(0), t.numel() / std::max<int64_t>(1, t.size(0))}).t().contiguous();
}

inline at::Tensor from_columns(const at::Tensor& columns, at::IntArrayRef size, at::MemoryFormat format) {
  return columns.t().reshape(size).contiguous(format);
}

// A Device has
//   fill(plan, w, c)              C of the weight w
//   fill_structure(plan, c)       its rows and columns
//   multiply(c, x)                C x, x (columns, N)
//   sample(c, y, x)               values[e] = <y[row], x[column]> for every entry e
//   sum_entries(plan, values, weight_size)    the sum over each weight's entries
template <typename Device>
struct MatrixOperators {
  static Csr assemble(const Problem& p, PaddingMode mode, bool transposed, const at::Tensor& w) {
    const CsrPlan plan = csr_plan(p, mode, transposed);
    Csr c(plan, w.options());
    Device::fill(plan, w, c);
    return c;
  }

  static std::tuple<at::Tensor, at::Tensor, at::Tensor> csr(const at::Tensor& w, at::IntArrayRef input_size,
                                                            at::IntArrayRef stride, at::IntArrayRef padding,
                                                            at::IntArrayRef dilation, int64_t groups,
                                                            c10::string_view padding_mode, bool transposed) {
    TORCH_CHECK(w.layout() == at::kStrided, "expected a dense weight, got layout ", w.layout());
    Problem p = matrix_problem(w.sizes(), input_size, stride, padding, dilation, groups);
    p.w = strides_of(w);
    const Csr c = assemble(p, check_padding_mode(padding_mode, p), transposed, w);
    return {c.crow, c.col, c.values};
  }

  static at::Tensor csr_weight(const at::Tensor& values, at::IntArrayRef weight_size, at::IntArrayRef input_size,
                               at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                               int64_t groups, c10::string_view padding_mode, bool transposed) {
    Problem p = matrix_problem(weight_size, input_size, stride, padding, dilation, groups);
    set_contiguous_weight(p);
    const CsrPlan plan = csr_plan(p, check_padding_mode(padding_mode, p), transposed);
    TORCH_CHECK(values.dim() == 1 && values.numel() == plan.nnz(), "expected ", plan.nnz(),
                " values, one per entry of the matrix, got shape ", values.sizes());
    return Device::sum_entries(plan, values.contiguous(), weight_size);
  }

  static at::Tensor conv_csr(const at::Tensor& x, const at::Tensor& w, at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef dilation, int64_t groups) {
    check_tensors(x, "x", w, "w");
    Sizes sizes = {x.sizes().vec(), w.sizes().vec(), {}};
    Problem p = make_problem(sizes, stride, padding, dilation, groups);
    p.w = strides_of(w);
    const Csr c = assemble(p, PaddingMode::kZeros, /*transposed=*/false, w);
    return from_columns(Device::multiply(c, as_columns(x)), sizes.y, output_format(x, w));
  }

  static at::Tensor conv_transpose_csr(const at::Tensor& y, const at::Tensor& w, at::IntArrayRef input_size,
                                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                       int64_t groups) {
    check_tensors(y, "y", w, "w");
    Sizes sizes = {input_shape(y, w, input_size, groups), w.sizes().vec(), y.sizes().vec()};
    Problem p = make_problem(sizes, stride, padding, dilation, groups);
    p.w = strides_of(w);
    const Csr c = assemble(p, PaddingMode::kZeros, /*transposed=*/true, w);
    return from_columns(Device::multiply(c, as_columns(y)), sizes.x, output_format(y, w));
  }

  static at::Tensor conv_weight_csr(const at::Tensor& x, const at::Tensor& y, at::IntArrayRef kernel_size,
                                    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                    int64_t groups) {
    check_tensors(x, "x", y, "y");
    Sizes sizes = {x.sizes().vec(), weight_shape(x, y, kernel_size, groups), y.sizes().vec()};
    Problem p = make_problem(sizes, stride, padding, dilation, groups);
    set_contiguous_weight(p);
    const CsrPlan plan = csr_plan(p, PaddingMode::kZeros, /*transposed=*/false);
    Csr c(plan, x.options());
    Device::fill_structure(plan, c);
    Device::sample(c, as_columns(y), as_columns(x));
    return Device::sum_entries(plan, c.values, sizes.w).contiguous(output_format(x, y));
  }
};

// Registers a device's operators.
template <typename Device, typename Library>
void register_matrix_operators(Library& m) {
  using Operators = MatrixOperators<Device>;
  m.impl("csr", Operators::csr);
  m.impl("csr_weight", Operators::csr_weight);
  m.impl("conv_csr", Operators::conv_csr);
  m.impl("conv_transpose_csr", Operators::conv_transpose_csr);
  m.impl("conv_weight_csr", Operators::conv_weight_csr);
}

}  // namespace convarith
