// The weight's gradient by AMX, in the blocks of conv_amx.h: rows are (channel, tap), columns are out channels, and
// what is summed over are the outputs of a box. Those stand side by side, whatever stands between them in memory: an
// input is multiplied by the outputs that see it, and by no zero beside them. What lies outside of the input is zero.
// Pairs are of two outputs. Where rows of y follow each other in memory y is transposed, by pairs, and rows of x are
// copied; where channels do it is pixels of x that are copied, two and two, and those of y that are transposed.
#pragma once

#include "conv_amx_lines.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

constexpr int64_t kBlockSums = kAmxRows * kAmxColumns;

inline int64_t amx_weight_columns(const AmxWeightPlan& a) {
  return block_count(a.gather.rows, kAmxColumns);
}

// Where a box's outputs stand in panels. Those that follow each other in y do so here, and each such run begins at a
// pair; the one after an odd number is a zero. Pixels stand one after the other.
struct Places {
  int64_t size[4];
  int64_t row, plane, image;  // from one to the next
  int64_t run, runs[3];       // outputs that follow each other, and how many such runs
  int64_t total, steps;
};

inline Places places_of(const AmxWeightPlan& a, const Box& b) {
  const GatherPlan& p = a.gather;
  Places at = {};
  for (int i = 0; i < 4; ++i) at.size[i] = b.size[i];
  if (a.pixels) {
    at.total = box_pixels(b);
    at.steps = block_count(at.total, kAmxNumbers);
    return at;
  }
  const auto even = [](int64_t size) { return size + size % 2; };
  const bool rows = b.size[3] == p.grid[2] && (b.size[2] == 1 || p.out_axis[1] == p.grid[2]);
  const bool planes = rows && b.size[2] == p.grid[1] && (b.size[1] == 1 || p.out_axis[0] == p.grid[1] * p.grid[2]);
  at.row = rows ? b.size[3] : even(b.size[3]);
  at.plane = planes ? b.size[2] * at.row : even(b.size[2] * at.row);
  at.image = even(b.size[1] * at.plane);
  at.run = b.size[3] * (rows ? b.size[2] : 1) * (planes ? b.size[1] : 1);
  at.runs[0] = b.size[0];
  at.runs[1] = planes ? 1 : b.size[1];
  at.runs[2] = rows ? 1 : b.size[2];
  at.total = b.size[0] * at.image;
  at.steps = block_count(at.total, kAmxNumbers);
  return at;
}

// From a row of outputs to the next: an odd number of lines, so that they do not share a set of the cache.
inline int64_t row_pitch(int64_t steps) {
  return (steps | 1) * kAmxNumbers;
}

// Packing y -----------------------------------------------------------------------------------------------------------

// At most 16 columns of a run of `count` outputs: to[pair][column].
inline void pack_run(const Brain16* y, int64_t pitch, int64_t columns, int64_t count, uint32_t* to) {
  for (int64_t i = 0; i < count; i += kAmxNumbers, to += kRegister) {
    const int64_t some = least(kAmxNumbers, count - i), pairs = (some + 1) / 2;
    const uint32_t mask = lanes_between(0, some);
    Words v[16];
    CONVARITH_UNROLL for (int c = 0; c < 16; ++c) {
      v[c] = c >= columns ? Words{} : as<Words>(_mm512_maskz_loadu_epi16(mask, y + c * pitch + i));
      if (c < columns) prefetch_ahead(y + c * pitch, i + 4 * kAmxNumbers);
    }
    transpose_vectors<uint32_t>(v);
    CONVARITH_UNROLL for (int j = 0; j < 16; ++j) {
      if (j < pairs) store(to + j * 16, v[j]);
    }
  }
}

