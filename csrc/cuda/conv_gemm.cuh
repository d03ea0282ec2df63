// Convolutions as products of matrices that are never formed ("implicit GEMM"): the gather, and the weight's gradient.
//
//   gather    sums[output, row]  = sum over (tap, channel) of in[output, (tap, channel)] * w[row, (tap, channel)]
//   weights   sums[(tap, channel), row] = sum over outputs of in[output, (tap, channel)] * out[row, output]
//
// A block has a tile of the sums in registers. The depth that is summed over passes by in stages: a ring of them in
// shared memory is filled by asynchronous copies while older ones are multiplied. In a stage the tile's columns and its
// rows both lie as lines of kDepthBytes, depth contiguous, whatever their order in global memory: so one loader serves
// both operands of both products, and the fragments of all instructions are read alike.
//
// Padding is zeros in a stage, so a weight that is not finite makes NaN of it, where the convolution has no product at
// all. A NaN never leaves a sum again: so a sum that comes out as NaN is computed a second time, by its definition.
#pragma once

#include "conv_gather.cuh"
#include "conv_kernels.h"

namespace convarith::cuda {

constexpr int kStages = 4;
constexpr int kChunk = 16;                         // bytes, of one vector
constexpr int kLineChunks = kDepthBytes / kChunk;  // of one line of a stage

template <typename T>
constexpr int kDepth = kDepthBytes / static_cast<int>(sizeof(T));

// Where a chunk of a line stands. Eight neighbouring lines have the same chunk in eight different groups of four banks;
// so have four lines that are eight apart and two neighbours of each, where vectors across the lines are written.
__device__ inline int swizzled(int line, int chunk) {
  return line * kDepthBytes + ((chunk ^ ((line >> 1 ^ line >> 3) & (kLineChunks - 1))) * kChunk);
}

// Arithmetic ----------------------------------------------------------------------------------------------------------
//
// A warp's part of the sums: kColumns x kRows of them, in registers. multiply() adds the products of one stage, of
// which the warp's lines begin at `column` and `row`; for_each(f) calls f(column, row, sum).

template <typename Element>
struct TensorCore {
  using T = Element;

  __device__ static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (std::is_same_v<T, bfloat16_t>) {
      mma_bf16(d, a, b);
    } else if constexpr (std::is_same_v<T, half_t>) {
      mma_f16(d, a, b);
    } else {
      mma_tf32(d, a, b);
    }
  }

  // tf32 is float32 with a shorter mantissa; the instruction would cut it off.
  __device__ static void round(uint32_t (&v)[4]) {
    if constexpr (std::is_same_v<T, float>) {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = to_tf32(__uint_as_float(v[i]));
    }
  }

  template <int kColumns, int kRows>
  struct Sums {
    float sum[kColumns / 16][kRows / 8][4];

    __device__ void multiply(const char* in, int column, const char* other, int row) {
      const int lane = threadIdx.x % kWarp;
      for (int step = 0; step < kLineChunks; step += 2) {  // an instruction takes two chunks of every line
        uint32_t a[kColumns / 16][4], b[kRows / 8][2];
#pragma unroll
        for (int i = 0; i < kColumns / 16; ++i) {
          ldmatrix_x4(a[i], in + swizzled(column + 16 * i + lane % 16, step + lane / 16));
          round(a[i]);
        }
#pragma unroll
        for (int j = 0; j < kRows / 8; j += 2) {
          uint32_t pair[4];
          ldmatrix_x4(pair, other + swizzled(row + 8 * j + lane / 16 * 8 + lane % 8, step + lane / 8 % 2));
          round(pair);
          for (int i = 0; i < 4; ++i) b[j + i / 2][i % 2] = pair[i];
        }
#pragma unroll
        for (int i = 0; i < kColumns / 16; ++i) {
#pragma unroll
          for (int j = 0; j < kRows / 8; ++j) TensorCore::multiply(sum[i][j], a[i], b[j]);
        }
      }
    }

