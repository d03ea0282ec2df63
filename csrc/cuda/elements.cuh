// What kernels with one thread per element of a tensor share: from a thread to an element, from an element to its
// indices, and from a dtype to a type.
#pragma once

#include <array>

#include "../gather.h"
#include "../problem.h"
#include "device.cuh"
#include "runtime.h"

namespace convarith::cuda {

constexpr int kThreads = 256;  // of a block

// Division by a number that is known before the launch; in 32 bits, for 0 <= n < 2^31, by a multiplication.
template <typename Int>
class Divider {
 public:
  Divider() = default;
  explicit Divider(int64_t divisor) : divisor_(static_cast<Int>(divisor)) {
    if constexpr (sizeof(Int) == 4) fast_ = fast_divisor(divisor);
  }

  __device__ Int quotient(Int n) const {
    if constexpr (sizeof(Int) == 4) {
      return fast_.quotient(n);
    } else {
      return n / divisor_;
    }
  }
  // Divides n and returns the remainder.
  __device__ Int take(Int& n) const {
    const Int q = quotient(n), remainder = n - q * divisor_;
    n = q;
    return remainder;
  }
  __device__ Int divisor() const { return divisor_; }

 private:
  Int divisor_ = 1;
  FastDivisor fast_ = {1, 1, 0};
};

// Indices of a tensor (planes, size[0], size[1], size[2], inner).
template <typename Int>
struct Place {
  Int plane;
  Int index[kAxes];
  Int inner;
};

template <typename Int>
class Shape {
 public:
  Shape(const std::array<int64_t, kAxes>& size, int64_t inner) : inner_(inner) {
    for (int i = 0; i < kAxes; ++i) size_[i] = Divider<Int>(size[i] > 0 ? size[i] : 1);
  }

  __device__ Place<Int> place(Int element) const {
    Place<Int> p;
    p.inner = inner_.take(element);
    for (int i = kAxes - 1; i >= 0; --i) p.index[i] = size_[i].take(element);
    p.plane = element;
    return p;
  }
  __device__ Int inner() const { return inner_.divisor(); }
  __device__ Int size(int i) const { return size_[i].divisor(); }
  // The element at `index` of the axes.
  __device__ Int element(Int plane, Int i0, Int i1, Int i2, Int inner) const {
    return (((plane * size(0) + i0) * size(1) + i1) * size(2) + i2) * this->inner() + inner;
  }

 private:
  Divider<Int> inner_;
  Divider<Int> size_[kAxes];
};

inline std::array<int64_t, kAxes> input_size(const std::array<Axis, kAxes>& axis) {
  return {axis[0].input, axis[1].input, axis[2].input};
}

// The calling thread's element, or -1 where there are none left.
template <typename Int>
__device__ inline Int this_element(Int count) {
  const uint64_t element = uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  return element < static_cast<uint64_t>(count) ? static_cast<Int>(element) : Int(-1);
}

// One thread for each of `count` elements.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_elements(void (*kernel)(Parameters...), int64_t count, cudaStream_t stream,
                            const Arguments&... arguments) {
  const int64_t blocks = ceil_div(count, kThreads);
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, arguments...);
}

// Whether integers up to `most` need 64 bits; 32 are faster.
inline bool needs_64_bits(int64_t most) {
#ifdef CONVARITH_EMULATE
  if (emulation::wide_integers) return true;
#endif
  return most >= 0x7fff0000;
}

// Calls body(Int{}) with the integers that count up to `most`.
template <typename Body>
cudaError_t with_integers(int64_t most, const Body& body) {
  return needs_64_bits(most) ? body(int64_t{}) : body(int32_t{});
}

// Calls body(T{}) for a dtype of the set; the glue has refused the others.

template <typename Body>
cudaError_t with_floating(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat:
      return body(float{});
    case DType::kDouble:
      return body(double{});
    case DType::kBFloat16:
      return body(bfloat16_t{});
    case DType::kHalf:
      return body(half_t{});
    default:
      return cudaErrorInvalidValue;
  }
}

template <typename Body>
cudaError_t with_real(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kUInt8:
      return body(uint8_t{});
    case DType::kInt8:
      return body(int8_t{});
    case DType::kInt16:
      return body(int16_t{});
    case DType::kInt32:
      return body(int32_t{});
    case DType::kInt64:
      return body(int64_t{});
    default:
      return with_floating(dtype, body);
  }
}

template <typename Body>
cudaError_t with_floating_or_complex(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kComplexFloat:
      return body(Complex<float>{});
    case DType::kComplexDouble:
      return body(Complex<double>{});
    default:
      return with_floating(dtype, body);
  }
}

template <typename Body>
cudaError_t with_number(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kComplexFloat:
    case DType::kComplexDouble:
      return with_floating_or_complex(dtype, body);
    default:
      return with_real(dtype, body);
  }
}

template <typename Body>
cudaError_t with_any(DType dtype, const Body& body) {
  return dtype == DType::kBool ? body(bool{}) : with_number(dtype, body);
}

// Calls body(T{}) with an integer type as wide as the dtype, for kernels that only move elements.
template <typename Body>
cudaError_t with_bits(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kBool:
    case DType::kUInt8:
    case DType::kInt8:
      return body(uint8_t{});
    case DType::kInt16:
    case DType::kHalf:
    case DType::kBFloat16:
      return body(uint16_t{});
    case DType::kInt32:
    case DType::kFloat:
      return body(uint32_t{});
    case DType::kComplexDouble:
      return body(uint4{});
    default:
      return body(uint2{});
  }
}

}  // namespace convarith::cuda
