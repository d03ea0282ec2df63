// Products by AMX: blocks of 32 rows by 32 cells, which the processor sums in its own tiles of registers, 16 pairs of
// bfloat16 at a step. "Tile" without more is the gather's, as everywhere; the processor's are called registers here.
// A register of the left factor is 16 lines of 16 pairs, one of the right factor 16 pairs' lines of 16 columns. What
// bounds a step is loading four registers: their lines should be lines of the cache. Cells of a tile are, with 16 pairs
// of channels together, and lines, so they are on the left and rows of weights on the right; of panels it is the other
// way round.
#pragma once

#include "conv_amx_lines.h"
#include "conv_gather.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

constexpr int64_t kStepWords = kAmxRows * kAmxPairs;  // of packed weights

inline int64_t amx_row_blocks(const GatherPlan& p) {
  return block_count(p.rows, kAmxRows);
}

// to[i * to_pitch + r] = from[r * from_pitch + i], in whole vectors.
inline void transpose_words(const uint32_t* from, int64_t from_pitch, int64_t rows, int64_t count, uint32_t* to,
                            int64_t to_pitch) {
  for (int64_t row = 0; row < rows; row += 16, from += 16 * from_pitch, to += 16) {
    for (int64_t i = 0; i < count; i += 16) {
      Words v[16];
      CONVARITH_UNROLL for (int r = 0; r < 16; ++r) v[r] = load(from + i + r * from_pitch);
      transpose_vectors<uint32_t>(v);
      CONVARITH_UNROLL for (int c = 0; c < 16; ++c) store(to + (i + c) * to_pitch, v[c]);
    }
  }
}

// Packed weights: [group][row block][step][register][pair][row], of panels [row][pair]; those that nothing stands for
// are zeros.
inline int64_t amx_weights(const AmxPlan& a, int64_t group, int64_t block) {
  return a.gather.packed + (group * amx_row_blocks(a.gather) + block) * a.steps * kStepWords;
}

// Packing the weights
// --------------------------------------------------------------------------------------------------