    template <typename F>
    __device__ void for_each(const F& f) const {
      const int lane = threadIdx.x % kWarp;
#pragma unroll
      for (int i = 0; i < kColumns / 16; ++i) {
#pragma unroll
        for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) f(16 * i + lane / 4 + e / 2 * 8, 8 * j + lane % 4 * 2 + e % 2, sum[i][j][e]);
        }
      }
    }
  };
};

using BFloat16Math = TensorCore<bfloat16_t>;
using HalfMath = TensorCore<half_t>;
using Tf32Math = TensorCore<float>;

struct DoubleMath {
  using T = double;

  template <int kColumns, int kRows>
  struct Sums {
    double sum[kColumns / 8][kRows / 8][2];

    __device__ void multiply(const char* in, int column, const char* other, int row) {
      const int lane = threadIdx.x % kWarp;
      for (int step = 0; step < kLineChunks; step += 2) {  // four doubles
        const int chunk = step + lane % 4 / 2, within = lane % 2 * 8;
        double a[kColumns / 8], b[kRows / 8];
#pragma unroll
        for (int i = 0; i < kColumns / 8; ++i) {
          a[i] = *reinterpret_cast<const double*>(in + swizzled(column + 8 * i + lane / 4, chunk) + within);
        }
#pragma unroll
        for (int j = 0; j < kRows / 8; ++j) {
          b[j] = *reinterpret_cast<const double*>(other + swizzled(row + 8 * j + lane / 4, chunk) + within);
        }
#pragma unroll
        for (int i = 0; i < kColumns / 8; ++i) {
#pragma unroll
          for (int j = 0; j < kRows / 8; ++j) mma_f64(sum[i][j], a[i], b[j]);
        }
      }
    }

    template <typename F>
    __device__ void for_each(const F& f) const {
      const int lane = threadIdx.x % kWarp;
#pragma unroll
      for (int i = 0; i < kColumns / 8; ++i) {
#pragma unroll
        for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) f(8 * i + lane / 4, 8 * j + lane % 4 * 2 + e, sum[i][j][e]);
        }
      }
    }
  };
};

// float32 in full precision. Eight lanes have neighbouring columns, so their reads of one chunk meet no bank twice.
struct FloatMath {
  using T = float;

  template <int kColumns, int kRows>
  struct Sums {
    float sum[kColumns / 8][kRows / 4];

    __device__ void multiply(const char* in, int column, const char* other, int row) {
      const int lane = threadIdx.x % kWarp;
      for (int chunk = 0; chunk < kLineChunks; ++chunk) {
        float4 a[kColumns / 8];
#pragma unroll
        for (int i = 0; i < kColumns / 8; ++i) {
          a[i] = *reinterpret_cast<const float4*>(in + swizzled(column + 8 * i + lane % 8, chunk));
        }
#pragma unroll
        for (int j = 0; j < kRows / 4; ++j) {
          const float4 b = *reinterpret_cast<const float4*>(other + swizzled(row + 4 * j + lane / 8, chunk));
#pragma unroll
          for (int i = 0; i < kColumns / 8; ++i) {
            sum[i][j] += a[i].x * b.x;
            sum[i][j] += a[i].y * b.y;
            sum[i][j] += a[i].z * b.z;
            sum[i][j] += a[i].w * b.w;
          }
        }
      }
    }

    template <typename F>
    __device__ void for_each(const F& f) const {
      const int lane = threadIdx.x % kWarp;
#pragma unroll
      for (int i = 0; i < kColumns / 8; ++i) {
#pragma unroll
        for (int j = 0; j < kRows / 4; ++j) f(8 * i + lane % 8, 4 * j + lane / 8, sum[i][j]);
      }
    }
  };
};

// Stages --------------------------------------------------------------------------------------------------------------

