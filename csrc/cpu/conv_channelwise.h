// Depthwise convolutions and small groups with lanes along the channels: every output is a pixel of some vectors of
// channels. Memory in channels_last has them; for the weight's gradient small planes are transposed. See
// ChannelwisePlan, and conv_planes.h for the outputs of small planes.
#pragma once

#include "conv_factor.h"
#include "conv_pixel_pairs.h"
#include "conv_pixels.h"
#include "conv_plan.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Outputs of a block: most networks' sizes are multiples.
constexpr int kPixels = CONVARITH_REGISTERS >= 32 ? 14 : 7;
constexpr int kHalfPixels = 7, kFewPixels = 3;

// Inputs and weights as factors. Where the processor multiplies pairs of bfloat16, inputs are pairs without a second
// member: as numbers they would be shifted, each of them.
template <typename In>
inline auto input_factor(const In* in) {
#if CONVARITH_BF16
  if constexpr (FactorOf<In>::kMembers == 2) {
    return words_of(*reinterpret_cast<const LooseHalves*>(in));
  } else
#endif
    return load_wide(in);
}
template <typename In, typename V>
inline auto weight_factor(V v) {
#if CONVARITH_BF16
  if constexpr (FactorOf<In>::kMembers == 2) {
    return reinterpret_cast<Words>(v) >> 16;
  } else
#endif
    return v;
}

// Which inputs of a run may not be there: none; those that the run's ends alone see; or any.
enum class Missing { kNone, kAtEnds, kAny };

// sums[x] += sum over a run's taps t of w[t] * input x + t, counted from `column`, of those that are there. Every input
// is loaded once for all outputs that see it.
template <int kTaps, Missing kMissing, int kCount, typename In, typename Sum = typename SumOf<In>::type>
inline __attribute__((always_inline)) void add_run(const In* in, int64_t column, const PixelRow& row, const Sum* w,
                                                   int64_t w_step, typename Simd<Sum>::Vec (&sums)[kCount]) {
  decltype(weight_factor<In>(load(w))) v[kTaps];
  CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) {
    v[t] = weight_factor<In>(load(w + t * w_step));
    keep(v[t]);
  }
  const int64_t pixel = row.pixel;
  in += column * pixel;
  _Pragma("GCC unroll 32") for (int q = 0; q < kCount + kTaps - 1; ++q, in = next_place(in, pixel)) {
    const bool asks = kMissing == Missing::kAny || (kMissing == Missing::kAtEnds && (q < kTaps - 1 || q >= kCount));
    if (asks && static_cast<uint64_t>(column + q) >= static_cast<uint64_t>(row.size)) continue;
    auto x = input_factor(in);
    keep(x);
    CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) {
      if (q >= t && q - t < kCount) sums[q - t] = multiply_add(sums[q - t], v[t], x);
    }
  }
}

// The same of a single tap, by which outputs see inputs a step apart.
template <int kCount, typename In, typename Sum = typename SumOf<In>::type>
inline __attribute__((always_inline)) void add_tap(const In* in, int64_t column, const PixelRow& row, const Sum* w,
                                                   typename Simd<Sum>::Vec (&sums)[kCount]) {
  const auto v = weight_factor<In>(load(w));
  const int64_t apart = row.step * row.pixel;
  in += column * row.pixel;
  if (column >= 0 && column + (kCount - 1) * row.step < row.size) {
    CONVARITH_UNROLL for (int x = 0; x < kCount; ++x, in = next_place(in, apart)) sums[x] =
        multiply_add(sums[x], v, input_factor(in));
  } else {
    CONVARITH_UNROLL for (int x = 0; x < kCount; ++x, in = next_place(in, apart), column += row.step) {
      if (static_cast<uint64_t>(column) < static_cast<uint64_t>(row.size))
        sums[x] = multiply_add(sums[x], v, input_factor(in));
    }
  }
}

template <int kTaps, int kCount, typename In, typename Sum = typename SumOf<In>::type>
inline __attribute__((always_inline)) void add_taps(const In* in, int64_t column, const PixelRow& row, const Sum* w,
                                                    int64_t w_step, typename Simd<Sum>::Vec (&sums)[kCount]) {
  if constexpr (kCount < kHalfPixels) {
    CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) add_tap(in, column + t, row, w + t * w_step, sums);
  } else if (column >= 0 && column + kCount + kTaps - 1 <= row.size) {
    add_run<kTaps, Missing::kNone>(in, column, row, w, w_step, sums);
  } else if (column + kTaps > 0 && column + kCount <= row.size) {
    add_run<kTaps, Missing::kAtEnds>(in, column, row, w, w_step, sums);
  } else {
    add_run<kTaps, Missing::kAny>(in, column, row, w, w_step, sums);
  }
}

