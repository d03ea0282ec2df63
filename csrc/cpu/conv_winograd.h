// Winograd's minimal filtering: transform weights and inputs, multiply by elements, transform back. Lanes are channels,
// so that every tile costs the same wherever it stands.
#pragma once

#include "conv_plan.h"
#include "conv_tile.h"
#include "conv_winograd_transforms.h"
#include "simd_lanes.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Cells ---------------------------------------------------------------------------------------------------------------

constexpr int kCellLanes = Simd<float>::kLanes;

// Lanes of a channel.
inline int64_t residues(const WinogradSide& s) {
  return s.residues[0] * s.residues[1] * s.residues[2];
}

// Vectors of lanes, and images, whose cells take turns along a row.
inline int64_t lanes_in_turn(const WinogradSide& s) {
  return s.turns > 1 ? s.residues[2] : 1;
}
inline int64_t images_in_turn(const WinogradSide& s) {
  return s.turns / lanes_in_turn(s);
}

struct Image {
  int64_t batch, z, phase[2];
};

inline Image image_at(const WinogradPlan& p, int64_t image) {
  const int64_t plane = image / p.phases[1] / p.phases[0];
  return {plane / p.planes, plane % p.planes, {image / p.phases[1] % p.phases[0], image % p.phases[1]}};
}

// Some lanes of a rectangle of cells of one image and group, with the cells that take turns with them.
struct Cells {
  int64_t lane, lanes;        // first, and how many of kCellLanes there are
  int64_t first[2], size[2];  // along x in turns
  Image image;
};

inline Cells cells_at(const WinogradPlan& p, const WinogradSide& s, int64_t image, int64_t lane, int64_t last_lane,
                      const int64_t (&first)[2], const int64_t (&size)[2]) {
  return {lane,
          least<int64_t>(kCellLanes, last_lane - lane),
          {first[0], first[1] * s.turns},
          {size[0], size[1] * s.turns},
          image_at(p, image)};
}

// Of a lane: the channel, the plane, and the element of cell (0, 0) in it.
struct Lane {
  int64_t channel, z, first[2];
};

inline int64_t channel_of(const WinogradSide& s, int64_t lane) {
  return lane / s.block / residues(s) * s.block + lane % s.block;
}

inline int64_t residue_of(const WinogradSide& s, int64_t lane) {
  return lane / s.block % residues(s);
}

inline Lane lane_at(const WinogradSide& s, const Image& image, int64_t lane) {
  const int64_t residue = residue_of(s, lane), r2 = residue % s.residues[2];
  const int64_t r1 = residue / s.residues[2] % s.residues[1], r0 = residue / s.residues[2] / s.residues[1];
  const int64_t part2 = r0 % s.kernel_parts[1], part1 = r0 / s.kernel_parts[1] % s.kernel_parts[0];
  return {channel_of(s, lane),
          image.z + r0 / s.kernel_parts[1] / s.kernel_parts[0] * s.apart[0] + s.first[0],
          {r1 * s.apart[1] + part1 * s.part_apart[0] + image.phase[0] + s.first[1],
           r2 * s.apart[2] + part2 * s.part_apart[1] + image.phase[1] + s.first[2]}};
}

// The elements in a row of a lane's cells: where the first stands, and the cells [begin, end) that have one, `step`
// apart.
struct Line {
  int64_t at, begin, end, step;
};

// The lines of a lane: that of row `row` is the first.
struct Lines {
  Line line;  // of row 0
  int64_t row;
};

inline Lines lines_of(const WinogradSide& s, const Cells& c, int64_t number) {
  const Lane lane = lane_at(s, c.image, c.lane + number);
  const int64_t step = s.step[2] / s.turns;
  Lines lines = {{0, 0, 0, step * s.axis[2]}, c.first[0] * s.step[1] + lane.first[0]};
  if (lane.z < 0 || lane.z >= s.extent[0]) return lines;
  inside(c.first[1], step, lane.first[1], s.extent[2], c.size[1], &lines.line.begin, &lines.line.end);
  const int64_t column = (c.first[1] + lines.line.begin) * step + lane.first[1];
  lines.line.at = lane.channel * s.channel + lane.z * s.axis[0] + column * s.axis[2];
  return lines;
}

inline Line line_at(const WinogradSide& s, const Lines& lines, int64_t y) {
  const int64_t row = lines.row + y * s.step[1];
  if (row < 0 || row >= s.extent[1]) return {0, 0, 0, lines.line.step};
  Line line = lines.line;
  line.at += row * s.axis[1];
  return line;
}

// Of every lane, or of the first where what one has, all have.
inline void list_lines(const WinogradSide& s, const Cells& c, Lines (&lines)[kCellLanes]) {
  for (int64_t l = 0; l < (s.block == 1 ? c.lanes : 1); ++l) lines[l] = lines_of(s, c, l);
}

