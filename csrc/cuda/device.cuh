// All that the kernels need of CUDA, without torch: launches, shared memory, copies into it, tensor cores, conversions.
//
// Every .cu file compiles in two ways: by nvcc, for a GPU; and by g++ with CONVARITH_EMULATE, for the tests, which run
// the kernels on a CPU (tests/cuda_emulation). So kernels take shared memory from shared_memory() and launch through
// launch(), and what is not C++ stands in this file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef CONVARITH_EMULATE
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace convarith::cuda {

// Launches ----------------------------------------------------------------------------------------------------------

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// kernel<<<grid, block, shared_bytes, stream>>>(args...). An empty grid is no error.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
#ifdef CONVARITH_EMULATE
  return emulation::launch(kernel, grid, block, shared_bytes, stream, static_cast<Parameters>(arguments)...);
#else
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (shared_bytes > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
#endif
}

// The block's dynamic shared memory, of as many bytes as launch() was given; aligned to 128 bytes.
template <typename T>
__device__ inline T* shared_memory() {
#ifdef CONVARITH_EMULATE
  return static_cast<T*>(emulation::shared_memory());
#else
  extern __shared__ __align__(128) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
#endif
}

// Stops the kernel where what must hold does not; the stream's next synchronisation reports it.
__device__ inline void device_check(bool holds) {
  if (holds) return;
#ifdef CONVARITH_EMULATE
  emulation::fail("a device_check() does not hold");
#else
  __trap();
#endif
}

// Numbers -----------------------------------------------------------------------------------------------------------

using half_t = __half;
using bfloat16_t = __nv_bfloat16;

template <typename T>
struct Complex {
  T real;
  T imaginary;

  Complex() = default;
  __host__ __device__ constexpr Complex(T real, T imaginary = T(0)) : real(real), imaginary(imaginary) {}
  __host__ __device__ Complex& operator+=(Complex other) {
    real += other.real;
    imaginary += other.imaginary;
    return *this;
  }
};

template <typename T>
__host__ __device__ Complex<T> operator*(Complex<T> a, Complex<T> b) {
  return {a.real * b.real - a.imaginary * b.imaginary, a.real * b.imaginary + a.imaginary * b.real};
}

template <typename T>
constexpr bool is_half = std::is_same_v<T, half_t> || std::is_same_v<T, bfloat16_t>;

// What products of T are summed in: float for the half precisions, unsigned 64-bit (which wraps, as torch's integers
// do, where signed overflow would be undefined) for integers, T itself otherwise.
template <typename T>
using Accumulate = std::conditional_t<is_half<T>, float, std::conditional_t<std::is_integral_v<T>, uint64_t, T>>;

// static_cast, for half precisions too: torch compiles with their own conversions switched off.
template <typename To, typename From>
__device__ inline To convert(From v) {
  if constexpr (std::is_same_v<To, From>) {
    return v;
  } else if constexpr (std::is_same_v<From, half_t>) {
    return static_cast<To>(__half2float(v));
  } else if constexpr (std::is_same_v<From, bfloat16_t>) {
    return static_cast<To>(__bfloat162float(v));
  } else if constexpr (std::is_same_v<To, half_t>) {
    return __float2half_rn(static_cast<float>(v));
  } else if constexpr (std::is_same_v<To, bfloat16_t>) {
    return __float2bfloat16_rn(static_cast<float>(v));
  } else {
    return static_cast<To>(v);
  }
}

// What is PTX --------------------------------------------------------------------------------------------------------
//
// Copies to shared memory, beside the computation. The calling thread's copies land when it has waited for them; other
// threads see them after a barrier behind that. Where not valid, zeros land and `global` is not read. Both addresses
// are multiples of the copy's size.
//   cp_async16(shared, global, valid), cp_async8, cp_async4
//   cp_async_commit()          closes a group of copies, which may be empty
//   cp_async_wait<kGroups>()   waits until at most the newest kGroups groups are on their way
//
// Tensor cores: d += a b by all lanes of a warp together. With g = lane / 4 and t = lane % 4, a lane holds
//   mma_tf32             a 16x8   a[0..3] = A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4]
//                        b 8x8    b[0..1] = B[t][g], B[t + 4][g]
//   mma_bf16, mma_f16    a 16x16  a[0..3] = A[g][2t, +1], A[g + 8][2t, +1], A[g][2t + 8, +9], A[g + 8][2t + 8, +9]
//                        b 16x8   b[0..1] = B[2t, +1][g], B[2t + 8, +9][g]      (the lower index in the lower 16 bits)
//   each of these        d 16x8   d[0..3] = D[g][2t], D[g][2t + 1], D[g + 8][2t], D[g + 8][2t + 1]
//   mma_f64              a 8x4    A[g][t];   b 4x8   B[t][g];   d 8x8   d[0..1] = D[g][2t], D[g][2t + 1]
//
// to_tf32(v): the nearest number with 10 bits of mantissa, ties away from zero, as a float's bits.
//
// ldmatrix_x4(r, shared): four 8x8 matrices of 16-bit elements. Lane 8m + i names row i (16 bytes) of matrix m, and
// every lane gets r[m] = M[lane / 4][2 (lane % 4), +1], which are the fragments above. With _transposed,
// r[m] = M[2 (lane % 4), +1][lane / 4].
#ifdef CONVARITH_EMULATE

using emulation::cp_async16;
using emulation::cp_async4;
using emulation::cp_async8;
using emulation::cp_async_commit;
using emulation::cp_async_wait;
using emulation::ldmatrix_x4;
using emulation::ldmatrix_x4_transposed;
using emulation::mma_bf16;
using emulation::mma_f16;
using emulation::mma_f64;
using emulation::mma_tf32;
using emulation::to_tf32;

#else

__device__ inline unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

__device__ inline void cp_async16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}

__device__ inline void cp_async8(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 8 : 0)
               : "memory");
}

__device__ inline void cp_async4(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 4 : 0)
               : "memory");
}

__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int kGroups>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

__device__ inline uint32_t to_tf32(float v) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
}

#define CONVARITH_MMA(NAME, SHAPE)                                                                            \
  __device__ inline void NAME(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {                \
    asm volatile("mma.sync.aligned." SHAPE " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                         \
  }
CONVARITH_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
CONVARITH_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
CONVARITH_MMA(mma_f16, "m16n8k16.row.col.f32.f16.f16.f32")
#undef CONVARITH_MMA

__device__ inline void mma_f64(double (&d)[2], double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(d[0]), "+d"(d[1])
               : "d"(a), "d"(b));
}

__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared))
               : "memory");
}

__device__ inline void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared))
               : "memory");
}

#endif

}  // namespace convarith::cuda
