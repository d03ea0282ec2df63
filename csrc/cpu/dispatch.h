// From a tensor's dtype to a kernel's types, and from rows of work to threads.
#pragma once

#include <ATen/Dispatch_v2.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>

namespace convarith::cpu {

// What products of T are summed in: float for the half precisions, unsigned 64-bit (which wraps, as torch's integers
// do, where signed overflow would be undefined) for integers, T itself otherwise.
template <typename T>
struct Accumulate {
  using type = std::conditional_t<std::is_integral_v<T>, uint64_t, T>;
};
template <>
struct Accumulate<at::Half> {
  using type = float;
};
template <>
struct Accumulate<at::BFloat16> {
  using type = float;
};

// Calls body(T{}) for the dtype; an unsupported one raises with the operator's name.
#define CONVARITH_DISPATCH(DTYPE, NAME, ...) \
  AT_DISPATCH_V2(DTYPE, NAME, AT_WRAP(__VA_ARGS__), AT_EXPAND(AT_ALL_TYPES_AND_COMPLEX), at::kHalf, at::kBFloat16)

// The fast kernels' dtypes, as isa.h numbers them; -1 for the others.
inline int kernel_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return 0;
    case at::kDouble:
      return 1;
    case at::kBFloat16:
      return 2;
    case at::kHalf:
      return 3;
    default:
      return -1;
  }
}

// Rows of `work` multiply-adds each; chunks are large enough to be worth a thread.
template <typename Body>
void parallel_rows(int64_t rows, int64_t work, const Body& body) {
  constexpr int64_t kWorthAThread = 32768;
  at::parallel_for(0, rows, std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, work)), body);
}

}  // namespace convarith::cpu