// Cells as [y][x][lane]; `line` has room for a row of them, lane by lane.
template <typename T>
void load_cells(const WinogradSide& s, const T* image, const Cells& c, float* line, float* cells) {
  const int64_t width = c.size[1];
  Lines lines[kCellLanes];
  list_lines(s, c, lines);
  for (int64_t y = 0; y < c.size[0]; ++y) {
    float* row = cells + y * width * kCellLanes;
    if (s.block == 1) {
      for (int64_t l = 0; l < c.lanes; ++l) {
        const Line inputs = line_at(s, lines[l], y);
        // The row below is asked for once by the residues that share it.
        const bool shares =
            l > 0 && lines[l].row == lines[l - 1].row && lines[l].line.at - lines[l - 1].line.at <= inputs.step;
        if (!shares) {
          const Line next = line_at(s, lines[l], y + 1);
          prefetch(image + next.at, (next.end - next.begin) * next.step);
        }
        float* to = line + l * width;
        fill_zero(to, inputs.begin);
        fill_zero(to + inputs.end, width - inputs.end);
        if (inputs.begin == inputs.end) continue;
        copy_run(image + inputs.at, inputs.step, inputs.end - inputs.begin, to + inputs.begin);
      }
      transpose(line, width, c.lanes, width, row, kCellLanes);
      continue;
    }
    // The lanes are channels that follow each other: what one has, all have.
    const Line inputs = line_at(s, lines[0], y);
    fill_zero(row, inputs.begin * kCellLanes);
    fill_zero(row + inputs.end * kCellLanes, (width - inputs.end) * kCellLanes);
    const int64_t count = inputs.end - inputs.begin;
    if (count == 0) continue;
    const T* from = image + inputs.at;
    float* to = row + inputs.begin * kCellLanes;
    if (s.channel == 1) {
      for (int64_t x = 0; x < count; ++x) store(to + x * kCellLanes, load_up_to(from + x * inputs.step, c.lanes));
    } else if (sizeof(T) == sizeof(float) && inputs.step == 1) {
      // What follows, in as many places as there are lanes, no prefetcher foresees: the row below, or the next lanes.
      const bool below = y + 1 < c.size[0];
      const Line next = line_at(s, lines[0], below ? y + 1 : 0);
      const int64_t ahead = next.at - inputs.at + (below ? 0 : kCellLanes * s.channel);
      for (int64_t x = 0; x < count; x += kCellLanes, from += kCellLanes, to += kCellLanes * kCellLanes) {
        for (int64_t l = 0; l < c.lanes; ++l) prefetch_ahead(from, ahead + l * s.channel);
        transpose(from, s.channel, c.lanes, least<int64_t>(kCellLanes, count - x), to, kCellLanes);
      }
    } else {
      for (int64_t l = 0; l < c.lanes; ++l) copy_run(from + l * s.channel, inputs.step, count, line + l * count);
      transpose(line, count, c.lanes, count, to, kCellLanes);
    }
  }
}

// And back, those that have an element.
template <typename T>
void store_cells(const WinogradSide& s, const float* cells, const Cells& c, float* line, T* image) {
  const int64_t width = c.size[1];
  Lines lines[kCellLanes];
  list_lines(s, c, lines);
  if (s.block > 1 && s.channel == 1) {  // lanes follow each other
    for (int64_t y = 0; y < c.size[0]; ++y) {
      const Line outputs = line_at(s, lines[0], y);
      const float* from = cells + (y * width + outputs.begin) * kCellLanes;
      T* to = image + outputs.at;
      for (int64_t x = outputs.begin; x < outputs.end; ++x, from += kCellLanes, to += outputs.step) {
        store_up_to(to, load(from), c.lanes);
      }
    }
    return;
  }
  if (s.block > 1 && s.step[2] == s.turns && s.axis[2] == 1) {
    for (int64_t y = 0, rows = 1; y < c.size[0]; y += rows) {
      const Line outputs = line_at(s, lines[0], y);
      int64_t count = outputs.end - outputs.begin;
      if (count == 0) continue;
      if (count == width && width == s.axis[1] && s.step[1] == 1) {  // rows follow each other
        rows = c.size[0];
        count *= rows;
      }
      transpose_narrow(cells + (y * width + outputs.begin) * kCellLanes, kCellLanes, count, c.lanes, image + outputs.at,
                       s.channel);
    }
    return;
  }
  for (int64_t y = 0; y < c.size[0]; ++y) {
    transpose(cells + y * width * kCellLanes, kCellLanes, width, c.lanes, line, width);
    Line outputs = line_at(s, lines[0], y);
    for (int64_t l = 0; l < c.lanes; ++l, outputs.at += s.channel) {
      if (s.block == 1) outputs = line_at(s, lines[l], y);
      scatter_run(line + l * width + outputs.begin, outputs.end - outputs.begin, image + outputs.at, outputs.step);
    }
  }
}

// Tiles ---------------------------------------------------------------------------------------------------------------

struct TileBox {
  int64_t first[3], size[3];  // images, rows, columns
};

inline TileBox tile_box(const WinogradPlan& p, int64_t index) {
  const int64_t extent[3] = {p.images, block_count(p.cells[0], p.outputs[0]), block_count(p.cells[1], p.outputs[1])};
  TileBox b;
  for (int i = 2; i >= 0; --i) {
    b.first[i] = index % p.boxes[i] * p.box[i];
    b.size[i] = least(p.box[i], extent[i] - b.first[i]);
    index /= p.boxes[i];
  }
  return b;
}

