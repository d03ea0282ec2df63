// max_pool and what goes with its indices, on the CPU: tensors in, tensors out.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <atomic>
#include <tuple>

#include "../window_checks.h"
#include "dispatch.h"
#include "pooling_direct.h"
#include "pooling_rows.h"

namespace convarith::cpu {
namespace {

// Of each maximum also its place, as an index (int64_t) or a tap (uint8_t); `places` may be null: then nobody asks.
template <typename Place>
at::Tensor pool_maximum(const at::Tensor& x, const WindowShapes& s, at::MemoryFormat format, bool minimum,
                        Place* places) {
  const Windows& w = s.windows;
  check_no_empty_window(w);
  const at::Tensor in = x.contiguous(format);
  at::Tensor y = at::empty(s.y, x.options(), format);
  const int dtype = kernel_dtype(x.scalar_type());
  // Fast kernels count inputs in as many bits as a value has.
  const bool are_indices = std::is_same_v<Place, int64_t> && places != nullptr;
  if (dtype >= 0 && (!are_indices || w.input_numel() < std::numeric_limits<int32_t>::max())) {
    const WindowKernels& kernels = active_window_kernels(dtype);
    const void* from = in.const_data_ptr();
    void* to = y.mutable_data_ptr();
    if (places == nullptr) {
      run_pool(kernels, minimum ? Pooling::kMin : Pooling::kMax, w, {}, 0, from, to);
      return y;
    }
    Planned planned = Planned::forward(w, kernels, {});
    const PoolPlan& plan = planned.plan();
    parallel_pool_rows(plan, pooled_rows(w), pooled_row_work(w), [&](char* scratch, int64_t begin, int64_t end) {
      if constexpr (std::is_same_v<Place, uint8_t>) {
        kernels.max_pool_with_taps(minimum, plan, from, to, places, scratch, begin, end);
      } else {
        kernels.max_pool_with_indices(minimum, plan, from, to, places, scratch, begin, end);
      }
    });
    return y;
  }
  AT_DISPATCH_V2(x.scalar_type(), "torch_convarith::max_pool", AT_WRAP([&] {
                   parallel_rows(w.planes, w.output_numel() * w.inner * w.kernel_numel(),
                                 [&](int64_t begin, int64_t end) {
                                   max_pool_planes(w, minimum, in.const_data_ptr<scalar_t>(),
                                                   y.mutable_data_ptr<scalar_t>(), places, begin, end);
                                 });
                 }),
                 AT_EXPAND(AT_ALL_TYPES), at::kHalf, at::kBFloat16);
  return y;
}

at::Tensor max_pool(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                    at::IntArrayRef dilation, bool ceil_mode, bool minimum) {
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  return pool_maximum<int64_t>(x, s, window_format(x, kernel_size.size()), minimum, nullptr);
}

// Place: int64_t for indices, uint8_t for taps.
template <typename Place>
std::tuple<at::Tensor, at::Tensor> max_pool_with(const at::Tensor& x, at::IntArrayRef kernel_size,
                                                 at::IntArrayRef stride, at::IntArrayRef padding,
                                                 at::IntArrayRef dilation, bool ceil_mode, bool minimum) {
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  check_no_empty_window(s.windows);
  if (std::is_same_v<Place, uint8_t>) check_counts_taps(s.windows);
  const auto format = window_format(x, kernel_size.size());
  at::Tensor places = at::empty(s.y, x.options().dtype(c10::CppTypeToScalarType<Place>::value), format);
  return {pool_maximum(x, s, format, minimum, places.mutable_data_ptr<Place>()), places};
}

void check_indices(bool valid, const Selection& s) {
  TORCH_CHECK_INDEX(valid, "indices must count inputs of a plane, from 0 to ", s.inputs - 1);
}

at::Tensor pool_select(const at::Tensor& x, const at::Tensor& indices, int64_t axes) {
  at::MemoryFormat format;
  const Selection s = make_pool_select(x, indices, axes, format);
  const at::Tensor from = x.contiguous(format), at = indices.contiguous(format);
  at::Tensor y = at::empty(indices.sizes(), x.options(), format);
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
  at::MemoryFormat format;
  const Selection s = make_pool_scatter(y, input_size, indices, axes, format);
  std::vector<int64_t> size = y.sizes().vec();
  std::copy(input_size.begin(), input_size.end(), size.end() - axes);
  const at::Tensor from = y.contiguous(format), at = indices.contiguous(format);
  at::Tensor x = at::empty(size, y.options(), format);
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

void check_taps_are_valid(bool valid, const Windows& w) {
  TORCH_CHECK_INDEX(valid, "taps must count the elements of a window, from 0 to ", w.kernel_numel() - 1);
}

at::Tensor tap_select(const at::Tensor& x, const at::Tensor& taps, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  at::MemoryFormat format;
  const WindowShapes s = make_tap_select(x, taps, kernel_size, stride, padding, dilation, ceil_mode, format);
  const Windows& w = s.windows;
  const at::Tensor from = x.contiguous(format), at = taps.contiguous(format);
  at::Tensor y = at::empty(s.y, x.options(), format);
  std::atomic<bool> valid = true;
  CONVARITH_DISPATCH(x.scalar_type(), "torch_convarith::tap_select", [&] {
    parallel_rows(w.planes, w.output_numel() * w.inner, [&](int64_t begin, int64_t end) {
      if (!tap_select_planes(w, from.const_data_ptr<scalar_t>(), at.const_data_ptr<uint8_t>(),
                             y.mutable_data_ptr<scalar_t>(), begin, end)) {
        valid = false;
      }
    });
  });
  check_taps_are_valid(valid, w);
  return y;
}

at::Tensor tap_scatter(const at::Tensor& y, at::IntArrayRef input_size, const at::Tensor& taps,
                       at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                       at::IntArrayRef dilation, bool ceil_mode) {
  at::MemoryFormat format;
  const WindowShapes s =
      make_tap_scatter(y, input_size, taps, kernel_size, stride, padding, dilation, ceil_mode, format);
  const Windows& w = s.windows;
  const at::Tensor from = y.contiguous(format), at = taps.contiguous(format);
  at::Tensor x = at::empty(s.x, y.options(), format);
  const uint8_t* places = at.const_data_ptr<uint8_t>();
  const int dtype = kernel_dtype(y.scalar_type());
  if (dtype >= 0 && tap_lines_fit(w, active_window_kernels(dtype))) {
    const bool valid =
        run_tap_scatter(active_window_kernels(dtype), w, from.const_data_ptr(), places, x.mutable_data_ptr());
    check_taps_are_valid(valid, w);
    return x;
  }
  std::atomic<bool> valid = true;
  CONVARITH_DISPATCH(y.scalar_type(), "torch_convarith::tap_scatter", [&] {
    parallel_rows(w.planes, (w.input_numel() + w.output_numel()) * w.inner, [&](int64_t begin, int64_t end) {
      if (!tap_scatter_planes<scalar_t, Accumulate<scalar_t>::type>(w, from.const_data_ptr<scalar_t>(), places,
                                                                    x.mutable_data_ptr<scalar_t>(), begin, end)) {
        valid = false;
      }
    });
  });
  check_taps_are_valid(valid, w);
  return x;
}

template <bool kTransposed>
at::Tensor ties(const at::Tensor& v, const at::Tensor& x, const at::Tensor& y, at::IntArrayRef kernel_size,
                at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode, bool split) {
  const WindowShapes s = make_pool_ties(v, x, y, kTransposed, kernel_size, stride, padding, dilation, ceil_mode);
  const Windows& w = s.windows;
  const auto format = window_format(x, kernel_size.size());
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

at::Tensor pool_ties_transpose(const at::Tensor& v, at::IntArrayRef input_size, const at::Tensor& x,
                               const at::Tensor& y, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                               at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode, bool split) {
  TORCH_CHECK(input_size.size() <= static_cast<size_t>(x.dim()) &&
                  x.sizes().slice(x.dim() - static_cast<int64_t>(input_size.size())) == input_size,
              "expected x with sizes ", input_size, ", got ", x.sizes());
  return ties<true>(v, x, y, kernel_size, stride, padding, dilation, ceil_mode, split);
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_convarith, CPU, m) {
  m.impl("max_pool", max_pool);
  m.impl("max_pool_with_indices", max_pool_with<int64_t>);
  m.impl("max_pool_with_taps", max_pool_with<uint8_t>);
  m.impl("pool_select", pool_select);
  m.impl("pool_scatter", pool_scatter);
  m.impl("tap_select", tap_select);
  m.impl("tap_scatter", tap_scatter);
  m.impl("pool_ties", ties<false>);
  m.impl("pool_ties_transpose", pool_ties_transpose);
}

}  // namespace convarith::cpu
