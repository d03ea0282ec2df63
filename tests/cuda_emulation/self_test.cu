// Kernels that show what the emulation does: right ones, and each kind of wrong one. Also compiled by nvcc.
#include <string>

#include "../../csrc/cuda/device.cuh"

using namespace convarith::cuda;

namespace {

// One 16 x 8 product by a warp, with fragments as device.cuh describes them. a (16, k), b (k, 8), d (16, 8), row-major.
__global__ void multiply_tf32(const float* a, const float* b, float* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const uint32_t fa[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]), to_tf32(a[g * 8 + t + 4]),
                          to_tf32(a[(g + 8) * 8 + t + 4])};
  const uint32_t fb[2] = {to_tf32(b[t * 8 + g]), to_tf32(b[(t + 4) * 8 + g])};
  float fd[4] = {1, 1, 1, 1};
  mma_tf32(fd, fa, fb);
  d[g * 8 + 2 * t] = fd[0];
  d[g * 8 + 2 * t + 1] = fd[1];
  d[(g + 8) * 8 + 2 * t] = fd[2];
  d[(g + 8) * 8 + 2 * t + 1] = fd[3];
}

template <typename T>
__device__ uint32_t pair(float low, float high) {
  const T v[2] = {convert<T>(low), convert<T>(high)};
  uint32_t bits;
  memcpy(&bits, v, 4);
  return bits;
}

template <typename T>
__global__ void multiply_half(const float* a, const float* b, float* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4 * 2;
  const auto of_a = [&](int row, int column) { return pair<T>(a[row * 16 + column], a[row * 16 + column + 1]); };
  const auto of_b = [&](int row) { return pair<T>(b[row * 8 + g], b[(row + 1) * 8 + g]); };
  const uint32_t fa[4] = {of_a(g, t), of_a(g + 8, t), of_a(g, t + 8), of_a(g + 8, t + 8)};
  const uint32_t fb[2] = {of_b(t), of_b(t + 8)};
  float fd[4] = {1, 1, 1, 1};
  if constexpr (std::is_same_v<T, half_t>) {
    mma_f16(fd, fa, fb);
  } else {
    mma_bf16(fd, fa, fb);
  }
  d[g * 8 + t] = fd[0];
  d[g * 8 + t + 1] = fd[1];
  d[(g + 8) * 8 + t] = fd[2];
  d[(g + 8) * 8 + t + 1] = fd[3];
}

// The same with both operands through shared memory and ldmatrix: a plain, b transposed on the way.
__global__ void multiply_by_ldmatrix(const float* a, const float* b, float* d) {
  bfloat16_t* sa = shared_memory<bfloat16_t>();
  bfloat16_t* sb = sa + 16 * 16;
  for (int i = threadIdx.x; i < 16 * 16; i += 32) sa[i] = convert<bfloat16_t>(a[i]);
  for (int i = threadIdx.x; i < 16 * 8; i += 32) sb[i] = convert<bfloat16_t>(b[i]);
  __syncwarp();
  const int lane = threadIdx.x, row = lane % 8, m = lane / 8, g = lane / 4, t = lane % 4 * 2;
  uint32_t fa[4], both[4];
  ldmatrix_x4(fa, sa + (row + m % 2 * 8) * 16 + m / 2 * 8);
  ldmatrix_x4_transposed(both, sb + (row + m % 2 * 8) * 8);  // matrices 2 and 3 repeat 0 and 1
  const uint32_t fb[2] = {both[0], both[1]};
  float fd[4] = {1, 1, 1, 1};
  mma_bf16(fd, fa, fb);
  d[g * 8 + t] = fd[0];
  d[g * 8 + t + 1] = fd[1];
  d[(g + 8) * 8 + t] = fd[2];
  d[(g + 8) * 8 + t + 1] = fd[3];
}

// a (8, 4), b (4, 8), d (8, 8)
__global__ void multiply_f64(const double* a, const double* b, double* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  double fd[2] = {1, 1};
  mma_f64(fd, a[g * 4 + t], b[t * 8 + g]);
  d[g * 8 + 2 * t] = fd[0];
  d[g * 8 + 2 * t + 1] = fd[1];
}