// One operand's lines of a stage. The element (line, depth) stands at the sum of the line's position and the depth's,
// which lie in shared memory. What a thread copies at a time, an item, is a vector along the depth or across the lines,
// or an element; of the half precisions two, for no asynchronous copy is as narrow as one. Items that cannot be copied
// asynchronously wait in registers while an older stage is multiplied.
template <typename T, int kLines, int kThreads, Load kLoad>
struct Lines {
  static constexpr int kVector = kChunk / int(sizeof(T));
  static constexpr int kAcross = kLoad == Load::kAcross ? kVector : 1;                     // lines
  static constexpr int kAlong = kLoad == Load::kAlong ? kVector : sizeof(T) == 2 ? 2 : 1;  // elements
  static constexpr int kDepthItems = kDepth<T> / kAlong, kItems = kLines / kAcross * kDepthItems;
  static constexpr int kMine = (kItems + kThreads - 1) / kThreads;
  static constexpr bool kInRegisters = kLoad == Load::kAcross || (kLoad == Load::kElements && sizeof(T) == 2);
  static constexpr int kDepthStep = kLoad == Load::kAlong ? kVector : 1;  // from one position of the depth to the next
  static constexpr int kDepthPositions = kDepth<T> / kDepthStep;
  static_assert(kDepthPositions <= kThreads, "");

  union Item {
    uint32_t pair;
    uint4 vectors[kAlong];
  };
  Item waiting[kInRegisters ? kMine : 1];

  struct Index {
    int line, depth;  // the first of the item
  };
  __device__ static Index index_of(int i, bool along_depth) {
    const int item = threadIdx.x + i * kThreads;
    if constexpr (kLoad == Load::kAcross) {  // four of the depth, then the lines: 128 bytes of global memory in a row
      constexpr int kGroups = kLines / kAcross;
      return {item / 4 % kGroups * kAcross, (item % 4 + item / (4 * kGroups) * 4) * kAlong};
    } else {
      const bool depth_first = kLoad == Load::kAlong || along_depth;
      return depth_first ? Index{item / kDepthItems, item % kDepthItems * kAlong}
                         : Index{item % kLines, item / kLines * kAlong};
    }
  }
  __device__ static bool is_item(int i) { return kItems % kThreads == 0 || int(threadIdx.x) + i * kThreads < kItems; }
  __device__ static char* slot(char* stage, int line, int depth) {
    const int byte = depth * int(sizeof(T));
    return stage + swizzled(line, byte / kChunk) + byte % kChunk;
  }