// Columns of a box, 16 after the other: to[16 columns][pair][column].
inline void pack_box(const GatherPlan& p, const Box& b, const Places& at, int64_t g, int64_t first, int64_t columns,
                     const Brain16* y, uint32_t* to) {
  for (int64_t m = 0; m < columns; m += 16, to += at.steps * kRegister) {
    const Brain16* corner = y + g * p.out_group + (first + m) * p.out_channel + b.first[0] * p.out_batch +
                            b.first[1] * p.out_axis[0] + b.first[2] * p.out_axis[1] + b.first[3];
    for (int64_t n = 0; n < at.runs[0]; ++n) {
      for (int64_t z = 0; z < at.runs[1]; ++z) {
        for (int64_t r = 0; r < at.runs[2]; ++r) {
          pack_run(corner + n * p.out_batch + z * p.out_axis[0] + r * p.out_axis[1], p.out_channel,
                   least<int64_t>(16, columns - m), at.run, to + (n * at.image + z * at.plane + r * at.row) / 2 * 16);
        }
      }
    }
    fill_zero(to + at.total / 2 * 16, (at.steps * kAmxNumbers - at.total) / 2 * 16);
  }
}

// Pixels --------------------------------------------------------------------------------------------------------------

alignas(64) const Brain16 kNoNumbers[kAmxNumbers] = {};

// What the outputs of a box see by a tap, or, of y and without a shift, the outputs themselves: where 32 numbers of
// each stand, zeros for those outside and after the last one. Steps between outputs, and between inputs, are in
// numbers.
struct Pixels {
  int64_t batch, step[3], input[3], extent[3], stride[3];
};

inline void find_pixels(const Pixels& s, const Box& b, const int64_t* shift, const Brain16* first_number,
                        const Places& at, const Brain16** pixel) {
  uintptr_t from = reinterpret_cast<uintptr_t>(first_number) + bytes_of(b.first[0] * s.batch);
  int64_t begin[3], end[3];
  for (int i = 0; i < 3; ++i) {
    const int64_t first = b.first[i + 1] * s.stride[i] + shift[i];
    const auto clipped = [&](int64_t inputs) {
      return inputs <= 0 ? 0 : least(steps_up(inputs, s.stride[i]), b.size[i + 1]);
    };
    begin[i] = clipped(-first);
    end[i] = most(begin[i], clipped(s.extent[i] - first));
    from += bytes_of(first * s.input[i]);
  }
  const Brain16* const* last = pixel + at.steps * kAmxNumbers;
  for (int64_t n = 0; n < b.size[0]; ++n) {
    for (int64_t z = 0; z < b.size[1]; ++z) {
      for (int64_t y = 0; y < b.size[2]; ++y, pixel += b.size[3]) {
        const bool meets = z >= begin[0] && z < end[0] && y >= begin[1] && y < end[1];
        const int64_t first = meets ? begin[2] : b.size[3], past = meets ? end[2] : b.size[3];
        const uintptr_t row = from + bytes_of(n * s.batch + z * s.step[0] + y * s.step[1]);
        for (int64_t x = 0; x < first; ++x) pixel[x] = kNoNumbers;
        for (int64_t x = first; x < past; ++x) {
          pixel[x] = reinterpret_cast<const Brain16*>(row + bytes_of(x * s.step[2]));
        }
        for (int64_t x = past; x < b.size[3]; ++x) pixel[x] = kNoNumbers;
      }
    }
  }
  while (pixel < last) *pixel++ = kNoNumbers;
}

// Numbers of two pixels as pairs: [0] and [1] have four and four of them in turn, which is an instruction each.
struct PixelPairs {
  Words part[2];
};
inline PixelPairs pair_pixels(const Brain16* const* pixel, uint32_t mask) {
  const __m512i first = load_numbers(mask, reinterpret_cast<uintptr_t>(pixel[0]));
  const __m512i second = load_numbers(mask, reinterpret_cast<uintptr_t>(pixel[1]));
  return {{as<Words>(_mm512_unpacklo_epi16(first, second)), as<Words>(_mm512_unpackhi_epi16(first, second))}};
}
// Which number of a pixel is the i-th of a part.
inline int64_t number_of(int64_t part, int64_t i) {
  return i / 4 * 8 + part * 4 + i % 4;
}

