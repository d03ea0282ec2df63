// zero_insert: the guide's stretched, padded input; and its adjoint. The kernels are short enough to stand here.
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../checks.h"
#include "dispatch.h"

namespace convarith::cpu {
namespace {

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
  std::vector<int64_t> stretched;
  const Stretch s = make_stretch(x.sizes(), stride, padding, stretched);
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::zeros(stretched, x.options());
  CONVARITH_DISPATCH(x.scalar_type(), "torch_convarith::zero_insert", [&] {
    const scalar_t* from = in.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    parallel_rows(s.leading, s.units_numel(), [&](int64_t begin, int64_t end) {
      for_each_unit(s, begin, end, [&](int64_t unit, int64_t place) { to[place] = from[unit]; });
    });
  });
  return out;
}

at::Tensor zero_remove(const at::Tensor& x, at::IntArrayRef size, at::IntArrayRef stride, at::IntArrayRef padding) {
  std::vector<int64_t> stretched;
  const Stretch s = make_stretch(size, stride, padding, stretched);
  TORCH_CHECK(x.sizes() == at::IntArrayRef(stretched), "expected a stretched tensor of shape ", stretched, ", got ",
              x.sizes());
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::zeros(size, x.options());  // cropped units get nothing
  CONVARITH_DISPATCH(x.scalar_type(), "torch_convarith::zero_remove", [&] {
    const scalar_t* from = in.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    parallel_rows(s.leading, s.units_numel(), [&](int64_t begin, int64_t end) {
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