  // Begins to copy a stage; inside(line's position, depth's position) says whether an element exists.
  template <typename Inside>
  __device__ void fetch(char* stage, const T* from, const Position* lines, const Position* depths, bool along_depth,
                        const Inside& inside) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      if (!is_item(i)) continue;
      const Index at = index_of(i, along_depth);
      const Position line = lines[at.line];
      if constexpr (kInRegisters) {
        waiting[i] = {};
#pragma unroll
        for (int e = 0; e < kAlong; ++e) {
          const Position depth = depths[at.depth + e];
          if (!inside(line, depth)) continue;
          const T* element = from + (line.offset + depth.offset);
          if constexpr (kLoad == Load::kAcross) {
            waiting[i].vectors[e] = *reinterpret_cast<const uint4*>(element);
          } else {
            waiting[i].pair |= uint32_t{*reinterpret_cast<const uint16_t*>(element)} << 16 * e;
          }
        }
      } else {
        const Position depth = depths[at.depth / kDepthStep];
        const bool valid = inside(line, depth);
        const T* element = valid ? from + (line.offset + depth.offset) : from;
        char* to = slot(stage, at.line, at.depth);
        if constexpr (kLoad == Load::kAlong) {
          cp_async16(to, element, valid);
        } else if constexpr (sizeof(T) == 8) {
          cp_async8(to, element, valid);
        } else {
          cp_async4(to, element, valid);
        }
      }
    }
  }

  // Stores what fetch() left in registers.
  __device__ void store(char* stage, bool along_depth) {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        if (!is_item(i)) continue;
        const Index at = index_of(i, along_depth);
        if constexpr (kLoad == Load::kElements) {
          *reinterpret_cast<uint32_t*>(slot(stage, at.line, at.depth)) = waiting[i].pair;
        } else {
          store_across(stage, at, waiting[i].vectors);
        }
      }
    }
  }

  __device__ static void store_across(char* stage, const Index& at, const uint4 (&v)[kAlong]) {
    const uint32_t words[2][4] = {{v[0].x, v[0].y, v[0].z, v[0].w},
                                  {v[kAlong - 1].x, v[kAlong - 1].y, v[kAlong - 1].z, v[kAlong - 1].w}};
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
      char* to = slot(stage, at.line + j, at.depth);
      if constexpr (sizeof(T) == 2) {  // the halves of two vectors' words, in pairs along the depth
        const uint32_t first = words[0][j / 2], second = words[1][j / 2];
        *reinterpret_cast<uint32_t*>(to) =
            j % 2 == 0 ? (first & 0xffffu) | second << 16 : first >> 16 | (second & 0xffff0000u);
      } else if constexpr (sizeof(T) == 4) {
        *reinterpret_cast<uint32_t*>(to) = words[0][j];
      } else {
        *reinterpret_cast<uint2*>(to) = {words[0][2 * j], words[0][2 * j + 1]};
      }
    }
  }
};

// A block's shape and its shared memory: the ring of stages, places of lines and (twice) of depths; the stages' memory
// serves the tile of sums in the end.
template <typename Math, Tile kTile>
struct Block {
  using T = typename Math::T;
  using Sum = Accumulate<T>;
  static constexpr int kColumns = tile_size(kTile).columns, kRows = tile_size(kTile).rows,
                       kThreads = tile_size(kTile).threads;
  static constexpr int kWarpRows = 32, kWarpColumns = kColumns * kRows / (kThreads / kWarp) / kWarpRows;
  using Sums = typename Math::template Sums<kWarpColumns, kWarpRows>;

  static constexpr int kStageBytes = (kColumns + kRows) * kDepthBytes;
  static constexpr int kPitch = kRows + 1;  // of the tile of sums: no bank twice, down a column
  static constexpr int kTileBytes = kColumns * kPitch * int(sizeof(Sum));
  static constexpr int kRingBytes =
      (kStages * kStageBytes > kTileBytes ? kStages * kStageBytes : kTileBytes + 127) / 128 * 128;
  static constexpr int kPositions = kColumns + kRows + 4 * kDepth<T>;
  static constexpr int kSharedBytes = kRingBytes + kPositions * int(sizeof(Position)) + kColumns * int(sizeof(int64_t));

  char* ring = shared_memory<char>();
  Position* column_position = reinterpret_cast<Position*>(ring + kRingBytes);
  Position* row_position = column_position + kColumns;
  Position* depth_position = row_position + kRows;                // [2][kDepth], of the columns' operand
  Position* row_depth_position = depth_position + 2 * kDepth<T>;  // [2][kDepth], of the rows' operand
  int64_t* result_offset = reinterpret_cast<int64_t*>(row_depth_position + 2 * kDepth<T>);  // [kColumns]

  __device__ char* column_stage(int stage) const { return ring + stage % kStages * kStageBytes; }
  __device__ char* row_stage(int stage) const { return column_stage(stage) + kColumns * kDepthBytes; }
  __device__ static int warp_column() { return threadIdx.x / kWarp / (kRows / kWarpRows) * kWarpColumns; }
  __device__ static int warp_row() { return threadIdx.x / kWarp % (kRows / kWarpRows) * kWarpRows; }

