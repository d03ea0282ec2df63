// unfold and fold: the pattern, and its adjoint. One thread for each element of the result.
#include "unfold.h"
#include "windows.cuh"

namespace convarith::cuda {
namespace {

template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    unfold_kernel(Int count, DeviceWindows<Int> w, Shape<Int> taps, Divider<Int> outputs, const T* x, T* y) {
  const Int element = this_element(count);
  if (element < 0) return;
  const auto& [a0, a1, a2] = w.axis;
  Int plane_and_tap = element;
  const Place<Int> o = w.output.place(outputs.take(plane_and_tap));
  const Place<Int> t = taps.place(plane_and_tap);
  const Int i0 = a0.start(o.index[0]) + t.index[0] * a0.dilation.divisor(),
            i1 = a1.start(o.index[1]) + t.index[1] * a1.dilation.divisor(),
            i2 = a2.start(o.index[2]) + t.index[2] * a2.dilation.divisor();
  const bool meets = a0.is_input(i0) && a1.is_input(i1) && a2.is_input(i2);
  y[element] = meets ? x[w.input.element(t.plane, i0, i1, i2, 0)] : T{};
}

template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    fold_kernel(Int count, DeviceWindows<Int> w, int64_t taps, const T* y, T* x) {
  using A = Accumulate<T>;
  const Int element = this_element(count);
  if (element < 0) return;
  const Place<Int> i = w.input.place(element);
  const T* plane = y + i.plane * taps * w.outputs;
  A sum(0);
  for_each_output(w, i, [&](Int o, Int tap) { sum += convert<A>(plane[int64_t{tap} * w.outputs + o]); });
  x[element] = convert<T>(sum);
}

// Of planes that hold their windows' taps.
int64_t largest_unfolded_integer(const Windows& w) {
  const int64_t unfolded = w.planes * w.kernel_numel() * w.output_numel(), folded = largest_integer(w);
  return unfolded > folded ? unfolded : folded;
}

}  // namespace

cudaError_t launch_unfold(const Windows& w, DType dtype, const void* x, void* y, cudaStream_t stream) {
  const int64_t count = w.planes * w.kernel_numel() * w.output_numel();
  const std::array<int64_t, kAxes> taps = {w.axis[0].kernel, w.axis[1].kernel, w.axis[2].kernel};
  if (count == 0) return cudaSuccess;
  return with_bits(dtype, [&](auto bits) {
    return with_integers(largest_unfolded_integer(w), [&](auto integer) {
      using T = decltype(bits);
      using Int = decltype(integer);
      return launch_elements(unfold_kernel<T, Int>, count, stream, count, DeviceWindows<Int>(w), Shape<Int>(taps, 1),
                             Divider<Int>(w.output_numel()), static_cast<const T*>(x), static_cast<T*>(y));
    });
  });
}

cudaError_t launch_fold(const Windows& w, DType dtype, const void* y, void* x, cudaStream_t stream) {
  const int64_t count = w.planes * w.input_numel();
  return with_any(dtype, [&](auto any) {
    return with_integers(largest_unfolded_integer(w), [&](auto integer) {
      using T = decltype(any);
      using Int = decltype(integer);
      return launch_elements(fold_kernel<T, Int>, count, stream, count, DeviceWindows<Int>(w), w.kernel_numel(),
                             static_cast<const T*>(y), static_cast<T*>(x));
    });
  });
}

}  // namespace convarith::cuda