// Block `block` of kLanes lanes of a box's cells, transformed: [product][tile][lane of the block]. Tiles of
// window[0] x window[1] cells stand as far apart as tiles of outputs do.
template <int kLanes, typename T>
void transform_inputs(const WinogradPlan& p, const WinogradSide& s, const Transform& transform,
                      const int64_t (&window)[2], const TileBox& b, int64_t block, const T* in, char* scratch,
                      float* to) {
  float* cells = reinterpret_cast<float*>(scratch + p.at_cells);
  float* line = reinterpret_cast<float*>(scratch + p.at_line);
  const int64_t tiles = b.size[1] * b.size[2];
  const int64_t apart = p.box_tiles * kLanes + kWinogradApart;
  const int64_t last = least(s.lanes, (block + 1) * kLanes);
  int64_t first[2], size[2];
  for (int i = 0; i < 2; ++i) {
    first[i] = b.first[i + 1] * p.outputs[i];
    size[i] = (b.size[i + 1] - 1) * p.outputs[i] + window[i];
  }
  const int64_t row = size[1] * s.turns * kCellLanes, column = s.turns * kCellLanes;
  for (int64_t image = 0; image < b.size[0]; image += images_in_turn(s)) {
    for (int64_t lane = block * kLanes; lane < last; lane += lanes_in_turn(s) * kCellLanes) {
      const Cells c = cells_at(p, s, b.first[0] + image, lane, last, first, size);
      load_cells(s, in + c.image.batch * s.batch, c, line, cells);
      for (int64_t turn = 0; turn < s.turns; ++turn) {
        const int64_t image_turn = turn % images_in_turn(s), lane_turn = turn - image_turn;
        float* out = to + (image + image_turn) * tiles * kLanes + lane % kLanes + lane_turn * kCellLanes;
        for (int64_t y = 0; y < b.size[1]; ++y) {
          const float* from = cells + y * p.outputs[0] * row + turn * kCellLanes;
          for (int64_t x = 0; x < b.size[2]; ++x, from += p.outputs[1] * column, out += kLanes) {
            transform(from, row, column, out, p.tile[1] * apart, apart);
          }
        }
      }
    }
  }
}

// A panel of rows of a box's outputs, out of their products.
template <typename T>
void transform_outputs(const WinogradPlan& p, const TileBox& b, int64_t panel, const float* products, char* scratch,
                       const T* bias, T* out) {
  const Transform transform = output_transform(p.tile, p.outputs);
  const WinogradSide& s = p.out;
  float* cells = reinterpret_cast<float*>(scratch + p.at_cells);
  float* line = reinterpret_cast<float*>(scratch + p.at_line);
  const int64_t tiles = b.size[1] * b.size[2], apart = p.box_tiles * kWinogradPanel + kWinogradApart;
  const int64_t last = least(s.lanes, (panel + 1) * kWinogradPanel);
  int64_t first[2], size[2];
  for (int i = 0; i < 2; ++i) {
    first[i] = b.first[i + 1] * p.outputs[i];
    size[i] = least(b.size[i + 1] * p.outputs[i], p.cells[i] - first[i]);
  }
  const int64_t row = size[1] * s.turns * kCellLanes, column = s.turns * kCellLanes;
  for (int64_t lane = panel * kWinogradPanel; lane < last; lane += lanes_in_turn(s) * kCellLanes) {
    float biases[kCellLanes] = {};
    for (int64_t l = 0; bias && l < least<int64_t>(kCellLanes, last - lane); ++l) {
      biases[l] = widen(bias[channel_of(s, lane + l)]);
    }
    for (int64_t image = 0; image < b.size[0]; image += images_in_turn(s)) {
      const Cells c = cells_at(p, s, b.first[0] + image, lane, last, first, size);
      for (int64_t turn = 0; turn < s.turns; ++turn) {
        const int64_t image_turn = turn % images_in_turn(s), lane_turn = turn - image_turn;
        const float* from =
            products + (image + image_turn) * tiles * kWinogradPanel + lane % kWinogradPanel + lane_turn * kCellLanes;
        // What a tile has past the last column stands where rows below begin: tiles from right to left write it before
        // those rows' own.
        for (int64_t y = 0; y < b.size[1]; ++y) {
          for (int64_t x = b.size[2] - 1; x >= 0; --x) {
            transform(from + (y * b.size[2] + x) * kWinogradPanel, p.tile[1] * apart, apart,
                      cells + y * p.outputs[0] * row + x * p.outputs[1] * column + turn * kCellLanes, row, column);
          }
        }
      }
      for (int64_t i = 0; bias && i < c.size[0] * c.size[1] * kCellLanes; i += kCellLanes) {
        store(cells + i, load(cells + i) + load(biases));
      }
      store_cells(s, cells, c, line, out + c.image.batch * s.batch);
    }
  }
}

// Weights -------------------------------------------------------------------------------------------------------------

// Of vectors: 0, or NaN where one is infinite or NaN. Several sums, for each waits for the one before.
__attribute__((noinline)) Vector rest_of(const float* vectors, int64_t count) {
  Vector rest[4] = {};
  for (; count >= 4; count -= 4, vectors += 4 * kCellLanes) {
    CONVARITH_UNROLL for (int i = 0; i < 4; ++i) {
      const Vector v = load(vectors + i * kCellLanes);
      rest[i] += v - v;
    }
  }
  for (; count > 0; --count, vectors += kCellLanes) rest[0] += load(vectors) - load(vectors);
  return rest[0] + rest[1] + rest[2] + rest[3];
}

// Of vectors that are seen: whether they all are finite.
struct Finite {
  Vector rest = {};

  void see(Vector v) { rest += v - v; }
  void see(const float* vectors, int64_t count) { rest += rest_of(vectors, count); }
  bool first(int64_t lanes) const {
    bool finite = true;
    for (int64_t i = 0; i < lanes; ++i) finite = finite && rest[i] == 0;
    return finite;
  }
};