// kCount outputs of the vector of channels that begins at `channel`. Through a tap at column 0 the first sees input
// `column`.
template <int kCount, typename In, typename To, typename Sum = typename SumOf<In>::type>
void pixel_block(const PixelLine<In>* line, int64_t lines, const ColumnRun* runs, int64_t run_count, int64_t column,
                 const PixelRow& row, int64_t channel, const Sum* weights, const PixelOut<To>& out) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  typename Simd<Sum>::Vec sums[kCount] = {};
  for (const PixelLine<In>* end = line + lines; line < end; ++line) {
    for (const ColumnRun* run = runs; run < runs + run_count; ++run) {
      const In* in = line->in + channel + run->member;
      const Sum* w = weights + line->w + run->weight;
      const int64_t at = column + run->column;
      switch (run->taps) {
        case 7:
          add_taps<7>(in, at, row, w, run->weight_step, sums);
          break;
        case 5:
          add_taps<5>(in, at, row, w, run->weight_step, sums);
          break;
        case 3:
          add_taps<3>(in, at, row, w, run->weight_step, sums);
          break;
        default:
          add_tap(in, at, row, w, sums);
      }
    }
  }
  // Of their own: what `out` points to is read again after every store.
  const int64_t pixel = out.pixel, skip = out.skip;
  const auto bias = load(out.bias);
  To* to = out.to;
  if (skip == 0) {
    CONVARITH_UNROLL for (int x = 0; x < kCount; ++x, to = next_place(to, pixel)) store_narrow(to, sums[x] + bias);
  } else {
    Sum all[kCount][kLanes];
    CONVARITH_UNROLL for (int x = 0; x < kCount; ++x) store(all[x], sums[x] + bias);
    for (int x = 0; x < kCount; ++x, to += pixel) scatter_run(all[x] + skip, kLanes - skip, to + skip, 1);
  }
}

template <typename In, typename To>
using PixelBlock = void (*)(const PixelLine<In>*, int64_t, const ColumnRun*, int64_t, int64_t, const PixelRow&, int64_t,
                            const typename SumOf<In>::type*, const PixelOut<To>&);

// Outputs of the next block, of a row of `count` of which `left` are left: where it does not fit, it overlaps the one
// before it.
template <typename In, typename To>
inline int64_t pixel_block_for(int64_t count, int64_t left, PixelBlock<In, To>* block) {
  if (count >= kPixels && left > (kPixels > kHalfPixels ? kHalfPixels : kFewPixels)) {
    *block = pixel_block<kPixels, In, To>;
    return kPixels;
  }
  if (kPixels > kHalfPixels && count >= kHalfPixels && left > kFewPixels) {
    *block = pixel_block<kHalfPixels, In, To>;
    return kHalfPixels;
  }
  *block = count >= kFewPixels ? pixel_block<kFewPixels, In, To> : pixel_block<1, In, To>;
  return count >= kFewPixels ? kFewPixels : 1;
}

// Channels of a task: some vectors where pixels are not copied, otherwise one. The last vector of all overlaps the one
// before it.
struct ChannelBlock {
  int64_t first, size, vectors;
  int64_t skip;  // first channels, which are also the block's before
};

inline ChannelBlock channel_block(const ChannelwisePlan& p, int64_t index, int64_t lanes) {
  if (p.direct) {
    const int64_t unit = p.pair_taps > 0 ? 2 * lanes : lanes, units = block_count(p.channels, unit);
    const int64_t begin = block_begin(index, units, p.blocks) * unit;
    const int64_t size = least(block_begin(index + 1, units, p.blocks) * unit, p.channels) - begin;
    return {begin, size, block_count(size, lanes), 0};
  }
  const int64_t first = least(index * lanes, p.channels - lanes);
  return {first, lanes, 1, index * lanes - first};
}

// Whether vector v of a block and the one behind it are multiplied in pairs.
template <typename T>
inline bool has_pairs(const ChannelwisePlan& p, const ChannelBlock& c, int64_t v) {
  return PixelPairs<T>::kExist && p.pair_taps > 0 && v % 2 == 0 && c.size >= (v + 2) * Simd<float>::kLanes;
}