  // The stages [0, steps). prepare(step) writes the step's places of the depth; fetch(step) begins to bring the stage
  // to shared memory, store(step) ends it.
  template <typename Prepare, typename Fetch, typename Store>
  __device__ void accumulate(int steps, Sums& sums, const Prepare& prepare, const Fetch& fetch, const Store& store) {
    constexpr int kAhead = kStages - 1;
    prepare(0);
    for (int step = 0; step < kAhead; ++step) {
      __syncthreads();
      if (step < steps) fetch(step);
      cp_async_commit();
      prepare(step + 1);
      if (step < steps) store(step);
    }
    for (int step = 0; step < steps; ++step) {
      cp_async_wait<kAhead - 1>();
      __syncthreads();  // the stage has come, and nobody needs the one before it any more
      const int next = step + kAhead;
      if (next < steps) fetch(next);
      cp_async_commit();
      prepare(next + 1);
      sums.multiply(column_stage(step), warp_column(), row_stage(step), warp_row());
      if (next < steps) store(next);
    }
    cp_async_wait<0>();
    __syncthreads();
  }

  // The tile goes through shared memory, so that neighbouring threads write what neighbours are in memory.
  // again(column, row) sums once more what came out as NaN.
  template <typename Again>
  __device__ void store_sums(const Sums& sums, const ConvPlan& p, int columns, int rows, int64_t row_step, T* result,
                             Sum* partial, bool along_rows, const Again& again) {
    Sum* tile = reinterpret_cast<Sum*>(ring);
    const int column0 = warp_column(), row0 = warp_row();
    sums.for_each([&](int column, int row, Sum sum) { tile[(column0 + column) * kPitch + row0 + row] = sum; });
    __syncthreads();
    for (int i = threadIdx.x; i < kColumns * kRows; i += kThreads) {
      const int column = along_rows ? i / kRows : i % kColumns, row = along_rows ? i % kRows : i / kColumns;
      if (column >= columns || row >= rows) continue;
      Sum sum = tile[column * kPitch + row];
      if (p.pads && sum != sum) sum = again(column, row);
      if (partial != nullptr) {
        partial[int64_t{column} * p.rows + row] = sum;
      } else {
        result[result_offset[column] + row * row_step] = convert<T>(sum);
      }
    }
  }
};

// The tile of a block, out of the grid: rows fastest, so that blocks that run together read the same inputs.
struct TileIndex {
  int32_t row_tile, column_tile, group, phase;

  __device__ explicit TileIndex(const ConvPlan& p) {
    int32_t index = static_cast<int32_t>(blockIdx.x);
    row_tile = index % p.row_tiles;
    index /= p.row_tiles;
    column_tile = index % p.column_tiles;
    index /= p.column_tiles;
    group = index % p.groups;
    phase = index / p.groups;
  }
};

// Partial sums, [split][phase][group][column][row].
template <typename Sum>
__device__ Sum* partial_sums(const ConvPlan& p, Sum* partial, int32_t split, int32_t phase, int32_t group,
                             int64_t columns) {
  return partial + ((int64_t{split} * p.phases + phase) * p.groups + group) * columns * p.rows;
}

// Kernels -------------------------------------------------------------------------------------------------------------

// Blocks that a multiprocessor must have registers for: two, or four small ones, wherever that spills none.
template <typename Math, Tile kTile, Load... kLoads>
constexpr int kBlocksAtOnce =
    !std::is_same_v<Math, FloatMath> && ((kLoads != Load::kElements) && ...) ? 512 / tile_size(kTile).threads : 1;