constexpr int64_t kMostRowTaps = 128;  // of kernels that are split as the columns of a matrix
constexpr int64_t kPagePart = 2048;    // bytes

// Whether a channel's kernels of all rows follow each other in memory.
inline bool rows_follow(const WinogradPlan& p) {
  return p.w_tap == 1 && p.w_out == p.kernel && p.kernel <= kMostRowTaps;
}

// Kernels as a thread holds them: [channel][tap][row], of neighbouring channels and of kCellLanes rows at most.
template <typename T>
inline void load_kernels(const WinogradPlan& p, const T* w, int64_t channels, int64_t rows, float* kernels) {
  const int64_t runs = p.w_tap == 1 ? 1 : p.kernel, length = p.kernel / runs;  // of a channel
  if (p.kernels_follow && p.w_out != 1) {
    for (int64_t t = 0; t < runs; ++t) {
      transpose(w + t * p.w_tap, p.w_out, rows, channels * length, kernels + t * kCellLanes, runs * kCellLanes);
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c, w += p.w_in, kernels += p.kernel * kCellLanes) {
    if (p.w_out == 1) {
      for (int64_t t = 0; t < p.kernel; ++t) copy_run(w + t * p.w_tap, 1, rows, kernels + t * kCellLanes);
    } else if (rows_follow(p)) {
      float* tap_to[kMostRowTaps];
      for (int64_t t = 0; t < p.kernel; ++t) tap_to[t] = kernels + t * kCellLanes;
      split_columns(w, rows, p.kernel, tap_to);
    } else {
      for (int64_t t = 0; t < runs; ++t) {
        transpose(w + t * p.w_tap, p.w_out, rows, length, kernels + t * kCellLanes, runs * kCellLanes);
      }
    }
  }
}

// Asks for a share of the kernels of `channels` channels from w on: a row's or a channel's, while others are
// transformed, for memory is longer about all of them than the transforms are.
template <typename T>
inline void ask_for_kernels(const WinogradPlan& p, const T* w, int64_t channels, int64_t share, int64_t rows) {
  if (p.w_out == 1) return;
  const int64_t runs = p.w_tap == 1 ? 1 : p.kernel, length = p.kernel / runs;
  if (p.kernels_follow) {
    for (int64_t t = 0; t < runs && share < rows; ++t) prefetch(w + share * p.w_out + t * p.w_tap, channels * length);
    return;
  }
  if (share >= channels) return;
  w += share * p.w_in;
  if (rows_follow(p)) return prefetch(w, rows * p.kernel);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t t = 0; t < runs; ++t) prefetch(w + r * p.w_out + t * p.w_tap, length);
  }
}

template <typename T>
inline void store_kernels(const WinogradPlan& p, const float* kernels, int64_t channels, int64_t rows, T* w) {
  if (p.w_out == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < p.kernel; ++t, kernels += kCellLanes) {
        scatter_run(kernels, rows, w + c * p.w_in + t * p.w_tap, 1);
      }
    }
    return;
  }
  const int64_t runs = p.w_tap == 1 ? 1 : p.kernel, length = p.kernel / runs;
  for (int64_t t = 0; t < runs; ++t) {
    transpose_narrow(kernels + t * kCellLanes, runs * kCellLanes, channels * length, rows, w + t * p.w_tap, p.w_out);
  }
}

// Kernels on their way past the caches, [vector of rows][channel][tap][row]: memory is so long about them that the
// products that follow take a share each along.
struct Leaving {
  float* to = nullptr;
  int64_t rows, length;  // of the kernels of all channels

  // Elements between vectors of rows.
  static int64_t apart(const WinogradPlan& p) { return p.chunk_taps * kCellLanes; }

  template <typename T>
  static bool may(const WinogradPlan& p, const T* w) {
    constexpr int64_t kItem = sizeof(T);
    const auto at = reinterpret_cast<uintptr_t>(w) | static_cast<uintptr_t>(p.w_out * kItem);
    return kItem == sizeof(float) && p.w_out != 1 && p.w_tap == 1 && at % CONVARITH_BYTES == 0 &&
           p.w_count * kItem >= kPastCaches;
  }

  void store(const WinogradPlan& p, const float* kernels, int64_t share, int64_t shares) const {
    if (to == nullptr) return;
    const int64_t blocks = block_count(length, kCellLanes), all = blocks * block_count(rows, kCellLanes);
    for (int64_t b = block_begin(share, all, shares); b < block_begin(share + 1, all, shares); ++b) {
      const int64_t vector = b / blocks, row = vector * kCellLanes, at = b % blocks * kCellLanes;
      transpose<true>(kernels + vector * apart(p) + at * kCellLanes, kCellLanes,
                      least<int64_t>(kCellLanes, length - at), least<int64_t>(kCellLanes, rows - row),
                      to + row * p.w_out + at, p.w_out);
    }
  }
};

