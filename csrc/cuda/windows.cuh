// Windows in a kernel's integers: from an output to the inputs that it sees, and from an input to the outputs that see
// it. No table is needed.
#pragma once

#include "elements.cuh"

namespace convarith::cuda {

template <typename Int>
struct WindowAxis {
  Int input, output, kernel, lo, hi;
  Divider<Int> stride, dilation;

  __device__ Int start(Int o) const { return o * stride.divisor() - lo; }
  __device__ bool is_input(Int i) const { return i >= 0 && i < input; }
  __device__ Int reach() const { return (kernel - 1) * dilation.divisor(); }  // from the first tap to the last

  // Outputs that may see an input, first to last; there are none where last < first.
  __device__ Int first_output(Int i) const {
    const Int rest = i + lo - reach();
    return rest <= 0 ? 0 : stride.quotient(rest + stride.divisor() - 1);
  }
  __device__ Int last_output(Int i) const {
    if (i + lo < 0) return -1;
    const Int o = stride.quotient(i + lo);
    return o < output ? o : output - 1;
  }
  // The tap through which one of these sees it, or -1.
  __device__ Int tap(Int i, Int o) const {
    Int rest = i - start(o);
    return dilation.take(rest) == 0 ? rest : -1;
  }

  // The window's inputs, or with padding what of the padded input it covers; at least 1.
  __device__ Int count(Int o, bool with_padding) const {
    const Int first = start(o), past = (with_padding ? input + hi : input) - first;  // inputs from the first tap on
    Int end = past <= 0 ? 0 : dilation.quotient(past + dilation.divisor() - 1);
    if (end > kernel) end = kernel;
    const Int begin = with_padding || first >= 0 ? 0 : dilation.quotient(-first + dilation.divisor() - 1);
    return end - begin > 1 ? end - begin : 1;
  }
};

template <typename Int>
struct DeviceWindows {
  WindowAxis<Int> axis[kAxes];
  Shape<Int> input;
  Shape<Int> output;
  Int inputs, outputs;  // of a plane
  Int taps;             // of a window

  explicit DeviceWindows(const Windows& w)
      : input(input_size(w.axis), w.inner),
        output(w.output, w.inner),
        inputs(static_cast<Int>(w.input_numel())),
        outputs(static_cast<Int>(w.output_numel())),
        taps(static_cast<Int>(w.kernel_numel())) {
    for (int i = 0; i < kAxes; ++i) {
      const Axis& a = w.axis[i];
      axis[i] = {static_cast<Int>(a.input), static_cast<Int>(w.output[i]), static_cast<Int>(a.kernel),
                 static_cast<Int>(a.lo),    static_cast<Int>(a.hi),        Divider<Int>(a.stride),
                 Divider<Int>(a.dilation)};
    }
  }

  // The first element of a place's plane, of its inner index.
  template <typename T>
  __device__ T* input_plane(T* x, const Place<Int>& p) const {
    return x + int64_t{p.plane} * inputs * input.inner() + p.inner;
  }
  template <typename T>
  __device__ T* output_plane(T* y, const Place<Int>& p) const {
    return y + int64_t{p.plane} * outputs * output.inner() + p.inner;
  }
};

// Largest integer that a kernel over these windows meets.
inline int64_t largest_integer(const Windows& w) {
  int64_t most = w.planes * w.inner * (w.input_numel() > w.output_numel() ? w.input_numel() : w.output_numel());
  for (const Axis& a : w.axis) {
    const int64_t along =
        a.input + (a.lo < 0 ? -a.lo : a.lo) + (a.hi < 0 ? -a.hi : a.hi) + effective_kernel(a) + a.stride;
    if (along > most) most = along;
  }
  return most;
}

// Calls body(input, tap) with the number within its plane of every input that the window at `o` sees, and of the tap
// through which it does; in the taps' order.
template <typename Int, typename Body>
__device__ inline void for_each_tap(const DeviceWindows<Int>& w, const Place<Int>& o, const Body& body) {
  const auto& [a0, a1, a2] = w.axis;
  const Int start0 = a0.start(o.index[0]), start1 = a1.start(o.index[1]), start2 = a2.start(o.index[2]);
  for (Int t0 = 0, i0 = start0; t0 < a0.kernel; ++t0, i0 += a0.dilation.divisor()) {
    if (!a0.is_input(i0)) continue;
    for (Int t1 = 0, i1 = start1; t1 < a1.kernel; ++t1, i1 += a1.dilation.divisor()) {
      if (!a1.is_input(i1)) continue;
      const Int line = (i0 * a1.input + i1) * a2.input, tap = (t0 * a1.kernel + t1) * a2.kernel;
      for (Int t2 = 0, i2 = start2; t2 < a2.kernel; ++t2, i2 += a2.dilation.divisor()) {
        if (a2.is_input(i2)) body(line + i2, tap + t2);
      }
    }
  }
}

template <typename Int, typename Body>
__device__ inline void for_each_input(const DeviceWindows<Int>& w, const Place<Int>& o, const Body& body) {
  for_each_tap(w, o, [&](Int i, Int) { body(i); });
}

// The number within its plane of the input that the window at `o` has at a tap, or -1 on padding.
template <typename Int>
__device__ inline Int input_at_tap(const DeviceWindows<Int>& w, const Place<Int>& o, Int tap) {
  const auto& [a0, a1, a2] = w.axis;
  const Int t2 = tap % a2.kernel, rest = tap / a2.kernel, t1 = rest % a1.kernel, t0 = rest / a1.kernel;
  const Int i0 = a0.start(o.index[0]) + t0 * a0.dilation.divisor();
  const Int i1 = a1.start(o.index[1]) + t1 * a1.dilation.divisor();
  const Int i2 = a2.start(o.index[2]) + t2 * a2.dilation.divisor();
  return a0.is_input(i0) && a1.is_input(i1) && a2.is_input(i2) ? (i0 * a1.input + i1) * a2.input + i2 : Int(-1);
}

// Calls body(output, tap) with the number within its plane of every output whose window sees the input at `i`, and of
// the tap through which it does; output by output.
template <typename Int, typename Body>
__device__ inline void for_each_output(const DeviceWindows<Int>& w, const Place<Int>& i, const Body& body) {
  const auto& [a0, a1, a2] = w.axis;
  const auto& [i0, i1, i2] = i.index;
  const Int end0 = a0.last_output(i0) + 1, end1 = a1.last_output(i1) + 1, end2 = a2.last_output(i2) + 1;
  const Int first1 = a1.first_output(i1), first2 = a2.first_output(i2);
  for (Int o0 = a0.first_output(i0); o0 < end0; ++o0) {
    const Int t0 = a0.tap(i0, o0);
    if (t0 < 0) continue;
    for (Int o1 = first1; o1 < end1; ++o1) {
      const Int t1 = a1.tap(i1, o1);
      if (t1 < 0) continue;
      for (Int o2 = first2; o2 < end2; ++o2) {
        const Int t2 = a2.tap(i2, o2);
        if (t2 >= 0) body((o0 * a1.output + o1) * a2.output + o2, (t0 * a1.kernel + t1) * a2.kernel + t2);
      }
    }
  }
}

// The place of an output by its number within the plane of `p`.
template <typename Int>
__device__ inline Place<Int> output_place(const DeviceWindows<Int>& w, const Place<Int>& p, Int output) {
  Place<Int> o = w.output.place(output * w.output.inner());
  o.plane = p.plane;
  o.inner = p.inner;
  return o;
}

}  // namespace convarith::cuda
