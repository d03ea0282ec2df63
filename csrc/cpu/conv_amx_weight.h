// The weight's gradient by AMX, in the blocks of conv_amx.h: rows are (channel, tap), columns are out channels, and
// what is summed over are the outputs of a box. Those stand side by side, whatever stands between them in memory: an
// input is multiplied by the outputs that see it, and by no zero beside them. What lies outside of the input is zero.
#pragma once

#include "conv_amx_block.h"
#include "conv_tile.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

constexpr int64_t kStepOutputs = 32, kColumnWords = 16 * 16;  // of a step; of 16 columns of a step
constexpr int64_t kBlockSums = kAmxRows * kAmxColumns;

inline int64_t amx_weight_rows(const AmxWeightPlan& a) {
  return block_count(a.gather.channels * a.gather.taps, kAmxRows);
}
inline int64_t amx_weight_columns(const AmxWeightPlan& a) {
  return block_count(a.gather.rows, kAmxColumns);
}

// Of a vector of 32 numbers.
inline uint32_t lanes_between(int64_t begin, int64_t end) {
  begin = most<int64_t>(0, least<int64_t>(begin, 32));
  end = most(begin, least<int64_t>(end, 32));
  return static_cast<uint32_t>((uint64_t{1} << end) - (uint64_t{1} << begin));
}

// Where a box's outputs stand in panels. Those that follow each other in y do so here, and each such run begins at a
// pair; the one after an odd number is a zero.
struct Places {
  int64_t size[4];
  int64_t row, plane, image;  // from one to the next
  int64_t run, runs[3];       // outputs that follow each other, and how many such runs
  int64_t total, steps;
};

inline Places places_of(const GatherPlan& p, const Box& b) {
  Places at;
  for (int i = 0; i < 4; ++i) at.size[i] = b.size[i];
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
  at.steps = block_count(at.total, kStepOutputs);
  return at;
}

// Packing y -----------------------------------------------------------------------------------------------------------