// From the first channel of a block to those of a vector.
inline int64_t vector_at(const ChannelBlock& c, int64_t vector, int64_t lanes) {
  return vector == 0 ? 0 : least(vector * lanes, c.size - lanes);
}

// A box of outputs of a block of channels.
struct PixelBox {
  int64_t image, block;
  ChannelBlock channels;
  int64_t first[2], end[2];
};

// Blocks of one vector follow each other, for what they see are parts of the same lines of memory; larger ones come
// after all boxes, for their weights are packed but once.
inline PixelBox pixel_box(const ChannelwisePlan& p, int64_t task, int64_t lanes) {
  PixelBox b;
  const int64_t boxes = p.batch * p.boxes[0] * p.boxes[1];
  b.block = p.direct ? task / boxes : task % p.blocks;
  b.channels = channel_block(p, b.block, lanes);
  task = p.direct ? task % boxes : task / p.blocks;
  const int64_t index[2] = {task / p.boxes[1] % p.boxes[0], task % p.boxes[1]};
  b.image = task / p.boxes[1] / p.boxes[0];
  for (int i = 0; i < 2; ++i) {
    b.first[i] = index[i] * p.box[i];
    b.end[i] = least(p.grid[i], b.first[i] + p.box[i]);
  }
  return b;
}

// Asks for the memory of some rows of pixels of a block of channels in the order in which it stands, a share at a time.
template <typename T>
class PixelsAhead {
 public:
  PixelsAhead(const T* first, int64_t row, int64_t rows, int64_t count, int64_t pixel, const ChannelBlock& c)
      : at_(first), row_(row), rows_(count > 0 ? rows : 0), apart_(pixel) {
    const bool whole = c.size == pixel;  // pixels follow each other
    runs_ = whole ? 1 : count;
    run_ = block_count(whole ? count * pixel : c.size, kLine);
  }

  void ask(int64_t share, int64_t shares) const {
    const int64_t end = block_begin(share + 1, runs_ * run_, shares);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t i = block_begin(share, runs_ * run_, shares), line = i % run_; i < end; line = 0) {
        const T* at = at_ + r * row_ + i / run_ * apart_ + line * kLine;
        for (; i < end && line < run_; ++i, ++line, at += kLine) prefetch_line(at);
      }
    }
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(T);
  const T* at_;
  int64_t row_, rows_;
  int64_t runs_, run_, apart_;  // of a row: their number, the lines of one, and elements from one to the next
};

// The input itself as what a box sees. Boxes are whole rows.
template <typename T>
class PixelImage {
 public:
  typedef T In;

  PixelImage(const ChannelwisePlan& p, const PixelBox& box, const T* in)
      : columns(p.source[1]),
        pixel(p.in_axis[1]),
        p_(p),
        in_(in + box.image * p.in_batch + box.channels.first * p.in_channel) {}

  void fill(int64_t) {}
  const T* row(int64_t y) const { return y < 0 || y >= p_.source[0] ? nullptr : in_ + y * p_.in_axis[0]; }

  // Of `count` columns of a row, from one on, and of the rows behind it, those that the next row of outputs is the
  // first to see.
  PixelsAhead<T> ahead(int64_t y, int64_t column, int64_t count, const ChannelBlock& c) const {
    const int64_t rows = y < 0 ? 0 : most<int64_t>(0, least(p_.in_step[0], p_.source[0] - y));
    return {rows > 0 ? row(y) + column * pixel : in_, p_.in_axis[0], rows, least(count, columns - column), pixel, c};
  }

  const int64_t columns, pixel;  // from one to the next

 private:
  const ChannelwisePlan& p_;
  const T* in_;
};

// The padded inputs that a box sees: a tile [row][column][member][lane], of which the last rows are there. Rows beside
// the image are not.
template <typename T>
class PixelTile {
 public:
  typedef typename SumOf<T>::type In;
  static constexpr int kLanes = Simd<In>::kLanes;

  PixelTile(const ChannelwisePlan& p, const PixelBox& box, const T* in, In* cells)
      : columns(p.cells),
        pixel(p.members * kLanes),
        p_(p),
        more_(box.channels.first + kLanes < p.channels),
        cells_(cells) {
    int64_t seen[2];
    for (int i = 0; i < 2; ++i) seen[i] = box.first[i] / p.out_step[i] * p.in_step[i] + p.low[i];
    filled_ = most<int64_t>(0, seen[0]);
    last_ = least(p.source[0], (box.end[0] - 1) / p.out_step[0] * p.in_step[0] + p.high[0] + 1);
    left_ = least(p.cells, most<int64_t>(0, -seen[1]));
    right_ = most(left_, least(p.cells, p.source[1] - seen[1]));
    in_ = in + box.image * p.in_batch + box.channels.first * p.in_channel + (seen[1] + left_) * p.in_axis[1];
  }

