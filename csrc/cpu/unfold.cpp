// unfold and fold on the CPU: the pattern, and its adjoint, as copies and sums of runs along the last axis.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../window_checks.h"
#include "dispatch.h"

namespace convarith::cpu {
namespace {

#define CONVARITH_DISPATCH_ANY(DTYPE, NAME, ...)                                                                   \
  AT_DISPATCH_V2(DTYPE, NAME, AT_WRAP(__VA_ARGS__), AT_EXPAND(AT_ALL_TYPES_AND_COMPLEX), at::kHalf, at::kBFloat16, \
                 at::kBool)

// Rows of y: (plane, tap), each as long as there are outputs.
template <typename T>
void unfold_rows(const Windows& w, const T* x, T* y, int64_t begin, int64_t end) {
  const auto& [a0, a1, a2] = w.axis;
  const int64_t taps = w.kernel_numel(), outputs = w.output_numel();
  for (int64_t r = begin; r < end; ++r) {
    const int64_t tap = r % taps, t2 = tap % a2.kernel, t1 = tap / a2.kernel % a1.kernel,
                  t0 = tap / (a2.kernel * a1.kernel);
    const T* plane = x + r / taps * w.input_numel();
    T* to = y + r * outputs;
    const Range run = outputs_of_tap(a2, w.output[2], t2);
    const int64_t start = input_index(a2, run.begin, t2), length = run.end - run.begin;
    for (int64_t o0 = 0; o0 < w.output[0]; ++o0) {
      const int64_t i0 = input_index(a0, o0, t0);
      for (int64_t o1 = 0; o1 < w.output[1]; ++o1, to += w.output[2]) {
        const int64_t i1 = input_index(a1, o1, t1);
        if (i0 < 0 || i0 >= a0.input || i1 < 0 || i1 >= a1.input || length == 0) {
          std::fill(to, to + w.output[2], T(0));
          continue;
        }
        const T* __restrict__ from = plane + (i0 * a1.input + i1) * a2.input + start;
        T* __restrict__ at = to + run.begin;
        std::fill(to, at, T(0));
        if (a2.stride == 1) {
          for (int64_t o = 0; o < length; ++o) at[o] = from[o];
        } else if (a2.stride == 2) {
          for (int64_t o = 0; o < length; ++o) at[o] = from[o * 2];
        } else {
          for (int64_t o = 0; o < length; ++o) at[o] = from[o * a2.stride];
        }
        std::fill(at + length, to + w.output[2], T(0));
      }
    }
  }
}

// Rows of x: (plane, i0, i1), each summed over the taps that see it. Inputs m * stride + r are summed in column m of
// phase r, where a tap's outputs are neighbours.
template <typename T, typename A>
void fold_rows(const Windows& w, const T* y, T* x, int64_t begin, int64_t end) {
  const auto& [a0, a1, a2] = w.axis;
  const int64_t outputs = w.output_numel();
  const int64_t columns = ceil_div(a2.input, a2.stride);
  std::vector<A> sums(columns * a2.stride);
  std::vector<Range> runs;
  std::vector<int64_t> starts;  // of a run, in sums
  for (int64_t t = 0; t < a2.kernel; ++t) {
    const Range run = outputs_of_tap(a2, w.output[2], t);
    const int64_t i = run.begin == run.end ? 0 : input_index(a2, run.begin, t);
    runs.push_back(run);
    starts.push_back(i % a2.stride * columns + i / a2.stride);
  }
  for (int64_t r = begin; r < end; ++r) {
    const int64_t i1 = r % a1.input, i0 = r / a1.input % a0.input, plane = r / (a1.input * a0.input);
    A* __restrict__ sum = sums.data();
    std::fill(sums.begin(), sums.end(), A(0));
    for (int64_t t0 = 0; t0 < a0.kernel; ++t0) {
      const int64_t o0 = output_index(a0, w.output[0], i0, t0);
      if (o0 < 0) continue;
      for (int64_t t1 = 0; t1 < a1.kernel; ++t1) {
        const int64_t o1 = output_index(a1, w.output[1], i1, t1);
        if (o1 < 0) continue;
        for (int64_t t2 = 0; t2 < a2.kernel; ++t2) {
          const Range run = runs[t2];
          const int64_t row = (plane * a0.kernel + t0) * a1.kernel * a2.kernel + t1 * a2.kernel + t2;
          const T* __restrict__ from = y + row * outputs + (o0 * w.output[1] + o1) * w.output[2] + run.begin;
          A* __restrict__ to = sum + starts[t2];
          const int64_t length = run.end - run.begin;
          for (int64_t o = 0; o < length; ++o) to[o] += static_cast<A>(from[o]);
        }
      }
    }
    T* __restrict__ out = x + r * a2.input;
    if (a2.stride == 1) {
      for (int64_t i = 0; i < a2.input; ++i) out[i] = static_cast<T>(sum[i]);
    } else if (a2.stride == 2) {
      for (int64_t m = 0; m < a2.input / 2; ++m) {
        out[2 * m] = static_cast<T>(sum[m]);
        out[2 * m + 1] = static_cast<T>(sum[columns + m]);
      }
      if (a2.input % 2 == 1) out[a2.input - 1] = static_cast<T>(sum[columns - 1]);
    } else {
      for (int64_t p = 0; p < a2.stride; ++p) {
        for (int64_t i = p, m = p * columns; i < a2.input; i += a2.stride, ++m) out[i] = static_cast<T>(sum[m]);
      }
    }
  }
}

at::Tensor unfold(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                  at::IntArrayRef dilation) {
  const WindowShapes s = make_unfold(x, kernel_size, stride, padding, dilation);
  const Windows& w = s.windows;
  const at::Tensor in = x.contiguous();
  at::Tensor y = at::empty(unfold_shape(s, kernel_size.size()), x.options());
  CONVARITH_DISPATCH_ANY(x.scalar_type(), "torch_convarith::unfold", [&] {
    parallel_rows(w.planes * w.kernel_numel(), w.output_numel(), [&](int64_t begin, int64_t end) {
      unfold_rows(w, in.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>(), begin, end);
    });
  });
  return y;
}

at::Tensor fold(const at::Tensor& y, at::IntArrayRef input_size, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                at::IntArrayRef padding, at::IntArrayRef dilation) {
  const WindowShapes s = make_fold(y, input_size, kernel_size, stride, padding, dilation);
  const Windows& w = s.windows;
  const at::Tensor from = y.contiguous();
  at::Tensor result = at::empty(s.x, y.options());
  CONVARITH_DISPATCH_ANY(y.scalar_type(), "torch_convarith::fold", [&] {
    using A = Accumulate<scalar_t>::type;
    parallel_rows(w.planes * w.axis[0].input * w.axis[1].input, w.axis[2].input * w.kernel_numel(),
                  [&](int64_t begin, int64_t end) {
                    fold_rows<scalar_t, A>(w, from.const_data_ptr<scalar_t>(), result.mutable_data_ptr<scalar_t>(),
                                           begin, end);
                  });
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_convarith, CPU, m) {
  m.impl("unfold", unfold);
  m.impl("fold", fold);
}

}  // namespace convarith::cpu