// The weights between a chunk and a panel, transformed: [product][lane of the chunk][row of the panel]. False where one
// is not finite.
template <typename T>
bool transform_weights(const WinogradPlan& p, int64_t panel, int64_t chunk, const T* w, char* scratch, float* to) {
  const Transform transform = kernel_transform(p.tile, p.taps);
  const int64_t square = p.taps[0] * p.taps[1];
  float* kernels = reinterpret_cast<float*>(scratch + p.at_cells);
  float taps[kWinogradTaps * kWinogradTaps * kCellLanes] = {};
  Finite seen;
  const auto transform_taps = [&](float* out) {
    transform(taps, p.taps[1] * kCellLanes, kCellLanes, out, p.tile[1] * kWinogradWeights, kWinogradWeights);
  };
  const int64_t out_residues = residues(p.out);
  const int64_t last_row = least(p.out.lanes, (panel + 1) * kWinogradPanel);
  const int64_t last = least(p.in.lanes, (chunk + 1) * kWinogradChunk);
  const bool whole = p.whole_kernel && p.out.block > 1;
  bool finite = true;
  const int64_t first_row = panel * kWinogradPanel;
  // Those of the panel are asked for together where they are a small part of a page: another channel's are in others.
  const int64_t panel_bytes = kWinogradPanel * p.kernel * static_cast<int64_t>(sizeof(T));
  const bool asks_once = rows_follow(p) && out_residues == 1 && panel_bytes <= kPagePart;
  for (int64_t row = first_row, alike = 1; row < last_row; row += alike * kCellLanes) {
    const int64_t rows = least<int64_t>(kCellLanes, last_row - row), residue = residue_of(p.out, row);
    // Vectors that differ in the residue only see the same kernels.
    if (whole) alike = least(out_residues - residue, block_count(last_row - row, kCellLanes));
    const T* const w_rows = w + channel_of(p.out, row) * p.w_out;
    const int64_t asked = !asks_once ? rows : row == first_row ? last_row - row : 0;
    seen = {};
    int64_t loaded = 0, end = 0;
    for (int64_t block = chunk * kWinogradChunk; block < last; block += p.in.block) {
      const int64_t first_channel = channel_of(p.in, block), channels = least(p.in.block, last - block);
      const ResidueTaps* taps_of = p.taps_of + residue_of(p.in, block) * out_residues;
      float* out = to + block % kWinogradChunk * kWinogradPanel + row % kWinogradPanel;
      for (int64_t c = 0; c < channels; ++c, out += kWinogradPanel) {
        const int64_t channel = first_channel + c;
        if (!whole) {
          for (int64_t r = 0; r < rows; ++r) {
            const T* kernel = w + channel_of(p.out, row + r) * p.w_out + channel * p.w_in;
            const int32_t* tap = taps_of[residue_of(p.out, row + r)].at;
            for (int64_t t = 0; t < square; ++t) {
              taps[t * kCellLanes + r] = tap[t] < 0 ? 0 : widen(kernel[tap[t] * p.w_tap]);
            }
          }
          seen.see(taps, square);
          transform_taps(out);
          continue;
        }
        if (channel < loaded || channel >= end) {
          loaded = channel;
          end = least(channel + kKernelsAtOnce, p.in.channels);
          load_kernels(p, w_rows + channel * p.w_in, end - loaded, rows, kernels);
          seen.see(kernels, (end - loaded) * p.kernel);
        }
        if (loaded + kKernelsAtOnce < p.in.channels) {
          ask_for_kernels(p, w_rows + (loaded + kKernelsAtOnce) * p.w_in,
                          least(kKernelsAtOnce, p.in.channels - loaded - kKernelsAtOnce), channel - loaded, asked);
        }
        const float* kernel = kernels + (channel - loaded) * p.kernel * kCellLanes;
        for (int64_t v = 0; v < alike; ++v) {
          const ResidueTaps& tap = taps_of[residue + v];
          if (tap.all) {
            transform(kernel + tap.at[0] * kCellLanes, tap.row * kCellLanes, tap.column * kCellLanes,
                      out + v * kCellLanes, p.tile[1] * kWinogradWeights, kWinogradWeights);
            continue;
          }
          for (int64_t t = 0; t < square; ++t) {
            store(taps + t * kCellLanes, tap.at[t] < 0 ? Vector{} : load(kernel + tap.at[t] * kCellLanes));
          }
          transform_taps(out + v * kCellLanes);
        }
      }
    }
    finite = finite && seen.first(rows);
  }
  return finite;
}