// At most 32 columns of y as pack_box() has them, but to[column][output].
inline void turn_pixels(const GatherPlan& p, const Box& b, const Places& at, int64_t g, int64_t first, int64_t columns,
                        const Brain16* y, uint32_t* to) {
  const Pixels s = {p.out_batch,
                    {p.out_axis[0], p.out_axis[1], p.out_axis[2]},
                    {p.out_axis[0], p.out_axis[1], p.out_axis[2]},
                    {p.grid[0], p.grid[1], p.grid[2]},
                    {1, 1, 1}};
  const int64_t none[3] = {}, pitch = row_pitch(at.steps) / 2;
  const Brain16* pixels[kAmxOutputs];
  for (int64_t m = 0; m < columns; m += kAmxColumns, to += kAmxColumns * pitch) {
    find_pixels(s, b, none, y + g * p.out_group + first + m, at, pixels);
    const int64_t some = block_count(least(kAmxColumns, columns - m), kRegisterRows) * kRegisterRows;
    const uint32_t mask = lanes_between(0, columns - m);
    for (int64_t step = 0; step < at.steps; ++step) {
      Words v[2][16];
      CONVARITH_UNROLL for (int j = 0; j < 16; ++j) {
        const PixelPairs pairs = pair_pixels(pixels + step * kAmxNumbers + 2 * j, mask);
        v[0][j] = pairs.part[0];
        v[1][j] = pairs.part[1];
      }
      for (int part = 0; part < 2; ++part) {
        transpose_vectors<uint32_t>(v[part]);
        CONVARITH_UNROLL for (int i = 0; i < 16; ++i) {
          const int64_t row = number_of(part, i);
          if (row < some) store(to + row * pitch + step * kRegisterWords, v[part][i]);
        }
      }
    }
  }
}

// Pixels of x, at most 32 numbers of each: to[part][pair][number], or, of at most 16, to[pair][number] in their order.
inline void copy_pixels(const Brain16* const* pixel, int64_t steps, int64_t numbers, uint32_t* to, uint32_t* second) {
  const uint32_t mask = lanes_between(0, numbers);
  for (int64_t i = 0; i < steps * kAmxPairs; ++i, pixel += 2, to += kRegisterWords, second += kRegisterWords) {
    if (numbers > kRegisterWords) {
      const PixelPairs pairs = pair_pixels(pixel, mask);
      store(to, pairs.part[0]);
      store(second, pairs.part[1]);
    } else {
      const auto words = [&](int member) {
        const auto some = static_cast<__mmask16>(mask);
        return words_of(reinterpret_cast<Halves>(_mm256_maskz_loadu_epi16(some, pixel[member])));
      };
      store(to, words(0) | words(1) << 16);
    }
  }
}

// The same of a vector of all lines.
inline void copy_lines(const AmxWeightPlan& a, const Box& b, const Places& at, int64_t vector, const Brain16* x,
                       LineLoad* loads, uint32_t* to) {
  alignas(64) Brain16 lines[kAmxNumbers * kAmxNumbers];
  const Brain16* pixels[kAmxNumbers];
  for (int64_t i = 0; i < kAmxNumbers; ++i) pixels[i] = lines + i * kAmxNumbers;
  const int64_t numbers = least(kAmxNumbers, a.lines.depth - vector * kAmxNumbers);
  for (int64_t step = 0; step < at.steps; ++step, to += kRegister) {
    const int64_t begin = step * kAmxNumbers, end = least(begin + kAmxNumbers, at.total);
    fill_lines(a.gather, a.lines, b, {begin, end, vector, vector + 1, kAmxNumbers}, x, loads, lines);
    for (int64_t i = end - begin; i < kAmxNumbers; ++i) pixels[i] = kNoNumbers;
    copy_pixels(pixels, 1, numbers, to, to + at.steps * kRegister);
  }
}

// The panels of all tasks: [box][group][16 columns][pair][column].
inline int64_t column_parts(const AmxWeightPlan& a) {
  return block_count(a.gather.rows, 16);
}
inline int64_t panel_words(const AmxWeightPlan& a, int64_t steps) {
  return (a.pixels ? steps | 1 : steps) * kRegister;
}
inline int64_t panels_of_box(const AmxWeightPlan& a, int64_t box, int64_t g) {
  return (box * a.gather.groups + g) * column_parts(a) * panel_words(a, a.most_steps);
}

int64_t amx_weight_pack_tasks(const AmxWeightPlan& a) {
  const GatherPlan& p = a.gather;
  return p.boxes[0] * p.boxes[1] * p.boxes[2] * p.boxes[3] * p.groups * column_parts(a);
}