// w is packed, or stands as if it were; plain_w is as the problem has it.
template <typename Math, Tile kTile, Load kLoad>
__global__ void __launch_bounds__(tile_size(kTile).threads, kBlocksAtOnce<Math, kTile, kLoad>)
    gather_product(const __grid_constant__ ConvPlan p, const typename Math::T* in, const typename Math::T* w,
                   const typename Math::T* plain_w, typename Math::T* out, Accumulate<typename Math::T>* partial) {
  using B = Block<Math, kTile>;
  using T = typename B::T;
  const TileIndex tile(p);
  const PhaseIndex phase(p, tile.phase);
  const int32_t column_begin = tile.column_tile * B::kColumns, columns = column_count(p, phase) - column_begin;
  const int32_t row_begin = tile.row_tile * B::kRows, rows = p.rows - row_begin;
  if (columns <= 0) return;  // phases differ in size
  const int32_t depth = depth_of(p, phase), steps = (depth + kDepth<T> - 1) / kDepth<T>;
  const int32_t split = static_cast<int32_t>(blockIdx.y), first_step = split * p.steps_per_split;
  const int32_t my_steps = max(0, min(p.steps_per_split, steps - first_step));

  B block;
  const int32_t first_image = image_of(p, phase, column_begin);
  const T* in_group = in + tile.group * p.in_group;
  const T* image = in_group + first_image * p.in_batch;
  const T* w_rows = w + tile.phase * p.packed_phase + tile.group * p.packed_group + row_begin * p.packed_row;
  const T* plain_rows = plain_w + tile.group * p.w_group + row_begin * p.w_row;
  for (int i = threadIdx.x; i < B::kColumns; i += B::kThreads) {
    block.column_position[i] = nowhere();
    if (i >= columns) continue;
    const Output o = output_of(p, phase, column_begin + i);
    block.column_position[i] = position_in_in(p, o);
    block.column_position[i].offset += (o.image - first_image) * static_cast<int32_t>(p.in_batch);
    block.result_offset[i] = o.image * p.out_batch + place_in_out(p, phase, o);
  }
  for (int i = threadIdx.x; i < B::kRows; i += B::kThreads) {
    block.row_position[i] = i < rows ? Position{i * static_cast<int32_t>(p.packed_row), {0, 0, 0}} : nowhere();
  }

  Lines<T, B::kColumns, B::kThreads, kLoad> in_lines;
  Lines<T, B::kRows, B::kThreads, Load::kAlong> w_lines;
  const auto prepare = [&](int step) {
    const int32_t k0 = (first_step + step) * kDepth<T>;
    const int i = threadIdx.x, half = step % 2 * kDepth<T>;
    if (i < in_lines.kDepthPositions) {
      const int32_t k = k0 + i * in_lines.kDepthStep;
      block.depth_position[half + i] = k < depth ? position_in_in(p, phase, depth_index(p, phase, k)) : nowhere();
    }
    if (i < w_lines.kDepthPositions) {
      const int32_t k = k0 + i * w_lines.kDepthStep;
      block.row_depth_position[half + i] = k < depth ? Position{k, {0, 0, 0}} : nowhere();
    }
  };
  const auto fetch = [&](int step) {
    const int half = step % 2 * kDepth<T>;
    in_lines.fetch(block.column_stage(step), image, block.column_position, block.depth_position + half,
                   p.in_along_depth, [&](const Position& a, const Position& b) { return exists(p, a, b); });
    w_lines.fetch(block.row_stage(step), w_rows, block.row_position, block.row_depth_position + half, true,
                  [](const Position& a, const Position& b) { return a.at[0] + b.at[0] == 0; });
  };
  const auto store = [&](int step) { in_lines.store(block.column_stage(step), p.in_along_depth); };

  typename B::Sums sums = {};
  block.accumulate(my_steps, sums, prepare, fetch, store);

  const auto again = [&](int column, int row) {
    const int32_t begin = first_step * kDepth<T>;
    return gather_sum<T>(p, phase, column_begin + column, begin, min(depth, begin + my_steps * kDepth<T>), in_group,
                         plain_rows + row * p.w_row);
  };
  typename B::Sum* mine = nullptr;
  if (p.splits > 1) {
    mine = partial_sums(p, partial, split, tile.phase, tile.group, column_count(p, PhaseIndex(p, 0)));
    mine += int64_t{column_begin} * p.rows + row_begin;
  }
  block.store_sums(sums, p, columns, rows, p.out_row, out + tile.group * p.out_group + row_begin * p.out_row, mine,
                   p.splits > 1 || p.stores_along_rows, again);
}