// Every block reverses its 64 numbers through shared memory.
template <bool kBarrier>
__global__ void reverse(const float* x, float* y) {
  float* shared = shared_memory<float>();
  const int i = threadIdx.x, first = blockIdx.x * 64;
  shared[i] = x[first + i];
  if (kBarrier) __syncthreads();
  y[first + i] = shared[63 - i];
}

// The same by cp.async.
template <bool kWait>
__global__ void reverse_async(const float* x, float* y) {
  float* shared = shared_memory<float>();
  const int i = threadIdx.x, first = blockIdx.x * 64;
  cp_async4(shared + i, x + first + i, true);
  cp_async_commit();
  cp_async_commit();
  if (kWait) cp_async_wait<1>();
  __syncthreads();
  y[first + i] = shared[63 - i];
  cp_async_wait<0>();
}

__global__ void zero_fill(const float* x, float* y) {
  float* shared = shared_memory<float>();
  cp_async16(shared + threadIdx.x * 4, threadIdx.x % 2 == 0 ? x + threadIdx.x * 4 : nullptr, threadIdx.x % 2 == 0);
  cp_async_commit();
  cp_async_wait<0>();
  for (int i = 0; i < 4; ++i) y[threadIdx.x * 4 + i] = shared[threadIdx.x * 4 + i];
}

// y[0]: the warp's sum; y[1]: a vote; y[2 ...]: neighbours
__global__ void warp_sum(const float* x, float* y) {
  float v = x[threadIdx.x];
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  const float first = __shfl_sync(kAllLanes, x[threadIdx.x], 5);
  const float next = __shfl_down_sync(kAllLanes, x[threadIdx.x], 1);
  if (threadIdx.x == 0) {
    y[0] = v;
    y[2] = first;
    y[3] = next;
  }
  const unsigned votes = __ballot_sync(kAllLanes, x[threadIdx.x] > 0);
  if (threadIdx.x == 7) y[1] = static_cast<float>(__popc(votes));
}

__global__ void half_of_them_exit(const float*, float*) {
  if (threadIdx.x >= 32) return;
  __syncthreads();
}

