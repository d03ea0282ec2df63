// CUDA on a CPU, for tests: csrc/cuda/*.cu compiled by g++ with CONVARITH_EMULATE, included by csrc/cuda/device.cuh.
//
// Every thread of a block is a fiber (a stack of its own); blocks run one after another. A kernel that breaks a rule
// below stops, and its launch returns an error whose text (cudaGetErrorString) says what happened, in which block and
// thread, and at which line.
//
// Modelled:
//   - __syncthreads(): all threads of the block must meet at one line; it is an error if one exits or waits elsewhere.
//   - shuffles, votes, __syncwarp(), mma and ldmatrix: all lanes of the mask must meet at one line.
//   - shared memory from shared_memory<T>(): NaN bytes before every block; a page that cannot be touched behind it.
//   - cp.async: the destination becomes NaN bytes at once and gets its data when the issuing thread waits for it, so a
//     missing wait shows. A thread that exits with copies on their way is an error.
//   - fragments of mma and ldmatrix, by the PTX ISA. tf32 drops the bits that the hardware drops.
//   - limits of block, grid and shared memory; null and misaligned accesses (by -fsanitize, see __init__.py); accesses
//     outside of guarded arrays (allocate(), guard.cpp).
//   - the order of threads and blocks, which a GPU leaves open: set_order() takes forward, reversed or random, and a
//     result that depends on it lacks a barrier.
// Not modelled:
//   - __shared__ variables are shared but neither poisoned nor guarded: kernels use shared_memory<T>().
//   - threads interleave at barriers and collectives only, and memory is sequentially consistent: what a missing
//     __threadfence or barrier does is seen only as far as another order of threads shows it.
//   - rounding inside a tensor core: products are summed in double and rounded once.
//   - streams, time, bank conflicts, registers.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __constant__ static
#define __forceinline__ inline
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __grid_constant__

// Vector types ------------------------------------------------------------------------------------------------------

#define EMULATION_VECTOR(T, NAME)                                   \
  struct alignas(2 * sizeof(T)) NAME##2 {                           \
    T x, y;                                                         \
  };                                                                \
  struct NAME##3 {                                                  \
    T x, y, z;                                                      \
  };                                                                \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) NAME##4 { \
    T x, y, z, w;                                                   \
  };                                                                \
  inline NAME##2 make_##NAME##2(T x, T y) {                         \
    return {x, y};                                                  \
  }                                                                 \
  inline NAME##3 make_##NAME##3(T x, T y, T z) {                    \
    return {x, y, z};                                               \
  }                                                                 \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) {               \
    return {x, y, z, w};                                            \
  }
EMULATION_VECTOR(signed char, char)
EMULATION_VECTOR(unsigned char, uchar)
EMULATION_VECTOR(short, short)
EMULATION_VECTOR(unsigned short, ushort)
EMULATION_VECTOR(int, int)
EMULATION_VECTOR(unsigned, uint)
EMULATION_VECTOR(long long, longlong)
EMULATION_VECTOR(float, float)
EMULATION_VECTOR(double, double)
#undef EMULATION_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// The runtime -------------------------------------------------------------------------------------------------------

using cudaStream_t = struct CUstream_st*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};

const char* cudaGetErrorString(cudaError_t error);
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

inline thread_local uint3 threadIdx, blockIdx;
inline thread_local dim3 blockDim, gridDim;

// Half precisions ---------------------------------------------------------------------------------------------------

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
float __half2float(__half v);
__half __float2half_rn(float v);
float __bfloat162float(__nv_bfloat16 v);
__nv_bfloat16 __float2bfloat16_rn(float v);

namespace emulation {

// A place in a kernel's source; as a default argument, that of the call.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

[[noreturn]] void fail(const char* what, Site site = Site::here());

// Memory for tests: it begins at a multiple of `alignment`, and no more than alignment - 1 bytes behind its end, which
// release() finds unchanged or returns false, stands a page that cannot be touched.
void* allocate(size_t bytes, size_t alignment);
bool release(void* memory);

enum class Order { kForward, kReversed, kRandom };
void set_order(Order order);

// Makes kernels that choose between 32-bit and 64-bit indices by the problem's size choose 64 bits.
extern bool wide_integers;

// Called by the kernel --------------------------------------------------------------------------------------------

void* shared_memory();
void block_barrier(Site site);

// All lanes of `mask` give a slot; the last one to come runs `finish` over the slots (null for lanes that are not of
// them), which writes every lane's result.
using Finish = void (*)(void* const* slots, unsigned mask, Site site);
void warp_collective(const char* name, unsigned mask, void* slot, Finish finish, Site site);
unsigned lane();

void cp_async(void* shared, const void* global, int bytes, bool valid, Site site);
inline void cp_async16(void* shared, const void* global, bool valid, Site site = Site::here()) {
  cp_async(shared, global, 16, valid, site);
}
inline void cp_async8(void* shared, const void* global, bool valid, Site site = Site::here()) {
  cp_async(shared, global, 8, valid, site);
}
inline void cp_async4(void* shared, const void* global, bool valid, Site site = Site::here()) {
  cp_async(shared, global, 4, valid, site);
}
void cp_async_commit();
void cp_async_wait_for(int newest_groups_left);
template <int kGroups>
void cp_async_wait() {
  cp_async_wait_for(kGroups);
}

uint32_t to_tf32(float v);
void ldmatrix_x4(uint32_t (&r)[4], const void* shared, Site site = Site::here());
void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* shared, Site site = Site::here());
void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here());
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here());
void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here());
void mma_f64(double (&d)[2], double a, double b, Site site = Site::here());

