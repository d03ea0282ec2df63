// avg_pool, lp_pool and their adjoints on the CPU: tensors in, tensors out; the kernels are in pooling_kernels.h.
#include <ATen/ops/abs.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>

#include "../window_checks.h"
#include "dispatch.h"
#include "pooling_kernels.h"

namespace convarith::cpu {
namespace {

Divisors divisors_of(const Windows& w, bool count_include_pad, std::optional<int64_t> divisor_override) {
  TORCH_CHECK(!divisor_override || *divisor_override != 0, "divisor must be not zero");
  if (divisor_override) return Divisors::constant(w, *divisor_override);
  if (!count_include_pad) check_no_empty_window(w);
  return Divisors::of(w, count_include_pad);
}

int64_t pooled_rows(const Windows& w) {
  return w.planes * w.output[0] * w.output[1];
}

int64_t input_rows(const Windows& w) {
  return w.planes * w.axis[0].input * w.axis[1].input;
}

at::Tensor avg_pool(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                    at::IntArrayRef dilation, bool ceil_mode, bool count_include_pad,
                    std::optional<int64_t> divisor_override) {
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  const Windows& w = s.windows;
  const Divisors divisors = divisors_of(w, count_include_pad, divisor_override);
  const auto format = window_format(x, kernel_size.size());
  const at::Tensor in = x.contiguous(format);
  at::Tensor y = at::empty(s.y, x.options(), format);
  CONVARITH_DISPATCH(x.scalar_type(), "torch_convarith::avg_pool", [&] {
    const AveragePolicy<scalar_t, Accumulate<scalar_t>::type> policy(w, divisors);
    parallel_rows(pooled_rows(w), w.output[2] * w.inner * w.kernel_numel(), [&](int64_t begin, int64_t end) {
      pool_rows(w, policy, in.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>(), begin, end);
    });
  });
  return y;
}

at::Tensor avg_pool_transpose(const at::Tensor& y, at::IntArrayRef input_size, at::IntArrayRef kernel_size,
                              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode,
                              bool count_include_pad, std::optional<int64_t> divisor_override) {
  const WindowShapes s = make_windows_of_output(y, input_size, kernel_size, stride, padding, dilation, ceil_mode);
  const Windows& w = s.windows;
  const Divisors divisors = divisors_of(w, count_include_pad, divisor_override);
  const auto format = window_format(y, kernel_size.size());
  const at::Tensor from = y.contiguous(format);
  at::Tensor x = at::empty(s.x, y.options(), format);
  AT_DISPATCH_V2(y.scalar_type(), "torch_convarith::avg_pool_transpose", AT_WRAP([&] {
                   const AverageTransposePolicy<scalar_t, Accumulate<scalar_t>::type> policy(
                       w, divisors, from.const_data_ptr<scalar_t>());
                   parallel_rows(input_rows(w), w.axis[2].input * w.inner * w.axis[2].kernel,
                                 [&](int64_t begin, int64_t end) {
                                   pool_transpose_rows(w, policy, x.mutable_data_ptr<scalar_t>(), begin, end);
                                 });
                 }),
                 AT_EXPAND(AT_FLOATING_TYPES), AT_EXPAND(AT_COMPLEX_TYPES), at::kHalf, at::kBFloat16);
  return x;
}

// Calls body(power, is_signed, T{}, A{}) with power 1, 2 or 3.
template <typename Body>
void dispatch_lp(at::ScalarType dtype, double p, bool is_signed, const Body& body) {
  AT_DISPATCH_V2(dtype, "torch_convarith::lp_pool", AT_WRAP([&] {
                   using A = Accumulate<scalar_t>::type;
                   const auto with_sign = [&](auto power) {
                     if (is_signed) {
                       body(power, std::true_type{}, scalar_t{}, A{});
                     } else {
                       body(power, std::false_type{}, scalar_t{}, A{});
                     }
                   };
                   if (p == 1) {
                     with_sign(std::integral_constant<int, 1>{});
                   } else if (p == 2) {
                     with_sign(std::integral_constant<int, 2>{});
                   } else {
                     with_sign(std::integral_constant<int, 3>{});
                   }
                 }),
                 AT_EXPAND(AT_FLOATING_TYPES), at::kHalf, at::kBFloat16);
}

bool is_written_out(double p) {
  return p == 1 || p == 2 || p == 3;
}

void check_power(double p, bool is_signed) {
  TORCH_CHECK(p == p && p != 0 && std::abs(p) <= std::numeric_limits<double>::max(),
              "L^p pooling needs a finite p other than 0, got ", p);
  TORCH_CHECK(is_signed || p >= 1, "(sum |x|^p)^(1/p) needs p >= 1, got ", p);
}

template <typename Policy, typename T>
void pool_all(const Windows& w, const Policy& policy, const at::Tensor& x, at::Tensor& y) {
  parallel_rows(pooled_rows(w), w.output[2] * w.inner * w.kernel_numel(), [&](int64_t begin, int64_t end) {
    pool_rows(w, policy, x.const_data_ptr<T>(), y.mutable_data_ptr<T>(), begin, end);
  });
}

// Any p: powers and roots by ATen's vectorised pow, sums by the policy of p = 1.
at::Tensor lp_pool_by_pow(const Windows& w, const at::Tensor& in, at::Tensor sums, double p, bool is_signed) {
  const at::Tensor powers = at::pow(is_signed ? in : at::abs(in), p);
  AT_DISPATCH_FLOATING_TYPES(in.scalar_type(), "torch_convarith::lp_pool", [&] {
    if (is_signed) {
      pool_all<LpPolicy<1, true, scalar_t, scalar_t>, scalar_t>(w, {w, 1}, powers, sums);
    } else {
      pool_all<LpPolicy<1, false, scalar_t, scalar_t>, scalar_t>(w, {w, 1}, powers, sums);
    }
  });
  at::Tensor y = at::pow(sums, 1 / p);
  if (is_signed) return y;
  AT_DISPATCH_FLOATING_TYPES(in.scalar_type(), "torch_convarith::lp_pool", [&] {
    const LpPolicy<0, false, scalar_t, scalar_t> policy(w, p);
    const scalar_t* sum = sums.const_data_ptr<scalar_t>();
    const scalar_t* x = in.const_data_ptr<scalar_t>();
    scalar_t* out = y.mutable_data_ptr<scalar_t>();
    const int64_t n = w.output[2] * w.inner;
    parallel_rows(pooled_rows(w), n, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        policy.rescale(w, row_of(r, w.output[0], w.output[1]), x, sum + r * n, out + r * n);
      }
    });
  });
  return y;
}