// And back: `products` between a chunk and a panel, in the same order, to the weight's gradient. Of several boxes, the
// first until the last have their sum in `sums`. False where an element of the last is not finite.
template <typename T>
bool store_gradient(const WinogradPlan& p, int64_t panel, int64_t chunk, const float* products, bool first, bool last,
                    float* sums, float* kernels, Leaving& leaving, T* w) {
  const Transform transform = output_transform(p.tile, p.taps);
  const int64_t square = p.taps[0] * p.taps[1];
  const int64_t last_row = least(p.out.lanes, (panel + 1) * kWinogradPanel);
  const int64_t lane_begin = chunk * kWinogradChunk, lane_end = least(p.in.lanes, lane_begin + kWinogradChunk);
  const int64_t first_channel = channel_of(p.in, lane_begin), channels = (lane_end - lane_begin) / residues(p.in);
  const bool whole = p.stores_kernels;
  float taps[kWinogradTaps * kWinogradTaps * kCellLanes];
  bool finite = true;
  const int64_t first_row = panel * kWinogradPanel;
  w += first_row * p.w_out + first_channel * p.w_in;
  const bool leaves = last && whole && Leaving::may(p, w);
  if (leaves) leaving = {reinterpret_cast<float*>(w), last_row - first_row, channels * p.kernel};
  for (int64_t row = first_row; row < last_row; row += kCellLanes) {
    T* const w_rows = w + (row - first_row) * p.w_out;
    const int64_t rows = least<int64_t>(kCellLanes, last_row - row);
    Finite seen;
    const float* from = products + (row - first_row);
    float* sum = sums + (row - first_row);
    for (int64_t block = lane_begin; block < lane_end; block += p.in.block) {
      const ResidueTaps& tap_of = p.taps_of[residue_of(p.in, block)];
      const int64_t channel = channel_of(p.in, block) - first_channel;
      const float* end = from + least(p.in.block, lane_end - block) * kWinogradPanel;
      float* kernel = kernels + channel * p.kernel * kCellLanes;
      T* to = w_rows + channel * p.w_in;
      for (; from < end; from += kWinogradPanel, kernel += p.kernel * kCellLanes, to += p.w_in) {
        // Products that a lane does not have count in its missing taps only.
        if (first && last && whole && tap_of.all) {
          transform(from, p.tile[1] * kWinogradWeights, kWinogradWeights, kernel + tap_of.at[0] * kCellLanes,
                    tap_of.row * kCellLanes, tap_of.column * kCellLanes);
          continue;
        }
        transform(from, p.tile[1] * kWinogradWeights, kWinogradWeights, taps, p.taps[1] * kCellLanes, kCellLanes);
        for (int64_t t = 0; t < square; ++t, sum += kWinogradPanel) {
          Vector tap = load(taps + t * kCellLanes);
          if (!first) tap += load(sum);
          if (!last) {
            store(sum, tap);
          } else if (tap_of.at[t] >= 0 && whole) {
            store(kernel + tap_of.at[t] * kCellLanes, tap);
          } else if (tap_of.at[t] >= 0) {
            seen.see(tap);
            for (int64_t r = 0; r < rows; ++r) narrow(tap[r], to[tap_of.at[t] * p.w_tap + r * p.w_out]);
          }
        }
      }
    }
    if (last && whole) {
      seen.see(kernels, channels * p.kernel);
      leaves ? void(kernels += Leaving::apart(p)) : store_kernels(p, kernels, channels, rows, w_rows);
    }
    finite = finite && seen.first(rows);
  }
  return finite;
}

// Products ------------------------------------------------------------------------------------------------------------

constexpr int kProductRows = CONVARITH_REGISTERS >= 32 ? 13 : 6;
constexpr int kProductVectors = 2;

// Some of up to kWinogradChunk lanes, or all of any other range.
struct Runs {
  int64_t count;
  int64_t begin[kWinogradChunk / kCellLanes], end[kWinogradChunk / kCellLanes];
};

// Lanes of [first, last), counted from the first, that have product i. Those of kernels with fewer than r taps
// along an axis have none at the point where only the missing one counts.
inline Runs lanes_with(const WinogradPlan& p, const WinogradSide& s, int64_t first, int64_t last, int64_t i) {
  const int64_t full1 = i / p.tile[1] == p.missing[0] ? s.full[0] : s.residues[1];
  const int64_t full2 = i % p.tile[1] == p.missing[1] ? s.full[1] : s.residues[2];
  if (full1 == s.residues[1] && full2 == s.residues[2]) return {1, {0}, {last - first}};
  Runs runs = {};
  for (int64_t lane = first; lane < last; lane += s.block) {
    const int64_t residue = residue_of(s, lane), at = lane - first;
    if (residue / s.residues[2] % s.residues[1] >= full1 || residue % s.residues[2] >= full2) continue;
    if (runs.count == 0 || runs.end[runs.count - 1] < at) runs.begin[runs.count++] = at;
    runs.end[runs.count - 1] = least(at + s.block, last - first);
  }
  return runs;
}

// Of an operand: how far ahead that of the product that follows stands, and its size.
struct Following {
  int64_t ahead, size;
};

constexpr int64_t kLine = 64 / sizeof(float);  // asked for at once

// sums[r][x] (+)= sum over k of a[r * kRowStep + k * kDepthStep] * b[k * kPitch + x], r < kRows, x < kVecs vectors.
// With every step of the depth a line of what follows each operand is asked for.
template <int kRows, int kVecs, int kRowStep, int kDepthStep, int kPitch>
void multiply_sweep(const Runs& depth, const float* a_first, const float* b_first, float* sums, bool add,
                    int64_t ahead_of_a, int64_t ahead_of_b) {
  typedef typename Simd<float>::Vec V;
  V acc[kRows][kVecs];
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) acc[r][j] = V{};
  }
  for (int64_t run = 0; run < depth.count; ++run) {
    const float* a = a_first + depth.begin[run] * kDepthStep;
    const float* b = b_first + depth.begin[run] * kPitch;
    for (int64_t k = depth.begin[run]; k < depth.end[run]; ++k, a += kDepthStep, b += kPitch) {
      prefetch_ahead(a_first, ahead_of_a + k * kLine);
      prefetch_ahead(b_first, ahead_of_b + k * kLine);
      V x[kVecs];
      CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) x[j] = load(b + j * kCellLanes);
      CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
        const V v = a[r * kRowStep] - V{};
        CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) acc[r][j] += v * x[j];
      }
    }
  }
  CONVARITH_UNROLL for (int r = 0; r < kRows; ++r) {
    CONVARITH_UNROLL for (int j = 0; j < kVecs; ++j) {
      float* out = sums + r * kWinogradPanel + j * kCellLanes;
      store(out, add ? load(out) + acc[r][j] : acc[r][j]);
    }
  }
}