template <typename Math, Tile kTile, Load kInLoad, Load kOutLoad>
__global__ void __launch_bounds__(tile_size(kTile).threads, kBlocksAtOnce<Math, kTile, kInLoad, kOutLoad>)
    weight_product(const __grid_constant__ ConvPlan p, const typename Math::T* in, const typename Math::T* out,
                   typename Math::T* w, Accumulate<typename Math::T>* partial) {
  using B = Block<Math, kTile>;
  using T = typename B::T;
  const TileIndex tile(p);
  const PhaseIndex phase(p, 0);
  const int32_t column_begin = tile.column_tile * B::kColumns, columns = depth_of(p, phase) - column_begin;
  const int32_t row_begin = tile.row_tile * B::kRows, rows = p.rows - row_begin;
  const int32_t outputs = column_count(p, phase), steps = (outputs + kDepth<T> - 1) / kDepth<T>;
  const int32_t split = static_cast<int32_t>(blockIdx.y), first_step = split * p.steps_per_split;
  const int32_t my_steps = max(0, min(p.steps_per_split, steps - first_step));

  B block;
  const T* in_group = in + tile.group * p.in_group;
  const T* out_rows = out + tile.group * p.out_group + row_begin * p.out_row;
  for (int i = threadIdx.x; i < B::kColumns; i += B::kThreads) {
    block.column_position[i] = nowhere();
    if (i >= columns) continue;
    const DepthIndex d = depth_index(p, phase, column_begin + i);
    block.column_position[i] = position_in_in(p, phase, d);
    block.result_offset[i] = place_in_w(p, phase, d);
  }
  for (int i = threadIdx.x; i < B::kRows; i += B::kThreads) {
    block.row_position[i] = i < rows ? Position{i * static_cast<int32_t>(p.out_row), {0, 0, 0}} : nowhere();
  }

  Lines<T, B::kColumns, B::kThreads, kInLoad> in_lines;
  Lines<T, B::kRows, B::kThreads, kOutLoad> out_lines;
  const auto first_image = [&](int step) { return image_of(p, phase, (first_step + step) * kDepth<T>); };
  const auto prepare = [&](int step) {
    const int i = threadIdx.x, half = step % 2 * kDepth<T>;
    const int32_t first = (first_step + step) * kDepth<T>, image = first_image(step);
    if (i < in_lines.kDepthPositions) {
      const int32_t column = first + i * in_lines.kDepthStep;
      Position& position = block.depth_position[half + i];
      position = nowhere();
      if (column < outputs) {
        const Output o = output_of(p, phase, column);
        position = position_in_in(p, o);
        position.offset += (o.image - image) * static_cast<int32_t>(p.in_batch);
      }
    }
    if (i < out_lines.kDepthPositions) {
      const int32_t column = first + i * out_lines.kDepthStep;
      Position& position = block.row_depth_position[half + i];
      position = nowhere();
      if (column < outputs) {
        const Output o = output_of(p, phase, column);
        position = {static_cast<int32_t>((o.image - image) * p.out_batch + place_in_out(p, phase, o)), {0, 0, 0}};
      }
    }
  };
  const auto fetch = [&](int step) {
    const int half = step % 2 * kDepth<T>;
    const int64_t image = first_image(step);
    in_lines.fetch(block.column_stage(step), in_group + image * p.in_batch, block.column_position,
                   block.depth_position + half, p.in_along_depth,
                   [&](const Position& a, const Position& b) { return exists(p, a, b); });
    out_lines.fetch(block.row_stage(step), out_rows + image * p.out_batch, block.row_position,
                    block.row_depth_position + half, p.out_along_depth,
                    [](const Position& a, const Position& b) { return a.at[0] + b.at[0] == 0; });
  };
  const auto store = [&](int step) {
    in_lines.store(block.column_stage(step), p.in_along_depth);
    out_lines.store(block.row_stage(step), p.out_along_depth);
  };

  typename B::Sums sums = {};
  block.accumulate(my_steps, sums, prepare, fetch, store);

  const auto again = [&](int column, int row) {
    const int32_t begin = first_step * kDepth<T>;
    return weight_sum<T>(p, phase, column_begin + column, begin, min(outputs, begin + my_steps * kDepth<T>), in_group,
                         out_rows + row * p.out_row);
  };
  typename B::Sum* mine = nullptr;
  if (p.splits > 1) {
    mine = partial_sums(p, partial, split, 0, tile.group, depth_of(p, phase));
    mine += int64_t{column_begin} * p.rows + row_begin;
  }
  block.store_sums(sums, p, columns, rows, p.w_row, w + tile.group * p.w_group + row_begin * p.w_row, mine,
                   p.splits > 1 || p.stores_along_rows, again);
}

