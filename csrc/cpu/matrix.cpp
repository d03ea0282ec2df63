// The explicit matrix on the CPU. The operators are in matrix_operators.h, the kernels in matrix_csr.h.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../matrix_operators.h"
#include "dispatch.h"
#include "matrix_csr.h"

namespace convarith::cpu {
namespace {

struct MatrixOnCpu {
  static void fill(const CsrPlan& plan, const at::Tensor& w, Csr& c) {
    CONVARITH_DISPATCH(w.scalar_type(), "torch_convarith::csr", [&] {
      fill_rows(plan, w.const_data_ptr<scalar_t>(), c, c.values.mutable_data_ptr<scalar_t>());
    });
  }

  static void fill_structure(const CsrPlan& plan, Csr& c) { fill_rows<char>(plan, nullptr, c, nullptr); }

  static at::Tensor multiply(const Csr& c, const at::Tensor& x) {
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

  static void sample(Csr& c, const at::Tensor& y, const at::Tensor& x) {
    const int64_t rows = c.crow.numel() - 1;
    AT_DISPATCH_INDEX_TYPES(c.crow.scalar_type(), "torch_convarith::conv_weight_csr", [&] {
      CONVARITH_DISPATCH(x.scalar_type(), "torch_convarith::conv_weight_csr", [&] {
        using Acc = Accumulate<scalar_t>::type;
        const int64_t work = c.col.numel() / std::max<int64_t>(1, rows) * x.size(1);
        parallel_rows(rows, work, [&](int64_t begin, int64_t end) {
          csr_sampled_rows<scalar_t, Acc, index_t>(c.crow.const_data_ptr<index_t>(), c.col.const_data_ptr<index_t>(),
                                                   y.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(),
                                                   x.size(1), c.values.mutable_data_ptr<scalar_t>(), begin, end);
        });
      });
    });
  }

  static at::Tensor sum_entries(const CsrPlan& plan, const at::Tensor& values, at::IntArrayRef weight_size) {
    at::Tensor w = at::empty(weight_size, values.options());
    CONVARITH_DISPATCH(w.scalar_type(), "torch_convarith::csr_weight", [&] {
      using Acc = Accumulate<scalar_t>::type;
      parallel_rows(plan.groups * plan.row_channels, plan.entries_per_channel(), [&](int64_t begin, int64_t end) {
        csr_weight_rows<scalar_t, Acc>(plan, values.const_data_ptr<scalar_t>(), w.mutable_data_ptr<scalar_t>(), begin,
                                       end);
      });
    });
    return w;
  }

 private:
  // Without values, the structure only.
  template <typename T>
  static void fill_rows(const CsrPlan& plan, const T* w, Csr& c, T* values) {
    AT_DISPATCH_INDEX_TYPES(c.crow.scalar_type(), "torch_convarith::csr", [&] {
      index_t* crow = c.crow.mutable_data_ptr<index_t>();
      index_t* col = c.col.mutable_data_ptr<index_t>();
      crow[0] = 0;
      const int64_t work = plan.nnz() / std::max<int64_t>(1, plan.spatial_rows());
      parallel_rows(plan.spatial_rows(), work, [&](int64_t begin, int64_t end) {
        csr_fill<T, typename Accumulate<T>::type, index_t>(plan, w, crow, col, values, begin, end);
      });
    });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(torch_convarith, CPU, m) {
  register_matrix_operators<MatrixOnCpu>(m);
}

}  // namespace convarith::cpu
