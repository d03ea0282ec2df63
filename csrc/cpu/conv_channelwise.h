// Depthwise convolutions and small groups with lanes along the channels: every output is a pixel of some vectors of
// channels. Memory in channels_last has them, small planes are transposed to and fro. See ChannelwisePlan.
#pragma once

#include "conv_plan.h"
#include "simd.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

constexpr int kPixels = CONVARITH_REGISTERS >= 32 ? 7 : 4;  // of a block: most networks' sizes are multiples
constexpr int kFewPixels = CONVARITH_REGISTERS >= 32 ? 3 : 2;
constexpr int kChannelVectors = 2;  // of the weight's gradient
constexpr int kWeighTaps = 7;

// A row of the input and the weights by which two rows of outputs see it.
template <typename T>
struct PairLine {
  const T* in;
  const T* w[2];
};

// Lines that only the first row sees stand first, then those that both see.
template <typename T>
struct PairLines {
  const PairLine<T>* line;
  int64_t counts[3];  // first, both, second
};

// sums[row][x] += sum over lines and taps of w * in[x * step + tap] for the rows [kBegin, kEnd) of a pair.
template <int kBegin, int kEnd, int kCount, typename T>
inline __attribute__((always_inline)) const PairLine<T>* add_pixels(const PairLine<T>* line, int64_t lines,
                                                                    const ColumnTap* taps, int64_t tap_count,
                                                                    int64_t at, int64_t step,
                                                                    typename Simd<T>::Vec (&sums)[2][kCount]) {
  typedef typename Simd<T>::Vec V;
  for (const PairLine<T>* end = line + lines; line < end; ++line) {
    for (int64_t t = 0; t < tap_count; ++t) {
      const T* from = line->in + at + taps[t].input;
      V w[2];
      CONVARITH_UNROLL for (int r = kBegin; r < kEnd; ++r) w[r] = load(line->w[r] + taps[t].weight);
      CONVARITH_UNROLL for (int x = 0; x < kCount; ++x, from += step) {
        V v = load(from);
        if (kEnd - kBegin == 2) keep(v);
        CONVARITH_UNROLL for (int r = kBegin; r < kEnd; ++r) sums[r][x] += w[r] * v;
      }
    }
  }
  return line;
}

// Where a block of outputs goes, and what is added to it.
template <typename Sum, typename T>
struct PixelOut {
  T* to;
  int64_t row, pixel;  // from one to the next, in elements
  int64_t rows;        // 1 or 2
  int64_t lanes;       // that are channels
  const Sum* bias;
};

template <typename Sum, typename T, int kCount>
void pixel_block(const PairLines<Sum>& lines, const ColumnTap* taps, int64_t tap_count, int64_t at, int64_t step,
                 const PixelOut<Sum, T>& out, int64_t first) {
  typedef typename Simd<Sum>::Vec V;
  V sums[2][kCount] = {};
  const PairLine<Sum>* line = lines.line;
  line = add_pixels<0, 1>(line, lines.counts[0], taps, tap_count, at, step, sums);
  line = add_pixels<0, 2>(line, lines.counts[1], taps, tap_count, at, step, sums);
  add_pixels<1, 2>(line, lines.counts[2], taps, tap_count, at, step, sums);
  const V bias = load(out.bias);
  CONVARITH_UNROLL for (int r = 0; r < 2; ++r) {
    if (r >= out.rows) break;
    T* to = out.to + r * out.row + first * out.pixel;
    if (out.lanes == Simd<Sum>::kLanes) {
      CONVARITH_UNROLL for (int x = 0; x < kCount; ++x, to += out.pixel) store_narrow(to, sums[r][x] + bias);
    } else {
      Sum some[kCount][Simd<Sum>::kLanes];
      CONVARITH_UNROLL for (int x = 0; x < kCount; ++x) store(some[x], sums[r][x] + bias);
      for (int x = 0; x < kCount; ++x, to += out.pixel) scatter_run(some[x], out.lanes, to, 1);
    }
  }
}

// `count` pixels of a pair of rows; where a block does not fit, it overlaps the one before it.
template <typename Sum, typename T>
void pixel_run(const PairLines<Sum>& lines, const ColumnTap* taps, int64_t tap_count, int64_t step,
               const PixelOut<Sum, T>& out, int64_t count) {
  for (int64_t x = 0; x < count;) {
    const int64_t left = count - x;
    const int64_t size = count >= kPixels && left > kFewPixels ? kPixels : (count >= kFewPixels ? kFewPixels : 1);
    const int64_t first = least(x, count - size);
    const auto block = size == kPixels      ? pixel_block<Sum, T, kPixels>
                       : size == kFewPixels ? pixel_block<Sum, T, kFewPixels>
                                            : pixel_block<Sum, T, 1>;
    block(lines, taps, tap_count, first * step, step, out, first);
    x = first + size;
  }
}

