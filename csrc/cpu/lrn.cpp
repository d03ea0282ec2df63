// Local response normalisation across channels, and its derivative, on the CPU. One pass each.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../window_checks.h"
#include "dispatch.h"

namespace convarith::cpu {
namespace {

// y = x * s^-beta with s = k + alpha * (sum of x^2 over the window of size channels around this one).
struct Lrn {
  int64_t planes;
  int64_t channels;
  int64_t inner;
  int64_t size;
  double alpha;
  double beta;
  double k;

  // Channels that c's sum has: c - size / 2 to c + (size - 1) / 2.
  Range window(int64_t c) const { return {std::max<int64_t>(0, c - size / 2), std::min(channels, c + (size + 1) / 2)}; }
  // Channels whose sum has c.
  Range seen_by(int64_t c) const {
    return {std::max<int64_t>(0, c - (size - 1) / 2), std::min(channels, c + size / 2 + 1)};
  }
};

constexpr int64_t kBlock = 256;  // neighbours that are normalised together: short arrays stay in cache

enum class Exponent { kThreeQuarters, kHalf, kOne, kAny };

template <Exponent kExponent, typename A>
inline A inverse_power(A s, A beta) {  // s^-beta
  if constexpr (kExponent == Exponent::kThreeQuarters) {
    const A root = std::sqrt(s);
    return A(1) / (root * std::sqrt(root));
  }
  if constexpr (kExponent == Exponent::kHalf) return A(1) / std::sqrt(s);
  if constexpr (kExponent == Exponent::kOne) return A(1) / s;
  return std::pow(s, -beta);
}

// s of channel c for n neighbours.
template <typename T, typename A>
inline void sums(const Lrn& p, const T* plane, int64_t c, int64_t n, A* __restrict__ s) {
  const Range window = p.window(c);
  const A alpha = static_cast<A>(p.alpha), k = static_cast<A>(p.k);
  std::fill(s, s + n, A(0));
  int64_t j = window.begin;
  for (; j + 2 < window.end; j += 3) {
    const T* __restrict__ x0 = plane + j * p.inner;
    const T* __restrict__ x1 = x0 + p.inner;
    const T* __restrict__ x2 = x1 + p.inner;
    for (int64_t e = 0; e < n; ++e) {
      const A a = static_cast<A>(x0[e]), b = static_cast<A>(x1[e]), d = static_cast<A>(x2[e]);
      s[e] += a * a + b * b + d * d;
    }
  }
  for (; j < window.end; ++j) {
    const T* __restrict__ x = plane + j * p.inner;
    for (int64_t e = 0; e < n; ++e) s[e] += static_cast<A>(x[e]) * static_cast<A>(x[e]);
  }
  for (int64_t e = 0; e < n; ++e) s[e] = k + alpha * s[e];
}

// Blocks of neighbours: each (plane, kBlock of inner), all channels.
template <Exponent kExponent, typename T, typename A>
void lrn_blocks(const Lrn& p, const T* x, T* y, int64_t begin, int64_t end) {
  const int64_t blocks = ceil_div(p.inner, kBlock);
  std::vector<A> s(kBlock);
  for (int64_t b = begin; b < end; ++b) {
    const int64_t first = b / blocks * p.channels * p.inner + b % blocks * kBlock;
    const int64_t n = std::min(kBlock, p.inner - b % blocks * kBlock);
    for (int64_t c = 0; c < p.channels; ++c) {
      sums(p, x + first, c, n, s.data());
      const T* __restrict__ from = x + first + c * p.inner;
      T* __restrict__ to = y + first + c * p.inner;
      const A* __restrict__ sum = s.data();
      for (int64_t e = 0; e < n; ++e) {
        to[e] = static_cast<T>(static_cast<A>(from[e]) * inverse_power<kExponent, A>(sum[e], static_cast<A>(p.beta)));
      }
    }
  }
}

// gx = g s^-beta - 2 alpha beta x * (sum of g x s^(-beta - 1) over the channels whose sum has this one).
template <Exponent kExponent, typename T, typename A>
void lrn_backward_blocks(const Lrn& p, const T* g, const T* x, T* gx, int64_t begin, int64_t end) {
  const int64_t blocks = ceil_div(p.inner, kBlock);
  const A factor = static_cast<A>(2 * p.alpha * p.beta), beta = static_cast<A>(p.beta);
  const int64_t kept = p.size + 1;  // of each channel's terms, until the last channel that needs them is done
  std::vector<A> s(kBlock), direct(kept * kBlock), shared(kept * kBlock), sum(kBlock);
  for (int64_t b = begin; b < end; ++b) {
    const int64_t first = b / blocks * p.channels * p.inner + b % blocks * kBlock;
    const int64_t n = std::min(kBlock, p.inner - b % blocks * kBlock);
    int64_t done = 0;
    for (int64_t c = 0; c < p.channels; ++c) {
      const Range seen_by = p.seen_by(c);
      for (; done < seen_by.end; ++done) {
        sums(p, x + first, done, n, s.data());
        const T* __restrict__ grad = g + first + done * p.inner;
        const T* __restrict__ from = x + first + done * p.inner;
        const A* __restrict__ of = s.data();
        A* __restrict__ d = direct.data() + done % kept * kBlock;
        A* __restrict__ t = shared.data() + done % kept * kBlock;
        for (int64_t e = 0; e < n; ++e) {
          d[e] = static_cast<A>(grad[e]) * inverse_power<kExponent, A>(of[e], beta);
          t[e] = d[e] * static_cast<A>(from[e]) / of[e];
        }
      }
      A* __restrict__ total = sum.data();
      std::fill(total, total + n, A(0));
      for (int64_t j = seen_by.begin; j < seen_by.end; ++j) {
        const A* __restrict__ t = shared.data() + j % kept * kBlock;
        for (int64_t e = 0; e < n; ++e) total[e] += t[e];
      }
      const T* __restrict__ from = x + first + c * p.inner;
      const A* __restrict__ d = direct.data() + c % kept * kBlock;
      T* __restrict__ to = gx + first + c * p.inner;
      for (int64_t e = 0; e < n; ++e) to[e] = static_cast<T>(d[e] - factor * static_cast<A>(from[e]) * total[e]);
    }
  }
}

Lrn make_lrn(const at::Tensor& x, int64_t channel_dim, int64_t size, double alpha, double beta, double k) {
  check_dense(x, "x");
  TORCH_CHECK(channel_dim >= 0 && channel_dim < x.dim(), "expected a channel dimension among 0 to ", x.dim() - 1,
              ", got ", channel_dim);
  TORCH_CHECK(size >= 1, "a normalisation window needs at least 1 channel, got size ", size);
  Lrn p = {1, x.size(channel_dim), 1, std::min(size, 2 * x.size(channel_dim) + 1), alpha, beta, k};
  for (int64_t i = 0; i < x.dim(); ++i) {
    if (i != channel_dim) (i < channel_dim ? p.planes : p.inner) *= x.size(i);
  }
  return p;
}

// Calls body(exponent, T{}, A{}).
template <typename Body>
void dispatch_lrn(at::ScalarType dtype, double beta, const Body& body) {
  AT_DISPATCH_V2(dtype, "torch_convarith::lrn", AT_WRAP([&] {
                   using A = Accumulate<scalar_t>::type;
                   const auto with = [&](auto exponent) { body(exponent, scalar_t{}, A{}); };
                   if (beta == 0.75) {
                     with(std::integral_constant<Exponent, Exponent::kThreeQuarters>{});
                   } else if (beta == 0.5) {
                     with(std::integral_constant<Exponent, Exponent::kHalf>{});
                   } else if (beta == 1) {
                     with(std::integral_constant<Exponent, Exponent::kOne>{});
                   } else {
                     with(std::integral_constant<Exponent, Exponent::kAny>{});
                   }
                 }),
                 AT_EXPAND(AT_FLOATING_TYPES), at::kHalf, at::kBFloat16);
}

at::Tensor lrn(const at::Tensor& x, int64_t channel_dim, int64_t size, double alpha, double beta, double k) {
  const Lrn p = make_lrn(x, channel_dim, size, alpha, beta, k);
  const at::Tensor in = x.contiguous();
  at::Tensor y = at::empty_like(in);
  dispatch_lrn(x.scalar_type(), beta, [&](auto exponent, auto t, auto a) {
    using T = decltype(t);
    parallel_rows(p.planes * ceil_div(p.inner, kBlock), p.channels * kBlock * 8, [&](int64_t begin, int64_t end) {
      lrn_blocks<exponent.value, T, decltype(a)>(p, in.const_data_ptr<T>(), y.mutable_data_ptr<T>(), begin, end);
    });
  });
  return y;
}

at::Tensor lrn_backward(const at::Tensor& g, const at::Tensor& x, int64_t channel_dim, int64_t size, double alpha,
                        double beta, double k) {
  const Lrn p = make_lrn(x, channel_dim, size, alpha, beta, k);
  check_alike(x, "x", g, "g");
  check_shape(g, "g", x.sizes());
  const at::Tensor in = x.contiguous(), grad = g.contiguous();
  at::Tensor result = at::empty_like(in);
  dispatch_lrn(x.scalar_type(), beta, [&](auto exponent, auto t, auto a) {
    using T = decltype(t);
    parallel_rows(p.planes * ceil_div(p.inner, kBlock), p.channels * kBlock * 16, [&](int64_t begin, int64_t end) {
      lrn_backward_blocks<exponent.value, T, decltype(a)>(p, grad.const_data_ptr<T>(), in.const_data_ptr<T>(),
                                                          result.mutable_data_ptr<T>(), begin, end);
    });
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_convarith, CPU, m) {
  m.impl("lrn", lrn);
  m.impl("lrn_backward", lrn_backward);
}

}  // namespace convarith::cpu