void amx_weight_pack(const AmxWeightPlan& a, const void* y, void* panels, int64_t begin, int64_t end) {
  const GatherPlan& p = a.gather;
  const int64_t columns = column_parts(a);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task % columns, g = task / columns % p.groups;
    const Box b = box_at(p, task / columns / p.groups);
    const Places at = places_of(a, b);
    const auto pack = a.pixels ? turn_pixels : pack_box;
    pack(p, b, at, g, part * 16, least<int64_t>(16, p.rows - part * 16), static_cast<const Brain16*>(y),
         static_cast<uint32_t*>(panels) + panels_of_box(a, b.index, g) + part * panel_words(a, at.steps));
  }
}

// Rows of x -----------------------------------------------------------------------------------------------------------

typedef __m512i Numbers;

// Outputs [begin, end) of a box that see an input by a tap, along each axis.
struct Sight {
  int64_t begin[3], end[3];
};

// A vector of a row's outputs: where it stands in the row; and in memory, from what the box's first output sees of the
// channel by no tap at all. mask[i] tells the numbers that are read of the i-th vector in memory; where steps are
// others than 1, 2 and 4, numbers are read one by one: the outputs [mask[0], mask[1]).
struct Piece {
  int32_t source, place;
  uint32_t mask[2];
};

// Of two vectors in memory at most.
inline int64_t piece_outputs(int64_t step) {
  return step == 4 ? kAmxNumbers / 2 : kAmxNumbers;
}

// True where they differ from those of the box before.
inline bool list_sights(const AmxWeightPlan& a, const Box& b, Sight* sights) {
  const GatherPlan& p = a.gather;
  bool other = false;
  for (int64_t t = 0; t < p.taps; ++t) {
    for (int i = 0; i < 3; ++i) {
      const int64_t at = b.first[i + 1] * p.stride[i] + a.shift[3 * t + i], outputs = b.size[i + 1];
      const int64_t begin = at >= 0 ? 0 : least(steps_up(-at, p.stride[i]), outputs);
      const int64_t past = at >= p.source[i] ? 0 : least(steps_up(p.source[i] - at, p.stride[i]), outputs);
      const int64_t end = most(begin, past);
      other = other || sights[t].begin[i] != begin || sights[t].end[i] != end;
      sights[t].begin[i] = begin;
      sights[t].end[i] = end;
    }
  }
  return other;
}

// Pieces of a row, as many for every tap. Those that follow overwrite what a whole vector writes past the end of a run,
// and the last one, of zeros, fills the last step.
inline int64_t piece_count(const Places& at, int64_t step) {
  const int64_t runs = at.size[0] * at.size[1] * at.size[2] * block_count(at.size[3], piece_outputs(step));
  return runs + (at.total < at.steps * kAmxNumbers ? 1 : 0);
}

inline void list_pieces(const AmxWeightPlan& a, const Places& at, const Sight* sights, Piece* piece) {
  const GatherPlan& p = a.gather;
  const int64_t step = p.stride[2], outputs = piece_outputs(step), count = block_count(at.size[3], outputs);
  const bool masked = step == 1 || step == 2 || step == 4;
  for (int64_t t = 0; t < p.taps; ++t) {
    const Sight& s = sights[t];
    const int64_t* shift = a.shift + 3 * t;
    const int64_t source = shift[0] * p.in_axis[0] + shift[1] * p.in_axis[1] + shift[2];
    Piece* run = piece;  // the first run's pieces are those of all, where they see an input
    for (int64_t i = 0; i < count; ++i) {
      const int64_t first = i * outputs, begin = most<int64_t>(0, s.begin[2] - first);
      const int64_t end = least(s.end[2] - first, outputs);
      run[i] = {static_cast<int32_t>(first * step), static_cast<int32_t>(first), {}};
      for (int64_t m = 0; m < 2 && begin < end; ++m) {
        run[i].mask[m] = masked ? lanes_between(begin * step - m * 32, (end - 1) * step + 1 - m * 32)
                                : static_cast<uint32_t>(m == 0 ? begin : end);
      }
    }
    // Backwards, so that the first run is the last one to be changed.
    piece += at.size[0] * at.size[1] * at.size[2] * count;
    Piece* to = piece;
    for (int64_t n = at.size[0] - 1; n >= 0; --n) {
      for (int64_t z = at.size[1] - 1; z >= 0; --z) {
        for (int64_t y = at.size[2] - 1; y >= 0; --y) {
          const bool sees = z >= s.begin[0] && z < s.end[0] && y >= s.begin[1] && y < s.end[1];
          const int64_t from =
              source + n * p.in_batch + z * p.stride[0] * p.in_axis[0] + y * p.stride[1] * p.in_axis[1];
          const int64_t place = n * at.image + z * at.plane + y * at.row;
          for (int64_t i = count - 1; i >= 0; --i) {
            const Piece one = run[i];
            const bool seen = sees && (one.mask[0] | one.mask[1]) != 0;
            *--to = {seen ? static_cast<int32_t>(from + one.source) : 0,
                     static_cast<int32_t>(place + one.place),
                     {seen ? one.mask[0] : 0, seen ? one.mask[1] : 0}};
          }
        }
      }
    }
    if (at.total < at.steps * kAmxNumbers) *piece++ = {0, static_cast<int32_t>(at.total), {}};
  }
}

