// Depthwise convolutions with lanes along the channels: every output is a pixel of some vectors of channels. Memory in
// channels_last is read and written where it stands; small planes are transposed to and fro. No zero is multiplied.
#pragma once

#include "conv_plan.h"
#include "simd.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

constexpr int kPixels = 7;  // of a block: most networks' sizes are multiples
constexpr int kFewPixels = 3;
constexpr int kChannelVectors = 2;
constexpr int kWeighTaps = 7;

// A row of taps that meets the input: where it reads, and its weights or their sums.
template <typename T>
struct TapLine {
  const T* in;
  T* w;
};

// out[x] = bias + sum over rows and taps of w * in[x * step + tap], for some pixels x; the second vector of channels
// stands `last` behind the first.
template <typename T, int kCount, int kVecs>
void pixel_block(const TapLine<T>* rows, int64_t row_count, const ColumnTap* taps, int64_t tap_count, int64_t at,
                 int64_t step, int64_t last, const T* bias, T* out, int64_t out_step) {
  typedef typename Simd<T>::Vec V;
  constexpr int kLanes = Simd<T>::kLanes;
  V sums[kCount][kVecs] = {};
  for (int64_t i = 0; i < row_count; ++i) {
    for (int64_t t = 0; t < tap_count; ++t) {
      const T* from = rows[i].in + at + taps[t].input;
      const T* w = rows[i].w + taps[t].weight * kVecs * kLanes;
      V v[kVecs];
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) v[j] = load(w + j * kLanes);
      CONVARITH_UNROLL for (int x = 0; x < kCount; ++x, from += step) {
        CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) sums[x][j] += v[j] * load(from + j * last);
      }
    }
  }
  CONVARITH_UNROLL for (int x = 0; x < kCount; ++x, out += out_step) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) store(out + j * last, sums[x][j] + load(bias + j * kLanes));
  }
}

// `count` pixels that see the same taps; where a block does not fit, it overlaps the one before it.
template <typename T, int kVecs>
void pixel_run(const TapLine<T>* rows, int64_t row_count, const ColumnTap* taps, int64_t tap_count, int64_t at,
               int64_t step, int64_t last, const T* bias, T* out, int64_t out_step, int64_t count) {
  for (int64_t x = 0; x < count;) {
    const int64_t left = count - x;
    const int64_t size = count >= kPixels && left > kFewPixels ? kPixels : (count >= kFewPixels ? kFewPixels : 1);
    const int64_t first = least(x, count - size);
    const auto block = size == kPixels      ? pixel_block<T, kPixels, kVecs>
                       : size == kFewPixels ? pixel_block<T, kFewPixels, kVecs>
                                            : pixel_block<T, 1, kVecs>;
    block(rows, row_count, taps, tap_count, at + first * step, step, last, bias, out + first * out_step, out_step);
    x = first + size;
  }
}

// sums[tap] += sum over pixels x of y[x] * in[x * step + tap].
template <typename T, int kTaps, int kVecs>
void weigh_pixels(const TapLine<T>& row, const ColumnTap* taps, int64_t at, int64_t step, int64_t last, const T* y,
                  int64_t y_step, int64_t count) {
  typedef typename Simd<T>::Vec V;
  constexpr int kLanes = Simd<T>::kLanes;
  V sums[kTaps][kVecs];
  const T* from[kTaps];
  CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) {
    from[t] = row.in + at + taps[t].input;
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
      sums[t][j] = load(row.w + (taps[t].weight * kVecs + j) * kLanes);
    }
  }
  for (int64_t x = 0; x < count; ++x, y += y_step) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
      const V v = load(y + j * last);
      CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) sums[t][j] += v * load(from[t] + x * step + j * last);
    }
  }
  CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
      store(row.w + (taps[t].weight * kVecs + j) * kLanes, sums[t][j]);
    }
  }
}

