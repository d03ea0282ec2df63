// Local response normalisation across channels, and its derivative.
//
// A block has a tile of channels x neighbours of one plane, so that what channels share is read from memory once and
// from the cache after that. Neighbours lie side by side in memory, as do a warp's lanes.
#include "elements.cuh"
#include "lrn.h"

namespace convarith::cuda {
namespace {

constexpr size_t kMostShared = 48 * 1024;

// s^-beta; the usual exponents without a power.
template <typename A>
__device__ inline A inverse_power(A s, double beta) {
  if (beta == 0.75) {
    const A root = sqrt(s);
    return A(1) / (root * sqrt(root));
  }
  if (beta == 0.5) return A(1) / sqrt(s);
  if (beta == 1) return A(1) / s;
  return pow(s, static_cast<A>(-beta));
}

// k + alpha * (sum of x^2), for the channel c of a column of x.
template <typename T, typename A = Accumulate<T>>
__device__ inline A sum_of(const Lrn& p, const T* column, int64_t c) {
  const Range window = p.window(c);
  A sum(0);
  for (int64_t j = window.begin; j < window.end; ++j) {
    const A v = convert<A>(column[j * p.inner]);
    sum += v * v;
  }
  return static_cast<A>(p.k) + static_cast<A>(p.alpha) * sum;
}

// A block's tile, and the calling thread's column in it.
struct Tile {
  int64_t first_channel;
  int64_t column;  // of the tensor: where channel 0 of this thread's neighbour stands; -1: there is none

  __device__ Tile(const Lrn& p, Divider<int64_t> columns, int64_t channels) {
    int64_t plane = blockIdx.x;
    const int64_t neighbour = columns.take(plane) * blockDim.x + threadIdx.x;
    first_channel = blockIdx.y * channels;
    column = neighbour < p.inner ? plane * p.channels * p.inner + neighbour : -1;
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    lrn_kernel(Lrn p, Divider<int64_t> columns, int64_t channels, const T* x, T* y) {
  using A = Accumulate<T>;
  const Tile tile(p, columns, channels);
  if (tile.column < 0) return;
  const int64_t end = min(tile.first_channel + channels, p.channels);
  for (int64_t c = tile.first_channel + threadIdx.y; c < end; c += blockDim.y) {
    const int64_t e = tile.column + c * p.inner;
    y[e] = convert<T>(convert<A>(x[e]) * inverse_power(sum_of(p, x + tile.column, c), p.beta));
  }
}

// result = g s^-beta - 2 alpha beta x (sum of g x s^(-beta - 1) over the channels whose sum has this one).
//
// The terms of that sum are shared by as many channels as it has: the block computes its tile's, and those of the
// channels around it, into shared memory first. kShared is false where these are too many.
template <bool kShared, typename T>
__global__ void __launch_bounds__(kThreads)
    lrn_backward_kernel(Lrn p, Divider<int64_t> columns, int64_t channels, const T* g, const T* x, T* result) {
  using A = Accumulate<T>;
  const Tile tile(p, columns, channels);
  const int64_t end = min(tile.first_channel + channels, p.channels);
  const T* of_x = x + tile.column;
  const T* of_g = g + tile.column;
  const auto term = [&](int64_t j) {
    const A s = sum_of(p, of_x, j);
    return convert<A>(of_g[j * p.inner]) * convert<A>(of_x[j * p.inner]) * inverse_power(s, p.beta) / s;
  };
  A* terms = shared_memory<A>() + threadIdx.x;
  const int64_t first = p.seen_by(tile.first_channel).begin, last = p.seen_by(end - 1).end;
  if (kShared) {
    for (int64_t j = first + threadIdx.y; j < last && tile.column >= 0; j += blockDim.y) {
      terms[(j - first) * blockDim.x] = term(j);
    }
    __syncthreads();
  }
  if (tile.column < 0) return;
  for (int64_t c = tile.first_channel + threadIdx.y; c < end; c += blockDim.y) {
    const Range seen_by = p.seen_by(c);
    A sum(0);
    for (int64_t j = seen_by.begin; j < seen_by.end; ++j) sum += kShared ? terms[(j - first) * blockDim.x] : term(j);
    const A direct = convert<A>(of_g[c * p.inner]) * inverse_power(sum_of(p, of_x, c), p.beta);
    const A factor = static_cast<A>(2 * p.alpha * p.beta) * convert<A>(of_x[c * p.inner]);
    result[tile.column + c * p.inner] = convert<T>(direct - factor * sum);
  }
}

// A warp's lanes lie along the neighbours, or along the channels where there are too few of these.
struct Tiling {
  dim3 grid;
  dim3 block;
  int64_t columns;   // blocks along a plane's neighbours
  int64_t channels;  // of a tile
};

Tiling tiling_of(const Lrn& p) {
  constexpr int64_t kRounds = 4;  // channels of a thread
  unsigned across = 1;
  while (across < kWarp && across < p.inner) across *= 2;
  const dim3 block(across, kThreads / across);
  const int64_t columns = ceil_div(p.inner, across);
  const int64_t channels =
      ceil_div(p.channels, 65535) > block.y * kRounds ? ceil_div(p.channels, 65535) : block.y * kRounds;
  return {dim3(static_cast<unsigned>(columns * p.planes), static_cast<unsigned>(ceil_div(p.channels, channels))), block,
          columns, channels};
}

bool is_empty(const Lrn& p) {
  return p.planes * p.channels * p.inner == 0;
}

}  // namespace

cudaError_t launch_lrn(const Lrn& p, DType dtype, const void* x, void* y, cudaStream_t stream) {
  if (is_empty(p)) return cudaSuccess;
  const Tiling t = tiling_of(p);
  return with_floating(dtype, [&](auto real) {
    using T = decltype(real);
    return launch(lrn_kernel<T>, t.grid, t.block, 0, stream, p, Divider<int64_t>(t.columns), t.channels,
                  static_cast<const T*>(x), static_cast<T*>(y));
  });
}

cudaError_t launch_lrn_backward(const Lrn& p, DType dtype, const void* g, const void* x, void* result,
                                cudaStream_t stream) {
  if (is_empty(p)) return cudaSuccess;
  const Tiling t = tiling_of(p);
  const int64_t tile = t.channels + p.size - 1, terms = tile < p.channels ? tile : p.channels;
  return with_floating(dtype, [&](auto real) {
    using T = decltype(real);
    const size_t shared = static_cast<size_t>(terms * t.block.x) * sizeof(Accumulate<T>);
    const bool fits = shared <= kMostShared;
    return launch(fits ? lrn_backward_kernel<true, T> : lrn_backward_kernel<false, T>, t.grid, t.block,
                  fits ? shared : 0, stream, p, Divider<int64_t>(t.columns), t.channels, static_cast<const T*>(g),
                  static_cast<const T*>(x), static_cast<T*>(result));
  });
}

}  // namespace convarith::cuda
