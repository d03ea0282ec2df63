// Depthwise convolutions and small groups with lanes along the channels: every output is a pixel of some vectors of
// channels. Memory in channels_last has them, small planes are transposed to and fro. See ChannelwisePlan.
#pragma once

#include "conv_plan.h"
#include "simd.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

constexpr int kPixels = CONVARITH_REGISTERS >= 32 ? 7 : 4;  // of a block: most networks' sizes are multiples
constexpr int kFewPixels = CONVARITH_REGISTERS >= 32 ? 3 : 2;

// A row of the input and the weights by which two rows of outputs see it.
template <typename In>
struct PairLine {
  const In* in;
  const typename SumOf<In>::type* w[2];
};

// Lines that only the first row sees stand first, then those that both see.
template <typename In>
struct PairLines {
  const PairLine<In>* line;
  int64_t counts[3];  // first, both, second
};

// A block has two rows of one vector, or one row of two vectors: kRows * kVecs == 2. The second vector stands `last`
// behind the first.
//
// sums[row][x][vector] += sum over lines and taps of w * in[x * step + tap] for the rows [kBegin, kEnd).
template <int kBegin, int kEnd, int kRows, int kCount, int kVecs, typename In>
inline __attribute__((always_inline)) const PairLine<In>* add_pixels(
    const PairLine<In>* line, int64_t lines, const ColumnTap* taps, int64_t tap_count, int64_t at, int64_t step,
    int64_t last, typename Simd<typename SumOf<In>::type>::Vec (&sums)[kRows][kCount][kVecs]) {
  typedef Simd<typename SumOf<In>::type> S;
  for (const PairLine<In>* end = line + lines; line < end; ++line) {
    for (int64_t t = 0; t < tap_count; ++t) {
      const In* from = line->in + at + taps[t].input;
      typename S::Vec w[kRows][kVecs];
      CONVARITH_UNROLL for (int r = kBegin; r < kEnd; ++r) {
        CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
          w[r][j] = load(line->w[r] + taps[t].weight * kVecs + j * S::kLanes);
        }
      }
      CONVARITH_UNROLL for (int x = 0; x < kCount; ++x, from += step) {
        CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
          auto v = load_wide(from + j * last);
          if (kEnd - kBegin == 2) keep(v);
          CONVARITH_UNROLL for (int r = kBegin; r < kEnd; ++r) sums[r][x][j] += w[r][j] * v;
        }
      }
    }
  }
  return line;
}

// Where a run of outputs goes, and what is added to it.
template <typename To>
struct PixelOut {
  To* to;
  int64_t row, pixel, last;  // from one row, pixel, vector to the next, in elements
  int64_t rows;              // 1 or 2
  int64_t skip;              // first lanes, which are others' outputs
  const typename SumOf<To>::type* bias;
};

template <int kVecs, int kCount, typename In, typename To>
void pixel_block(const PairLines<In>& lines, const ColumnTap* taps, int64_t tap_count, int64_t at, int64_t step,
                 const PixelOut<To>& out, int64_t first) {
  typedef typename SumOf<In>::type Sum;
  constexpr int kLanes = Simd<Sum>::kLanes, kRows = 2 / kVecs;
  typename Simd<Sum>::Vec sums[kRows][kCount][kVecs] = {};
  const PairLine<In>* line = lines.line;
  line = add_pixels<0, 1>(line, lines.counts[0], taps, tap_count, at, step, out.last, sums);
  if constexpr (kRows == 2) {
    line = add_pixels<0, 2>(line, lines.counts[1], taps, tap_count, at, step, out.last, sums);
    add_pixels<1, 2>(line, lines.counts[2], taps, tap_count, at, step, out.last, sums);
  }
  // Of their own: what `out` points to is read again after every store.
  const int64_t pixel = out.pixel, last = out.last, skip = out.skip;
  typename Simd<Sum>::Vec bias[kVecs];
  CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) bias[j] = load(out.bias + j * kLanes);
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    if (r >= out.rows) break;
    To* to = out.to + r * out.row + first * pixel;
    if (skip == 0) {
      CONVARITH_UNROLL for (int x = 0; x < kCount; ++x, to += pixel) {
        CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) store_narrow(to + j * last, sums[r][x][j] + bias[j]);
      }
    } else {  // of one vector
      Sum all[kCount][kLanes];
      CONVARITH_UNROLL for (int x = 0; x < kCount; ++x) store(all[x], sums[r][x][0] + bias[0]);
      for (int x = 0; x < kCount; ++x, to += pixel) scatter_run(all[x] + skip, kLanes - skip, to + skip, 1);
    }
  }
}