template <int kStep>
inline Numbers load_outputs(uintptr_t from, const uint32_t* masks) {
  const auto part = [&](int i) { return load_numbers(masks[i], from + bytes_of(kAmxNumbers * i)); };
  if constexpr (kStep == 1) return part(0);
  typedef uint16_t Index __attribute__((vector_size(64)));
  Index index;
  for (int i = 0; i < 32; ++i) index[i] = static_cast<uint16_t>(i * kStep % 64);
  const uint32_t all = lanes_between(0, 64 / kStep);
  return _mm512_maskz_permutex2var_epi16(all, part(0), reinterpret_cast<Numbers>(index), part(1));
}

// What a tap of a channel shows the box; kStep is 0 where numbers are read one by one.
template <int kStep>
inline void copy_pieces(const Piece* pieces, int64_t count, int64_t step, uintptr_t channel, Brain16* to) {
  for (const Piece* piece = pieces; piece < pieces + count; ++piece) {
    const uintptr_t from = channel + bytes_of(piece->source);
    Brain16* outputs = to + piece->place;
    if constexpr (kStep > 0) {
      _mm512_storeu_si512(outputs, load_outputs<kStep>(from, piece->mask));
    } else {
      _mm512_storeu_si512(outputs, Numbers{});
      for (int64_t i = piece->mask[0]; i < piece->mask[1]; ++i) {
        outputs[i] = *reinterpret_cast<const Brain16*>(from + bytes_of(i * step));
      }
    }
  }
}

// Rows of a block; `x` is what the box's first output sees by no tap.
template <int kStep>
void copy_block(const AmxWeightPlan& a, const Places& at, const Piece* pieces, uintptr_t x, int64_t first, int64_t rows,
                Brain16* to) {
  const GatherPlan& p = a.gather;
  const int64_t count = piece_count(at, p.stride[2]), pitch = row_pitch(at.steps);
  int64_t t = first % p.taps;
  uintptr_t channel = x + bytes_of(first / p.taps * p.in_channel);
  for (int64_t r = 0; r < rows; ++r, to += pitch) {
    copy_pieces<kStep>(pieces + t * count, count, p.stride[2], channel, to);
    if (++t == p.taps) {
      t = 0;
      channel += bytes_of(p.in_channel);
    }
  }
}

inline auto copy_block_for(int64_t step) {
  return step == 1 ? copy_block<1> : step == 2 ? copy_block<2> : step == 4 ? copy_block<4> : copy_block<0>;
}

// Multiplying ---------------------------------------------------------------------------------------------------------