  // Rows are asked for as they are filled.
  PixelsAhead<In> ahead(int64_t, int64_t, int64_t, const ChannelBlock& c) const { return {cells_, 0, 0, 0, pixel, c}; }

  // The row of the image, once it was filled; null where there is none.
  const In* row(int64_t y) const { return y < 0 || y >= p_.source[0] ? nullptr : place(y); }

  // Rows before `end`.
  void fill(int64_t end) {
    for (; filled_ < least(end, last_); ++filled_) {
      In* cells = place(filled_);
      clear_cells(cells, left_);
      fill_row(in_ + filled_ * p_.in_axis[0], cells + left_ * pixel);
      clear_cells(cells + right_ * pixel, p_.cells - right_);
    }
  }

  const int64_t columns, pixel;  // from one to the next

 private:
  In* place(int64_t y) const { return cells_ + y % p_.tile_rows * p_.tile_pitch; }

  void clear_cells(In* cells, int64_t count) const {
    for (int64_t i = 0; i < count * pixel; i += kLanes) store(cells + i, typename Simd<In>::Vec{});
  }

  void fill_row(const T* line, In* to) const {
    const int64_t count = right_ - left_;
    if (p_.members == 1) {
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
  void fill_members(const T* line, int64_t count, In* to) const {
    typedef decltype(load(to) < load(to)) Index;
    Index index[kMembers];
    CONVARITH_UNROLL for (int c = 0; c < kMembers; ++c) {
      for (int l = 0; l < kLanes; ++l) index[c][l] = l / kMembers * kMembers + c;
    }
    for (int64_t i = 0; i < count; ++i, line += p_.in_axis[1], to += kMembers * kLanes) {
      if (more_) prefetch_line<0, 2>(line + kLanes);
      const auto v = load_wide(line);
      CONVARITH_UNROLL for (int c = 0; c < kMembers; ++c) {
        store(to + c * kLanes, kMembers == 1 ? v : __builtin_shuffle(v, index[c]));
      }
    }
  }

  const ChannelwisePlan& p_;
  const bool more_;        // vectors of channels
  int64_t filled_, last_;  // rows of the image
  int64_t left_, right_;   // cells of a row that are inputs
  const T* in_;
  In* cells_;
};

// The rows that row `j` of a phase's outputs sees; returns how many there are.
template <typename Source, typename In = typename Source::In>
int64_t pixel_lines(const ChannelwisePlan& p, const Source& source, int64_t phase, int64_t j, PixelLine<In>* lines) {
  const int64_t w_row = p.kernel[1] * p.members * Simd<typename SumOf<In>::type>::kLanes;
  int64_t count = 0;
  for (int64_t t = p.row_begin[phase]; t < p.row_begin[phase + 1]; ++t) {
    const In* in = source.row(j * p.in_step[0] + p.row_tap[t].input);
    if (in != nullptr) lines[count++] = {in, p.row_tap[t].weight * w_row};
  }
  return count;
}

// Weights of a vector of channels: [row of taps][tap][member].
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

// The outputs of a box, to out. The weights are [vector][row of taps][tap][member], and the biases follow them; pairs
// of weights are [two vectors][row of taps][pair][low, high].
template <typename Source, typename To>
void channelwise_box(const ChannelwisePlan& p, const PixelBox& box, Source source, const typename SumOf<To>::type* w,
                     const uint32_t* pairs, void* line_data, To* out, int64_t out_row, int64_t out_pixel) {
  typedef typename Source::In In;
  constexpr int kLanes = Simd<typename SumOf<To>::type>::kLanes;
  const ChannelBlock& c = box.channels;
  const int64_t vector_weights = p.kernel[0] * p.kernel[1] * p.members * kLanes;
  const auto* bias = w + c.vectors * vector_weights;
  PixelLine<In>* lines = static_cast<PixelLine<In>*>(line_data);
  const PixelRow row = {source.pixel, p.in_step[1], source.columns};
  const int64_t width = box.end[1] - box.first[1];
  const bool strips = p.direct && p.out_step[1] == 1;  // of columns: what its rows share stays in the first cache
  for (int64_t begin = 0, end = 0; begin < width; begin = end) {
    end = width;
    for (int64_t y = box.first[0]; y < box.end[0]; ++y) {
      const int64_t j = y / p.out_step[0];
      source.fill(j * p.in_step[0] + p.high[0] + 1);
      const int64_t line_count = pixel_lines(p, source, y % p.out_step[0], j, lines);
      To* out_line = out + (y - box.first[0]) * out_row;
      for (int64_t x = 0; x < least(p.out_step[1], width); ++x) {
        const ColumnRun* runs = p.column_run + p.column_begin[x];
        const int64_t run_count = p.column_begin[x + 1] - p.column_begin[x];
        const int64_t columns = steps_up(width - x, p.out_step[1]);
        for (int64_t i = begin; i < (strips ? end : columns);) {
          PixelBlock<In, To> block;
          const int64_t size = pixel_block_for(columns, columns - i, &block), first = least(i, columns - size);
          const auto ahead =
              source.ahead(j * p.in_step[0] + p.high[0] + 1, first * p.in_step[1], size * p.in_step[1], c);
          for (int64_t v = 0; v < c.vectors; ++v) {
            const int64_t channel = vector_at(c, v, kLanes);
            const PixelOut<To> to = {out_line + (first * p.out_step[1] + x) * out_pixel + channel,
                                     p.out_step[1] * out_pixel, c.skip, bias + v * kLanes};
            if (p.asks) {
              ahead.ask(v, c.vectors);
              for (int64_t q = 0; q < size; ++q) prefetch_line<1>(to.to + q * to.pixel);
            }
            if constexpr (PixelPairs<In>::kExist) {
              if (size >= PixelPairs<In>::kPixels && has_pairs<In>(p, c, v)) {
                const uint32_t* weights = pairs + v / 2 * PixelPairs<In>::words(p);
                for (int64_t q = 0; q < size; q += PixelPairs<In>::kPixels) {
                  PixelPairs<In>::block(p)(lines, line_count, (first + q) * p.in_step[1] + runs[0].column, row, channel,
                                           weights, {to.to + q * to.pixel, to.pixel, 0, to.bias});
                }
                ++v;
                if (p.asks) ahead.ask(v, c.vectors);
                continue;
              }
            }
            block(lines, line_count, runs, run_count, first * p.in_step[1], row, channel, w + v * vector_weights, to);
          }
          i = first + size;
          if (strips) end = i;
        }
      }
    }
  }
}

template <typename T>
void channelwise(const ChannelwisePlan& p, const void* in_data, const void* w_data, void* out_data, char* scratch,
                 int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const T* in = static_cast<const T*>(in_data);
  Sum* w = reinterpret_cast<Sum*>(scratch);
  Sum* cells = reinterpret_cast<Sum*>(scratch + p.at_input);
  uint32_t* pairs = reinterpret_cast<uint32_t*>(scratch + p.at_pairs);
  void* lines = scratch + p.at_lines;
  const int64_t vector_weights = p.kernel[0] * p.kernel[1] * p.members * kLanes;
  int64_t packed = -1;  // block
  for (int64_t task = begin; task < end; ++task) {
    const PixelBox box = pixel_box(p, task, kLanes);
    const ChannelBlock& c = box.channels;
    for (int64_t v = 0; v < c.vectors && box.block != packed; ++v) {
      const int64_t first = c.first + vector_at(c, v, kLanes), size = least<int64_t>(kLanes, c.size);
      Sum* bias = w + c.vectors * vector_weights + v * kLanes;
      pack_lanes(p, static_cast<const T*>(w_data), first, size, w + v * vector_weights);
      store(bias, typename Simd<Sum>::Vec{});
      if (p.bias) copy_run(static_cast<const T*>(p.bias) + first, 1, size, bias);
    }
    if constexpr (PixelPairs<T>::kExist) {
      for (int64_t v = 0; box.block != packed && has_pairs<T>(p, c, v); v += 2) {
        const float* first = w + v * vector_weights;
        PixelPairs<T>::pack(p, first, first + vector_weights, pairs + v / 2 * PixelPairs<T>::words(p));
      }
    }
    packed = box.block;
    T* out = static_cast<T*>(out_data) + box.image * p.out_batch + c.first * p.out_channel +
             box.first[0] * p.out_axis[0] + box.first[1] * p.out_axis[1];
    if (p.direct) {
      channelwise_box(p, box, PixelImage<T>(p, box, in), w, pairs, lines, out, p.out_axis[0], p.out_axis[1]);
    } else {
      channelwise_box(p, box, PixelTile<T>(p, box, in, cells), w, pairs, lines, out, p.out_axis[0], p.out_axis[1]);
    }
  }
}

// The weight's gradient -----------------------------------------------------------------------------------------------

// A row of taps that meets the input: where it reads, and the sums of its weights.
template <typename T>
struct TapLine {
  const T* in;
  typename SumOf<T>::type* w;
};

// Where a row of outputs reads a row of the input: input q, of which [begin, end) are there, stands at first + q *
// step.
struct Slide {
  int64_t first, step, begin, end;
};

inline Slide slide_from(int64_t column, int64_t apart, int64_t pixel, int64_t size) {
  const int64_t begin = column < 0 ? steps_up(-column, apart) : 0;
  return {column * pixel, apart * pixel, begin, column < size ? most(begin, steps_up(size - column, apart)) : begin};
}

// Which member of its group a lane of outputs meets: its own; or that `turn` behind it, after the last the first again.
struct OwnMember {
  template <typename V>
  inline __attribute__((always_inline)) V operator()(V inputs) const {
    return inputs;
  }
};
template <typename Sum>
struct OtherMember {
  typedef decltype(typename Simd<Sum>::Vec{} < typename Simd<Sum>::Vec{}) Index;
  Index lane;

  OtherMember(int64_t members, int64_t turn) {
    for (int i = 0; i < Simd<Sum>::kLanes; ++i) {
      lane[i] = static_cast<decltype(+lane[0])>(i / members * members + (i + turn) % members);
    }
  }
  inline __attribute__((always_inline)) typename Simd<Sum>::Vec operator()(typename Simd<Sum>::Vec inputs) const {
    return __builtin_shuffle(inputs, lane);
  }
};

// w[line][tap] += sum over outputs j of y[j] * input j * kStep + tap of the line. What the taps see stays in registers
// from one output to the next; inlined, they would not find enough.
template <typename T, int kTaps, int kStep, int kLines, typename Member>
__attribute__((noinline)) void weigh_slide(const TapLine<T>* lines, const Slide& x, const T* y, int64_t y_step,
                                           int64_t count, int64_t tap, const Member& member) {
  typedef typename Simd<typename SumOf<T>::type>::Vec V;
  constexpr int kLanes = Simd<typename SumOf<T>::type>::kLanes;
  const T zeros[kLanes] = {};
  V sums[kLines][kTaps], seen[kLines][kTaps];  // input q in place q modulo kTaps
  const T* in[kLines];
  CONVARITH_UNROLL for (int l = 0; l < kLines; ++l) {
    in[l] = lines[l].in;
    CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) sums[l][t] = load(lines[l].w + (tap + t) * kLanes);
  }
  const auto see = [&](int64_t q, int place) __attribute__((always_inline)) {
    const bool there = q >= x.begin && q < x.end;
    CONVARITH_UNROLL for (int l = 0; l < kLines; ++l) {
      seen[l][place] = member(load_wide(there ? in[l] + (x.first + q * x.step) : zeros));
    }
  };
  CONVARITH_UNROLL for (int t = 0; t < kTaps - kStep; ++t) see(t, t);
  for (int64_t j = 0; j < count; j += kTaps) {
    CONVARITH_UNROLL for (int i = 0; i < kTaps; ++i) {
      if (j + i >= count) break;
      CONVARITH_UNROLL for (int t = kTaps - kStep; t < kTaps; ++t) {
        see((j + i) * kStep + t, (i * kStep + t) % kTaps);
      }
      const V v = load_wide(y + (j + i) * y_step);
      CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) {
        CONVARITH_UNROLL for (int l = 0; l < kLines; ++l) sums[l][t] += v * seen[l][(i * kStep + t) % kTaps];
      }
    }
  }
  CONVARITH_UNROLL for (int l = 0; l < kLines; ++l) {
    CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) store(lines[l].w + (tap + t) * kLanes, sums[l][t]);
  }
}

