// max_pool and what goes with its indices, on the CPU: tensors in, tensors out; the kernels are in pooling_kernels.h.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <atomic>
#include <tuple>

#include "../window_checks.h"
#include "dispatch.h"
#include "pooling_kernels.h"

namespace convarith::cpu {
namespace {

#define CONVARITH_DISPATCH_ORDERED(DTYPE, NAME, ...) \
  AT_DISPATCH_V2(DTYPE, NAME, AT_WRAP(__VA_ARGS__), AT_EXPAND(AT_ALL_TYPES), at::kHalf, at::kBFloat16)

// What values are compared in.
template <typename T>
using Compared = std::conditional_t<std::is_integral_v<T>, T, typename Accumulate<T>::type>;

template <typename Body>
void with_bool(bool value, const Body& body) {
  value ? body(std::true_type{}) : body(std::false_type{});
}

at::Tensor max_pool(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                    at::IntArrayRef dilation, bool ceil_mode, bool minimum) {
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  const Windows& w = s.windows;
  check_no_empty_window(w);
  const auto format = window_format(x, kernel_size.size());
  const at::Tensor in = x.contiguous(format);
  at::Tensor y = at::empty(s.y, x.options(), format);
  CONVARITH_DISPATCH_ORDERED(x.scalar_type(), "torch_convarith::max_pool", [&] {
    with_bool(minimum, [&](auto is_minimum) {
      const MaxPolicy<is_minimum.value, scalar_t, Compared<scalar_t>> policy;
      parallel_rows(w.planes * w.output[0] * w.output[1], w.output[2] * w.inner * w.kernel_numel(),
                    [&](int64_t begin, int64_t end) {
                      pool_rows(w, policy, in.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>(), begin, end);
                    });
    });
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor> max_pool_with_indices(const at::Tensor& x, at::IntArrayRef kernel_size,
                                                         at::IntArrayRef stride, at::IntArrayRef padding,
                                                         at::IntArrayRef dilation, bool ceil_mode, bool minimum) {
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  const Windows& w = s.windows;
  check_no_empty_window(w);
  const auto format = window_format(x, kernel_size.size());
  const at::Tensor in = x.contiguous(format);
  at::Tensor y = at::empty(s.y, x.options(), format);
  at::Tensor indices = at::empty(s.y, x.options().dtype(at::kLong), format);
  CONVARITH_DISPATCH_ORDERED(x.scalar_type(), "torch_convarith::max_pool_with_indices", [&] {
    using A = Compared<scalar_t>;
    using Narrow = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;  // an index as wide as a value vectorises
    const auto rows = [&](auto kernel) {
      parallel_rows(w.planes * w.output[0] * w.output[1], w.output[2] * w.inner * w.kernel_numel(),
                    [&](int64_t begin, int64_t end) {
                      kernel(w, in.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>(),
                             indices.mutable_data_ptr<int64_t>(), begin, end);
                    });
    };
    with_bool(minimum, [&](auto is_minimum) {
      if (w.input_numel() < std::numeric_limits<int32_t>::max()) {
        rows(max_pool_rows<is_minimum.value, scalar_t, A, Narrow>);
      } else {
        rows(max_pool_rows<is_minimum.value, scalar_t, A, int64_t>);
      }
    });
  });
  return {y, indices};
}

// Planes on either side of the indices, whose memory is laid out as they are.
struct Selection {
  at::MemoryFormat format;
  int64_t planes = 1;
  int64_t inner = 1;
  int64_t inputs = 1;
  int64_t outputs = 1;
};

Selection make_selection(const at::Tensor& indices, at::IntArrayRef input, int64_t axes) {
  TORCH_CHECK(axes >= 1 && axes <= kAxes && indices.dim() >= axes && input.size() == static_cast<size_t>(axes),
              "expected indices with 1 to 3 axes and as many input sizes, got indices of shape ", indices.sizes(),
              ", input sizes ", input, " and axes ", axes);
  TORCH_CHECK(indices.scalar_type() == at::kLong, "expected indices of dtype torch.int64, got ", indices.scalar_type());
  Selection s = {window_format(indices, axes)};
  const int64_t leading = indices.dim() - axes;
  for (int64_t i = 0; i < leading; ++i) {
    (s.format != at::MemoryFormat::Contiguous && i == 1 ? s.inner : s.planes) *= indices.size(i);
  }
  for (int64_t i = 0; i < axes; ++i) {
    TORCH_CHECK(input[i] >= 0, "input size ", input[i], " is negative");
    s.inputs *= input[i];
    s.outputs *= indices.size(leading + i);
  }
  return s;
}

void check_indices(bool valid, const Selection& s) {
  TORCH_CHECK_INDEX(valid, "indices must count inputs of a plane, from 0 to ", s.inputs - 1);
}

at::Tensor pool_select(const at::Tensor& x, const at::Tensor& indices, int64_t axes) {
  TORCH_CHECK(x.device() == indices.device(), "expected x and indices on the same device");
  TORCH_CHECK(axes >= 1 && axes <= kAxes && x.dim() == indices.dim() && x.dim() >= axes &&
                  x.sizes().slice(0, x.dim() - axes) == indices.sizes().slice(0, x.dim() - axes),
              "expected x and indices that differ in the last ", axes, " dimensions only, got ", x.sizes(), " and ",
              indices.sizes());
  check_dense(x, "x");
  check_dense(indices, "indices");
  const Selection s = make_selection(indices, x.sizes().slice(x.dim() - axes), axes);
  const at::Tensor from = x.contiguous(s.format), at = indices.contiguous(s.format);
  at::Tensor y = at::empty(indices.sizes(), x.options(), s.format);
  std::atomic<bool> valid = true;
  CONVARITH_DISPATCH(x.scalar_type(), "torch_convarith::pool_select", [&] {
    parallel_rows(s.planes, s.outputs * s.inner, [&](int64_t begin, int64_t end) {
      if (!pool_select_planes(s.inputs, s.outputs, s.inner, from.const_data_ptr<scalar_t>(),
                              at.const_data_ptr<int64_t>(), y.mutable_data_ptr<scalar_t>(), begin, end)) {
        valid = false;
      }
    });
  });
  check_indices(valid, s);
  return y;
}

at::Tensor pool_scatter(const at::Tensor& y, at::IntArrayRef input_size, const at::Tensor& indices, int64_t axes) {
  TORCH_CHECK(y.device() == indices.device(), "expected y and indices on the same device");
  check_shape(y, "y", indices.sizes());
  check_dense(y, "y");
  check_dense(indices, "indices");
  const Selection s = make_selection(indices, input_size, axes);
  std::vector<int64_t> size = y.sizes().vec();
  std::copy(input_size.begin(), input_size.end(), size.end() - axes);
  const at::Tensor from = y.contiguous(s.format), at = indices.contiguous(s.format);
  at::Tensor x = at::empty(size, y.options(), s.format);
  std::atomic<bool> valid = true;
  CONVARITH_DISPATCH(y.scalar_type(), "torch_convarith::pool_scatter", [&] {
    using A = Accumulate<scalar_t>::type;
    const auto* values = from.const_data_ptr<scalar_t>();
    const auto* places = at.const_data_ptr<int64_t>();
    auto* to = x.mutable_data_ptr<scalar_t>();
    if (s.inner == 1) {
      parallel_rows(s.planes, s.inputs + s.outputs, [&](int64_t begin, int64_t end) {
        if (!pool_scatter_planes<scalar_t, A>(s.inputs, s.outputs, 1, values, places, to, begin, end, 0, 1)) {
          valid = false;
        }
      });
      return;
    }
    const int64_t block = std::min<int64_t>(s.inner, 32), blocks = ceil_div(s.inner, block);
    parallel_rows(s.planes * blocks, (s.inputs + s.outputs) * block, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t plane = b / blocks, first = b % blocks * block;
        if (!pool_scatter_planes<scalar_t, A>(s.inputs, s.outputs, s.inner, values, places, to, plane, plane + 1, first,
                                              std::min(first + block, s.inner))) {
          valid = false;
        }
      }
    });
  });
  check_indices(valid, s);
  return x;
}

template <bool kTransposed>
at::Tensor ties(const WindowShapes& s, const at::Tensor& v, const at::Tensor& x, const at::Tensor& y, size_t axes,
                bool split) {
  check_alike(v, "v", x, "x");
  check_alike(v, "v", y, "y");
  check_shape(v, "v", kTransposed ? s.y : s.x);
  check_shape(x, "x", s.x);
  check_shape(y, "y", s.y);
  const Windows& w = s.windows;
  const auto format = window_format(x, axes);
  const at::Tensor values = v.contiguous(format), in = x.contiguous(format), best = y.contiguous(format);
  at::Tensor result = at::empty(kTransposed ? s.x : s.y, v.options(), format);
  AT_DISPATCH_V2(
      v.scalar_type(), "torch_convarith::pool_ties", AT_WRAP([&] {
        using A = Accumulate<scalar_t>::type;
        parallel_rows(w.planes, w.output_numel() * w.kernel_numel() * w.inner, [&](int64_t begin, int64_t end) {
          pool_ties_planes<kTransposed, scalar_t, A>(w, split, values.const_data_ptr<scalar_t>(),
                                                     in.const_data_ptr<scalar_t>(), best.const_data_ptr<scalar_t>(),
                                                     result.mutable_data_ptr<scalar_t>(), begin, end);
        });
      }),
      AT_EXPAND(AT_FLOATING_TYPES), at::kHalf, at::kBFloat16);
  return result;
}

at::Tensor pool_ties(const at::Tensor& v, const at::Tensor& x, const at::Tensor& y, at::IntArrayRef kernel_size,
                     at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode,
                     bool split) {
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  return ties<false>(s, v, x, y, kernel_size.size(), split);
}

at::Tensor pool_ties_transpose(const at::Tensor& v, at::IntArrayRef input_size, const at::Tensor& x,
                               const at::Tensor& y, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                               at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode, bool split) {
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  TORCH_CHECK(x.sizes().slice(x.dim() - static_cast<int64_t>(kernel_size.size())) == input_size,
              "expected x with sizes ", input_size, ", got ", x.sizes());
  return ties<true>(s, v, x, y, kernel_size.size(), split);
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_convarith, CPU, m) {
  m.impl("max_pool", max_pool);
  m.impl("max_pool_with_indices", max_pool_with_indices);
  m.impl("pool_select", pool_select);
  m.impl("pool_scatter", pool_scatter);
  m.impl("pool_ties", pool_ties);
  m.impl("pool_ties_transpose", pool_ties_transpose);
}

}  // namespace convarith::cpu
