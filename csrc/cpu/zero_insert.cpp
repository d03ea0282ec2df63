// zero_insert: the guide's stretched, padded input; and its adjoint. The kernels are short enough to stand here.
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../checks.h"
#include "dispatch.h"

namespace convarith::cpu {
namespace {

// Axes in front-padded form: x[o] stands at o * stride + lo of the stretched tensor, which is where a convolution with
// one tap reads from. So the axis is that convolution's, and a unit cropped away is an output that meets no input.
struct Stretch {
  std::array<Axis, kAxes> axis;
  std::array<int64_t, kAxes> units;
  int64_t leading;                 // product of the sizes in front of the axes
  std::vector<int64_t> stretched;  // whole shape
};

Stretch make_stretch(at::IntArrayRef size, at::IntArrayRef stride, at::IntArrayRef padding) {
  const size_t axes = stride.size();
  TORCH_CHECK(axes >= 1 && axes <= kAxes && padding.size() == 2 * axes && size.size() >= axes,
              "expected 1 to 3 strides, lo and hi per axis and at least as many dimensions, got stride ", stride,
              ", padding ", padding, " and shape ", size);
  Stretch s = {{kTrivialAxis, kTrivialAxis, kTrivialAxis}, {1, 1, 1}, 1, size.vec()};
  const size_t first = size.size() - axes;
  for (size_t i = 0; i < first; ++i) s.leading *= size[i];
  for (size_t i = 0; i < axes; ++i) {
    const int64_t lo = padding[2 * i], hi = padding[2 * i + 1], units = size[first + i];
    Axis a = {units, 1, stride[i], -lo, -hi, 1};
    check_sizes(a, axis_name(i, axes));
    a.input = (units > 0 ? (units - 1) * stride[i] + 1 : 0) + lo + hi;
    TORCH_CHECK(a.input >= 0, "padding (", lo, ", ", hi, ") crops more than the ", a.input - lo - hi,
                " units of the stretched input along ", axis_name(i, axes));
    s.axis[kAxes - axes + i] = a;
    s.units[kAxes - axes + i] = units;
    s.stretched[first + i] = a.input;
  }
  return s;
}

// Calls body(unit, place) with the flat index of every unit that is not cropped and of its place.
template <typename Body>
void for_each_unit(const Stretch& s, int64_t begin, int64_t end, const Body& body) {
  const auto& [a0, a1, a2] = s.axis;
  const Range run0 = outputs_of_tap(a0, s.units[0], 0), run1 = outputs_of_tap(a1, s.units[1], 0),
              run2 = outputs_of_tap(a2, s.units[2], 0);
  for (int64_t n = begin; n < end; ++n) {
    for (int64_t o0 = run0.begin; o0 < run0.end; ++o0) {
      for (int64_t o1 = run1.begin; o1 < run1.end; ++o1) {
        const int64_t unit = ((n * s.units[0] + o0) * s.units[1] + o1) * s.units[2];
        const int64_t place = ((n * a0.input + input_index(a0, o0, 0)) * a1.input + input_index(a1, o1, 0)) * a2.input;
        for (int64_t o2 = run2.begin; o2 < run2.end; ++o2) body(unit + o2, place + input_index(a2, o2, 0));
      }
    }
  }
}

at::Tensor zero_insert(const at::Tensor& x, at::IntArrayRef stride, at::IntArrayRef padding) {
  const Stretch s = make_stretch(x.sizes(), stride, padding);
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::zeros(s.stretched, x.options());
  CONVARITH_DISPATCH(x.scalar_type(), "torch_convarith::zero_insert", [&] {
    const scalar_t* from = in.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    parallel_rows(s.leading, s.units[0] * s.units[1] * s.units[2], [&](int64_t begin, int64_t end) {
      for_each_unit(s, begin, end, [&](int64_t unit, int64_t place) { to[place] = from[unit]; });
    });
  });
  return out;
}

at::Tensor zero_remove(const at::Tensor& x, at::IntArrayRef size, at::IntArrayRef stride, at::IntArrayRef padding) {
  const Stretch s = make_stretch(size, stride, padding);
  TORCH_CHECK(x.sizes() == at::IntArrayRef(s.stretched), "expected a stretched tensor of shape ", s.stretched, ", got ",
              x.sizes());
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::zeros(size, x.options());  // cropped units get nothing
  CONVARITH_DISPATCH(x.scalar_type(), "torch_convarith::zero_remove", [&] {
    const scalar_t* from = in.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    parallel_rows(s.leading, s.units[0] * s.units[1] * s.units[2], [&](int64_t begin, int64_t end) {
      for_each_unit(s, begin, end, [&](int64_t unit, int64_t place) { to[unit] = from[place]; });
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_convarith, CPU, m) {
  m.impl("zero_insert", zero_insert);
  m.impl("zero_remove", zero_remove);
}

}  // namespace convarith::cpu