template <typename T, int kStep, int kLines, typename Member>
inline auto weigh_slide_for(int taps) {
  if constexpr (kLines < 3) {  // otherwise sums are few
    if (taps == 7) return weigh_slide<T, 7, kStep, kLines, Member>;
    if (taps == 5) return weigh_slide<T, 5, kStep, kLines, Member>;
  }
  return weigh_slide<T, 3, kStep, kLines, Member>;
}

// All taps of some lines, by one row of outputs.
template <int kLines, typename T, typename Member>
void weigh_lines(const ChannelwisePlan& p, const TapLine<T>* lines, int64_t x_pixel, const T* y, int64_t y_pixel,
                 const Member& member) {
  const int64_t taps = p.kernel[1], step = p.in_step[1], count = p.grid[1], size = p.source[1];
  const int64_t apart = taps > 1 ? (p.high[1] - p.low[1]) / (taps - 1) : 1;
  for (int64_t t = 0; t < taps;) {
    const int64_t column = p.low[1] + t * apart;
    const int run = kLines < 3 && taps - t >= 7 ? 7 : kLines < 3 && taps - t >= 5 ? 5 : taps - t >= 3 ? 3 : 1;
    if (run > 1 && step == 1) {  // outputs that are `apart` see the same inputs
      for (int64_t r = 0; r < least(apart, count); ++r) {
        const auto weigh = weigh_slide_for<T, 1, kLines, Member>(run);
        weigh(lines, slide_from(column + r, apart, x_pixel, size), y + r * y_pixel, apart * y_pixel,
              steps_up(count - r, apart), t, member);
      }
    } else if (run > 1 && step == 2 && apart == 1) {
      const auto weigh = weigh_slide_for<T, 2, kLines, Member>(run);
      weigh(lines, slide_from(column, 1, x_pixel, size), y, y_pixel, count, t, member);
    } else {
      weigh_slide<T, 1, 1, kLines>(lines, slide_from(column, step, x_pixel, size), y, y_pixel, count, t++, member);
      continue;
    }
    t += run;
  }
}

