// The explicit matrix on CUDA. The operators are in matrix_operators.h, the kernels in matrix.cu.
#include "matrix.h"

#include <ATen/ops/empty.h>

#include "../matrix_operators.h"
#include "glue.h"

namespace convarith::cuda {
namespace {

bool wide_indices(const Csr& c) {
  return c.crow.scalar_type() == at::kLong;
}

struct MatrixOnCuda {
  static void fill(const CsrPlan& plan, const at::Tensor& w, Csr& c) {
    fill(plan, w.const_data_ptr(), dtype_of(w, DTypes::kNumber, "torch_convarith::csr"), c);
  }

  static void fill_structure(const CsrPlan& plan, Csr& c) { fill(plan, nullptr, DType::kFloat, c); }

  static at::Tensor multiply(const Csr& c, const at::Tensor& x) {
    const DType dtype = dtype_of(x, DTypes::kNumber, "torch_convarith::conv_csr");
    const OnDeviceOf device(x);
    const int64_t rows = c.crow.numel() - 1;
    at::Tensor y = at::empty({rows, x.size(1)}, x.options());
    check_launch(
        launch_csr_multiply(rows, x.size(1), dtype, wide_indices(c), c.crow.const_data_ptr(), c.col.const_data_ptr(),
                            c.values.const_data_ptr(), x.const_data_ptr(), y.mutable_data_ptr(), device.stream()),
        "conv_csr");
    return y;
  }

  static void sample(Csr& c, const at::Tensor& y, const at::Tensor& x) {
    const DType dtype = dtype_of(x, DTypes::kNumber, "torch_convarith::conv_weight_csr");
    const OnDeviceOf device(x);
    check_launch(launch_csr_sample(c.crow.numel() - 1, x.size(1), dtype, wide_indices(c), c.crow.const_data_ptr(),
                                   c.col.const_data_ptr(), y.const_data_ptr(), x.const_data_ptr(),
                                   c.values.mutable_data_ptr(), device.stream()),
                 "conv_weight_csr");
  }

  static at::Tensor sum_entries(const CsrPlan& plan, const at::Tensor& values, at::IntArrayRef weight_size) {
    const DType dtype = dtype_of(values, DTypes::kNumber, "torch_convarith::csr_weight");
    const OnDeviceOf device(values);
    const PackedTables packed = pack_tables(plan, /*meets=*/true);
    const at::Tensor tables = on_device(packed, values.options(), device.stream());
    at::Tensor w = at::empty(weight_size, values.options());
    check_launch(launch_csr_weight(plan, packed, tables.const_data_ptr<int32_t>(), dtype, values.const_data_ptr(),
                                   w.mutable_data_ptr(), device.stream()),
                 "csr_weight");
    return w;
  }

 private:
  static at::Tensor on_device(const PackedTables& packed, const at::TensorOptions& options, cudaStream_t stream) {
    at::Tensor words = at::empty({static_cast<int64_t>(packed.words.size())}, options.dtype(at::kInt));
    check_launch(upload(packed.words, words.mutable_data_ptr<int32_t>(), stream), "csr");
    return words;
  }

  static void fill(const CsrPlan& plan, const void* w, DType dtype, Csr& c) {
    const OnDeviceOf device(c.crow);
    const PackedTables packed = pack_tables(plan, /*meets=*/false);
    const at::Tensor tables = on_device(packed, c.crow.options(), device.stream());
    check_launch(
        launch_csr(plan, packed, tables.const_data_ptr<int32_t>(), dtype, wide_indices(c), w, c.crow.mutable_data_ptr(),
                   c.col.mutable_data_ptr(), c.values.mutable_data_ptr(), device.stream()),
        "csr");
  }
};

}  // namespace

CONVARITH_CUDA_IMPL(m) {
  register_matrix_operators<MatrixOnCuda>(m);
}

}  // namespace convarith::cuda
