// Winograd's minimal filtering: transform weights and inputs, multiply by elements, transform back.
#pragma once

#include "conv_gather.h"
#include "conv_plan.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// F(4, 3) by Toom and Cook: polynomials are multiplied by their values at 0, 1, -1, 1/2, -2 and infinity, which keeps
// the rounding error below that of the usual points 0, 1, -1, 2, -2.
struct Points {
  double input[6][6] = {};   // B^T
  double weight[6][3] = {};  // G
  double output[4][6] = {};  // A^T
};

constexpr Points make_points() {
  constexpr double at[5] = {0, 1, -1, 0.5, -2};
  Points p;
  for (int i = 0; i < 6; ++i) {
    // Coefficients of the product of (x - at[j]) over the other points.
    double poly[6] = {1};
    int degree = 0;
    double norm = 1;
    for (int j = 0; j < 5; ++j) {
      if (j == i) continue;
      if (i < 5) norm *= at[i] - at[j];
      ++degree;
      for (int d = degree; d >= 0; --d) poly[d] = (d > 0 ? poly[d - 1] : 0) - at[j] * (d < degree ? poly[d] : 0);
    }
    for (int d = 0; d < 6; ++d) p.input[i][d] = poly[d];
    double power = 1;
    for (int d = 0; d < 4; ++d) {
      if (d < 3) p.weight[i][d] = i < 5 ? power / norm : (d == 2 ? 1 : 0);
      p.output[d][i] = i < 5 ? power : (d == 3 ? 1 : 0);
      if (i < 5) power *= at[i];
    }
  }
  return p;
}

constexpr Points kPoints = make_points();

// out[i] = sum over j of matrix[i][j] * in[j], zeros left out; all is constant but the vectors.
template <int kOut, int kIn, typename V>
inline __attribute__((always_inline)) void transform(const double (&matrix)[kOut][kIn], const V* in, int in_step,
                                                     V* out, int out_step) {
  typedef decltype(V{}[0] + V{}[0]) Scalar;
  CONVARITH_UNROLL for (int i = 0; i < kOut; ++i) {
    V sum = V{};
    bool first = true;
    CONVARITH_UNROLL for (int j = 0; j < kIn; ++j) {
      const Scalar m = static_cast<Scalar>(matrix[i][j]);
      if (m == 0) continue;
      const V x = in[j * in_step];
      const V term = m == 1 ? x : (m == -1 ? -x : x * m);
      sum = first ? term : sum + term;
      first = false;
    }
    out[i * out_step] = sum;
  }
}

// Transformed weights: [group][row block][36][channel][row of the block], with room after each of the 36 so that they
// do not meet in the cache; a task is a row block.
inline int64_t winograd_unit(const GatherPlan& p) {
  return p.channels * kRowBlock + 16;
}

template <typename T>
void winograd_pack(const WinogradPlan& plan, const void* from, void* to, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  typedef typename Simd<Sum>::Vec V;
  const GatherPlan& p = plan.gather;
  const int64_t blocks = block_count(p.rows, kRowBlock), unit = winograd_unit(p);
  constexpr int kAtOnce = 16;                                // channels
  constexpr int kPerVector = Simd<Sum>::kLanes / kRowBlock;  // channels
  constexpr int kTap = kAtOnce * kRowBlock;
  Sum taps_of[9 * kTap] = {};  // [tap][channel][row]
  bool dense = true;
  for (int t = 0; t < 9; ++t) dense = dense && plan.tap_of[t] >= 0 && plan.tap_of[t] < 9;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / blocks, row = block_begin(task % blocks, p.rows, blocks);
    const int64_t rows = block_begin(task % blocks + 1, p.rows, blocks) - row;
    const T* w = static_cast<const T*>(from) + g * p.w_group + row * p.w_row;
    Sum* packed = static_cast<Sum*>(to) + task * 36 * unit;
    for (int64_t c = 0; c < p.channels; c += kPerVector) {
      if (c % kAtOnce == 0) {
        for (int64_t i = 0; i < least<int64_t>(kAtOnce, p.channels - c); ++i) {
          const T* next = w + (c + i) * p.w_channel;
          if (dense) {  // in the order of memory
            transpose(next, p.w_row, rows, 9, taps_of + i * kRowBlock, kTap);
            continue;
          }
          for (int t = 0; t < 9; ++t) {
            for (int64_t r = 0; r < rows; ++r) {
              taps_of[t * kTap + i * kRowBlock + r] = widen(next[plan.tap_of[t] + r * p.w_row]);
            }
          }
        }
      }
      V taps[9], half[18], full[36];
      for (int t = 0; t < 9; ++t) {
        taps[t] = load(taps_of + (dense ? plan.tap_of[t] : t) * kTap + c % kAtOnce * kRowBlock);
      }
      CONVARITH_UNROLL for (int j = 0; j < 3; ++j) transform(kPoints.weight, taps + j, 3, half + j, 3);
      CONVARITH_UNROLL for (int i = 0; i < 6; ++i) transform(kPoints.weight, half + 3 * i, 1, full + 6 * i, 1);
      if (rows == kRowBlock) {  // past the last channel, into the room after it
        CONVARITH_UNROLL for (int i = 0; i < 36; ++i) store(packed + i * unit + c * kRowBlock, full[i]);
        continue;
      }
      for (int64_t j = 0; j < least<int64_t>(kPerVector, p.channels - c); ++j) {
        for (int i = 0; i < 36; ++i) {
          for (int64_t r = 0; r < rows; ++r) packed[i * unit + (c + j) * rows + r] = full[i][j * kRowBlock + r];
        }
      }
    }
  }
}