template <typename T, int kVecs, int kTaps = kWeighTaps>
void weigh_run(int64_t tap_count, const TapLine<T>& row, const ColumnTap* taps, int64_t at, int64_t step, int64_t last,
               const T* y, int64_t y_step, int64_t count) {
  if constexpr (kTaps > 1) {
    if (tap_count < kTaps) {
      return weigh_run<T, kVecs, kTaps - 1>(tap_count, row, taps, at, step, last, y, y_step, count);
    }
  }
  weigh_pixels<T, kTaps, kVecs>(row, taps, at, step, last, y, y_step, count);
}

// A block of channels of one image.
struct ChannelBlock {
  int64_t first, size, vectors;
  int64_t last;  // from the first vector to the second
};

inline ChannelBlock channel_block(const ChannelwisePlan& p, int64_t index, int64_t lanes) {
  // Where the vectors are odd in number the first block has one; the last vector overlaps the one before it.
  const int64_t vectors = block_count(p.channels, lanes);
  if (p.transposing) {
    return {index * lanes, least(lanes, p.channels - index * lanes), 1, lanes};
  }
  const int64_t odd = vectors % kChannelVectors;
  if (odd && index == 0) return {0, lanes, 1, lanes};
  const int64_t first = (index * kChannelVectors - odd) * lanes;
  const int64_t size = least(kChannelVectors * lanes, p.channels - first);
  return {first, size, kChannelVectors, size - lanes};
}

// Planes of a block of channels to pixels of one vector, or back.
template <typename T>
inline void planes_to_pixels(const T* planes, int64_t pitch, int64_t channels, int64_t count, T* pixels) {
  transpose(planes, pitch, channels, count, pixels, Simd<T>::kLanes);
}
template <typename T>
inline void pixels_to_planes(const T* pixels, int64_t count, int64_t channels, T* planes, int64_t pitch) {
  transpose(pixels, Simd<T>::kLanes, count, channels, planes, pitch);
}

// Taps of the columns [begin, end) that meet the input at output j of a phase.
inline void meeting(const ChannelwisePlan& p, const ColumnTap* taps, int64_t count, int64_t j, int64_t* begin,
                    int64_t* end) {
  const int64_t at = j * p.in_step[1];
  *begin = 0;
  *end = count;
  while (*begin < count && taps[*begin].column + at < 0) ++*begin;
  while (*end > *begin && taps[*end - 1].column + at >= p.source[1]) --*end;
}

// The rows of taps that meet the input at a row of outputs.
template <typename T>
inline int64_t tap_lines(const ChannelwisePlan& p, int64_t output, const T* in, int64_t in_row, T* w, int64_t w_row,
                         TapLine<T>* lines) {
  const int64_t phase = output % p.out_step[0], j = output / p.out_step[0];
  int64_t count = 0;
  for (int64_t t = p.row_begin[phase]; t < p.row_begin[phase + 1]; ++t) {
    const int64_t y = j * p.in_step[0] + p.row_tap[t].input;
    if (y >= 0 && y < p.source[0]) lines[count++] = {in + y * in_row, w + p.row_tap[t].weight * w_row};
  }
  return count;
}

template <typename T, int kVecs>
void channelwise_rows(const ChannelwisePlan& p, const ChannelBlock& c, const T* in, int64_t in_row, int64_t in_pixel,
                      T* w, const T* bias, TapLine<T>* lines, T* out, int64_t out_row, int64_t out_pixel, int64_t begin,
                      int64_t end) {
  for (int64_t y = begin; y < end; ++y) {
    const int64_t rows = tap_lines(p, y, in, in_row, w, p.kernel[1] * kVecs * Simd<T>::kLanes, lines);
    for (int64_t x = 0; x < p.column_phases; ++x) {
      const ColumnTap* taps = p.column_tap + p.column_begin[x];
      const int64_t count = p.column_begin[x + 1] - p.column_begin[x], step = p.in_step[1] * in_pixel;
      T* to = out + y * out_row + x * out_pixel;
      const int64_t columns = (p.grid[1] - x + p.out_step[1] - 1) / p.out_step[1];
      for (int64_t j = 0; j < columns;) {
        int64_t run = 1, k0 = 0, k1 = count;
        if (j == p.inner_begin[x] && p.inner_end[x] > j) {
          run = p.inner_end[x] - j;
        } else {
          meeting(p, taps, count, j, &k0, &k1);
        }
        pixel_run<T, kVecs>(lines, rows, taps + k0, k1 - k0, j * step, step, c.last, bias,
                            to + j * p.out_step[1] * out_pixel, p.out_step[1] * out_pixel, run);
        j += run;
      }
    }
  }
}