// The rows of taps that meet the input at a row of outputs.
template <typename T>
inline int64_t tap_lines(const ChannelwisePlan& p, int64_t output, const T* in, int64_t in_row,
                         typename SumOf<T>::type* w, int64_t w_row, TapLine<T>* lines) {
  int64_t count = 0;
  for (int64_t t = 0; t < p.kernel[0]; ++t) {
    const int64_t y = output * p.in_step[0] + p.row_tap[t].input;
    if (y >= 0 && y < p.source[0]) lines[count++] = {in + y * in_row, w + p.row_tap[t].weight * w_row};
  }
  return count;
}

// All lines, by a row of outputs and one member of every group.
template <typename T, typename Member>
void weigh_row(const ChannelwisePlan& p, const TapLine<T>* lines, int64_t count, int64_t x_pixel, const T* y,
               int64_t y_pixel, const Member& member) {
  constexpr int kLines = CONVARITH_REGISTERS >= 32 ? 2 : 1;
  int64_t i = 0;
  if constexpr (kLines > 1) {
    for (; p.kernel[1] < 5 && i + 3 <= count; i += 3) weigh_lines<3>(p, lines + i, x_pixel, y, y_pixel, member);
  }
  for (; i + kLines <= count; i += kLines) weigh_lines<kLines>(p, lines + i, x_pixel, y, y_pixel, member);
  for (; i < count; ++i) weigh_lines<1>(p, lines + i, x_pixel, y, y_pixel, member);
}