// Where the elements of a lane's fragment stand in the matrix: (row, column) of a's, b's and d's element i.
struct Place {
  int row, column;
};
struct Layout {  // of d (m x n) += a (m x k) b (k x n); elements per lane
  int m, n, k;
  int a_elements, b_elements, d_elements;
  Place (*a)(int lane, int i);
  Place (*b)(int lane, int i);
  Place (*d)(int lane, int i);
};
extern const Layout kTf32, kHalf, kF64;

// Called by launch() ----------------------------------------------------------------------------------------------

cudaError_t run(void (*body)(const void* context), const void* context, dim3 grid, dim3 block, size_t shared_bytes);

template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   Parameters... arguments) {
  using Call = std::tuple<void (*)(Parameters...), Parameters...>;
  const Call call(kernel, arguments...);
  return run(
      [](const void* context) {  // every thread gets copies of its own
        std::apply([](auto function, auto... values) { function(values...); }, *static_cast<const Call*>(context));
      },
      &call, grid, block, shared_bytes);
}

// A value that every lane offers, and the one that it takes.
template <typename T>
struct Offer {
  T value;
  int source;  // lane
  T taken;
};

template <typename T>
T shuffle(const char* name, unsigned mask, T value, int source, Site site) {
  Offer<T> offer = {value, source, value};
  warp_collective(
      name, mask, &offer,
      [](void* const* slots, unsigned, Site at) {
        for (int i = 0; i < 32; ++i) {
          if (slots[i] == nullptr) continue;
          auto& mine = *static_cast<Offer<T>*>(slots[i]);
          if (slots[mine.source] == nullptr) fail("a shuffle from a lane that takes no part", at);
          mine.taken = static_cast<Offer<T>*>(slots[mine.source])->value;
        }
      },
      site);
  return offer.taken;
}

unsigned ballot(unsigned mask, bool vote, Site site);

}  // namespace emulation

// What kernels call ---------------------------------------------------------------------------------------------------

inline void __syncthreads(emulation::Site site = emulation::Site::here()) {
  emulation::block_barrier(site);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, emulation::Site site = emulation::Site::here()) {
  emulation::warp_collective("__syncwarp", mask, &mask, [](void* const*, unsigned, emulation::Site) {}, site);
}
template <typename T>
T __shfl_sync(unsigned mask, T v, int lane, int width = 32, emulation::Site site = emulation::Site::here()) {
  const int self = int(emulation::lane()), first = self / width * width;
  return emulation::shuffle("__shfl_sync", mask, v, first + (lane & (width - 1)), site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, emulation::Site site = emulation::Site::here()) {
  const int self = int(emulation::lane()), source = self ^ bits;
  return emulation::shuffle("__shfl_xor_sync", mask, v, source / width > self / width ? self : source, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, emulation::Site site = emulation::Site::here()) {
  const int self = int(emulation::lane()), source = self + int(delta);
  return emulation::shuffle("__shfl_down_sync", mask, v, self % width + int(delta) >= width ? self : source, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, emulation::Site site = emulation::Site::here()) {
  const int self = int(emulation::lane()), source = self - int(delta);
  return emulation::shuffle("__shfl_up_sync", mask, v, self % width < int(delta) ? self : source, site);
}
inline unsigned __ballot_sync(unsigned mask, bool vote, emulation::Site site = emulation::Site::here()) {
  return emulation::ballot(mask, vote, site);
}
inline int __any_sync(unsigned mask, bool vote, emulation::Site site = emulation::Site::here()) {
  return emulation::ballot(mask, vote, site) != 0;
}
inline int __all_sync(unsigned mask, bool vote, emulation::Site site = emulation::Site::here()) {
  return emulation::ballot(mask, !vote, site) == 0;
}
template <typename T>
T __ldg(const T* p) {
  return *p;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// CUDA's own min and max.
template <typename T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
template <typename T>
T atomicAdd(T* p, std::enable_if_t<std::is_integral_v<T>, T> v) {  // of integers: the order does not show
  const T old = *p;
  *p += v;
  return old;
}
template <typename T>
T atomicExch(T* p, T v) {
  const T old = *p;
  *p = v;
  return old;
}
inline float __int_as_float(int v) {
  float f;
  std::memcpy(&f, &v, sizeof f);
  return f;
}
inline float __uint_as_float(unsigned v) {
  return __int_as_float(static_cast<int>(v));
}
inline int __float_as_int(float f) {
  int v;
  std::memcpy(&v, &f, sizeof v);
  return v;
}
inline unsigned __float_as_uint(float f) {
  return static_cast<unsigned>(__float_as_int(f));
}
inline int __popc(unsigned v) {
  return __builtin_popcount(v);
}
inline int __ffs(int v) {
  return __builtin_ffs(v);
}
inline int __clz(int v) {
  return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v));
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
}
