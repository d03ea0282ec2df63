// Maxima, and the 0/1 matrices that go with them. Adjoints gather: every input has a thread of its own, and sums in one
// order.
#include "pooling.h"
#include "windows.cuh"

namespace convarith::cuda {
namespace {

// What values are compared in.
template <typename T>
using Compared = std::conditional_t<std::is_integral_v<T>, T, Accumulate<T>>;

// As in torch, the first of equal values counts, and a NaN is larger than anything; of several, the last. Where they
// stand is an index or a tap, and either may be null.
template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    max_pool_kernel(Int count, DeviceWindows<Int> w, bool minimum, const T* x, T* y, int64_t* indices, uint8_t* taps) {
  const Int element = this_element(count);
  if (element < 0) return;
  const Place<Int> o = w.output.place(element);
  const T* plane = w.input_plane(x, o);
  Compared<T> best(0);
  Int at = -1, through = 0;
  for_each_tap(w, o, [&](Int i, Int tap) {
    const auto v = convert<Compared<T>>(plane[int64_t{i} * w.input.inner()]);
    if (at >= 0 && !(minimum ? v < best : v > best) && v == v) return;
    best = v;
    at = i;
    through = tap;
  });
  y[element] = convert<T>(best);
  if (indices != nullptr) indices[element] = at;
  if (taps != nullptr) taps[element] = static_cast<uint8_t>(through);
}

template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads) select_kernel(Int count, Divider<Int> outputs, Divider<Int> inner,
                                                          int64_t inputs, const T* x, const int64_t* indices, T* y) {
  const Int element = this_element(count);
  if (element < 0) return;
  Int plane = element;
  const Int c = inner.take(plane);
  outputs.take(plane);
  const int64_t i = indices[element];
  device_check(i >= 0 && i < inputs);
  y[element] = x[(plane * inputs + i) * inner.divisor() + c];
}

template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    tap_select_kernel(Int count, DeviceWindows<Int> w, const T* x, const uint8_t* taps, T* y) {
  const Int element = this_element(count);
  if (element < 0) return;
  const Place<Int> o = w.output.place(element);
  const Int tap = taps[element];
  device_check(tap < w.taps);
  const Int i = input_at_tap(w, o, tap);
  y[element] = i < 0 ? T{} : w.input_plane(x, o)[int64_t{i} * w.input.inner()];
}

template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    tap_scatter_kernel(Int count, DeviceWindows<Int> w, const T* y, const uint8_t* taps, T* x) {
  using A = Accumulate<T>;
  const Int element = this_element(count);
  if (element < 0) return;
  const Place<Int> i = w.input.place(element);
  const T* values = w.output_plane(y, i);
  const uint8_t* named = w.output_plane(taps, i);
  A sum(0);
  for_each_output(w, i, [&](Int o, Int tap) {
    const Int there = named[int64_t{o} * w.output.inner()];
    device_check(there < w.taps);
    if (there == tap) sum += convert<A>(values[int64_t{o} * w.output.inner()]);
  });
  x[element] = convert<T>(sum);
}

// Scattering without atomic sums: every output joins the list of the input that it names, and every input sums its
// list. The order in which outputs join is left open, so a list is gone through by ascending outputs.
template <typename Int>
__global__ void __launch_bounds__(kThreads) link_kernel(Int count, Divider<Int> outputs, Divider<Int> inner,
                                                        int64_t inputs, const int64_t* indices, Int* heads, Int* next) {
  const Int element = this_element(count);
  if (element < 0) return;
  Int plane = element;
  const Int c = inner.take(plane);
  outputs.take(plane);
  const int64_t i = indices[element];
  device_check(i >= 0 && i < inputs);
  Int* head = heads + (plane * inputs + i) * inner.divisor() + c;
  if constexpr (sizeof(Int) == 8) {
    next[element] = static_cast<Int>(
        atomicExch(reinterpret_cast<unsigned long long*>(head), static_cast<unsigned long long>(element)));
  } else {
    next[element] = atomicExch(head, element);
  }
}

constexpr int kLongList = 64;  // from here on, going through all outputs of the plane is less work

template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    sum_lists_kernel(Int count, Divider<Int> inputs, Divider<Int> inner, int64_t outputs, const T* y,
                     const int64_t* indices, const Int* heads, const Int* next, T* x) {
  using A = Accumulate<T>;
  const Int element = this_element(count);
  if (element < 0) return;
  Int plane = element;
  const Int c = inner.take(plane);
  const Int i = inputs.take(plane);
  A sum(0);
  int length = 0;
  for (Int e = heads[element]; e >= 0 && length < kLongList; e = next[e]) ++length;
  if (length < kLongList) {
    for (Int last = -1; length > 0; --length) {
      Int least = -1;
      for (Int e = heads[element]; e >= 0; e = next[e]) {
        if (e > last && (least < 0 || e < least)) least = e;
      }
      sum += convert<A>(y[least]);
      last = least;
    }
  } else {
    for (int64_t o = 0; o < outputs; ++o) {
      const int64_t e = (plane * outputs + o) * inner.divisor() + c;
      if (indices[e] == i) sum += convert<A>(y[e]);
    }
  }
  x[element] = convert<T>(sum);
}

// Whether an input is one of its window's y; a NaN equals a NaN.
template <typename A>
__device__ inline bool ties(A value, A best) {
  return value == best || (value != value && best != best);
}

template <typename T, typename Int>
__device__ inline Int count_ties(const DeviceWindows<Int>& w, const Place<Int>& o, const T* plane, Accumulate<T> best) {
  Int number = 0;
  for_each_input(
      w, o, [&](Int i) { number += ties(convert<Accumulate<T>>(plane[int64_t{i} * w.input.inner()]), best) ? 1 : 0; });
  return number;
}

template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    ties_kernel(Int count, DeviceWindows<Int> w, bool split, const T* v, const T* x, const T* y, T* result) {
  using A = Accumulate<T>;
  const Int element = this_element(count);
  if (element < 0) return;
  const Place<Int> o = w.output.place(element);
  const T* plane = w.input_plane(x, o);
  const T* values = w.input_plane(v, o);
  const A best = convert<A>(y[element]);
  A sum(0);
  Int number = 0;
  for_each_input(w, o, [&](Int i) {
    if (!ties(convert<A>(plane[int64_t{i} * w.input.inner()]), best)) return;
    sum += convert<A>(values[int64_t{i} * w.input.inner()]);
    ++number;
  });
  result[element] = convert<T>(split && number > 0 ? sum / static_cast<A>(number) : sum);
}

template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    ties_transpose_kernel(Int count, DeviceWindows<Int> w, bool split, const T* v, const T* x, const T* y, T* result) {
  using A = Accumulate<T>;
  const Int element = this_element(count);
  if (element < 0) return;
  const Place<Int> i = w.input.place(element);
  const T* values = w.output_plane(v, i);
  const T* maxima = w.output_plane(y, i);
  const T* plane = w.input_plane(x, i);
  const A value = convert<A>(x[element]);
  A sum(0);
  for_each_output(w, i, [&](Int o, Int) {
    const A best = convert<A>(maxima[int64_t{o} * w.output.inner()]);
    if (!ties(value, best)) return;
    const A g = convert<A>(values[int64_t{o} * w.output.inner()]);
    sum += split ? g / static_cast<A>(count_ties(w, output_place(w, i, o), plane, best)) : g;
  });
  result[element] = convert<T>(sum);
}

// Planes whose lists are made together: as many as 64 MB hold.
int64_t planes_at_once(const Selection& s) {
  const int64_t elements = (s.inputs + s.outputs) * s.inner;
  const int64_t fit = (int64_t{64} << 20) / (elements > 0 ? elements * 4 : 1);
  return fit < 1 ? 1 : fit < s.planes ? fit : s.planes;
}

int64_t most(const Selection& s, int64_t planes) {
  return planes * s.inner * (s.inputs > s.outputs ? s.inputs : s.outputs);
}

}  // namespace