// The pairs of 16 channels from `channel` on, whose weights of a row stand at w: to[tap][pair] of plan i begins at
// to[i].
template <typename T>
void pack_row_channels(const AmxPlan* plans, int64_t count, const T* w, int64_t channel, uint32_t* const* to) {
  const GatherPlan& any = plans[0].gather;
  const int64_t some = least<int64_t>(kAmxPairs, any.channels - channel), kernel = plans[0].kernel;
  const bool alone = any.pair_alone && channel + some == any.channels;
  const int64_t whole = some - (alone ? 1 : 0), step = plans[0].w_pair;
  const auto weights = FactorOf<T>::at(w, w + plans[0].w_second);
  constexpr int64_t kTaps = 16;
  uint32_t taps[kTaps * kAmxPairs];
  for (int64_t first = 0; plans[0].w_second != 1 && first < kernel; first += kTaps) {  // taps follow each other
    transpose(weights + first, step, whole, least(kTaps, kernel - first), taps, kAmxPairs);
    for (int64_t i = 0; i < count; ++i) {
      const GatherPlan& p = plans[i].gather;
      for (int64_t t = 0; t < p.taps; ++t) {
        const int64_t tap = p.tap_weight[t] - first;
        if (tap >= 0 && tap < kTaps) store_some(to[i] + t * kStepWords, load(taps + tap * kAmxPairs), whole);
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const GatherPlan& p = plans[i].gather;
    for (int64_t t = 0; t < p.taps; ++t) {
      uint32_t* pairs = to[i] + t * kStepWords;
      if (plans[0].w_second == 1) {  // numbers follow each other as they do in pairs
        const uint32_t mask = lanes_between(0, 2 * some - (alone ? 1 : 0));
        _mm512_storeu_si512(pairs, load_numbers(mask, reinterpret_cast<uintptr_t>(w + p.tap_weight[t])));
        continue;
      }
      if (kernel == 0) copy_run(weights + p.tap_weight[t], step, whole, pairs);
      if (alone) pairs[whole] = widen(FactorOf<T>::at(w + whole * step + p.tap_weight[t], nullptr)[0]);
    }
  }
}

// Rows that follow each other in memory, of a tap and 16 channels from `channel` on: to[row][pair].
template <typename T>
void pack_rows(const AmxPlan& a, const T* w, int64_t rows, int64_t channel, uint32_t* to) {
  const GatherPlan& p = a.gather;
  const int64_t some = least<int64_t>(kAmxPairs, p.channels - channel);
  const int64_t whole = some - (p.pair_alone && channel + some == p.channels ? 1 : 0);
  transpose(FactorOf<T>::at(w, w + a.w_second), a.w_pair, whole, rows, to, kAmxPairs);
  if (whole < some) {
    for (int64_t r = 0; r < rows; ++r) {
      to[r * kAmxPairs + whole] = widen(FactorOf<T>::at(w + whole * a.w_pair + r, nullptr)[0]);
    }
  }
}

// A row's weights in the order of panels: pairs of (channel, tap).
template <typename T>
void pack_row_depth(const GatherPlan& p, const T* w, uint32_t* to) {
  const int64_t whole = p.channels - (p.pair_alone ? 1 : 0);
  int64_t at = 0;
  for (int64_t c = 0; c < p.channels; ++c) {
    const T* first = w + c * p.w_channel;
    const auto weights = FactorOf<T>::at(first, c < whole ? first + p.pair_apart * p.w_channel : nullptr);
    for (int64_t t = 0; t < p.taps; ++t, ++at) {
      to[at / kAmxPairs * kStepWords + at % kAmxPairs] = widen(weights[p.tap_weight[t]]);
    }
  }
}

// A row's weights in the order of lines.
inline void pack_row_line(const AmxLines& l, const Brain16* w, uint32_t* to) {
  for (int64_t first = 0; first < l.depth; first += kAmxNumbers, to += kStepWords) {
    const int64_t some = least(kAmxNumbers, l.depth - first);
    if (l.straight) {
      const __m512i numbers = load_numbers(lanes_between(0, some), reinterpret_cast<uintptr_t>(w + first));
      _mm512_storeu_si512(to, numbers);
    } else {
      Brain16 numbers[kAmxNumbers] = {};
      for (int64_t i = 0; i < some; ++i) numbers[i] = w[l.weight[first + i]];
      __builtin_memcpy(to, numbers, sizeof(numbers));
    }
  }
}

// From [row][pair] to [pair][row], of each register.
inline void pairs_first(uint32_t* step) {
  for (int64_t first = 0; first < kStepWords; first += kRegister, step += kRegister) {
    uint32_t rows[kRegister];
    __builtin_memcpy(rows, step, sizeof(rows));
    transpose_words(rows, kAmxPairs, kRegisterRows, kAmxPairs, step, kRegisterWords);
  }
}

inline int64_t amx_pack_tasks(const AmxPlan& a) {
  return a.gather.groups * amx_row_blocks(a.gather);
}

template <typename T>
void amx_pack(const AmxPlan* plans, int64_t count, const void* from, void* to, int64_t begin, int64_t end) {
  const GatherPlan& any = plans[0].gather;
  const int64_t blocks = amx_row_blocks(any);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t g = task / blocks, block = task % blocks, first = block * kAmxRows;
    const int64_t rows = least(kAmxRows, any.rows - first);
    const T* w = static_cast<const T*>(from) + g * any.w_group + first * any.w_row;
    uint32_t* packed[kAmxPhases];
    for (int64_t i = 0; i < count; ++i) {
      const AmxPlan& a = plans[i];
      packed[i] = static_cast<uint32_t*>(to) + amx_weights(a, g, block);
      if (rows < kAmxRows || a.gather.channels * a.gather.taps < a.steps * kAmxPairs) {
        fill_zero(packed[i], a.steps * kStepWords);
      }
      if (a.inputs == AmxInputs::kCells) continue;
      const bool lines = a.inputs == AmxInputs::kLines;
      for (int64_t r = 0; r < rows; ++r) {
        const T* row = w + r * any.w_row;
        uint32_t* pairs = packed[i] + r * kAmxPairs;
        lines ? pack_row_line(a.lines, row, pairs) : pack_row_depth(a.gather, row, pairs);
      }
      for (int64_t s = 0; lines && s < a.steps; ++s) pairs_first(packed[i] + s * kStepWords);
    }
    if (plans[0].inputs != AmxInputs::kCells) continue;
    for (int64_t c = 0; c < any.channels; c += kAmxPairs) {
      const T* channels = w + c * plans[0].w_pair;
      if (any.w_row == 1 && any.w_channel != 1) {
        for (int64_t i = 0; i < count; ++i) {
          const GatherPlan& p = plans[i].gather;
          for (int64_t t = 0; t < p.taps; ++t) {
            pack_rows(plans[i], channels + p.tap_weight[t], rows, c, packed[i] + t * kStepWords);
          }
        }
      } else {
        for (int64_t r = 0; r < rows; ++r) {
          uint32_t* row[kAmxPhases];
          for (int64_t i = 0; i < count; ++i) row[i] = packed[i] + r * kAmxPairs;
          pack_row_channels(plans, count, channels + r * any.w_row, c, row);
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t t = 0; t < plans[i].gather.taps; ++t, packed[i] += kStepWords) pairs_first(packed[i]);
      }
    }
  }
}

// Multiplying --------------------------------------------------------------------------------------------------------

// A factor of a block: where its first step stands, and bytes from line to line and to the second register.
struct Factors {
  const uint32_t* first;
  int64_t line, second;
};

// sums[left][right] = sum over `steps`, of which step s of one factor, the left one if `left_steps`, stands step[s]
// further than its first, and those of the other one after the other. With one or two registers of each.
template <int kHigh, int kWide>
void amx_multiply(int64_t steps, const int32_t* step, bool left_steps, const Factors& left, const Factors& right,
                  float* sums) {
  const auto at = [](const uint32_t* p, int64_t bytes) { return reinterpret_cast<const char*>(p) + bytes; };
  begin_block<kHigh, kWide>(sums, /*add=*/false);
  for (int64_t s = 0; s < steps; ++s) {
    const uint32_t* a = left.first + (left_steps ? step[s] : s * kStepWords);
    const uint32_t* b = right.first + (left_steps ? s * kStepWords : step[s]);
    CONVARITH_AMX_LOAD(4, a, left.line);
    CONVARITH_AMX_LOAD(6, b, right.line);
    if constexpr (kHigh == 2) CONVARITH_AMX_LOAD(5, at(a, left.second), left.line);
    if constexpr (kWide == 2) CONVARITH_AMX_LOAD(7, at(b, right.second), right.line);
    multiply_step<kHigh, kWide>();
  }
  end_block<kHigh, kWide>(sums);
}

// Of a block of rows and cells: sums[row][cell] of panels, otherwise sums[cell][row].
inline void amx_multiply(const AmxPlan& a, int64_t rows, int64_t cells, const uint32_t* w, const uint32_t* x,
                         int64_t x_pitch, float* sums) {
  constexpr int64_t kLine = kRegisterWords * sizeof(uint32_t);
  const int64_t pitch = x_pitch * static_cast<int64_t>(sizeof(uint32_t));
  const Factors weights = {w, kLine, kRegisterRows * kLine};
  const bool panels = a.inputs == AmxInputs::kPanels;
  const Factors inputs = panels ? Factors{x, pitch, kLine} : Factors{x, pitch, kRegisterRows * pitch};
  const bool high = (panels ? rows : cells) > kRegisterRows, wide = (panels ? cells : rows) > kRegisterWords;
  const auto multiply_block = high   ? wide ? amx_multiply<2, 2> : amx_multiply<2, 1>
                              : wide ? amx_multiply<1, 2>
                                     : amx_multiply<1, 1>;
  multiply_block(a.steps, a.step, !panels, panels ? weights : inputs, panels ? inputs : weights, sums);
}

// A row of cells, of which [begin, end) are pixels, `step` apart, and the others zeros.
inline void copy_pixel_row(const Brain16* from, int64_t step, int64_t begin, int64_t end, int64_t cells,
                           int64_t numbers, int64_t cell, Brain16* to) {
  const auto copy = [](const Brain16* some, int64_t count, int64_t room, Brain16* vectors) {
    for (int64_t i = 0; i < room; i += kAmxNumbers) {
      const uint32_t mask = lanes_between(0, count - i);
      const __m512i v = mask == 0 ? __m512i{} : load_numbers(mask, reinterpret_cast<uintptr_t>(some + i));
      _mm512_storeu_si512(vectors + i, v);
    }
  };
  fill_zero(reinterpret_cast<uint32_t*>(to), begin * cell / 2);
  fill_zero(reinterpret_cast<uint32_t*>(to + end * cell), (cells - end) * cell / 2);
  to += begin * cell;
  if (step == cell && numbers == cell) return copy(from, (end - begin) * cell, (end - begin) * cell, to);
  for (int64_t x = begin; x < end; ++x, from += step, to += cell) copy(from, numbers, cell, to);
}

// The tile of a box in channels_last, whose pairs are neighbours as they stand.
inline void fill_pixels(const AmxPlan& a, const Box& b, const Brain16* in, Brain16* tile) {
  const GatherPlan& p = a.gather;
  const int64_t numbers = 2 * p.channels - (p.pair_alone ? 1 : 0), cell = 2 * p.tile_cell;
  for (int64_t r = 0; r < p.residues; ++r) {
    int64_t cells[3], first[3], begin[3], end[3];  // first: input of cell 0
    for (int i = 0; i < 3; ++i) {
      const int64_t at = b.first[i + 1] * p.move[i] + p.low[i], step = p.stride[i] / p.move[i];
      cells[i] = p.cells[i] - (p.box[i + 1] - b.size[i + 1]) * p.move[i];
      first[i] = at * step + p.residue[3 * r + i];
      inside(at, step, p.residue[3 * r + i], p.source[i], cells[i], &begin[i], &end[i]);
    }
    const int64_t step[3] = {p.stride[0] / p.move[0], p.stride[1] / p.move[1], p.stride[2] / p.move[2]};
    for (int64_t n = 0; n < b.size[0]; ++n) {
      for (int64_t z = 0; z < cells[0]; ++z) {
        for (int64_t y = 0; y < cells[1]; ++y) {
          Brain16* row = tile + 2 * (r * p.tile_residue + n * p.tile_image + z * p.tile_plane + y * p.tile_row);
          const bool meets = z >= begin[0] && z < end[0] && y >= begin[1] && y < end[1] && begin[2] < end[2];
          if (!meets) {
            fill_zero(reinterpret_cast<uint32_t*>(row), cells[2] * p.tile_cell);
            continue;
          }
          const Brain16* from = in + (b.first[0] + n) * p.in_batch + (first[0] + z * step[0]) * p.in_axis[0] +
                                (first[1] + y * step[1]) * p.in_axis[1] +
                                (first[2] + begin[2] * step[2]) * p.in_axis[2];
          copy_pixel_row(from, step[2] * p.in_axis[2], begin[2], end[2], cells[2], numbers, cell, row);
        }
      }
    }
  }
}

// The tile of a box. Cells are of 16 pairs of channels together.
template <typename T>
void fill_inputs(const AmxPlan& a, const Box& b, const T* in, int64_t g, uint32_t* tile, uint32_t* rows) {
  const GatherPlan& p = a.gather;
  if (a.inputs == AmxInputs::kPanels) return pad_tile(p, b, in, g, 0, p.channels, tile);
  if (p.tile_cell > 1) return fill_pixels(a, b, in + g * p.in_group, reinterpret_cast<Brain16*>(tile));
  for (int64_t c = 0; c < p.channels; c += kAmxPairs, tile += kAmxPairs * p.tile_channel) {
    const int64_t some = least<int64_t>(kAmxPairs, p.channels - c);
    pad_tile(p, b, in, g, c, some, rows);
    fill_zero(rows + some * p.tile_channel, (kAmxPairs - some) * p.tile_channel);
    transpose_words(rows, p.tile_channel, kAmxPairs, p.tile_channel, tile, kAmxPairs);
  }
}

// The pairs of (channel, tap) that a block of columns sees, and zeros up to whole steps.
inline void copy_panel(const AmxPlan& a, const uint32_t* tile, uint32_t* panel) {
  const int64_t depth = a.gather.channels * a.gather.taps;
  for (int64_t d = 0; d < depth; ++d, panel += kAmxColumns) {
    const uint32_t* from = tile + a.gather.offset[d];
    store(panel, load(from));
    store(panel + kRegisterWords, load(from + kRegisterWords));
  }
  fill_zero(panel, (a.steps * kAmxPairs - depth) * kAmxColumns);
}

// Storing ------------------------------------------------------------------------------------------------------------

// The parts of the runs in blocks of columns: part i of a block begins at its column `column`. Block j has the parts
// [first[j], first[j + 1]).
inline void cut_runs(const Run* runs, int64_t count, int64_t blocks, int64_t step, Run* parts, int64_t* first) {
  int64_t run = 0, made = 0;
  for (int64_t j = 0; j < blocks; ++j) {
    const int64_t begin = j * kAmxColumns, end = begin + kAmxColumns;
    first[j] = made;
    while (run < count && runs[run].column < end) {
      const Run& r = runs[run];
      const int64_t from = most(begin, r.column), to = least(end, r.column + r.length);
      parts[made++] = {0, from - begin, to - from, r.out + (from - r.column) * step, false};
      if (r.column + r.length > end) break;
      ++run;
    }
  }
  first[blocks] = made;
}

// 32 sums and their biases, rounded.
inline __m512i brains(const float* sums, Floats low, Floats high) {
  return round_sums(load(sums) + low, load(sums + 16) + high);
}

// At most 32 of them; and all, as a line that is not read before.
inline void store_brains(const float* sums, int64_t count, Floats low, Floats high, Brain16* to) {
  _mm512_mask_storeu_epi16(to, static_cast<__mmask32>((uint64_t{1} << count) - 1), brains(sums, low, high));
}
inline void store_line(const float* sums, Floats low, Floats high, Brain16* to) {
  store_past_caches(reinterpret_cast<uint32_t*>(to), as<Words>(brains(sums, low, high)));
}

// Parts of a block's rows; `out` is where the first row begins.
inline void store_block(const GatherPlan& p, const Run* part, const Run* end, int64_t rows, const float* bias,
                        const float* sums, Brain16* out) {
  const bool plain = p.out_axis[2] == 1 && !p.fills;
  for (int64_t r = 0; r < rows; ++r, sums += kAmxColumns, out += p.out_channel) {
    if (plain) {
      const Floats added = bias[r] - Floats{};
      for (const Run* run = part; run < end; ++run) {
        store_brains(sums + run->column, run->length, added, added, out + run->out);
      }
    } else {
      float row[kAmxColumns];
      for (int64_t i = 0; i < kAmxColumns; i += 16) store(row + i, load(sums + i) + bias[r]);
      for (const Run* run = part; run < end; ++run) {
        store_row(p, row + run->column, run->length, bias[r], out + run->out);
      }
    }
  }
}

// The same of 16 rows of sums[cell][row], rounded before they are transposed: cells i and i + 16 are a word.
inline void store_transposed(const Run* part, const Run* end, int64_t rows, const float* bias, const float* sums,
                             int64_t pitch, Brain16* out) {
  typedef uint16_t Indices __attribute__((vector_size(64)));
  Indices pair, apart;  // of halves of words
  for (int i = 0; i < 32; ++i) {
    pair[i] = static_cast<uint16_t>(i / 2 + i % 2 * 16);
    apart[i] = static_cast<uint16_t>(i % 16 * 2 + i / 16);
  }
  const Floats added = load(bias);
  Words v[kRegisterRows];
  CONVARITH_UNROLL for (int i = 0; i < kRegisterRows; ++i) {
    const Floats low = load(sums + i * kAmxColumns) + added, high = load(sums + (i + 16) * kAmxColumns) + added;
    v[i] = as<Words>(_mm512_permutexvar_epi16(reinterpret_cast<__m512i>(pair), round_sums(low, high)));
  }
  transpose_vectors<uint32_t>(v);
  for (int64_t r = 0; r < rows; ++r, out += pitch) {
    const __m512i row = _mm512_permutexvar_epi16(reinterpret_cast<__m512i>(apart), as<__m512i>(v[r]));
    for (const Run* run = part; run < end; ++run) {
      const uint64_t mask = ((uint64_t{1} << run->length) - 1) << run->column;
      const uintptr_t to = reinterpret_cast<uintptr_t>(out + run->out) - static_cast<uintptr_t>(run->column) * 2;
      _mm512_mask_storeu_epi16(reinterpret_cast<void*>(to), static_cast<__mmask32>(mask), row);
    }
  }
}

// A block's sums[cell][row].
inline void store_cells(const GatherPlan& p, const Run* part, const Run* end, int64_t rows, const float* bias,
                        const float* sums, bool past_caches, Brain16* out) {
  if (p.out_channel == 1) {
    const Floats low = load(bias), high = load(bias + 16);
    for (const Run* run = part; run < end; ++run) {
      const float* from = sums + run->column * kAmxColumns;
      Brain16* to = out + run->out;
      for (int64_t i = 0; i < run->length; ++i, from += kAmxColumns, to += p.out_axis[2]) {
        past_caches ? store_line(from, low, high, to) : store_brains(from, rows, low, high, to);
      }
    }
  } else if (p.out_axis[2] == 1 && !p.fills) {
    for (int64_t r = 0; r < rows; r += kRegisterRows) {
      store_transposed(part, end, least(kRegisterRows, rows - r), bias + r, sums + r, p.out_channel,
                       out + r * p.out_channel);
    }
  } else {
    float turned[kAmxRows * kAmxColumns];
    transpose(sums, kAmxColumns, kAmxColumns, rows, turned, kAmxColumns);
    store_block(p, part, end, rows, bias, turned, out);
  }
}

// One box, one group, and the blocks of rows [begin, end).
template <typename T>
void amx_box(const AmxPlan& a, const Box& b, int64_t g, int64_t begin, int64_t end, const T* in, const uint32_t* packed,
             T* out, char* scratch, HeldTile& held) {
  const GatherPlan& p = a.gather;
  Run* runs = reinterpret_cast<Run*>(scratch + p.at_runs);
  const int64_t count = list_runs(p, b, runs);
  for (int64_t i = 0; i < count; ++i) runs[i].column /= p.tile_cell;  // cells
  const int64_t cells = runs[count - 1].column + runs[count - 1].length, blocks = block_count(cells, kAmxColumns);
  Run* parts = runs + count;
  int64_t* first_part = reinterpret_cast<int64_t*>(scratch + a.at_parts);
  cut_runs(runs, count, blocks, p.out_axis[2], parts, first_part);
  uint32_t* tile = reinterpret_cast<uint32_t*>(scratch + p.at_tile);
  uint32_t* panel = reinterpret_cast<uint32_t*>(scratch + a.at_panel);
  if (a.inputs != AmxInputs::kLines && !(p.one_tile && held.box == b.index && held.group == g)) {
    fill_inputs(a, b, in, g, tile, panel);
    held = {b.index, g};
  }
  float* sums = reinterpret_cast<float*>(scratch + p.at_sums);
  const bool panels = a.inputs == AmxInputs::kPanels, past_caches = goes_past_caches(p, out);
  const auto multiply_block = [&](int64_t block, int64_t j, const uint32_t* from, int64_t pitch) {
    const int64_t row = block * kAmxRows, rows = least(kAmxRows, p.rows - row);
    float bias[kAmxRows] = {};
    if (p.bias) widen_bias<T>(p, g, row, rows, bias);
    const uint32_t* weights = packed + amx_weights(a, g, block);
    amx_multiply(a, rows, cells - j * kAmxColumns, weights, from, pitch, sums);
    const Run *part = parts + first_part[j], *last = parts + first_part[j + 1];
    T* to = out + g * p.out_group + row * p.out_channel;
    panels ? store_block(p, part, last, rows, bias, sums, to)
           : store_cells(p, part, last, rows, bias, sums, past_caches, to);
  };
  if (a.inputs == AmxInputs::kCells) {
    for (int64_t block = begin; block < end; ++block) {
      for (int64_t j = 0; j < blocks; ++j) multiply_block(block, j, tile + j * kAmxColumns * a.pitch, a.pitch);
    }
    return;
  }
  const T* in_group = in + g * p.in_group;
  const bool in_place = a.in_place && reinterpret_cast<uintptr_t>(in_group) % 64 == 0;
  for (int64_t j = 0; j < blocks; ++j) {
    const int64_t cell = j * kAmxColumns, last = cell + kAmxColumns, length = b.size[3];
    const uint32_t* from = panel;
    int64_t pitch = a.pitch;
    if (panels) {
      copy_panel(a, tile + cell, panel);
    } else if (in_place && last <= cells && cell / length == (last - 1) / length) {  // of a row, and all there
      const int64_t step = p.stride[2] * p.in_axis[2];
      const int64_t source = line_row(p, b, cell / length).corner + cell % length * step + a.lines.part[0].source;
      from = reinterpret_cast<const uint32_t*>(in_group + source);
      pitch = step / 2;
    } else {
      fill_lines(p, a.lines, b, {cell, least(last, cells), 0, a.steps, 2 * a.pitch}, in_group,
                 reinterpret_cast<LineLoad*>(tile), reinterpret_cast<Brain16*>(panel));
    }
    for (int64_t block = begin; block < end; ++block) multiply_block(block, j, from, pitch);
  }
}

// Tasks of several plans in turn, of each in proportion.
template <typename T>
void amx_gather(const AmxPlan* plans, int64_t count, int64_t turns, const void* in, const void* packed, void* out,
                char* scratch, int64_t begin, int64_t end) {
  const AmxRegisters registers;
  HeldTile held;
  for (int64_t index = begin; index < end; ++index) {
    for (int64_t i = 0; i < count; ++i) {
      const AmxPlan& a = plans[i];
      const GatherPlan& p = a.gather;
      const int64_t boxes = p.boxes[0] * p.boxes[1] * p.boxes[2] * p.boxes[3];
      const int64_t tasks = boxes * p.groups * a.row_split, blocks = amx_row_blocks(p);
      for (int64_t t = block_begin(index, tasks, turns); t < block_begin(index + 1, tasks, turns); ++t) {
        const int64_t share = t % a.row_split, g = t / a.row_split % p.groups;
        const Box b = box_at(p, t / a.row_split / p.groups);
        if (p.taps == 0) {
          if (share == 0) {
            gather_nothing<T>(p, {b, g, 0, row_blocks<float>(p)}, static_cast<T*>(out), scratch);
          }
          continue;
        }
        amx_box(a, b, g, block_begin(share, blocks, a.row_split), block_begin(share + 1, blocks, a.row_split),
                static_cast<const T*>(in), static_cast<const uint32_t*>(packed), static_cast<T*>(out), scratch, held);
      }
    }
  }
  fence_past_caches();
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