// Four vectors, interleaved: to[4 * i + j] = v[j][i].
template <typename T>
inline void store_interleaved(const typename Simd<T>::Vec* v, T* to) {
  constexpr int kLanes = Simd<T>::kLanes;
  if constexpr (sizeof(T) == 4) {
    typedef typename Simd<T>::Vec V;
    typedef int32_t I __attribute__((vector_size(CONVARITH_BYTES)));
    I lo, hi;
    for (int i = 0; i < kLanes; ++i) {
      lo[i] = i / 2 + (i % 2) * kLanes;
      hi[i] = lo[i] + kLanes / 2;
    }
    const V a = __builtin_shuffle(v[0], v[2], lo), b = __builtin_shuffle(v[0], v[2], hi);
    const V c = __builtin_shuffle(v[1], v[3], lo), d = __builtin_shuffle(v[1], v[3], hi);
    store(to, __builtin_shuffle(a, c, lo));
    store(to + kLanes, __builtin_shuffle(a, c, hi));
    store(to + 2 * kLanes, __builtin_shuffle(b, d, lo));
    store(to + 3 * kLanes, __builtin_shuffle(b, d, hi));
  } else {
    for (int i = 0; i < kLanes; ++i) {
      for (int j = 0; j < 4; ++j) to[4 * i + j] = v[j][i];
    }
  }
}