// `count` pixels that see the same taps; where a block does not fit, it overlaps the one before it.
template <int kVecs, typename In, typename To>
void pixel_run(const PairLines<In>& lines, const ColumnTap* taps, int64_t tap_count, int64_t at, int64_t step,
               const PixelOut<To>& out, int64_t count) {
  for (int64_t x = 0; x < count;) {
    const int64_t left = count - x;
    const int64_t size = count >= kPixels && left > kFewPixels ? kPixels : (count >= kFewPixels ? kFewPixels : 1);
    const int64_t first = least(x, count - size);
    const auto block = size == kPixels      ? pixel_block<kVecs, kPixels, In, To>
                       : size == kFewPixels ? pixel_block<kVecs, kFewPixels, In, To>
                                            : pixel_block<kVecs, 1, In, To>;
    block(lines, taps, tap_count, at + first * step, step, out, first);
    x = first + size;
  }
}

// Outputs from j on, of a phase's `columns`, that meet the input with the same taps [begin, end): one output beside an
// edge, else all that meet it with every tap.
struct Meeting {
  int64_t begin, end, outputs;
};

inline Meeting meeting(const ChannelwisePlan& p, const ColumnTap* taps, int64_t count, int64_t j, int64_t columns) {
  const int64_t at = j * p.in_step[1];
  Meeting m = {0, count, 1};
  while (m.begin < count && taps[m.begin].column + at < 0) ++m.begin;
  while (m.end > m.begin && taps[m.end - 1].column + at >= p.source[1]) --m.end;
  if (count == 0) {
    m.outputs = columns - j;
  } else if (m.end - m.begin == count) {
    m.outputs = least(columns - j, steps_up(p.source[1] - taps[count - 1].column - at, p.in_step[1]));
  }
  return m;
}

// Channels of a task: two vectors where pixels are not copied, of which the first block has one if they are odd in
// number; otherwise one. The last vector overlaps the one before it.
struct ChannelBlock {
  int64_t first, size, vectors;
  int64_t last;  // from the first vector to the second
  int64_t skip;  // first channels, which are also the block's before
};

inline ChannelBlock channel_block(const ChannelwisePlan& p, int64_t index, int64_t lanes) {
  const int64_t odd = block_count(p.channels, lanes) % 2;
  if (p.direct && (!odd || index > 0)) {
    const int64_t first = (2 * index - odd) * lanes, size = least(2 * lanes, p.channels - first);
    return {first, size, 2, size - lanes, 0};
  }
  const int64_t begin = index * lanes;
  const int64_t first = p.transposing ? begin : least(begin, p.channels - lanes);
  return {first, least(lanes, p.channels - first), 1, 0, begin - first};
}

// A box of outputs of a block of channels.
struct PixelBox {
  int64_t image;
  ChannelBlock channels;
  int64_t first[2], end[2];
};

inline PixelBox pixel_box(const ChannelwisePlan& p, int64_t task, int64_t lanes) {
  PixelBox b;
  b.channels = channel_block(p, task % p.blocks, lanes);
  task /= p.blocks;
  const int64_t index[2] = {task / p.boxes[1] % p.boxes[0], task % p.boxes[1]};
  b.image = task / p.boxes[1] / p.boxes[0];
  for (int i = 0; i < 2; ++i) {
    b.first[i] = index[i] * p.box[i];
    b.end[i] = least(p.grid[i], b.first[i] + p.box[i]);
  }
  return b;
}