template <typename T>
void channelwise(const ChannelwisePlan& p, const void* in_data, const void* w_data, void* out_data, char* scratch,
                 int64_t begin, int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  T* w = reinterpret_cast<T*>(scratch);
  T* pixels = reinterpret_cast<T*>(scratch + p.at_input);
  T* results = reinterpret_cast<T*>(scratch + p.at_output);
  TapLine<T>* lines = reinterpret_cast<TapLine<T>*>(scratch + p.at_lines);
  const int64_t taps = p.kernel[0] * p.kernel[1];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t box = task % p.boxes, image = task / p.boxes / p.blocks;
    const ChannelBlock c = channel_block(p, task / p.boxes % p.blocks, kLanes);
    const T* weights = static_cast<const T*>(w_data) + c.first * p.w_channel;
    if (p.transposing) {
      transpose(weights, p.w_channel, c.size, taps, w, kLanes);
    } else {
      for (int64_t j = 0; j < c.vectors; ++j) {
        transpose(weights + j * c.last * p.w_channel, p.w_channel, kLanes, taps, w + j * kLanes, c.vectors * kLanes);
      }
    }
    T bias[kChannelVectors * kLanes] = {};
    for (int64_t j = 0; p.bias && j < c.vectors; ++j) {
      copy_run(static_cast<const T*>(p.bias) + c.first + j * c.last, 1, least<int64_t>(kLanes, c.size),
               bias + j * kLanes);
    }
    const T* in = static_cast<const T*>(in_data) + image * p.in_batch + c.first * p.in_channel;
    T* out = static_cast<T*>(out_data) + image * p.out_batch + c.first * p.out_channel;
    const int64_t y0 = box * p.box, y1 = least(p.grid[0], y0 + p.box);
    if (p.transposing) {  // whole planes
      planes_to_pixels(in, p.in_channel, c.size, p.source[0] * p.source[1], pixels);
      channelwise_rows<T, 1>(p, c, pixels, p.source[1] * kLanes, kLanes, w, bias, lines, results, p.grid[1] * kLanes,
                             kLanes, y0, y1);
      pixels_to_planes(results, p.grid[0] * p.grid[1], c.size, out, p.out_channel);
    } else if (c.vectors == 1) {
      channelwise_rows<T, 1>(p, c, in, p.in_axis[0], p.in_axis[1], w, bias, lines, out, p.out_axis[0], p.out_axis[1],
                             y0, y1);
    } else {
      channelwise_rows<T, kChannelVectors>(p, c, in, p.in_axis[0], p.in_axis[1], w, bias, lines, out, p.out_axis[0],
                                           p.out_axis[1], y0, y1);
    }
  }
}

template <typename T, int kVecs>
void weigh_rows(const ChannelwisePlan& p, const ChannelBlock& c, const T* x, int64_t x_row, int64_t x_pixel, const T* y,
                int64_t y_row, int64_t y_pixel, T* sums, TapLine<T>* lines, int64_t begin, int64_t end) {
  const int64_t taps = p.kernel[1], step = p.in_step[1] * x_pixel, inner = p.inner_begin[0];
  const int64_t inner_count = most<int64_t>(0, p.inner_end[0] - inner);
  for (int64_t row = begin; row < end; ++row) {
    const T* grad = y + row * y_row;
    const int64_t rows = tap_lines(p, row, x, x_row, sums, taps * kVecs * Simd<T>::kLanes, lines);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t t = 0; inner_count > 0 && t < taps; t += kWeighTaps) {
        weigh_run<T, kVecs>(least<int64_t>(kWeighTaps, taps - t), lines[i], p.column_tap + t, inner * step, step,
                            c.last, grad + inner * y_pixel, y_pixel, inner_count);
      }
      for (int64_t j = 0; j < p.grid[1];) {
        if (j == inner && inner_count > 0) {
          j += inner_count;
          continue;
        }
        int64_t k0, k1;
        meeting(p, p.column_tap, taps, j, &k0, &k1);
        for (int64_t t = k0; t < k1; t += kWeighTaps) {
          weigh_run<T, kVecs>(least<int64_t>(kWeighTaps, k1 - t), lines[i], p.column_tap + t, j * step, step, c.last,
                              grad + j * y_pixel, y_pixel, 1);
        }
        ++j;
      }
    }
  }
}