// A box of outputs of one block of channels: its rows and columns, and its padded inputs in the tile
// [row][column][member][lane], of which the last rows are there. Rows beside the image are not.
template <typename T>
class PixelTile {
 public:
  typedef typename SumOf<T>::type Sum;
  static constexpr int kLanes = Simd<Sum>::kLanes;

  PixelTile(const ChannelwisePlan& p, int64_t task, const T* in, Sum* cells, Sum* flat)
      : p_(p), cells_(cells), flat_(flat) {
    const int64_t block = task % p.blocks;
    task /= p.blocks;
    const int64_t index[2] = {task / p.boxes[1] % p.boxes[0], task % p.boxes[1]};
    image = task / p.boxes[1] / p.boxes[0];
    channel = block * kLanes;
    channels = least<int64_t>(kLanes, p.channels - channel);
    int64_t seen[2];
    for (int i = 0; i < 2; ++i) {
      first[i] = index[i] * p.box[i];
      end[i] = least(p.grid[i], first[i] + p.box[i]);
      seen[i] = first[i] / p.out_step[i] * p.in_step[i] + p.low[i];
    }
    filled_ = most<int64_t>(0, seen[0]);
    last_ = least(p.source[0], (end[0] - 1) / p.out_step[0] * p.in_step[0] + p.high[0] + 1);
    left_ = least(p.cells, most<int64_t>(0, -seen[1]));
    right_ = most(left_, least(p.cells, p.source[1] - seen[1]));
    in_ = in + image * p.in_batch + channel * p.in_channel + (seen[1] + left_) * p.in_axis[1];
  }

  // The row of the image, once it was filled; null where there is none.
  const Sum* row(int64_t y) const { return y < 0 || y >= p_.source[0] ? nullptr : place(y); }

  // Rows before `end`, and some more.
  void fill(int64_t end) {
    end = least(end, last_);
    while (filled_ < end) {
      const int64_t rows = least(p_.fill_rows, last_ - filled_), count = right_ - left_;
      if (p_.transposing && p_.fill_rows > 1) {
        transpose(in_ + filled_ * count, p_.in_channel, channels, rows * count, flat_, kLanes);
      }
      for (int64_t r = 0; r < rows; ++r) {
        Sum* cells = place(filled_ + r);
        clear_cells(cells, left_);
        fill_row(r, cells + left_ * p_.members * kLanes);
        clear_cells(cells + right_ * p_.members * kLanes, p_.cells - right_);
      }
      filled_ += rows;
    }
  }

  int64_t image, channel, channels, first[2], end[2];

 private:
  Sum* place(int64_t y) const { return cells_ + y % p_.tile_rows * p_.tile_pitch; }

  void clear_cells(Sum* cells, int64_t count) const {
    for (int64_t i = 0; i < count * p_.members; ++i) store(cells + i * kLanes, typename Simd<Sum>::Vec{});
  }

  void fill_row(int64_t r, Sum* to) const {
    const int64_t count = right_ - left_;
    const T* line = in_ + (filled_ + r) * p_.in_axis[0];
    if (p_.transposing) {
      if (p_.fill_rows == 1) {
        transpose(line, p_.in_channel, channels, count, to, kLanes);
      } else {
        const Sum* from = flat_ + r * count * kLanes;
        for (int64_t i = 0; i < count; ++i) store(to + i * kLanes, load(from + i * kLanes));
      }
    } else if (p_.members == 1) {
      fill_members<1>(line, count, to);
    } else if (p_.members == 2) {
      fill_members<2>(line, count, to);
    } else {
      fill_members<4>(line, count, to);
    }
  }

  // A lane's members are the channels of its group. The next block's inputs of the same pixels come into the second
  // cache meanwhile: that block is the next task.
  template <int kMembers>
  void fill_members(const T* line, int64_t count, Sum* to) const {
    typedef decltype(load(to) < load(to)) Index;
    Index index[kMembers];
    CONVARITH_UNROLL for (int c = 0; c < kMembers; ++c) {
      for (int l = 0; l < kLanes; ++l) index[c][l] = l / kMembers * kMembers + c;
    }
    const bool all = channels == kLanes, more = channel + kLanes < p_.channels;
    for (int64_t i = 0; i < count; ++i, line += p_.in_axis[1], to += kMembers * kLanes) {
      if (more) __builtin_prefetch(line + kLanes, 0, 2);
      const auto v = all ? load_wide(line) : load_wide_some(line, channels);
      CONVARITH_UNROLL for (int c = 0; c < kMembers; ++c) {
        store(to + c * kLanes, kMembers == 1 ? v : __builtin_shuffle(v, index[c]));
      }
    }
  }