// The input itself as what a box sees. Boxes are whole rows.
template <typename T>
class PixelImage {
 public:
  typedef T In;
  static constexpr bool kPadded = false;

  PixelImage(const ChannelwisePlan& p, const PixelBox& box, const T* in)
      : pixel(p.in_axis[1]), p_(p), in_(in + box.image * p.in_batch + box.channels.first * p.in_channel) {}

  void fill(int64_t) {}
  const T* row(int64_t y) const { return y < 0 || y >= p_.source[0] ? nullptr : in_ + y * p_.in_axis[0]; }

  const int64_t pixel;  // from one to the next

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
  static constexpr bool kPadded = true;
  static constexpr int kLanes = Simd<In>::kLanes;

  PixelTile(const ChannelwisePlan& p, const PixelBox& box, const T* in, In* cells, In* flat)
      : pixel(p.members * kLanes),
        p_(p),
        channels_(box.channels.size),
        more_(box.channels.first + kLanes < p.channels),
        cells_(cells),
        flat_(flat) {
    int64_t seen[2];
    for (int i = 0; i < 2; ++i) seen[i] = box.first[i] / p.out_step[i] * p.in_step[i] + p.low[i];
    filled_ = most<int64_t>(0, seen[0]);
    last_ = least(p.source[0], (box.end[0] - 1) / p.out_step[0] * p.in_step[0] + p.high[0] + 1);
    left_ = least(p.cells, most<int64_t>(0, -seen[1]));
    right_ = most(left_, least(p.cells, p.source[1] - seen[1]));
    in_ = in + box.image * p.in_batch + box.channels.first * p.in_channel + (seen[1] + left_) * p.in_axis[1];
  }

  // The row of the image, once it was filled; null where there is none.
  const In* row(int64_t y) const { return y < 0 || y >= p_.source[0] ? nullptr : place(y); }

  // Rows before `end`, and some more.
  void fill(int64_t end) {
    end = least(end, last_);
    while (filled_ < end) {
      const int64_t rows = least(p_.fill_rows, last_ - filled_), count = right_ - left_;
      if (p_.transposing && p_.fill_rows > 1) {
        transpose(in_ + filled_ * count, p_.in_channel, channels_, rows * count, flat_, kLanes);
      }
      for (int64_t r = 0; r < rows; ++r) {
        In* cells = place(filled_ + r);
        clear_cells(cells, left_);
        fill_row(r, cells + left_ * pixel);
        clear_cells(cells + right_ * pixel, p_.cells - right_);
      }
      filled_ += rows;
    }
  }

  const int64_t pixel;  // from one to the next

 private:
  In* place(int64_t y) const { return cells_ + y % p_.tile_rows * p_.tile_pitch; }

  void clear_cells(In* cells, int64_t count) const {
    for (int64_t i = 0; i < count * pixel; i += kLanes) store(cells + i, typename Simd<In>::Vec{});
  }