// A task is a block of channels and a part of the images and boxes; sums are [part][channel][tap].
template <typename T>
void channelwise_sum(const ChannelwisePlan& p, const void* x_data, const void* y_data, void* sums_data, char* scratch,
                     int64_t begin, int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes;
  T* lanes = reinterpret_cast<T*>(scratch);
  T* pixels = reinterpret_cast<T*>(scratch + p.at_input);
  T* gradient = reinterpret_cast<T*>(scratch + p.at_output);
  TapLine<T>* lines = reinterpret_cast<TapLine<T>*>(scratch + p.at_lines);
  const int64_t taps = p.kernel[0] * p.kernel[1];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task / p.blocks;
    const ChannelBlock c = channel_block(p, task % p.blocks, kLanes);
    for (int64_t i = 0; i < taps * c.vectors * kLanes; i += kLanes) store(lanes + i, typename Simd<T>::Vec{});
    const int64_t last = block_begin(part + 1, p.batch * p.boxes, p.parts);
    for (int64_t i = block_begin(part, p.batch * p.boxes, p.parts); i < last; ++i) {
      const int64_t y0 = i % p.boxes * p.box, y1 = least(p.grid[0], y0 + p.box);
      const T* x = static_cast<const T*>(x_data) + i / p.boxes * p.in_batch + c.first * p.in_channel;
      const T* y = static_cast<const T*>(y_data) + i / p.boxes * p.out_batch + c.first * p.out_channel;
      if (p.transposing) {
        planes_to_pixels(x, p.in_channel, c.size, p.source[0] * p.source[1], pixels);
        planes_to_pixels(y, p.out_channel, c.size, p.grid[0] * p.grid[1], gradient);
        weigh_rows<T, 1>(p, c, pixels, p.source[1] * kLanes, kLanes, gradient, p.grid[1] * kLanes, kLanes, lanes, lines,
                         y0, y1);
      } else if (c.vectors == 1) {
        weigh_rows<T, 1>(p, c, x, p.in_axis[0], p.in_axis[1], y, p.out_axis[0], p.out_axis[1], lanes, lines, y0, y1);
      } else {
        weigh_rows<T, kChannelVectors>(p, c, x, p.in_axis[0], p.in_axis[1], y, p.out_axis[0], p.out_axis[1], lanes,
                                       lines, y0, y1);
      }
    }
    T* sums = static_cast<T*>(sums_data) + (part * p.channels + c.first) * taps;
    for (int64_t j = 0; j < c.vectors; ++j) {
      transpose(lanes + j * kLanes, c.vectors * kLanes, taps, least<int64_t>(kLanes, c.size), sums + j * c.last * taps,
                taps);
    }
  }
}

// The parts' sums of some channels to w.
template <typename T>
void channelwise_store(const ChannelwisePlan& p, const void* sums_data, void* w_data, int64_t begin, int64_t end) {
  const int64_t taps = p.kernel[0] * p.kernel[1];
  for (int64_t c = begin; c < end; ++c) {
    const T* sums = static_cast<const T*>(sums_data) + c * taps;
    T* w = static_cast<T*>(w_data) + c * p.w_channel;
    for (int64_t t = 0; t < taps; ++t) {
      T sum = 0;
      for (int64_t part = 0; part < p.parts; ++part) sum += sums[part * p.channels * taps + t];
      w[t] = sum;
    }
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