// The rows of x, on the left or, of pixels, on the right, stay in the first cache; y passes.
template <bool kPixels, int kHigh, int kWide>
void amx_weight_multiply(const Brain16* a, const uint32_t* b, int64_t steps, bool add, float* sums) {
  constexpr int64_t kPair = 16 * sizeof(uint32_t);
  const int64_t pitch = row_pitch(steps), bytes = pitch * static_cast<int64_t>(sizeof(Brain16));
  const Brain16* low = a + 16 * pitch;
  const uint32_t* right = b + steps * kRegister;
  begin_block<kHigh, kWide>(sums, add);
  for (int64_t s = 0; s < steps; ++s) {
    const Brain16 *left = a + s * kAmxNumbers, *left_low = low + s * kAmxNumbers;
    const uint32_t *top = b + s * kRegister, *top_right = right + s * kRegister;
    if constexpr (kPixels) {
      CONVARITH_AMX_LOAD_PASSING(4, left, bytes);
      CONVARITH_AMX_LOAD(6, top, kPair);
      if constexpr (kHigh == 2) CONVARITH_AMX_LOAD_PASSING(5, left_low, bytes);
      if constexpr (kWide == 2) CONVARITH_AMX_LOAD(7, top_right, kPair);
    } else {
      CONVARITH_AMX_LOAD(4, left, bytes);
      CONVARITH_AMX_LOAD_PASSING(6, top, kPair);
      if constexpr (kHigh == 2) CONVARITH_AMX_LOAD(5, left_low, bytes);
      if constexpr (kWide == 2) CONVARITH_AMX_LOAD_PASSING(7, top_right, kPair);
    }
    multiply_step<kHigh, kWide>();
  }
  end_block<kHigh, kWide>(sums);
}

// Of so many on the left and on the right.
template <bool kPixels>
void amx_weight_multiply(int64_t high, int64_t wide, const Brain16* a, const uint32_t* b, int64_t steps, bool add,
                         float* sums) {
  const auto multiply_block = high > kRegisterRows    ? wide > kRegisterWords ? amx_weight_multiply<kPixels, 2, 2>
                                                                              : amx_weight_multiply<kPixels, 2, 1>
                              : wide > kRegisterWords ? amx_weight_multiply<kPixels, 1, 2>
                                                      : amx_weight_multiply<kPixels, 1, 1>;
  multiply_block(a, b, steps, add, sums);
}

// Storing -------------------------------------------------------------------------------------------------------------

// Numbers of x that are a block's rows, and where their weights stand.
struct RowsOfX {
  int64_t tap, first, count;  // of pixels: channels of the tap; otherwise (channel, tap), or numbers of a line
};
inline RowsOfX rows_of_x(const AmxWeightPlan& a, int64_t block) {
  const GatherPlan& p = a.gather;
  const bool by_taps = a.pixels && a.lines.parts == 0;
  const int64_t blocks = by_taps ? a.row_blocks / p.taps : a.row_blocks;
  const int64_t rows = by_taps ? p.channels : a.pixels ? a.lines.depth : p.channels * p.taps;
  const int64_t first = block % blocks * kAmxRows;
  return {block / blocks, first, least(kAmxRows, rows - first)};
}
inline int64_t weight_of(const AmxWeightPlan& a, const RowsOfX& b, int64_t row) {
  const GatherPlan& p = a.gather;
  row += b.first;
  if (a.lines.parts > 0) return a.lines.weight[row];
  if (a.pixels) return p.tap_weight[b.tap] + row * p.w_channel;
  return row / p.taps * p.w_channel + p.tap_weight[row % p.taps];
}

// Two vectors of a block's columns, rounded: in their order.
inline __m512i round_columns(const float* sums, bool in_turn) {
  const __m512i rounded = round_sums(load(sums), load(sums + kRegisterWords));
  if (!in_turn) return rounded;
  typedef uint16_t Index __attribute__((vector_size(64)));
  Index order;
  for (int part = 0; part < 2; ++part) {
    for (int i = 0; i < 16; ++i) order[number_of(part, i)] = static_cast<uint16_t>(16 * part + i);
  }
  return _mm512_permutexvar_epi16(reinterpret_cast<__m512i>(order), rounded);
}

