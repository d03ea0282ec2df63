// zero_insert and its adjoint. Each thread writes one element, so that nothing is written twice.
#include "elements.cuh"
#include "zero_insert.h"

namespace convarith::cuda {
namespace {

// Of one axis, in a kernel's integers.
template <typename Int>
struct Spread {
  Divider<Int> stride;
  Int lo;
  Int size;  // of the other side
};

template <typename Int>
struct Spreads {
  Spread<Int> axis[kAxes];

  Spreads(const Stretch& s, const std::array<int64_t, kAxes>& size) {
    for (int i = 0; i < kAxes; ++i) {
      axis[i] = {Divider<Int>(s.axis[i].stride), static_cast<Int>(-s.axis[i].lo), static_cast<Int>(size[i])};
    }
  }
};

template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    insert_kernel(Int count, Shape<Int> stretched, Spreads<Int> s, const T* units, T* to) {
  const Int element = this_element(count);
  if (element < 0) return;
  const Place<Int> place = stretched.place(element);
  Int unit = place.plane;
  bool meets = true;
  for (int i = 0; i < kAxes; ++i) {
    Int o = place.index[i] - s.axis[i].lo;
    meets = meets && o >= 0;
    meets = meets && s.axis[i].stride.take(o) == 0 && o < s.axis[i].size;
    unit = unit * s.axis[i].size + o;
  }
  to[element] = meets ? units[unit] : T{};
}

template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    remove_kernel(Int count, Shape<Int> units, Spreads<Int> s, const T* stretched, T* to) {
  const Int element = this_element(count);
  if (element < 0) return;
  const Place<Int> place = units.place(element);
  int64_t from = place.plane;  // places of cropped units may lie anywhere
  bool meets = true;
  for (int i = 0; i < kAxes; ++i) {
    const int64_t p = int64_t{place.index[i]} * s.axis[i].stride.divisor() + s.axis[i].lo;
    meets = meets && p >= 0 && p < s.axis[i].size;
    from = from * s.axis[i].size + p;
  }
  to[element] = meets ? stretched[from] : T{};
}

int64_t most(const Stretch& s) {
  return s.leading * max(s.stretched_numel(), s.units_numel());
}

}  // namespace

cudaError_t launch_zero_insert(const Stretch& s, DType dtype, const void* units, void* stretched, cudaStream_t stream) {
  const int64_t count = s.leading * s.stretched_numel();
  return with_bits(dtype, [&](auto bits) {
    return with_integers(most(s), [&](auto integer) {
      using T = decltype(bits);
      using Int = decltype(integer);
      return launch_elements(insert_kernel<T, Int>, count, stream, count, Shape<Int>(input_size(s.axis), 1),
                             Spreads<Int>(s, s.units), static_cast<const T*>(units), static_cast<T*>(stretched));
    });
  });
}

cudaError_t launch_zero_remove(const Stretch& s, DType dtype, const void* stretched, void* units, cudaStream_t stream) {
  const int64_t count = s.leading * s.units_numel();
  return with_bits(dtype, [&](auto bits) {
    return with_integers(most(s), [&](auto integer) {
      using T = decltype(bits);
      using Int = decltype(integer);
      return launch_elements(remove_kernel<T, Int>, count, stream, count, Shape<Int>(s.units, 1),
                             Spreads<Int>(s, input_size(s.axis)), static_cast<const T*>(stretched),
                             static_cast<T*>(units));
    });
  });
}

}  // namespace convarith::cuda
