// Averages and L^p norms of windows, and their adjoints, which gather: every input has a thread of its own, and sums in
// one order.
#include "../powers.h"
#include "pooling.h"
#include "windows.cuh"

namespace convarith::cuda {
namespace {

template <typename Int>
__device__ inline int64_t divisor_of(const DeviceWindows<Int>& w, const Place<Int>& o, Divisor divisor) {
  if (divisor.constant != 0) return divisor.constant;
  int64_t product = 1;
  for (int i = 0; i < kAxes; ++i) product *= w.axis[i].count(o.index[i], divisor.with_padding);
  return product;
}

template <typename T>
__device__ inline Complex<T> divide(Complex<T> sum, int64_t by) {
  return {sum.real / static_cast<T>(by), sum.imaginary / static_cast<T>(by)};
}

template <typename A>
__device__ inline A divide(A sum, int64_t by) {
  if constexpr (std::is_integral_v<A>) {  // sums are unsigned, division is not
    return static_cast<A>(static_cast<int64_t>(sum) / by);
  } else {
    return sum / static_cast<A>(by);
  }
}

template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    avg_pool_kernel(Int count, DeviceWindows<Int> w, Divisor divisor, const T* x, T* y) {
  using A = Accumulate<T>;
  const Int element = this_element(count);
  if (element < 0) return;
  const Place<Int> o = w.output.place(element);
  const T* plane = w.input_plane(x, o);
  A sum(0);
  for_each_input(w, o, [&](Int i) { sum += convert<A>(plane[int64_t{i} * w.input.inner()]); });
  y[element] = convert<T>(divide(sum, divisor_of(w, o, divisor)));
}

template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    avg_pool_transpose_kernel(Int count, DeviceWindows<Int> w, Divisor divisor, const T* y, T* x) {
  using A = Accumulate<T>;
  const Int element = this_element(count);
  if (element < 0) return;
  const Place<Int> i = w.input.place(element);
  const T* plane = w.output_plane(y, i);
  A sum(0);
  for_each_output(w, i, [&](Int o, Int) {
    sum += divide(convert<A>(plane[int64_t{o} * w.output.inner()]), divisor_of(w, output_place(w, i, o), divisor));
  });
  x[element] = convert<T>(sum);
}

// torch's reading of an L^p norm: the mean of what ceil_mode leaves, times the whole window's count.
template <typename A, typename Int>
__device__ inline A weight_of(const DeviceWindows<Int>& w, const Place<Int>& o) {
  A product(1);
  for (int i = 0; i < kAxes; ++i) {
    product *= static_cast<A>(w.axis[i].kernel) / static_cast<A>(w.axis[i].count(o.index[i], true));
  }
  return product;
}

template <typename A>
struct Limits;  // the least normal number, and the largest
template <>
struct Limits<float> {
  static constexpr float kLeast = 1.17549435e-38f, kLargest = 3.40282347e+38f;
};
template <>
struct Limits<double> {
  static constexpr double kLeast = 2.2250738585072014e-308, kLargest = 1.7976931348623157e+308;
};

template <int kPower, bool kSigned, typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    lp_pool_kernel(Int count, DeviceWindows<Int> w, double p, const T* x, T* y) {
  using A = Accumulate<T>;
  const Powers<kPower, kSigned, A> powers = {p};
  const Int element = this_element(count);
  if (element < 0) return;
  const Place<Int> o = w.output.place(element);
  const T* plane = w.input_plane(x, o);
  const auto load = [&](Int i) { return convert<A>(plane[int64_t{i} * w.input.inner()]); };
  A sum(0);
  for_each_input(w, o, [&](Int i) { sum += powers.power(load(i)); });
  if (kSigned) {
    y[element] = convert<T>(powers.root(sum * weight_of<A>(w, o)));
    return;
  }
  // A sum that left the range of its type is taken again, with the window divided by its largest element.
  if (kPower != 1 && (sum > Limits<A>::kLargest || sum < Limits<A>::kLeast * 1024)) {
    A largest(0);
    for_each_input(w, o, [&](Int i) {
      const A v = fabs(load(i));
      if (v > largest) largest = v;
    });
    if (largest == 0 || largest > Limits<A>::kLargest) {
      y[element] = convert<T>(largest);
      return;
    }
    sum = A(0);
    for_each_input(w, o, [&](Int i) { sum += powers.power(load(i) / largest); });
    y[element] = convert<T>(largest * powers.root(sum));
    return;
  }
  y[element] = convert<T>(powers.root(sum));
}

// Powers of any p that keep their sign leave the range of float early.
template <int kPower, bool kSigned, typename T>
using Slopes = std::conditional_t<kPower == 0 && kSigned, double, Accumulate<T>>;

template <int kPower, bool kSigned, typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    lp_pool_backward_kernel(Int count, DeviceWindows<Int> w, double p, const T* g, const T* x, const T* y, T* result) {
  using A = Slopes<kPower, kSigned, T>;
  const Powers<kPower, kSigned, A> powers = {p};
  const Int element = this_element(count);
  if (element < 0) return;
  const Place<Int> i = w.input.place(element);
  const T* grad = w.output_plane(g, i);
  const T* norm = w.output_plane(y, i);
  const A value = convert<A>(x[element]);
  A sum(0);
  for_each_output(w, i, [&](Int o, Int) {
    const int64_t at = int64_t{o} * w.output.inner();
    const A slope = powers.slope(value, convert<A>(norm[at]));
    sum += convert<A>(grad[at]) * (kSigned ? slope * weight_of<A>(w, output_place(w, i, o)) : slope);
  });
  result[element] = convert<T>(sum * powers.alone(value));
}

// Calls body(power, is_signed) with the integral constants of Powers.
template <typename Body>
cudaError_t with_power(double p, bool is_signed, const Body& body) {
  const auto with_sign = [&](auto power) {
    return is_signed ? body(power, std::true_type{}) : body(power, std::false_type{});
  };
  if (p == 1) return with_sign(std::integral_constant<int, 1>{});
  if (p == 2) return with_sign(std::integral_constant<int, 2>{});
  if (p == 3) return with_sign(std::integral_constant<int, 3>{});
  return with_sign(std::integral_constant<int, 0>{});
}

}  // namespace

cudaError_t launch_avg_pool(const Windows& w, DType dtype, Divisor divisor, const void* x, void* y,
                            cudaStream_t stream) {
  const int64_t count = w.planes * w.output_numel() * w.inner;
  return with_number(dtype, [&](auto number) {
    return with_integers(largest_integer(w), [&](auto integer) {
      using T = decltype(number);
      using Int = decltype(integer);
      return launch_elements(avg_pool_kernel<T, Int>, count, stream, count, DeviceWindows<Int>(w), divisor,
                             static_cast<const T*>(x), static_cast<T*>(y));
    });
  });
}

cudaError_t launch_avg_pool_transpose(const Windows& w, DType dtype, Divisor divisor, const void* y, void* x,
                                      cudaStream_t stream) {
  const int64_t count = w.planes * w.input_numel() * w.inner;
  return with_floating_or_complex(dtype, [&](auto number) {
    return with_integers(largest_integer(w), [&](auto integer) {
      using T = decltype(number);
      using Int = decltype(integer);
      return launch_elements(avg_pool_transpose_kernel<T, Int>, count, stream, count, DeviceWindows<Int>(w), divisor,
                             static_cast<const T*>(y), static_cast<T*>(x));
    });
  });
}

cudaError_t launch_lp_pool(const Windows& w, DType dtype, double p, bool is_signed, const void* x, void* y,
                           cudaStream_t stream) {
  const int64_t count = w.planes * w.output_numel() * w.inner;
  return with_power(p, is_signed, [&](auto power, auto sign) {
    return with_floating(dtype, [&](auto real) {
      return with_integers(largest_integer(w), [&](auto integer) {
        using T = decltype(real);
        using Int = decltype(integer);
        return launch_elements(lp_pool_kernel<power.value, sign.value, T, Int>, count, stream, count,
                               DeviceWindows<Int>(w), p, static_cast<const T*>(x), static_cast<T*>(y));
      });
    });
  });
}

cudaError_t launch_lp_pool_backward(const Windows& w, DType dtype, double p, bool is_signed, const void* g,
                                    const void* x, const void* y, void* result, cudaStream_t stream) {
  const int64_t count = w.planes * w.input_numel() * w.inner;
  return with_power(p, is_signed, [&](auto power, auto sign) {
    return with_floating(dtype, [&](auto real) {
      return with_integers(largest_integer(w), [&](auto integer) {
        using T = decltype(real);
        using Int = decltype(integer);
        return launch_elements(lp_pool_backward_kernel<power.value, sign.value, T, Int>, count, stream, count,
                               DeviceWindows<Int>(w), p, static_cast<const T*>(g), static_cast<const T*>(x),
                               static_cast<const T*>(y), static_cast<T*>(result));
      });
    });
  });
}

}  // namespace convarith::cuda