// A task: a box of tiles of one group.
template <typename T>
void winograd(const WinogradPlan& plan, const void* in_data, const void* packed, void* out_data, char* scratch,
              int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  typedef typename Simd<Sum>::Vec V;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const GatherPlan& p = plan.gather;
  Sum* tile = reinterpret_cast<Sum*>(scratch + p.at_tile);
  Sum* inputs = reinterpret_cast<Sum*>(scratch + plan.at_inputs);      // [36][channel][tile]
  Sum* products = reinterpret_cast<Sum*>(scratch + plan.at_products);  // [36][row of the chunk][tile]
  Sum* strip = reinterpret_cast<Sum*>(scratch + plan.at_strip);
  Run* runs = reinterpret_cast<Run*>(scratch + p.at_runs);
  const int64_t pitch = plan.pitch, blocks = block_count(p.rows, kRowBlock), unit = winograd_unit(p);

  for (int64_t task = begin; task < end; ++task) {
    const int64_t share = task % p.row_split, g = task / p.row_split % p.groups;
    const Box b = box_at(p, task / p.row_split / p.groups);
    const int64_t count = list_runs(p, b, runs), columns = box_pixels(b);
    if (plan.stage != kFused) {
      inputs = static_cast<Sum*>(plan.shared) + task / p.row_split * plan.shared_size;
    }
    const int64_t block_end = block_begin(share + 1, blocks, p.row_split);

    // In the first stage, tasks that share a box share its channels; in the others, its rows.
    const int64_t channel_blocks = plan.stage == kProducts ? 0 : block_count(p.channels, p.channel_block);
    const int64_t shares = plan.stage == kInputs ? p.row_split : 1, mine = plan.stage == kInputs ? share : 0;
    for (int64_t cb = block_begin(mine, channel_blocks, shares); cb < block_begin(mine + 1, channel_blocks, shares);
         ++cb) {
      const int64_t c0 = cb * p.channel_block, channels = least(p.channel_block, p.channels - c0);
      pad_tile(p, b, static_cast<const T*>(in_data), g, c0, channels, tile);
      for (int64_t c = 0; c < channels; ++c) {
        const int32_t* offset = p.offset + c * 36;
        Sum* to = inputs + (c0 + c) * pitch;
        for (int64_t i = 0; i < count; ++i) {
          // What a vector holds past its run is written again by the next run; past the last, the pitch has room.
          for (int64_t x = 0; x < runs[i].length; x += kLanes) {
            const Sum* from = tile + runs[i].source + x;
            V half[36];
            CONVARITH_UNROLL for (int j = 0; j < 6; ++j) {
              V column[6];
              CONVARITH_UNROLL for (int k = 0; k < 6; ++k) column[k] = load(from + offset[6 * k + j]);
              transform(kPoints.input, column, 1, half + j, 6);
            }
            CONVARITH_UNROLL for (int k = 0; k < 6; ++k) {
              V row[6];
              transform(kPoints.input, half + 6 * k, 1, row, 1);
              Sum* at = to + 6 * k * plan.input_step + runs[i].column + x;
              CONVARITH_UNROLL for (int j = 0; j < 6; ++j) store(at + j * plan.input_step, row[j]);
            }
          }
        }
      }
    }

    if (plan.stage == kInputs) continue;
    const Sum* weights = static_cast<const Sum*>(packed) + g * blocks * 36 * unit;
    for (int64_t first = block_begin(share, blocks, p.row_split); first < block_end;
         first += plan.row_chunk / kRowBlock) {
      const int64_t last = least(block_end, first + plan.row_chunk / kRowBlock);
      const int64_t row_begin = block_begin(first, p.rows, blocks), row_end = block_begin(last, p.rows, blocks);
      for (int64_t i = 0; i < 36; ++i) {
        const Sum* input = inputs + i * plan.input_step;
        Sum* product = products + i * plan.product_step;
        for (int64_t column = 0; column < columns;) {
          const int64_t vectors = least<int64_t>(kVectors, block_count(columns - column, kLanes));
          for (int64_t block = first; block < last; ++block) {
            const int64_t row = block_begin(block, p.rows, blocks);
            const int64_t rows = block_begin(block + 1, p.rows, blocks) - row;
            multiply_for<Sum, false>(rows, vectors)(p.channels, weights + (block * 36 + i) * unit, input + column,
                                                    plan.channel_offset, product + (row - row_begin) * pitch + column,
                                                    pitch, false);
          }
          column += vectors * kLanes;
        }
      }
      for (int64_t row = row_begin; row < row_end; ++row) {
        T* out = static_cast<T*>(out_data) + g * p.out_group + row * p.out_channel;
        const Sum* product = products + (row - row_begin) * pitch;
        for (int64_t i = 0; i < count; ++i) {
          const int64_t tile_y = b.first[2] + i % b.size[2], x_first = 4 * b.first[3];
          const int64_t image = b.first[0] + i / b.size[2];
          const int64_t height = least<int64_t>(4, plan.height - 4 * tile_y);
          const int64_t width = least(4 * runs[i].length, plan.width - x_first);
          const int64_t strip_pitch = 4 * (runs[i].length + kLanes);
          for (int64_t x = 0; x < runs[i].length; x += kLanes) {
            const Sum* from = product + runs[i].column + x;
            V half[24];
            CONVARITH_UNROLL for (int j = 0; j < 6; ++j) {
              V column[6];
              CONVARITH_UNROLL for (int k = 0; k < 6; ++k) {
                column[k] = load(from + (6 * k + j) * plan.product_step);
              }
              transform(kPoints.output, column, 1, half + j, 6);
            }
            CONVARITH_UNROLL for (int k = 0; k < 4; ++k) {
              V four[4];
              transform(kPoints.output, half + 6 * k, 1, four, 1);
              store_interleaved<Sum>(four, strip + k * strip_pitch + 4 * x);
            }
          }
          for (int64_t y = 0; y < height; ++y) {
            T* to =
                out + p.out_offset + image * p.out_batch + (4 * tile_y + y) * p.out_axis[1] + x_first * p.out_axis[2];
            const Sum* from = strip + y * strip_pitch;
            if (p.out_axis[2] == 1) {
              for (int64_t x = 0; x < width; ++x) narrow(from[x], to[x]);
            } else {
              for (int64_t x = 0; x < width; ++x) narrow(from[x], to[x * p.out_axis[2]]);
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