// A block of sums, [left][right], rounded to where w has them: 32 of those that follow each other there, if any do,
// together.
inline void store_sums(const AmxWeightPlan& a, int64_t g, int64_t row_block, int64_t column_block, const float* sums,
                       Brain16* w) {
  const GatherPlan& p = a.gather;
  const RowsOfX b = rows_of_x(a, row_block);
  const int64_t column = column_block * kAmxColumns, columns = least(kAmxColumns, p.rows - column);
  const int64_t high = a.pixels ? columns : b.count, wide = a.pixels ? b.count : columns;
  const bool in_turn = a.pixels && wide > kRegisterWords;
  w += g * p.w_group + column * p.w_row;
  const auto left = [&](int64_t i) { return a.pixels ? i * p.w_row : weight_of(a, b, i); };
  const auto right = [&](int64_t i) { return a.pixels ? weight_of(a, b, i) : i * p.w_row; };
  if (a.pixels ? a.dense : p.w_row == 1) {
    const uint32_t mask = lanes_between(0, wide);
    for (int64_t i = 0; i < high; ++i, sums += kAmxColumns) {
      _mm512_mask_storeu_epi16(w + left(i) + right(0), mask, round_columns(sums, in_turn));
    }
  } else if (a.pixels ? p.w_row == 1 : a.dense) {
    const uint32_t mask = lanes_between(0, high);
    for (int part = 0; part < block_count(wide, kRegisterWords); ++part) {
      Floats first[16], second[16];
      CONVARITH_UNROLL for (int i = 0; i < 16; ++i) {
        first[i] = load(sums + i * kAmxColumns + 16 * part);
        second[i] = load(sums + (16 + i) * kAmxColumns + 16 * part);
      }
      transpose_vectors<float>(first);
      transpose_vectors<float>(second);
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t at = in_turn ? number_of(part, i) : 16 * part + i;
        if (at >= wide) continue;
        Brain16* to = w + left(0) + right(at);
        prefetch_line<1>(to + kAmxRows);  // of the next block of rows
        _mm512_mask_storeu_epi16(to, mask, round_sums(first[i], second[i]));
      }
    }
  } else {
    for (int64_t i = 0; i < high; ++i, sums += kAmxColumns) {
      for (int64_t j = 0; j < wide; ++j) {
        const int64_t at = in_turn ? j / 8 * 4 + j % 4 + j / 4 % 2 * 16 : j;
        narrow(sums[at], w[left(i) + right(j)]);
      }
    }
  }
}

// [share][group][block of columns][block of rows].
inline int64_t shared_sums(const AmxWeightPlan& a, int64_t share, int64_t g, int64_t row_block, int64_t column_block) {
  const int64_t rows = a.row_blocks, columns = amx_weight_columns(a);
  return (((share * a.gather.groups + g) * columns + column_block) * rows + row_block) * kBlockSums;
}

int64_t amx_weight_store_tasks(const AmxWeightPlan& a) {
  return a.gather.groups * amx_weight_columns(a) * a.row_blocks;
}

void amx_weight_store(const AmxWeightPlan& a, float* shares, void* w, int64_t begin, int64_t end) {
  const int64_t rows = a.row_blocks, columns = amx_weight_columns(a), step = shared_sums(a, 1, 0, 0, 0);
  for (int64_t task = begin; task < end; ++task) {
    float* sums = shares + task * kBlockSums;
    for (int64_t i = 0; i < kBlockSums; i += 16) {
      Floats sum = load(sums + i);
      for (int64_t share = 1; share < a.box_tasks; ++share) sum += load(sums + share * step + i);
      store(sums + i, sum);
    }
    store_sums(a, task / rows / columns, task % rows, task / rows % columns, sums, static_cast<Brain16*>(w));
  }
}