using MultiplySweep = void (*)(const Runs&, const float*, const float*, float*, bool, int64_t, int64_t);

template <int kVecs, int kRowStep, int kDepthStep, int kPitch, int kRows = kProductRows>
MultiplySweep sweep_for(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return sweep_for<kVecs, kRowStep, kDepthStep, kPitch, kRows - 1>(rows);
  }
  return multiply_sweep<kRows, kVecs, kRowStep, kDepthStep, kPitch>;
}

// One product of a panel: sums (rows x columns, kWinogradPanel apart) (+)= a b.
template <int kRowStep, int kDepthStep, int kPitch>
void multiply_panel(const Runs& rows, const Runs& columns, const Runs& depth, const float* a, const float* b,
                    float* sums, bool add, const Following& next_a, const Following& next_b) {
  const int64_t step = depth.count > 0 ? depth.end[depth.count - 1] * kLine : 0;  // what a sweep asks for
  int64_t asked = 0;
  const auto rest = [&](const Following& next) {
    return next.ahead + least(asked, most<int64_t>(next.size - step, 0));
  };
  for (int64_t run = 0; run < columns.count; ++run) {
    for (int64_t x = columns.begin[run]; x < columns.end[run]; x += kProductVectors * kCellLanes) {
      const bool wide = columns.end[run] - x > kCellLanes;
      for (int64_t r = 0; r < rows.count; ++r) {
        const int64_t height = rows.end[r] - rows.begin[r], blocks = block_count(height, kProductRows);
        for (int64_t block = 0; block < blocks; ++block, asked += step) {
          const int64_t begin = block_begin(block, height, blocks), end = block_begin(block + 1, height, blocks);
          const int64_t row = rows.begin[r] + begin;
          const auto sweep = wide ? sweep_for<kProductVectors, kRowStep, kDepthStep, kPitch>(end - begin)
                                  : sweep_for<1, kRowStep, kDepthStep, kPitch>(end - begin);
          sweep(depth, a + row * kRowStep, b + x, sums + row * kWinogradPanel + x, add, rest(next_a) - row * kRowStep,
                rest(next_b) - x);
        }
      }
    }
  }
}

// Tasks ---------------------------------------------------------------------------------------------------------------

template <typename T>
bool winograd(const WinogradPlan& p, const void* in, const void* w, void* out, char* scratch, int64_t begin,
              int64_t end) {
  const int64_t chunks = block_count(p.in.lanes, kWinogradChunk), panels = block_count(p.out.lanes, kWinogradPanel);
  const int64_t apart = p.box_tiles * kWinogradChunk + kWinogradApart;
  const int64_t products_apart = p.box_tiles * kWinogradPanel + kWinogradApart;
  float* inputs = reinterpret_cast<float*>(scratch + p.at_inputs);
  float* products = reinterpret_cast<float*>(scratch + p.at_products);
  int64_t held = -1;  // the box and group whose inputs are transformed
  bool finite = true;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t share = task % p.row_shares, g = task / p.row_shares % p.groups;
    const TileBox b = tile_box(p, task / p.row_shares / p.groups);
    const int64_t tiles = b.size[0] * b.size[1] * b.size[2];
    for (int64_t chunk = 0; held != task / p.row_shares && chunk < chunks; ++chunk) {
      transform_inputs<kWinogradChunk>(p, p.in, input_transform(p.tile), p.tile, b, chunk,
                                       static_cast<const T*>(in) + g * p.in.group, scratch,
                                       inputs + chunk * p.chunk_size);
    }
    held = task / p.row_shares;
    const bool fresh = !p.keeps_weights || task - begin < p.groups * p.row_shares;
    const int64_t panel_end = block_begin(share + 1, panels, p.row_shares);
    for (int64_t panel = block_begin(share, panels, p.row_shares); panel < panel_end; ++panel) {
      const int64_t first_row = panel * kWinogradPanel, last_row = least(p.out.lanes, first_row + kWinogradPanel);
      for (int64_t i = 0; i < p.products; ++i) {  // of which some rows may have none
        const Runs rows = lanes_with(p, p.out, first_row, last_row, i);
        if (rows.count == 1 && rows.begin[0] == 0 && rows.end[0] == last_row - first_row) continue;
        fill_zero(products + i * products_apart, tiles * kWinogradPanel);
      }
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t block = p.keeps_weights ? (g * panels + panel) * chunks + chunk : 0;
        float* weights = reinterpret_cast<float*>(scratch + p.at_weights) + block * p.products * kWinogradWeights;
        if (fresh && !transform_weights(p, panel, chunk, static_cast<const T*>(w) + g * p.w_group, scratch, weights)) {
          finite = false;
        }
        const int64_t first = chunk * kWinogradChunk, last = least(p.in.lanes, first + kWinogradChunk);
        for (int64_t i = 0; i < p.products; ++i) {
          multiply_panel<kWinogradChunk, 1, kWinogradPanel>(
              {1, {0}, {tiles}}, lanes_with(p, p.out, first_row, last_row, i), lanes_with(p, p.in, first, last, i),
              inputs + chunk * p.chunk_size + i * apart, weights + i * kWinogradWeights, products + i * products_apart,
              chunk > 0, {apart, tiles * kWinogradChunk}, {kWinogradWeights, kWinogradWeights});
        }
      }
      const T* bias = p.bias ? static_cast<const T*>(p.bias) + g * p.out.channels : nullptr;
      transform_outputs(p, b, panel, products, scratch, bias, static_cast<T*>(out) + g * p.out.group);
    }
  }
  return finite;
}

