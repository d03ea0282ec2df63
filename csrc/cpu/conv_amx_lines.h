// Lines of a box's outputs: see AmxLines. Vectors are loaded from where their parts stand, each with the lanes that it
// has, so that every line is written once.
#pragma once

#include "conv_amx_block.h"
#include "conv_tile.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Of a vector of 32 numbers.
inline uint32_t lanes_between(int64_t begin, int64_t end) {
  begin = most<int64_t>(0, least<int64_t>(begin, 32));
  end = most(begin, least<int64_t>(end, 32));
  return static_cast<uint32_t>((uint64_t{1} << end) - (uint64_t{1} << begin));
}

// Addresses of what is not seen may be off the tensor's ends, where nothing is read.
inline uintptr_t bytes_of(int64_t numbers) {
  return static_cast<uintptr_t>(numbers) * sizeof(Brain16);
}
inline __m512i load_numbers(uint32_t mask, uintptr_t from) {
  return _mm512_maskz_loadu_epi16(mask, reinterpret_cast<const void*>(from));
}

// Outputs of a box, one after the other, and vectors of their lines; and from line to line.
struct LineBlock {
  int64_t begin, end, first_vector, last_vector, pitch;
};

// A line whose taps are all inside the input, or, by `lanes`, others.
template <typename Lanes>
inline void fill_line(const LineLoad* loads, int64_t count, uintptr_t from, const Lanes& lanes, Brain16* to) {
  __m512i numbers = {};
  for (int64_t i = 0; i < count; ++i) {
    numbers = lanes(numbers, i, from + bytes_of(loads[i].source));
    if (loads[i].last == 0) continue;
    _mm512_storeu_si512(to, numbers);
    to += kAmxNumbers;
    numbers = __m512i{};
  }
}

// A row of a box's outputs: what its first one sees by no tap, and where that stands from the group's input.
struct LineRow {
  int64_t z, y, corner;
};
inline LineRow line_row(const GatherPlan& p, const Box& b, int64_t row) {
  const int64_t plane = row / b.size[2], image = b.first[0] + plane / b.size[1];
  const int64_t z = (b.first[1] + plane % b.size[1]) * p.stride[0], y = (b.first[2] + row % b.size[2]) * p.stride[1];
  const int64_t x = b.first[3] * p.stride[2];
  return {z, y, image * p.in_batch + z * p.in_axis[0] + y * p.in_axis[1] + x * p.in_axis[2]};
}

// `in` is the group's; there is room for the loads of all parts.
inline void fill_lines(const GatherPlan& p, const AmxLines& l, const Box& b, const LineBlock& block, const Brain16* in,
                       LineLoad* loads, Brain16* to) {
  const LinePart* part = l.part + l.first[block.first_vector];
  const int64_t count = l.first[block.last_vector] - l.first[block.first_vector];
  const int64_t stride = p.stride[2], size = b.size[3], at_x = b.first[3] * stride;
  const uintptr_t step = bytes_of(stride * p.in_axis[2]);
  // Outputs that see nothing outside, of those along the last axis.
  const auto clipped = [&](int64_t inputs) { return inputs <= 0 ? 0 : least(steps_up(inputs, stride), size); };
  const int64_t whole_begin = clipped(-at_x - l.low), whole_end = clipped(p.source[2] - at_x - l.high);
  for (int64_t i = 0; i < count; ++i) {
    loads[i] = {part[i].source, 0, i + 1 == count || part[i + 1].vector != part[i].vector};
  }
  for (int64_t at = block.begin; at < block.end;) {
    const int64_t begin = at % size, end = least(size, begin + block.end - at);
    const LineRow row = line_row(p, b, at / size);
    bool all_rows = true;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t z = row.z + part[i].shift[0], y = row.y + part[i].shift[1];
      const bool inside = z >= 0 && z < p.source[0] && y >= 0 && y < p.source[1];
      loads[i].lanes = inside ? part[i].lanes : 0;
      all_rows = all_rows && inside;
    }
    uintptr_t from = reinterpret_cast<uintptr_t>(in) + bytes_of(row.corner) + static_cast<uintptr_t>(begin) * step;
    for (int64_t x = begin; x < end; ++x, to += block.pitch, from += step) {
      if (all_rows && x >= whole_begin && x < whole_end) {
        const auto all = [&](__m512i numbers, int64_t i, uintptr_t source) {
          return _mm512_mask_loadu_epi16(numbers, loads[i].lanes, reinterpret_cast<const void*>(source));
        };
        fill_line(loads, count, from, all, to);
      } else {
        const auto some = [&](__m512i numbers, int64_t i, uintptr_t source) {
          const int64_t first = at_x + x * stride + part[i].shift[2];  // input of the run's first tap
          const uint32_t lanes = loads[i].lanes & lanes_between(-first * l.tap - part[i].first,
                                                                (p.source[2] - first) * l.tap - part[i].first);
          // A masked load is slow where there is no memory, even if it loads nothing.
          return lanes == 0 ? numbers : _mm512_mask_loadu_epi16(numbers, lanes, reinterpret_cast<const void*>(source));
        };
        fill_line(loads, count, from, some, to);
      }
    }
    at += end - begin;
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