  const ChannelwisePlan& p_;
  int64_t filled_, last_;  // rows of the image
  int64_t left_, right_;   // cells of a row that are inputs
  const T* in_;
  Sum *cells_, *flat_;
};

// The lines of the rows of outputs j and, of two, j + 1 of a phase.
template <typename T>
PairLines<typename SumOf<T>::type> pair_lines(const ChannelwisePlan& p, const PixelTile<T>& tile, int64_t phase,
                                              int64_t j, int64_t rows, const typename SumOf<T>::type* w,
                                              PairLine<typename SumOf<T>::type>* lines) {
  const int64_t w_row = p.kernel[1] * p.members * PixelTile<T>::kLanes;
  PairLines<typename SumOf<T>::type> result = {lines, {}};
  const auto add = [&](int part, int64_t y, int64_t w0, int64_t w1) {
    const auto* in = tile.row(y);
    if (in == nullptr) return;
    *lines++ = {in, {w + w0 * w_row, w + w1 * w_row}};
    ++result.counts[part];
  };
  const RowTap *const begin = p.row_tap + p.row_begin[phase], *const end = p.row_tap + p.row_begin[phase + 1];
  const int64_t y = j * p.in_step[0];
  for (const RowTap* t = begin; t < end; ++t) {
    if (rows == 1 || t->below < 0) add(0, y + t->input, t->weight, t->weight);
  }
  if (rows == 1) return result;
  for (const RowTap* t = begin; t < end; ++t) {
    if (t->below >= 0) add(1, y + t->input, t->weight, t->below);
  }
  for (const RowTap* t = begin; t < end; ++t) {
    if (!t->above) add(2, y + p.in_step[0] + t->input, t->weight, t->weight);
  }
  return result;
}

// Weights of a block of channels: [row of taps][tap][member][lane].
template <typename T, typename Sum>
void pack_lanes(const ChannelwisePlan& p, const T* w, int64_t channel, int64_t channels, Sum* packed) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  const int64_t taps = p.kernel[0] * p.kernel[1];
  if (p.members == 1 && p.w_axis[1] == 1 && p.w_axis[0] == p.kernel[1]) {
    return transpose(w + channel * p.w_group, p.w_group, channels, taps, packed, kLanes);
  }
  for (int64_t t = 0; t < taps; ++t) {
    const T* tap = w + t / p.kernel[1] * p.w_axis[0] + t % p.kernel[1] * p.w_axis[1];
    for (int64_t c = 0; c < p.members; ++c, packed += kLanes) {
      for (int64_t l = 0; l < channels; ++l) {
        const int64_t group = (channel + l) / p.members, row = (channel + l) % p.members;
        packed[l] = widen(tap[group * p.w_group + row * p.w_row + c * p.w_member]);
      }
    }
  }
}

// Pixels of one vector to rows of `channels` planes.
template <typename T>
void pixels_to_memory(const ChannelwisePlan& p, const typename SumOf<T>::type* pixels, int64_t count, int64_t channels,
                      T* planes, typename SumOf<T>::type* flat) {
  constexpr int kLanes = PixelTile<T>::kLanes;
  if constexpr (sizeof(T) != 2) {
    transpose(pixels, kLanes, count, channels, planes, p.out_channel);
  } else {
    for (int64_t i = 0; i < count; i += p.flat_pixels) {
      const int64_t some = least(p.flat_pixels, count - i);
      transpose(pixels + i * kLanes, kLanes, some, channels, flat, p.flat_pixels);
      for (int64_t c = 0; c < channels; ++c) {
        scatter_run(flat + c * p.flat_pixels, some, planes + c * p.out_channel + i, 1);
      }
    }
  }
}

// The outputs of a box, to out.
template <typename T, typename To>
void channelwise_box(const ChannelwisePlan& p, PixelTile<T>& tile, const typename SumOf<T>::type* w,
                     const typename SumOf<T>::type* bias, PairLine<typename SumOf<T>::type>* lines, To* out,
                     int64_t out_row, int64_t out_pixel) {
  const int64_t step = p.in_step[1] * p.members * PixelTile<T>::kLanes;
  for (int64_t j = tile.first[0] / p.out_step[0]; j * p.out_step[0] < tile.end[0]; j += 2) {
    tile.fill((j + 1) * p.in_step[0] + p.high[0] + 1);
    for (int64_t phase = 0; phase < p.out_step[0] && j * p.out_step[0] + phase < tile.end[0]; ++phase) {
      const int64_t y = j * p.out_step[0] + phase, rows = y + p.out_step[0] < tile.end[0] ? 2 : 1;
      const auto pair = pair_lines(p, tile, phase, j, rows, w, lines);
      for (int64_t x = 0; x < least(p.out_step[1], tile.end[1] - tile.first[1]); ++x) {
        const ColumnTap* taps = p.column_tap + p.column_begin[x];
        const int64_t columns = (tile.end[1] - tile.first[1] - x + p.out_step[1] - 1) / p.out_step[1];
        pixel_run<typename SumOf<T>::type, To>(
            pair, taps, p.column_begin[x + 1] - p.column_begin[x], step,
            {out + (y - tile.first[0]) * out_row + x * out_pixel, p.out_step[0] * out_row, p.out_step[1] * out_pixel,
             rows, tile.channels, bias},
            columns);
      }
    }
  }
}