// Tiles of the outputs are the kernels here.
template <typename T>
bool winograd_gradient(const WinogradPlan& p, const void* x, const void* y, float* gradients, void* w, char* scratch,
                       int64_t begin, int64_t end) {
  const int64_t chunks = block_count(p.in.lanes, kWinogradChunk), panels = block_count(p.out.lanes, kWinogradPanel);
  const int64_t boxes = p.boxes[0] * p.boxes[1] * p.boxes[2];
  const int64_t in_apart = p.box_tiles * kWinogradChunk + kWinogradApart;
  const int64_t out_apart = p.box_tiles * kWinogradPanel + kWinogradApart;
  float* inputs = reinterpret_cast<float*>(scratch + p.at_inputs);
  float* products = reinterpret_cast<float*>(scratch + p.at_products);
  float* kernels = reinterpret_cast<float*>(scratch + p.at_kernels);
  Leaving leaving;
  bool finite = true;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t in_block = task % p.in_blocks, out_block = task / p.in_blocks % p.out_blocks;
    const int64_t g = task / p.in_blocks / p.out_blocks % p.groups;
    const int64_t share = task / p.in_blocks / p.out_blocks / p.groups;
    const int64_t chunk_begin = block_begin(in_block, chunks, p.in_blocks);
    const int64_t chunk_end = block_begin(in_block + 1, chunks, p.in_blocks);
    const int64_t panel_begin = block_begin(out_block, panels, p.out_blocks);
    const int64_t panel_end = block_begin(out_block + 1, panels, p.out_blocks);
    const int64_t box_begin = block_begin(share, boxes, p.shares), box_end = block_begin(share + 1, boxes, p.shares);
    const T* x_group = static_cast<const T*>(x) + g * p.in.group;
    const T* y_group = static_cast<const T*>(y) + g * p.out.group;
    for (int64_t box = box_begin; box < box_end; ++box) {
      const TileBox b = tile_box(p, box);
      const int64_t tiles = b.size[0] * b.size[1] * b.size[2];
      const bool first = box == box_begin, last = box + 1 == box_end;
      float* outputs = reinterpret_cast<float*>(scratch + p.at_outputs);
      for (int64_t panel = panel_begin; panel < panel_end; ++panel, outputs += p.products * out_apart) {
        transform_inputs<kWinogradPanel>(p, p.out, kernel_transform(p.tile, p.outputs), p.outputs, b, panel, y_group,
                                         scratch, outputs);
      }
      float* sums = reinterpret_cast<float*>(scratch + p.at_sums);
      for (int64_t chunk = chunk_begin; chunk < chunk_end; ++chunk) {
        const int64_t lane = chunk * kWinogradChunk, last_lane = least(p.in.lanes, lane + kWinogradChunk);
        transform_inputs<kWinogradChunk>(p, p.in, input_transform(p.tile), p.tile, b, chunk, x_group, scratch, inputs);
        outputs = reinterpret_cast<float*>(scratch + p.at_outputs);
        for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
          const int64_t rows = least(kWinogradPanel, p.out.lanes - panel * kWinogradPanel);
          for (int64_t i = 0; i < p.products; ++i, outputs += out_apart) {
            multiply_panel<1, kWinogradChunk, kWinogradPanel>(
                lanes_with(p, p.in, lane, last_lane, i), {1, {0}, {rows}}, {1, {0}, {tiles}}, inputs + i * in_apart,
                outputs, products + i * kWinogradWeights, false, {in_apart, tiles * kWinogradChunk},
                {out_apart, tiles * kWinogradPanel});
            leaving.store(p, kernels, i, p.products);
          }
          leaving = {};
          const auto store_to = [&](auto* to) {
            return store_gradient(p, panel, chunk, products, first, last, sums, kernels, leaving, to + g * p.w_group);
          };
          if (!(p.shares > 1 ? store_to(gradients + share * p.w_count) : store_to(static_cast<T*>(w)))) finite = false;
          sums += kWinogradChunk * kWinogradPanel * p.taps[0] * p.taps[1];
        }
      }
    }
  }
  leaving.store(p, kernels, 0, 1);
  fence_past_caches();
  return finite;
}

// Elements [begin, end) of the gradient out of the shares' own.
template <typename T>
void winograd_add_shares(const WinogradPlan& p, const float* gradients, void* w, int64_t begin, int64_t end) {
  constexpr int64_t kRun = 1024;
  float run[kRun];
  for (int64_t i = begin; i < end; i += kRun) {
    const int64_t count = least(kRun, end - i);
    copy_run(gradients + i, 1, count, run);
    for (int64_t share = 1; share < p.shares; ++share) add_run(gradients + share * p.w_count + i, count, run);
    scatter_run(run, count, static_cast<T*>(w) + i, 1);
  }
}

}  // namespace

template <typename T>
void set_winograd(ConvKernels& k) {
  k.winograd = winograd<T>;
  k.winograd_gradient = winograd_gradient<T>;
  k.winograd_add_shares = winograd_add_shares<T>;
}

template void set_winograd<float>(ConvKernels&);
template void set_winograd<Brain16>(ConvKernels&);
template void set_winograd<Half16>(ConvKernels&);

}  // namespace convarith::cpu::CONVARITH_ISA