cudaError_t launch_max_pool(const Windows& w, DType dtype, bool minimum, const void* x, void* y, int64_t* indices,
                            uint8_t* taps, cudaStream_t stream) {
  const int64_t count = w.planes * w.output_numel() * w.inner;
  return with_real(dtype, [&](auto real) {
    return with_integers(largest_integer(w), [&](auto integer) {
      using T = decltype(real);
      using Int = decltype(integer);
      return launch_elements(max_pool_kernel<T, Int>, count, stream, count, DeviceWindows<Int>(w), minimum,
                             static_cast<const T*>(x), static_cast<T*>(y), indices, taps);
    });
  });
}

cudaError_t launch_tap_select(const Windows& w, DType dtype, const void* x, const uint8_t* taps, void* y,
                              cudaStream_t stream) {
  const int64_t count = w.planes * w.output_numel() * w.inner;
  return with_bits(dtype, [&](auto bits) {
    return with_integers(largest_integer(w), [&](auto integer) {
      using T = decltype(bits);
      using Int = decltype(integer);
      return launch_elements(tap_select_kernel<T, Int>, count, stream, count, DeviceWindows<Int>(w),
                             static_cast<const T*>(x), taps, static_cast<T*>(y));
    });
  });
}

cudaError_t launch_tap_scatter(const Windows& w, DType dtype, const void* y, const uint8_t* taps, void* x,
                               cudaStream_t stream) {
  const int64_t count = w.planes * w.input_numel() * w.inner;
  return with_number(dtype, [&](auto number) {
    return with_integers(largest_integer(w), [&](auto integer) {
      using T = decltype(number);
      using Int = decltype(integer);
      return launch_elements(tap_scatter_kernel<T, Int>, count, stream, count, DeviceWindows<Int>(w),
                             static_cast<const T*>(y), taps, static_cast<T*>(x));
    });
  });
}