// A task is a group's share of the blocks of rows and of columns, and of the boxes.
void amx_weight_sum(const AmxWeightPlan& a, const void* x, const void* y, const void* panels, float* shares, void* w,
                    char* scratch, int64_t begin, int64_t end) {
  const AmxRegisters registers;
  const GatherPlan& p = a.gather;
  uint32_t* own = reinterpret_cast<uint32_t*>(scratch + a.at_panels);
  Brain16* x_rows = reinterpret_cast<Brain16*>(scratch + a.at_rows);
  uint32_t* x_pairs = reinterpret_cast<uint32_t*>(scratch + a.at_rows);
  LineLoad* loads = reinterpret_cast<LineLoad*>(scratch + a.at_loads);
  const Brain16* pixels[kAmxOutputs];
  const Pixels inputs = {p.in_batch,
                         {p.stride[0] * p.in_axis[0], p.stride[1] * p.in_axis[1], p.stride[2] * p.in_axis[2]},
                         {p.in_axis[0], p.in_axis[1], p.in_axis[2]},
                         {p.source[0], p.source[1], p.source[2]},
                         {p.stride[0], p.stride[1], p.stride[2]}};
  Piece* pieces = reinterpret_cast<Piece*>(scratch + a.at_pieces);
  Sight* sights = reinterpret_cast<Sight*>(scratch + a.at_sights);
  const auto copy = copy_block_for(p.stride[2]);
  const int64_t all_rows = a.row_blocks, all_columns = amx_weight_columns(a);
  const int64_t boxes = p.boxes[0] * p.boxes[1] * p.boxes[2] * p.boxes[3];
  Places at = {};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t share = task % a.box_tasks, part = task / a.box_tasks;
    const int64_t column_task = part % a.column_tasks, row_task = part / a.column_tasks % a.row_tasks;
    const int64_t g = part / a.column_tasks / a.row_tasks;
    const int64_t row_begin = block_begin(row_task, all_rows, a.row_tasks);
    const int64_t row_end = block_begin(row_task + 1, all_rows, a.row_tasks);
    const int64_t column_begin = block_begin(column_task, all_columns, a.column_tasks);
    const int64_t column_end = block_begin(column_task + 1, all_columns, a.column_tasks);
    const int64_t first_column = column_begin * kAmxColumns;
    const auto sums_of = [&](int64_t row, int64_t column) {
      if (a.box_tasks > 1) return shares + shared_sums(a, share, g, row, column);
      return reinterpret_cast<float*>(scratch + a.at_sums) +
             ((column - column_begin) * (row_end - row_begin) + row - row_begin) * kBlockSums;
    };
    const int64_t first_box = block_begin(share, boxes, a.box_tasks);
    for (int64_t box = first_box; box < block_begin(share + 1, boxes, a.box_tasks); ++box) {
      const Box b = box_at(p, box);
      const bool alike = __builtin_memcmp(b.size, at.size, sizeof(b.size)) == 0;
      at = places_of(a, b);
      if (!a.pixels && (list_sights(a, b, sights) || !alike)) list_pieces(a, at, sights, pieces);
      const Brain16* of_group = static_cast<const Brain16*>(x) + g * p.in_group;
      const int64_t corner = g * p.in_group + b.first[0] * p.in_batch + b.first[1] * p.stride[0] * p.in_axis[0] +
                             b.first[2] * p.stride[1] * p.in_axis[1] + b.first[3] * p.stride[2];
      const uint32_t* packed = own;
      if (a.own_panels) {
        const int64_t columns = least(column_end * kAmxColumns, p.rows) - first_column;
        (a.pixels ? turn_pixels : pack_box)(p, b, at, g, first_column, columns, static_cast<const Brain16*>(y), own);
      } else {
        packed = static_cast<const uint32_t*>(panels) + panels_of_box(a, box, g) +
                 first_column / 16 * panel_words(a, at.steps);
      }
      for (int64_t row = row_begin; row < row_end; ++row) {
        const RowsOfX rows = rows_of_x(a, row);
        if (!a.pixels) {
          copy(a, at, pieces, reinterpret_cast<uintptr_t>(x) + bytes_of(corner), rows.first, rows.count, x_rows);
        } else if (a.lines.parts > 0) {
          copy_lines(a, b, at, row, of_group, loads, x_pairs);
        } else {
          find_pixels(inputs, b, a.shift + 3 * rows.tap, of_group + rows.first, at, pixels);
          copy_pixels(pixels, at.steps, rows.count, x_pairs, x_pairs + at.steps * kRegister);
        }
        for (int64_t column = column_begin; column < column_end; ++column) {
          const int64_t columns = p.rows - column * kAmxColumns;
          const uint32_t* of_y = packed + (column - column_begin) * 2 * panel_words(a, at.steps);
          if (a.pixels) {
            amx_weight_multiply<true>(columns, rows.count, reinterpret_cast<const Brain16*>(of_y), x_pairs, at.steps,
                                      box > first_box, sums_of(row, column));
          } else {
            amx_weight_multiply<false>(rows.count, columns, x_rows, of_y, at.steps, box > first_box,
                                       sums_of(row, column));
          }
        }
      }
    }
    if (a.box_tasks > 1) continue;
    for (int64_t column = column_begin; column < column_end; ++column) {
      for (int64_t row = row_begin; row < row_end; ++row) {
        store_sums(a, g, row, column, sums_of(row, column), static_cast<Brain16*>(w));
      }
    }
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