// Rows [begin, end) of the outputs of a block of channels; sums are [vector][turn][tap].
template <typename T>
void weigh_rows(const ChannelwisePlan& p, const ChannelBlock& c, const T* x, int64_t x_row, int64_t x_pixel, const T* y,
                int64_t y_row, int64_t y_pixel, typename SumOf<T>::type* sums, TapLine<T>* lines, int64_t begin,
                int64_t end) {
  typedef typename SumOf<T>::type Sum;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const int64_t taps = p.kernel[0] * p.kernel[1];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t seen = row * p.in_step[0] + p.high[0] + 1;  // first by the next row of outputs
    const int64_t rows = seen < 0 ? 0 : most<int64_t>(0, least(p.in_step[0], p.source[0] - seen));
    const PixelsAhead<T> x_ahead(rows > 0 ? x + seen * x_row : x, x_row, rows, p.source[1], x_pixel, c);
    const PixelsAhead<T> y_ahead(row + 1 < end ? y + (row + 1) * y_row : y, y_row, row + 1 < end, p.grid[1], y_pixel,
                                 c);
    for (int64_t v = 0; v < c.vectors; ++v) {
      const bool paired = has_pairs<T>(p, c, v);
      for (int64_t share = v; p.asks && share < v + 1 + paired; ++share) {
        x_ahead.ask(share, c.vectors);
        y_ahead.ask(share, c.vectors);
      }
      const int64_t at = vector_at(c, v, kLanes);
      if constexpr (PixelPairs<T>::kExist) {
        if (paired) {
          PixelPairs<T>::weigh_row(p, row, x + at, x_row, x_pixel, y + row * y_row + at, y_pixel,
                                   sums + v * taps * kLanes);
          ++v;
          continue;
        }
      }
      for (int64_t turn = 0; turn < p.members; ++turn) {
        Sum* to = sums + (v * p.members + turn) * taps * kLanes;
        const int64_t count = tap_lines(p, row, x + at, x_row, to, p.kernel[1] * kLanes, lines);
        const T* grad = y + row * y_row + at;
        if (turn == 0) {
          weigh_row(p, lines, count, x_pixel, grad, y_pixel, OwnMember());
        } else {
          weigh_row(p, lines, count, x_pixel, grad, y_pixel, OtherMember<Sum>(p.members, turn));
        }
      }
    }
  }
}

