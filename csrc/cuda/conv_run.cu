// A convolution's launches, in order: weights are packed where the kernel wants them so, then multiplied, then the
// partial sums of a split sum are added.
#include <algorithm>

#include "conv_gather.cuh"
#include "conv_kernels.h"
#include "elements.cuh"

namespace convarith::cuda {
namespace {

// Bits of weights to [phase][group][row][(tap, channel)], zeros behind each phase's last.
template <typename Bits>
__global__ void __launch_bounds__(kThreads)
    pack_weights(const __grid_constant__ ConvPlan p, int64_t count, const Bits* w, Bits* packed) {
  const int64_t index = this_element(count);
  if (index < 0) return;
  const auto depth = static_cast<int32_t>(index % p.packed_row);
  const int64_t line = index / p.packed_row;
  const auto row = static_cast<int32_t>(line % p.rows), unit = static_cast<int32_t>(line / p.rows);
  const int32_t group = unit % p.groups;
  const PhaseIndex phase(p, unit / p.groups);
  const Bits* from = w + group * p.w_group + row * p.w_row;
  packed[phase.index * p.packed_phase + group * p.packed_group + row * p.packed_row + depth] =
      depth < depth_of(p, phase) ? from[place_in_w(p, phase, depth_index(p, phase, depth))] : Bits{};
}

// Bits of weights to [tap][channel][group][row]: what neighbouring groups read at a time stands together.
struct WeightSizes {
  int64_t kernel[kAxes], channels, groups, rows;
};
template <typename Bits>
__global__ void __launch_bounds__(kThreads)
    turn_weights(const __grid_constant__ ConvPlan p, WeightSizes size, int64_t count, const Bits* w, Bits* turned) {
  const int64_t index = this_element(count);
  if (index < 0) return;
  int64_t rest = index, from = rest % size.rows * p.w_row;
  rest /= size.rows;
  from += rest % size.groups * p.w_group;
  rest /= size.groups;
  from += rest % size.channels * p.w_channel;
  rest /= size.channels;
  for (int i = kAxes - 1; i >= 0; --i) {
    from += rest % size.kernel[i] * p.axis[i].w;
    rest /= size.kernel[i];
  }
  turned[index] = w[from];
}

// Adds the partial sums [split][phase][group][column][row] of every element, split by split.
template <typename T, bool kWeight>
__global__ void __launch_bounds__(kThreads)
    add_partial(const __grid_constant__ ConvPlan p, int64_t columns, const Accumulate<T>* partial, T* result) {
  const int64_t count = int64_t{p.phases} * p.groups * columns * p.rows, index = this_element(count);
  if (index < 0) return;
  const int64_t row = index % p.rows, unit = index / p.rows / columns;
  const auto column = static_cast<int32_t>(index / p.rows % columns);
  const int64_t group = unit % p.groups;
  const PhaseIndex phase(p, static_cast<int32_t>(unit / p.groups));
  if (!kWeight && column >= column_count(p, phase)) return;
  Accumulate<T> sum(0);
  for (int32_t split = 0; split < p.splits; ++split) sum += partial[split * count + index];
  if constexpr (kWeight) {
    result[group * p.w_group + row * p.w_row + place_in_w(p, phase, depth_index(p, phase, column))] = convert<T>(sum);
  } else {
    const Output o = output_of(p, phase, column);
    result[o.image * p.out_batch + group * p.out_group + row * p.out_row + place_in_out(p, phase, o)] = convert<T>(sum);
  }
}

cudaError_t add_partial_sums(const ConvPlan& p, Pass pass, DType dtype, const void* partial, void* result,
                             cudaStream_t stream) {
  int64_t columns = pass == Pass::kWeight ? p.channels : p.batch;
  for (const PlanAxis& a : p.axis) columns *= pass == Pass::kWeight ? a.phase[0].taps : a.phase[0].grid;
  return with_floating(dtype, [&](auto t) {
    using T = decltype(t);
    return launch_elements(pass == Pass::kWeight ? add_partial<T, true> : add_partial<T, false>,
                           int64_t{p.phases} * p.groups * columns * p.rows, stream, p, columns,
                           static_cast<const Accumulate<T>*>(partial), static_cast<T*>(result));
  });
}

int64_t size_of(DType dtype) {  // of the floating dtypes
  return dtype == DType::kDouble ? 8 : dtype == DType::kFloat ? 4 : 2;
}

const Products& products_of(const Kernel& kernel, DType dtype) {
  switch (dtype) {
    case DType::kDouble:
      return kDoubleProducts;
    case DType::kBFloat16:
      return kBFloat16Products;
    case DType::kHalf:
      return kHalfProducts;
    default:
      return kernel.tf32 ? kTf32Products : kFloatProducts;
  }
}

cudaError_t run_direct(const Kernel& kernel, const Problem& problem, Pass pass, DType dtype, const void* in,
                       const void* other, void* result, void* scratch, cudaStream_t stream) {
  ConvPlan p = kernel.plan;
  if (pass == Pass::kWeight) {
    const cudaError_t error = weight_direct(p, dtype, in, other, result, scratch, stream);
    if (error != cudaSuccess || p.splits == 1) return error;
    return add_partial_sums(p, pass, dtype, scratch, result, stream);
  }
  if (!p.packed) return gather_direct(p, dtype, in, other, result, stream);
  const WeightSizes size = {
      {problem.axis[0].kernel, problem.axis[1].kernel, problem.axis[2].kernel}, p.channels, p.groups, p.rows};
  const int64_t count = problem.kernel_numel() * p.channels * p.groups * p.rows;
  const cudaError_t error = with_bits(dtype, [&](auto bits) {
    using Bits = decltype(bits);
    return launch_elements(turn_weights<Bits>, count, stream, p, size, count, static_cast<const Bits*>(other),
                           static_cast<Bits*>(scratch));
  });
  if (error != cudaSuccess) return error;
  p.w_row = 1;
  p.w_group = p.rows;
  p.w_channel = int64_t{p.groups} * p.rows;
  int64_t step = p.w_channel * p.channels;
  for (int i = kAxes - 1; i >= 0; --i) {
    p.axis[i].w = step;
    step *= size.kernel[i];
  }
  return gather_direct(p, dtype, in, scratch, result, stream);
}

// By rows that are packed at a time.
cudaError_t run_product(const Kernel& kernel, Pass pass, DType dtype, const void* in, const void* other, void* result,
                        void* scratch, cudaStream_t stream) {
  const Products& products = products_of(kernel, dtype);
  const int tile = static_cast<int>(kernel.tile);
  ConvPlan p = kernel.plan;
  void* partial = static_cast<char*>(scratch) + kernel.packed_bytes;
  cudaError_t error = cudaSuccess;
  if (pass == Pass::kWeight) {
    p.row_tiles = (p.rows + tile_size(kernel.tile).rows - 1) / tile_size(kernel.tile).rows;
    error = products.weight[tile](p, in, other, result, partial, stream);
    if (error != cudaSuccess || p.splits == 1) return error;
    return add_partial_sums(p, pass, dtype, partial, result, stream);
  }
  const auto* w = static_cast<const char*>(other);
  auto* out = static_cast<char*>(result);
  for (int64_t row = 0; row < kernel.plan.rows && error == cudaSuccess; row += kernel.rows_at_once) {
    p.rows = static_cast<int32_t>(std::min(kernel.rows_at_once, kernel.plan.rows - row));
    p.row_tiles = (p.rows + tile_size(kernel.tile).rows - 1) / tile_size(kernel.tile).rows;
    const void* w_rows = w + row * p.w_row * size_of(dtype);
    void* out_rows = out + row * p.out_row * size_of(dtype);
    const void* operand = w_rows;
    if (p.packed) {
      const int64_t count = int64_t{p.phases} * p.groups * p.rows * p.packed_row;
      operand = scratch;
      error = with_bits(dtype, [&](auto bits) {
        using Bits = decltype(bits);
        return launch_elements(pack_weights<Bits>, count, stream, p, count, static_cast<const Bits*>(w_rows),
                               static_cast<Bits*>(scratch));
      });
      if (error != cudaSuccess) break;
    } else {
      int64_t first = 0;
      for (const PlanAxis& a : p.axis) first += a.phase[0].first_tap * a.w;
      operand = static_cast<const char*>(w_rows) + first * size_of(dtype);
    }
    error = products.gather[tile](p, in, operand, w_rows, out_rows, partial, stream);
    if (error == cudaSuccess && p.splits > 1) error = add_partial_sums(p, pass, dtype, partial, out_rows, stream);
  }
  return error;
}

}  // namespace

cudaError_t run(const Kernel& kernel, const Problem& problem, Pass pass, DType dtype, const void* in, const void* other,
                void* result, void* scratch, cudaStream_t stream) {
  switch (kernel.algorithm) {
    case Algorithm::kReference:
      return reference(problem, pass, dtype, in, other, result, stream);
    case Algorithm::kDirect:
      return run_direct(kernel, problem, pass, dtype, in, other, result, scratch, stream);
    default:
      return run_product(kernel, pass, dtype, in, other, result, scratch, stream);
  }
}

}  // namespace convarith::cuda