// At most 16 columns of a run of `count` outputs: to[pair][column].
inline void pack_run(const Brain16* y, int64_t pitch, int64_t columns, int64_t count, uint32_t* to) {
  for (int64_t i = 0; i < count; i += kStepOutputs, to += kColumnWords) {
    const int64_t some = least(kStepOutputs, count - i), pairs = (some + 1) / 2;
    const uint32_t mask = lanes_between(0, some);
    Words v[16];
    CONVARITH_UNROLL for (int c = 0; c < 16; ++c) {
      v[c] = c >= columns ? Words{} : as<Words>(_mm512_maskz_loadu_epi16(mask, y + c * pitch + i));
      if (c < columns) prefetch_ahead(y + c * pitch, i + 4 * kStepOutputs);
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
  for (int64_t m = 0; m < columns; m += 16, to += at.steps * kColumnWords) {
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
    fill_zero(to + at.total / 2 * 16, (at.steps * kStepOutputs - at.total) / 2 * 16);
  }
}

// The panels of all tasks: [box][group][16 columns][pair][column].
inline int64_t column_parts(const AmxWeightPlan& a) {
  return block_count(a.gather.rows, 16);
}
inline int64_t panels_of_box(const AmxWeightPlan& a, int64_t box, int64_t g) {
  return (box * a.gather.groups + g) * column_parts(a) * a.most_steps * kColumnWords;
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
    const Places at = places_of(p, b);
    pack_box(p, b, at, g, part * 16, least<int64_t>(16, p.rows - part * 16), static_cast<const Brain16*>(y),
             static_cast<uint32_t*>(panels) + panels_of_box(a, b.index, g) + part * at.steps * kColumnWords);
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
  return step == 4 ? kStepOutputs / 2 : kStepOutputs;
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
  return runs + (at.total < at.steps * kStepOutputs ? 1 : 0);
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
    if (at.total < at.steps * kStepOutputs) *piece++ = {0, static_cast<int32_t>(at.total), {}};
  }
}

// Addresses of outputs that see nothing may be off the tensor's ends, where nothing is read.
inline uintptr_t bytes_of(int64_t numbers) {
  return static_cast<uintptr_t>(numbers) * sizeof(Brain16);
}

template <int kStep>
inline Numbers load_outputs(uintptr_t from, const uint32_t* masks) {
  const auto part = [&](int i) {
    return _mm512_maskz_loadu_epi16(masks[i], reinterpret_cast<const void*>(from + bytes_of(kStepOutputs * i)));
  };
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

// From a row of x to the next: an odd number of lines, so that they do not share a set of the cache.
inline int64_t row_pitch(int64_t steps) {
  return (steps | 1) * kStepOutputs;
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

template <int kHigh, int kWide>
void amx_weight_multiply(const Brain16* a, const uint32_t* b, int64_t steps, bool add, float* sums) {
  constexpr int64_t kPair = 16 * sizeof(uint32_t);
  const int64_t pitch = row_pitch(steps), bytes = pitch * static_cast<int64_t>(sizeof(Brain16));
  const Brain16* low = a + 16 * pitch;
  const uint32_t* right = b + steps * kColumnWords;
  begin_block<kHigh, kWide>(sums, add);
  for (int64_t s = 0; s < steps; ++s) {
    CONVARITH_AMX_LOAD(4, a + s * kStepOutputs, bytes);
    CONVARITH_AMX_LOAD_PASSING(6, b + s * kColumnWords, kPair);
    if constexpr (kHigh == 2) CONVARITH_AMX_LOAD(5, low + s * kStepOutputs, bytes);
    if constexpr (kWide == 2) CONVARITH_AMX_LOAD_PASSING(7, right + s * kColumnWords, kPair);
    multiply_step<kHigh, kWide>();
  }
  end_block<kHigh, kWide>(sums);
}

inline void amx_weight_multiply(int64_t rows, int64_t columns, const Brain16* a, const uint32_t* b, int64_t steps,
                                bool add, float* sums) {
  if (rows > 16) {
    columns > 16 ? amx_weight_multiply<2, 2>(a, b, steps, add, sums)
                 : amx_weight_multiply<2, 1>(a, b, steps, add, sums);
  } else {
    columns > 16 ? amx_weight_multiply<1, 2>(a, b, steps, add, sums)
                 : amx_weight_multiply<1, 1>(a, b, steps, add, sums);
  }
}

// Storing -------------------------------------------------------------------------------------------------------------

// A block of sums, [row][column], rounded to where w has them.
inline void store_sums(const AmxWeightPlan& a, int64_t g, int64_t row_block, int64_t column_block, const float* sums,
                       Brain16* w) {
  const GatherPlan& p = a.gather;
  const int64_t first = row_block * kAmxRows, column = column_block * kAmxColumns;
  const int64_t rows = least(kAmxRows, p.channels * p.taps - first), columns = least(kAmxColumns, p.rows - column);
  w += g * p.w_group + column * p.w_row;
  if (a.dense) {
    const uint32_t mask = lanes_between(0, rows);
    for (int64_t m = 0; m < columns; m += 16) {
      Floats high[16], low[16];
      CONVARITH_UNROLL for (int r = 0; r < 16; ++r) {
        high[r] = load(sums + r * kAmxColumns + m);
        low[r] = load(sums + (16 + r) * kAmxColumns + m);
      }
      transpose_vectors<float>(high);
      transpose_vectors<float>(low);
      for (int64_t c = 0; c < least<int64_t>(16, columns - m); ++c) {
        Brain16* to = w + (m + c) * p.w_row + first;
        __builtin_prefetch(to + kAmxRows, 1);  // of the next block of rows
        _mm512_mask_storeu_epi16(to, mask, round_sums(high[c], low[c]));
      }
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r, sums += kAmxColumns) {
    const int64_t c = (first + r) / p.taps, t = (first + r) % p.taps;
    Brain16* to = w + c * p.w_channel + p.tap_weight[t];
    if (p.w_row == 1) {
      _mm512_mask_storeu_epi16(to, lanes_between(0, columns), round_sums(load(sums), load(sums + 16)));
    } else {
      for (int64_t m = 0; m < columns; ++m) narrow(sums[m], to[m * p.w_row]);
    }
  }
}

// [share][group][block of columns][block of rows].
inline int64_t shared_sums(const AmxWeightPlan& a, int64_t share, int64_t g, int64_t row_block, int64_t column_block) {
  const int64_t rows = amx_weight_rows(a), columns = amx_weight_columns(a);
  return (((share * a.gather.groups + g) * columns + column_block) * rows + row_block) * kBlockSums;
}

int64_t amx_weight_store_tasks(const AmxWeightPlan& a) {
  return a.gather.groups * amx_weight_columns(a) * amx_weight_rows(a);
}

void amx_weight_store(const AmxWeightPlan& a, float* shares, void* w, int64_t begin, int64_t end) {
  const int64_t rows = amx_weight_rows(a), columns = amx_weight_columns(a), step = shared_sums(a, 1, 0, 0, 0);
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
  Piece* pieces = reinterpret_cast<Piece*>(scratch + a.at_pieces);
  Sight* sights = reinterpret_cast<Sight*>(scratch + a.at_sights);
  const auto copy = copy_block_for(p.stride[2]);
  const int64_t all_rows = amx_weight_rows(a), all_columns = amx_weight_columns(a);
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
      at = places_of(p, b);
      if (list_sights(a, b, sights) || !alike) list_pieces(a, at, sights, pieces);
      const int64_t corner = g * p.in_group + b.first[0] * p.in_batch + b.first[1] * p.stride[0] * p.in_axis[0] +
                             b.first[2] * p.stride[1] * p.in_axis[1] + b.first[3] * p.stride[2];
      const uint32_t* packed = own;
      if (a.own_panels) {
        const int64_t columns = least(column_end * kAmxColumns, p.rows) - first_column;
        pack_box(p, b, at, g, first_column, columns, static_cast<const Brain16*>(y), own);
      } else {
        packed = static_cast<const uint32_t*>(panels) + panels_of_box(a, box, g) +
                 first_column / 16 * at.steps * kColumnWords;
      }
      for (int64_t row = row_begin; row < row_end; ++row) {
        const int64_t first = row * kAmxRows, rows = least(kAmxRows, p.channels * p.taps - first);
        copy(a, at, pieces, reinterpret_cast<uintptr_t>(x) + bytes_of(corner), first, rows, x_rows);
        for (int64_t column = column_begin; column < column_end; ++column) {
          amx_weight_multiply(rows, p.rows - column * kAmxColumns, x_rows,
                              packed + (column - column_begin) * 2 * at.steps * kColumnWords, at.steps, box > first_box,
                              sums_of(row, column));
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