cudaError_t launch_pool_select(const Selection& s, DType dtype, const void* x, const int64_t* indices, void* y,
                               cudaStream_t stream) {
  const int64_t count = s.planes * s.outputs * s.inner;
  if (count == 0) return cudaSuccess;
  return with_bits(dtype, [&](auto bits) {
    return with_integers(most(s, s.planes), [&](auto integer) {
      using T = decltype(bits);
      using Int = decltype(integer);
      return launch_elements(select_kernel<T, Int>, count, stream, count, Divider<Int>(s.outputs),
                             Divider<Int>(s.inner), s.inputs, static_cast<const T*>(x), indices, static_cast<T*>(y));
    });
  });
}

int64_t pool_scatter_scratch(const Selection& s) {
  const int64_t planes = planes_at_once(s);
  return planes * (s.inputs + s.outputs) * s.inner * (needs_64_bits(most(s, planes)) ? 8 : 4);
}

cudaError_t launch_pool_scatter(const Selection& s, DType dtype, const void* y, const int64_t* indices, void* x,
                                void* scratch, cudaStream_t stream) {
  if (s.planes * s.inputs * s.inner == 0) return cudaSuccess;
  const int64_t at_once = planes_at_once(s);
  return with_number(dtype, [&](auto number) {
    return with_integers(most(s, at_once), [&](auto integer) {
      using T = decltype(number);
      using Int = decltype(integer);
      for (int64_t first = 0; first < s.planes; first += at_once) {
        const int64_t planes = s.planes - first < at_once ? s.planes - first : at_once;
        const int64_t inputs = planes * s.inputs * s.inner, outputs = planes * s.outputs * s.inner;
        const int64_t* named = indices + first * s.outputs * s.inner;
        Int* heads = static_cast<Int*>(scratch);
        Int* next = heads + inputs;
        cudaError_t error = cudaMemsetAsync(heads, 0xff, inputs * sizeof(Int), stream);  // -1: nobody
        if (error == cudaSuccess && outputs > 0) {
          error = launch_elements(link_kernel<Int>, outputs, stream, outputs, Divider<Int>(s.outputs),
                                  Divider<Int>(s.inner), s.inputs, named, heads, next);
        }
        if (error == cudaSuccess) {
          error =
              launch_elements(sum_lists_kernel<T, Int>, inputs, stream, inputs, Divider<Int>(s.inputs),
                              Divider<Int>(s.inner), s.outputs, static_cast<const T*>(y) + first * s.outputs * s.inner,
                              named, heads, next, static_cast<T*>(x) + first * s.inputs * s.inner);
        }
        if (error != cudaSuccess) return error;
      }
      return cudaSuccess;
    });
  });
}

cudaError_t launch_pool_ties(const Windows& w, DType dtype, bool split, const void* v, const void* x, const void* y,
                             void* result, cudaStream_t stream) {
  const int64_t count = w.planes * w.output_numel() * w.inner;
  return with_floating(dtype, [&](auto real) {
    return with_integers(largest_integer(w), [&](auto integer) {
      using T = decltype(real);
      using Int = decltype(integer);
      return launch_elements(ties_kernel<T, Int>, count, stream, count, DeviceWindows<Int>(w), split,
                             static_cast<const T*>(v), static_cast<const T*>(x), static_cast<const T*>(y),
                             static_cast<T*>(result));
    });
  });
}

cudaError_t launch_pool_ties_transpose(const Windows& w, DType dtype, bool split, const void* v, const void* x,
                                       const void* y, void* result, cudaStream_t stream) {
  const int64_t count = w.planes * w.input_numel() * w.inner;
  return with_floating(dtype, [&](auto real) {
    return with_integers(largest_integer(w), [&](auto integer) {
      using T = decltype(real);
      using Int = decltype(integer);
      return launch_elements(ties_transpose_kernel<T, Int>, count, stream, count, DeviceWindows<Int>(w), split,
                             static_cast<const T*>(v), static_cast<const T*>(x), static_cast<const T*>(y),
                             static_cast<T*>(result));
    });
  });
}

}  // namespace convarith::cuda