template <typename T>
void channelwise(const ChannelwisePlan& p, const void* in_data, const void* w_data, void* out_data, char* scratch,
                 int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  constexpr int kLanes = Simd<Sum>::kLanes;
  Sum* w = reinterpret_cast<Sum*>(scratch);
  Sum* cells = reinterpret_cast<Sum*>(scratch + p.at_input);
  Sum* flat = reinterpret_cast<Sum*>(scratch + p.at_flat);
  Sum* results = reinterpret_cast<Sum*>(scratch + p.at_output);
  PairLine<Sum>* lines = reinterpret_cast<PairLine<Sum>*>(scratch + p.at_lines);
  if (p.channels % kLanes != 0) fill_zero(w, p.at_output / static_cast<int64_t>(sizeof(Sum)));  // lanes of no channel
  for (int64_t task = begin; task < end; ++task) {
    PixelTile<T> tile(p, task, static_cast<const T*>(in_data), cells, flat);
    pack_lanes(p, static_cast<const T*>(w_data), tile.channel, tile.channels, w);
    Sum bias[kLanes] = {};
    if (p.bias) copy_run(static_cast<const T*>(p.bias) + tile.channel, 1, tile.channels, bias);
    T* out = static_cast<T*>(out_data) + tile.image * p.out_batch + tile.channel * p.out_channel +
             tile.first[0] * p.out_axis[0] + tile.first[1] * p.out_axis[1];
    if (p.transposing) {  // boxes are whole rows
      channelwise_box(p, tile, w, bias, lines, results, p.grid[1] * kLanes, kLanes);
      pixels_to_memory(p, results, (tile.end[0] - tile.first[0]) * p.grid[1], tile.channels, out, flat);
    } else {
      channelwise_box(p, tile, w, bias, lines, out, p.out_axis[0], p.out_axis[1]);
    }
  }
}

// The weight's gradient -----------------------------------------------------------------------------------------------

// A row of taps that meets the input: where it reads, and its weights or their sums.
template <typename T>
struct TapLine {
  const T* in;
  T* w;
};

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

// Planes of a block of channels to pixels of one vector.
template <typename T>
inline void planes_to_pixels(const T* planes, int64_t pitch, int64_t channels, int64_t count, T* pixels) {
  transpose(planes, pitch, channels, count, pixels, Simd<T>::kLanes);
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
  int64_t count = 0;
  for (int64_t t = 0; t < p.kernel[0]; ++t) {
    const int64_t y = output * p.in_step[0] + p.row_tap[t].input;
    if (y >= 0 && y < p.source[0]) lines[count++] = {in + y * in_row, w + p.row_tap[t].weight * w_row};
  }
  return count;
}

template <typename T, int kVecs>
void weigh_rows(const ChannelwisePlan& p, const ChannelBlock& c, const T* x, int64_t x_row, int64_t x_pixel, const T* y,
                int64_t y_row, int64_t y_pixel, T* sums, TapLine<T>* lines, int64_t begin, int64_t end) {
  const int64_t taps = p.kernel[1], step = p.in_step[1] * x_pixel, inner = p.inner_begin;
  const int64_t inner_count = most<int64_t>(0, p.inner_end - inner);
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
    const int64_t last = block_begin(part + 1, p.batch * p.boxes[0], p.parts);
    for (int64_t i = block_begin(part, p.batch * p.boxes[0], p.parts); i < last; ++i) {
      const int64_t y0 = i % p.boxes[0] * p.box[0], y1 = least(p.grid[0], y0 + p.box[0]);
      const T* x = static_cast<const T*>(x_data) + i / p.boxes[0] * p.in_batch + c.first * p.in_channel;
      const T* y = static_cast<const T*>(y_data) + i / p.boxes[0] * p.out_batch + c.first * p.out_channel;
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
    T* w = static_cast<T*>(w_data) + c * p.w_group;
    for (int64_t t = 0; t < taps; ++t) {
      T sum = 0;
      for (int64_t part = 0; part < p.parts; ++part) sum += sums[part * p.channels * taps + t];
      w[t] = sum;
    }
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