  void fill_row(int64_t r, In* to) const {
    const int64_t count = right_ - left_;
    const T* line = in_ + (filled_ + r) * p_.in_axis[0];
    if (p_.transposing) {
      if (p_.fill_rows == 1) {
        transpose(line, p_.in_channel, channels_, count, to, kLanes);
      } else {
        const In* from = flat_ + r * count * kLanes;
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
  void fill_members(const T* line, int64_t count, In* to) const {
    typedef decltype(load(to) < load(to)) Index;
    Index index[kMembers];
    CONVARITH_UNROLL for (int c = 0; c < kMembers; ++c) {
      for (int l = 0; l < kLanes; ++l) index[c][l] = l / kMembers * kMembers + c;
    }
    for (int64_t i = 0; i < count; ++i, line += p_.in_axis[1], to += kMembers * kLanes) {
      if (more_) __builtin_prefetch(line + kLanes, 0, 2);
      const auto v = load_wide(line);
      CONVARITH_UNROLL for (int c = 0; c < kMembers; ++c) {
        store(to + c * kLanes, kMembers == 1 ? v : __builtin_shuffle(v, index[c]));
      }
    }
  }

  const ChannelwisePlan& p_;
  const int64_t channels_;
  const bool more_;        // vectors of channels
  int64_t filled_, last_;  // rows of the image
  int64_t left_, right_;   // cells of a row that are inputs
  const T* in_;
  In *cells_, *flat_;
};

// The lines of the rows of outputs j and, of two, j + 1 of a phase.
template <int kVecs, typename Source, typename In = typename Source::In>
PairLines<In> pair_lines(const ChannelwisePlan& p, const Source& source, int64_t phase, int64_t j, int64_t rows,
                         const typename SumOf<In>::type* w, PairLine<In>* lines) {
  const int64_t w_row = p.kernel[1] * p.members * kVecs * Simd<typename SumOf<In>::type>::kLanes;
  PairLines<In> result = {lines, {}};
  const auto add = [&](int part, int64_t y, int64_t w0, int64_t w1) {
    const In* in = source.row(y);
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

// Weights of a vector of channels: [row of taps][tap][member], `pitch` apart.
template <typename T, typename Sum>
void pack_lanes(const ChannelwisePlan& p, const T* w, int64_t channel, int64_t channels, Sum* packed, int64_t pitch) {
  const int64_t taps = p.kernel[0] * p.kernel[1];
  if (p.members == 1 && p.w_axis[1] == 1 && p.w_axis[0] == p.kernel[1]) {
    return transpose(w + channel * p.w_group, p.w_group, channels, taps, packed, pitch);
  }
  for (int64_t t = 0; t < taps; ++t) {
    const T* tap = w + t / p.kernel[1] * p.w_axis[0] + t % p.kernel[1] * p.w_axis[1];
    for (int64_t c = 0; c < p.members; ++c, packed += pitch) {
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
template <int kVecs, typename Source, typename To>
void channelwise_box(const ChannelwisePlan& p, const PixelBox& box, Source source, const typename SumOf<To>::type* w,
                     const typename SumOf<To>::type* bias, void* line_data, To* out, int64_t out_row,
                     int64_t out_pixel) {
  auto* lines = static_cast<PairLine<typename Source::In>*>(line_data);
  constexpr int kRows = 2 / kVecs;
  const int64_t step = p.in_step[1] * source.pixel;
  for (int64_t j = box.first[0] / p.out_step[0]; j * p.out_step[0] < box.end[0]; j += kRows) {
    source.fill((j + kRows - 1) * p.in_step[0] + p.high[0] + 1);
    for (int64_t phase = 0; phase < p.out_step[0] && j * p.out_step[0] + phase < box.end[0]; ++phase) {
      const int64_t y = j * p.out_step[0] + phase, rows = y + p.out_step[0] < box.end[0] ? kRows : 1;
      const auto pair = pair_lines<kVecs>(p, source, phase, j, rows, w, lines);
      for (int64_t x = 0; x < least(p.out_step[1], box.end[1] - box.first[1]); ++x) {
        const ColumnTap* taps = p.column_tap + p.column_begin[x];
        const int64_t tap_count = p.column_begin[x + 1] - p.column_begin[x];
        const int64_t columns = steps_up(box.end[1] - box.first[1] - x, p.out_step[1]);
        PixelOut<To> to = {out + (y - box.first[0]) * out_row + x * out_pixel,
                           p.out_step[0] * out_row,
                           p.out_step[1] * out_pixel,
                           box.channels.last,
                           rows,
                           box.channels.skip,
                           bias};
        for (int64_t i = 0; i < columns;) {
          const Meeting m = Source::kPadded ? Meeting{0, tap_count, columns} : meeting(p, taps, tap_count, i, columns);
          pixel_run<kVecs>(pair, taps + m.begin, m.end - m.begin, i * step, step, to, m.outputs);
          i += m.outputs;
          to.to += m.outputs * to.pixel;
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
  Sum* flat = reinterpret_cast<Sum*>(scratch + p.at_flat);
  Sum* results = reinterpret_cast<Sum*>(scratch + p.at_output);
  void* lines = scratch + p.at_lines;
  if (p.channels < kLanes) fill_zero(w, p.at_output / static_cast<int64_t>(sizeof(Sum)));  // lanes of no channel
  for (int64_t task = begin; task < end; ++task) {
    const PixelBox box = pixel_box(p, task, kLanes);
    const ChannelBlock& c = box.channels;
    Sum bias[2 * kLanes] = {};
    for (int64_t j = 0; j < c.vectors; ++j) {
      const int64_t first = c.first + j * c.last, size = least<int64_t>(kLanes, c.size);
      pack_lanes(p, static_cast<const T*>(w_data), first, size, w + j * kLanes, c.vectors * kLanes);
      if (p.bias) copy_run(static_cast<const T*>(p.bias) + first, 1, size, bias + j * kLanes);
    }
    T* out = static_cast<T*>(out_data) + box.image * p.out_batch + c.first * p.out_channel +
             box.first[0] * p.out_axis[0] + box.first[1] * p.out_axis[1];
    if (p.direct) {
      const auto outputs = c.vectors == 2 ? channelwise_box<2, PixelImage<T>, T> : channelwise_box<1, PixelImage<T>, T>;
      outputs(p, box, PixelImage<T>(p, box, in), w, bias, lines, out, p.out_axis[0], p.out_axis[1]);
      continue;
    }
    const PixelTile<T> tile(p, box, in, cells, flat);
    if (p.transposing) {  // boxes are whole rows
      channelwise_box<1>(p, box, tile, w, bias, lines, results, p.grid[1] * kLanes, kLanes);
      pixels_to_memory(p, results, (box.end[0] - box.first[0]) * p.grid[1], c.size, out, flat);
    } else {
      channelwise_box<1>(p, box, tile, w, bias, lines, out, p.out_axis[0], p.out_axis[1]);
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

// Where a row of outputs reads a row of the input: input q, of which [begin, end) are there, stands at first + q *
// step.
struct Slide {
  int64_t first, step, begin, end;
};

inline Slide slide_from(int64_t column, int64_t apart, int64_t pixel, int64_t size) {
  const int64_t begin = column < 0 ? steps_up(-column, apart) : 0;
  return {column * pixel, apart * pixel, begin, column < size ? most(begin, steps_up(size - column, apart)) : begin};
}

// w[line][tap] += sum over outputs j of y[j] * input j * kStep + tap of the line. What the taps see stays in registers
// from one output to the next.
template <typename T, int kTaps, int kStep, int kLines>
void weigh_slide(const TapLine<T>* lines, const Slide& x, const T* y, int64_t y_step, int64_t count, int64_t tap) {
  typedef typename Simd<T>::Vec V;
  constexpr int kLanes = Simd<T>::kLanes;
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
      seen[l][place] = load(there ? in[l] + (x.first + q * x.step) : zeros);
    }
  };
  CONVARITH_UNROLL for (int t = 0; t < kTaps - kStep; ++t) see(t, t);
  for (int64_t j = 0; j < count; j += kTaps) {
    CONVARITH_UNROLL for (int i = 0; i < kTaps; ++i) {
      if (j + i >= count) break;
      CONVARITH_UNROLL for (int t = kTaps - kStep; t < kTaps; ++t) {
        see((j + i) * kStep + t, (i * kStep + t) % kTaps);
      }
      const V v = load(y + (j + i) * y_step);
      CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) {
        CONVARITH_UNROLL for (int l = 0; l < kLines; ++l) sums[l][t] += v * seen[l][(i * kStep + t) % kTaps];
      }
    }
  }
  CONVARITH_UNROLL for (int l = 0; l < kLines; ++l) {
    CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) store(lines[l].w + (tap + t) * kLanes, sums[l][t]);
  }
}

// All taps of some lines, by one row of outputs.
template <typename T, int kLines>
void weigh_lines(const ChannelwisePlan& p, const TapLine<T>* lines, int64_t x_pixel, const T* y, int64_t y_pixel) {
  const int64_t taps = p.kernel[1], step = p.in_step[1], count = p.grid[1], size = p.source[1];
  const int64_t apart = taps > 1 ? p.column_tap[1].column - p.column_tap[0].column : 1;
  for (int64_t t = 0; t < taps;) {
    const int64_t column = p.column_tap[t].column;
    const int run = taps - t >= 7 ? 7 : taps - t >= 5 ? 5 : taps - t >= 3 ? 3 : 1;
    if (run > 1 && step == 1) {  // outputs that are `apart` see the same inputs
      for (int64_t r = 0; r < least(apart, count); ++r) {
        const auto weigh = run == 7   ? weigh_slide<T, 7, 1, kLines>
                           : run == 5 ? weigh_slide<T, 5, 1, kLines>
                                      : weigh_slide<T, 3, 1, kLines>;
        weigh(lines, slide_from(column + r, apart, x_pixel, size), y + r * y_pixel, apart * y_pixel,
              steps_up(count - r, apart), t);
      }
    } else if (run > 1 && step == 2 && apart == 1) {
      const auto weigh = run == 7   ? weigh_slide<T, 7, 2, kLines>
                         : run == 5 ? weigh_slide<T, 5, 2, kLines>
                                    : weigh_slide<T, 3, 2, kLines>;
      weigh(lines, slide_from(column, 1, x_pixel, size), y, y_pixel, count, t);
    } else {
      weigh_slide<T, 1, 1, kLines>(lines, slide_from(column, step, x_pixel, size), y, y_pixel, count, t++);
      continue;
    }
    t += run;
  }
}

// Planes of a block of channels to pixels of one vector.
template <typename T>
inline void planes_to_pixels(const T* planes, int64_t pitch, int64_t channels, int64_t count, T* pixels) {
  transpose(planes, pitch, channels, count, pixels, Simd<T>::kLanes);
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

// Rows [begin, end) of the outputs of a block of channels; sums are [vector][tap].
template <typename T>
void weigh_rows(const ChannelwisePlan& p, const ChannelBlock& c, const T* x, int64_t x_row, int64_t x_pixel, const T* y,
                int64_t y_row, int64_t y_pixel, T* sums, TapLine<T>* lines, int64_t begin, int64_t end) {
  constexpr int kLanes = Simd<T>::kLanes, kLines = CONVARITH_REGISTERS >= 32 ? 2 : 1;
  const int64_t taps = p.kernel[0] * p.kernel[1];
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t j = 0; j < c.vectors; ++j) {
      const T* grad = y + row * y_row + j * c.last;
      const int64_t count =
          tap_lines(p, row, x + j * c.last, x_row, sums + j * taps * kLanes, p.kernel[1] * kLanes, lines);
      int64_t i = 0;
      for (; i + kLines <= count; i += kLines) weigh_lines<T, kLines>(p, lines + i, x_pixel, grad, y_pixel);
      for (; i < count; ++i) weigh_lines<T, 1>(p, lines + i, x_pixel, grad, y_pixel);
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
        weigh_rows<T>(p, c, pixels, p.source[1] * kLanes, kLanes, gradient, p.grid[1] * kLanes, kLanes, lanes, lines,
                      y0, y1);
      } else {
        weigh_rows<T>(p, c, x, p.in_axis[0], p.in_axis[1], y, p.out_axis[0], p.out_axis[1], lanes, lines, y0, y1);
      }
    }
    T* sums = static_cast<T*>(sums_data) + (part * p.channels + c.first) * taps;
    for (int64_t j = 0; j < c.vectors; ++j) {
      transpose(lanes + j * taps * kLanes, kLanes, taps, least<int64_t>(kLanes, c.size), sums + j * c.last * taps,
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