__global__ void different_barriers(const float*, float*) {
  if (threadIdx.x >= 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void half_a_warp_shuffles(const float* x, float* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(kAllLanes, x[threadIdx.x], 1);
}

__global__ void past_shared(const float*, float* y) {
  float* shared = shared_memory<float>();
  y[threadIdx.x] = shared[64 + threadIdx.x];
}

__global__ void just_behind_shared(const float*, float*) {
  shared_memory<float>()[threadIdx.x + 2] = 0;
}

__global__ void past_global(const float* x, float* y) {
  y[threadIdx.x] = x[64 + 4 * threadIdx.x];
}

__global__ void misaligned(const float* x, float* y) {
  y[threadIdx.x] = reinterpret_cast<const float2*>(x + 1)[threadIdx.x].x;
}

__global__ void null_access(const float*, float* y) {
  const float* nothing = y[0] > 1e30f ? y : nullptr;
  y[1] = *nothing;
}

__global__ void leaves_a_copy(const float* x, float*) {
  cp_async4(shared_memory<float>() + threadIdx.x, x, true);
}

__global__ void checks(const float* x, float*) {
  device_check(x[threadIdx.x] < 50);
}

// Sums whose order of threads does not show: every thread its own.
__global__ void heavy(const float* x, float* y) {
  float* shared = shared_memory<float>();
  float sum = 0;
  for (int round = 0; round < 16; ++round) {
    shared[threadIdx.x] = x[threadIdx.x % 64] + static_cast<float>(round);
    __syncthreads();
    sum += shared[(threadIdx.x + 1) % blockDim.x];
    __syncthreads();
  }
  if (blockIdx.x == 0 && threadIdx.x < 64) y[threadIdx.x] = sum;
}

cudaError_t run(const std::string& name, const void* a, const void* b, void* out) {
  const auto* x = static_cast<const float*>(a);
  const auto* w = static_cast<const float*>(b);
  auto* y = static_cast<float*>(out);
  if (name == "tf32") return launch(multiply_tf32, 1, 32, 0, nullptr, x, w, y);
  if (name == "bf16") return launch(multiply_half<bfloat16_t>, 1, 32, 0, nullptr, x, w, y);
  if (name == "f16") return launch(multiply_half<half_t>, 1, 32, 0, nullptr, x, w, y);
  if (name == "ldmatrix") return launch(multiply_by_ldmatrix, 1, 32, 24 * 16 * 2, nullptr, x, w, y);
  if (name == "f64") {
    return launch(multiply_f64, 1, 32, 0, nullptr, static_cast<const double*>(a), static_cast<const double*>(b),
                  static_cast<double*>(out));
  }
  if (name == "reverse") return launch(reverse<true>, 2, 64, 256, nullptr, x, y);
  if (name == "reverse without barrier") return launch(reverse<false>, 2, 64, 256, nullptr, x, y);
  if (name == "async") return launch(reverse_async<true>, 2, 64, 256, nullptr, x, y);
  if (name == "async without wait") return launch(reverse_async<false>, 2, 64, 256, nullptr, x, y);
  if (name == "zero fill") return launch(zero_fill, 1, 16, 256, nullptr, x, y);
  if (name == "warp sum") return launch(warp_sum, 1, 32, 0, nullptr, x, y);
  if (name == "exit before a barrier") return launch(half_of_them_exit, 1, 64, 0, nullptr, x, y);
  if (name == "different barriers") return launch(different_barriers, 1, 64, 0, nullptr, x, y);
  if (name == "half a warp") return launch(half_a_warp_shuffles, 1, 32, 0, nullptr, x, y);
  if (name == "past shared") return launch(past_shared, 1, 32, 256, nullptr, x, y);
  if (name == "just behind shared") return launch(just_behind_shared, 1, 2, 8, nullptr, x, y);
  if (name == "past global") return launch(past_global, 1, 32, 0, nullptr, x, y);
  if (name == "misaligned") return launch(misaligned, 1, 4, 0, nullptr, x, y);
  if (name == "null") return launch(null_access, 1, 1, 0, nullptr, x, y);
  if (name == "copy left") return launch(leaves_a_copy, 1, 32, 256, nullptr, x, y);
  if (name == "check") return launch(checks, 1, 64, 0, nullptr, x, y);
  if (name == "too many threads") return launch(checks, 1, 1025, 0, nullptr, x, y);
  if (name == "too much shared") return launch(checks, 1, 32, 300 * 1024, nullptr, x, y);
  if (name == "empty grid") return launch(checks, dim3(0, 1, 1), 32, 0, nullptr, x, y);
  if (name == "heavy") return launch(heavy, 64, 1024, 4096, nullptr, x, y);
  return cudaErrorInvalidValue;
}

}  // namespace

// Empty where all was well.
extern "C" const char* self_test(const char* name, const void* a, const void* b, void* out) {
  const cudaError_t error = run(name, a, b, out);
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

#ifdef CONVARITH_EMULATE
// Whether the places of every fragment fill their matrix once each.
extern "C" bool layouts_are_bijections() {
  bool result = true;
  const auto fills = [&](int rows, int columns, int elements, emulation::Place (*place)(int, int)) {
    int met[16][16] = {};
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < elements; ++i) ++met[place(lane, i).row][place(lane, i).column];
    }
    for (int r = 0; r < 16; ++r) {
      for (int c = 0; c < 16; ++c) result &= met[r][c] == (r < rows && c < columns ? 1 : 0);
    }
  };
  for (const emulation::Layout* l : {&emulation::kTf32, &emulation::kHalf, &emulation::kF64}) {
    fills(l->m, l->k, l->a_elements, l->a);
    fills(l->k, l->n, l->b_elements, l->b);
    fills(l->m, l->n, l->d_elements, l->d);
  }
  return result;
}

// The bits of v in half precision, and the value of such bits.
extern "C" uint16_t to_half_bits(float v) {
  return __float2half_rn(v).bits;
}
extern "C" uint16_t to_bfloat16_bits(float v) {
  return __float2bfloat16_rn(v).bits;
}
extern "C" float from_half_bits(uint16_t bits) {
  return __half2float({bits});
}
#endif