at::Tensor lp_pool(const at::Tensor& x, double p, bool is_signed, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                   at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  check_power(p, is_signed);
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  const Windows& w = s.windows;
  const auto format = window_format(x, kernel_size.size());
  const at::Tensor in = x.contiguous(format);
  if (!is_written_out(p)) {
    const bool is_half = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
    const at::Tensor wide = is_half ? in.to(at::kFloat) : in;
    return lp_pool_by_pow(w, wide, at::empty(s.y, wide.options(), format), p, is_signed).to(x.scalar_type());
  }
  at::Tensor y = at::empty(s.y, x.options(), format);
  dispatch_lp(x.scalar_type(), p, is_signed, [&](auto power, auto sign, auto t, auto a) {
    using T = decltype(t);
    const LpPolicy<power.value, sign.value, T, decltype(a)> policy(w, p);
    parallel_rows(pooled_rows(w), w.output[2] * w.inner * w.kernel_numel(), [&](int64_t begin, int64_t end) {
      pool_rows(w, policy, in.const_data_ptr<T>(), y.mutable_data_ptr<T>(), begin, end);
    });
  });
  return y;
}

constexpr double kSafePower = 4;      // up to which powers of ordinary floats are floats
constexpr double kLargestPower = 16;  // likewise of doubles

at::Tensor lp_backward_by_pow(const Windows& w, const at::Tensor& g, const at::Tensor& x, const at::Tensor& y, double p,
                              bool is_signed) {
  at::Tensor result = at::empty_like(x);
  if (!is_signed && p > kLargestPower) {
    parallel_rows(w.planes, w.output_numel() * w.kernel_numel() * w.inner * 16, [&](int64_t begin, int64_t end) {
      lp_backward_planes<double, double>(w, p, g.const_data_ptr<double>(), x.const_data_ptr<double>(),
                                         y.const_data_ptr<double>(), result.mutable_data_ptr<double>(), begin, end);
    });
    return result;
  }
  const at::Tensor scaled = at::where(at::eq(y, 0), at::zeros({}, y.options()), at::mul(g, at::pow(y, 1 - p)));
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "torch_convarith::lp_pool_backward", [&] {
    const auto spread = [&](auto sign) {
      const LpTransposePolicy<1, sign.value, scalar_t, scalar_t> policy(
          w, 1, scaled.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(), y.const_data_ptr<scalar_t>());
      parallel_rows(input_rows(w), w.axis[2].input * w.inner * w.axis[2].kernel, [&](int64_t begin, int64_t end) {
        pool_transpose_rows(w, policy, result.mutable_data_ptr<scalar_t>(), begin, end);
      });
    };
    is_signed ? spread(std::true_type{}) : spread(std::false_type{});
  });
  return result.mul_(at::pow(is_signed ? x : at::abs(x), p - 1));
}

at::Tensor lp_pool_backward(const at::Tensor& g, const at::Tensor& x, const at::Tensor& y, double p, bool is_signed,
                            at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                            at::IntArrayRef dilation, bool ceil_mode) {
  check_power(p, is_signed);
  check_alike(x, "x", g, "g");
  check_alike(x, "x", y, "y");
  const WindowShapes s = make_windows(x, kernel_size, stride, padding, dilation, ceil_mode);
  const Windows& w = s.windows;
  check_shape(g, "g", s.y);
  check_shape(y, "y", s.y);
  const auto format = window_format(x, kernel_size.size());
  const at::Tensor in = x.contiguous(format), grad = g.contiguous(format), out = y.contiguous(format);
  if (!is_written_out(p)) {
    const at::ScalarType wide = x.scalar_type() == at::kDouble || p > kSafePower ? at::kDouble : at::kFloat;
    return lp_backward_by_pow(w, grad.to(wide), in.to(wide), out.to(wide), p, is_signed).to(x.scalar_type());
  }
  at::Tensor result = at::empty(s.x, x.options(), format);
  dispatch_lp(x.scalar_type(), p, is_signed, [&](auto power, auto sign, auto t, auto a) {
    using T = decltype(t);
    const LpTransposePolicy<power.value, sign.value, T, decltype(a)> policy(
        w, p, grad.const_data_ptr<T>(), in.const_data_ptr<T>(), out.const_data_ptr<T>());
    parallel_rows(input_rows(w), w.axis[2].input * w.inner * w.axis[2].kernel, [&](int64_t begin, int64_t end) {
      pool_transpose_rows(w, policy, result.mutable_data_ptr<T>(), begin, end);
    });
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_convarith, CPU, m) {
  m.impl("avg_pool", avg_pool);
  m.impl("avg_pool_transpose", avg_pool_transpose);
  m.impl("lp_pool", lp_pool);
  m.impl("lp_pool_backward", lp_pool_backward);
}

}  // namespace convarith::cpu