// Launches ------------------------------------------------------------------------------------------------------------

template <typename Math, Tile kTile>
cudaError_t launch_gather_product(const ConvPlan& p, const void* in, const void* w, const void* plain_w, void* out,
                                  void* partial, cudaStream_t stream) {
  using B = Block<Math, kTile>;
  using T = typename B::T;
  const auto blocks = static_cast<unsigned>(int64_t{p.row_tiles} * p.column_tiles * p.groups * p.phases);
  const dim3 grid(blocks, static_cast<unsigned>(p.splits));
  const auto kernel = p.in_load == Load::kAlong    ? gather_product<Math, kTile, Load::kAlong>
                      : p.in_load == Load::kAcross ? gather_product<Math, kTile, Load::kAcross>
                                                   : gather_product<Math, kTile, Load::kElements>;
  return launch(kernel, grid, dim3(B::kThreads), B::kSharedBytes, stream, p, static_cast<const T*>(in),
                static_cast<const T*>(w), static_cast<const T*>(plain_w), static_cast<T*>(out),
                static_cast<typename B::Sum*>(partial));
}

template <typename Math, Tile kTile>
cudaError_t launch_weight_product(const ConvPlan& p, const void* in, const void* out, void* w, void* partial,
                                  cudaStream_t stream) {
  using B = Block<Math, kTile>;
  using T = typename B::T;
  const dim3 grid(static_cast<unsigned>(int64_t{p.row_tiles} * p.column_tiles * p.groups),
                  static_cast<unsigned>(p.splits));
  const auto kernel = p.in_load == Load::kAcross   ? weight_product<Math, kTile, Load::kAcross, Load::kAcross>
                      : p.in_load == Load::kAlong  ? weight_product<Math, kTile, Load::kAlong, Load::kAlong>
                      : p.out_load == Load::kAlong ? weight_product<Math, kTile, Load::kElements, Load::kAlong>
                                                   : weight_product<Math, kTile, Load::kElements, Load::kElements>;
  return launch(kernel, grid, dim3(B::kThreads), B::kSharedBytes, stream, p, static_cast<const T*>(in),
                static_cast<const T*>(out), static_cast<T*>(w), static_cast<typename B::Sum*>(partial));
}

// Of one arithmetic; conv_gemm_*.cu has one each, so that they compile side by side.
template <typename Math>
constexpr Products products_of() {
  return {{launch_gather_product<Math, Tile::k128x128>, launch_gather_product<Math, Tile::k128x32>,
           launch_gather_product<Math, Tile::k64x64>},
          {launch_weight_product<Math, Tile::k128x128>, launch_weight_product<Math, Tile::k128x32>,
           launch_weight_product<Math, Tile::k64x64>}};
}

}  // namespace convarith::cuda
