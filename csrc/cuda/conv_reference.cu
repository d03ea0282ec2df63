// The three operators straight from the pattern, in 64-bit indices: every dtype, size and stride of memory. One thread
// has one element of the result and sums it in one order.
#include "conv_kernels.h"
#include "elements.cuh"

namespace convarith::cuda {
namespace {

// An element of a tensor (batch, channel, *size), by its linear index.
struct Element {
  int64_t batch, channel, at[kAxes];

  __device__ Element(int64_t index, int64_t channels, const int64_t (&size)[kAxes]) {
    for (int i = kAxes - 1; i >= 0; --i) {
      at[i] = index % size[i];
      index /= size[i];
    }
    channel = index % channels;
    batch = index / channels;
  }

  __device__ int64_t offset(const Strides& s) const {
    return batch * s.batch + channel * s.channel + at[0] * s.axis[0] + at[1] * s.axis[1] + at[2] * s.axis[2];
  }
};

__device__ inline int64_t thread_index() {
  return int64_t{blockIdx.x} * kThreads + threadIdx.x;
}

// y[o] = sum over channels and taps of w[t] * x[o * s + t * d - lo].
template <typename T>
__global__ void __launch_bounds__(kThreads)
    conv_kernel(const __grid_constant__ Problem p, int64_t count, const T* x, const T* w, T* y) {
  const auto& [a0, a1, a2] = p.axis;
  const int64_t size[kAxes] = {p.output[0], p.output[1], p.output[2]};
  for (int64_t index = thread_index(); index < count; index += int64_t{gridDim.x} * kThreads) {
    const Element o(index, p.groups * p.out_channels, size);
    const Range r0 = taps_of_output(a0, o.at[0]), r1 = taps_of_output(a1, o.at[1]), r2 = taps_of_output(a2, o.at[2]);
    const T* planes = x + o.batch * p.x.batch + o.channel / p.out_channels * p.in_channels * p.x.channel;
    const T* taps = w + o.channel * p.w.batch;
    Accumulate<T> sum(0);
    for (int64_t c = 0; c < p.in_channels; ++c) {
      for (int64_t t0 = r0.begin; t0 < r0.end; ++t0) {
        for (int64_t t1 = r1.begin; t1 < r1.end; ++t1) {
          for (int64_t t2 = r2.begin; t2 < r2.end; ++t2) {
            const T in =
                planes[c * p.x.channel + input_index(a0, o.at[0], t0) * p.x.axis[0] +
                       input_index(a1, o.at[1], t1) * p.x.axis[1] + input_index(a2, o.at[2], t2) * p.x.axis[2]];
            const T weight = taps[c * p.w.channel + t0 * p.w.axis[0] + t1 * p.w.axis[1] + t2 * p.w.axis[2]];
            sum += convert<Accumulate<T>>(in) * convert<Accumulate<T>>(weight);
          }
        }
      }
    }
    y[o.offset(p.y)] = convert<T>(sum);
  }
}

// x = C^T y: an input meets the outputs that see it; the zeros that the guide inserts are entries that C^T lacks.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    conv_transpose_kernel(const __grid_constant__ Problem p, int64_t count, const T* y, const T* w, T* x) {
  const auto& [a0, a1, a2] = p.axis;
  const int64_t size[kAxes] = {a0.input, a1.input, a2.input};
  for (int64_t index = thread_index(); index < count; index += int64_t{gridDim.x} * kThreads) {
    const Element i(index, p.groups * p.in_channels, size);
    const int64_t first = i.channel / p.in_channels * p.out_channels;
    Accumulate<T> sum(0);
    for (int64_t k = first; k < first + p.out_channels; ++k) {
      const T* plane = y + i.batch * p.y.batch + k * p.y.channel;
      const T* taps = w + k * p.w.batch + i.channel % p.in_channels * p.w.channel;
      for (int64_t t0 = 0; t0 < a0.kernel; ++t0) {
        const int64_t o0 = output_index(a0, p.output[0], i.at[0], t0);
        if (o0 < 0) continue;
        for (int64_t t1 = 0; t1 < a1.kernel; ++t1) {
          const int64_t o1 = output_index(a1, p.output[1], i.at[1], t1);
          if (o1 < 0) continue;
          for (int64_t t2 = 0; t2 < a2.kernel; ++t2) {
            const int64_t o2 = output_index(a2, p.output[2], i.at[2], t2);
            if (o2 < 0) continue;
            const T in = plane[o0 * p.y.axis[0] + o1 * p.y.axis[1] + o2 * p.y.axis[2]];
            const T weight = taps[t0 * p.w.axis[0] + t1 * p.w.axis[1] + t2 * p.w.axis[2]];
            sum += convert<Accumulate<T>>(in) * convert<Accumulate<T>>(weight);
          }
        }
      }
    }
    x[i.offset(p.x)] = convert<T>(sum);
  }
}

// w[t] = sum over the pattern of y[o] * x[o * s + t * d - lo].
template <typename T>
__global__ void __launch_bounds__(kThreads)
    conv_weight_kernel(const __grid_constant__ Problem p, int64_t count, const T* x, const T* y, T* w) {
  const auto& [a0, a1, a2] = p.axis;
  const int64_t size[kAxes] = {a0.kernel, a1.kernel, a2.kernel};
  for (int64_t index = thread_index(); index < count; index += int64_t{gridDim.x} * kThreads) {
    const Element t(index, p.in_channels, size);
    const Range r0 = outputs_of_tap(a0, p.output[0], t.at[0]), r1 = outputs_of_tap(a1, p.output[1], t.at[1]),
                r2 = outputs_of_tap(a2, p.output[2], t.at[2]);
    const T* planes = x + (t.batch / p.out_channels * p.in_channels + t.channel) * p.x.channel;
    const T* outputs = y + t.batch * p.y.channel;
    Accumulate<T> sum(0);
    for (int64_t n = 0; n < p.batch; ++n) {
      for (int64_t o0 = r0.begin; o0 < r0.end; ++o0) {
        for (int64_t o1 = r1.begin; o1 < r1.end; ++o1) {
          Accumulate<T> line(0);  // a line's sum first: fewer additions to one large number
          for (int64_t o2 = r2.begin; o2 < r2.end; ++o2) {
            const T in =
                planes[n * p.x.batch + input_index(a0, o0, t.at[0]) * p.x.axis[0] +
                       input_index(a1, o1, t.at[1]) * p.x.axis[1] + input_index(a2, o2, t.at[2]) * p.x.axis[2]];
            const T out = outputs[n * p.y.batch + o0 * p.y.axis[0] + o1 * p.y.axis[1] + o2 * p.y.axis[2]];
            line += convert<Accumulate<T>>(in) * convert<Accumulate<T>>(out);
          }
          sum += line;
        }
      }
    }
    w[t.offset(p.w)] = convert<T>(sum);
  }
}

template <typename T>
cudaError_t reference_of(const Problem& p, Pass pass, const void* in, const void* other, void* result,
                         cudaStream_t stream) {
  const auto *a = static_cast<const T*>(in), *b = static_cast<const T*>(other);
  const int64_t count = pass == Pass::kOutput  ? p.batch * p.groups * p.out_channels * p.output_numel()
                        : pass == Pass::kInput ? p.batch * p.groups * p.in_channels * p.input_numel()
                                               : p.groups * p.out_channels * p.in_channels * p.kernel_numel();
  const int64_t blocks = (count + kThreads - 1) / kThreads, most = int64_t{1} << 30;
  const auto kernel = pass == Pass::kOutput  ? conv_kernel<T>
                      : pass == Pass::kInput ? conv_transpose_kernel<T>
                                             : conv_weight_kernel<T>;
  return launch(kernel, dim3(static_cast<unsigned>(blocks < most ? blocks : most)), dim3(kThreads), 0, stream, p, count,
                a, b, static_cast<T*>(result));
}

}  // namespace

cudaError_t reference(const Problem& p, Pass pass, DType dtype, const void* in, const void* other, void* result,
                      cudaStream_t stream) {
  return with_number(dtype, [&](auto t) { return reference_of<decltype(t)>(p, pass, in, other, result, stream); });
}

}  // namespace convarith::cuda