// A task is a block of channels and a part of the images and boxes; sums are [part][channel][turn][tap].
template <typename T>
void channelwise_sum(const ChannelwisePlan& p, const void* x_data, const void* y_data, void* sums_data, char* scratch,
                     int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  constexpr int kLanes = Simd<typename SumOf<T>::type>::kLanes;
  Sum* lanes = reinterpret_cast<Sum*>(scratch);
  TapLine<T>* lines = reinterpret_cast<TapLine<T>*>(scratch + p.at_lines);
  const int64_t taps = p.members * p.kernel[0] * p.kernel[1];  // of all turns
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task / p.blocks;
    const ChannelBlock c = channel_block(p, task % p.blocks, kLanes);
    for (int64_t i = 0; i < taps * c.vectors * kLanes; i += kLanes)
      store(lanes + i, typename Simd<typename SumOf<T>::type>::Vec{});
    const int64_t last = block_begin(part + 1, p.batch * p.boxes[0], p.parts);
    for (int64_t i = block_begin(part, p.batch * p.boxes[0], p.parts); i < last; ++i) {
      const int64_t y0 = i % p.boxes[0] * p.box[0], y1 = least(p.grid[0], y0 + p.box[0]);
      const T* x = static_cast<const T*>(x_data) + i / p.boxes[0] * p.in_batch + c.first * p.in_channel;
      const T* y = static_cast<const T*>(y_data) + i / p.boxes[0] * p.out_batch + c.first * p.out_channel;
      weigh_rows<T>(p, c, x, p.in_axis[0], p.in_axis[1], y, p.out_axis[0], p.out_axis[1], lanes, lines, y0, y1);
    }
    Sum* sums = static_cast<Sum*>(sums_data) + (part * p.channels + c.first) * taps;
    if constexpr (PixelPairs<T>::kExist) {
      for (int64_t v = 0; has_pairs<T>(p, c, v); v += 2) {
        PixelPairs<T>::separate(lanes + v * taps * kLanes, lanes + (v + 1) * taps * kLanes, taps);
      }
    }
    for (int64_t v = 0; v < c.vectors; ++v) {
      transpose(lanes + v * taps * kLanes, kLanes, taps, least<int64_t>(kLanes, c.size),
                sums + vector_at(c, v, kLanes) * taps, taps);
    }
  }
}

// The parts' sums of some channels to w.
template <typename T>
void channelwise_store(const ChannelwisePlan& p, const void* sums_data, void* w_data, int64_t begin, int64_t end) {
  typedef typename SumOf<T>::type Sum;
  const int64_t taps = p.kernel[0] * p.kernel[1], apart = p.channels * p.members * taps;
  for (int64_t c = begin; c < end; ++c) {
    const Sum* sums = static_cast<const Sum*>(sums_data) + c * p.members * taps;
    const int64_t own = c % p.members;
    T* row = static_cast<T*>(w_data) + c / p.members * p.w_group + own * p.w_row;
    for (int64_t turn = 0; turn < p.members; ++turn) {
      T* w = row + (own + turn) % p.members * p.w_member;
      for (int64_t t = 0; t < taps; ++t, ++sums) {
        Sum sum = 0;
        for (int64_t part = 0; part < p.parts; ++part) sum += sums[part * apart];
        narrow(sum, w[t / p.kernel[1] * p.w_axis[0] + t % p.kernel[1] * p.w_axis[1]]);
      }
    }
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
