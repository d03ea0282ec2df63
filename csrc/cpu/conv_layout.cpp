// Where a gather's outputs, inputs and taps stand: boxes, tiles, residues, offsets.
#include "conv_planning.h"

namespace convarith::cpu {
namespace {

constexpr int64_t kMostTileBytes = int64_t{16} << 20;

// As even_part, but among the parts down to half the size the one whose outputs fill vectors best.
int64_t whole_vectors(int64_t size, int64_t part, int64_t inner, int64_t lanes) {
  const int64_t largest = even_part(size, part);
  int64_t best = largest;
  double best_cost = 0;
  for (int64_t p = largest; p >= std::max<int64_t>(1, largest / 2) && p > largest - 64; --p) {
    const int64_t whole = size / p, rest = size % p;
    const int64_t vectors = whole * parts(p * inner, lanes) + parts(rest * inner, lanes);
    // A box costs something by itself.
    const double cost = static_cast<double>(vectors) + 0.2 * static_cast<double>(whole + (rest > 0));
    if (p == largest || cost < best_cost) {
      best = p;
      best_cost = cost;
    }
  }
  return best;
}

// Boxes of about `pixels` outputs. Along z before y where taps span z but not y: neighbours in a box share inputs.
void set_boxes(GatherPlan& g, const std::vector<std::array<int64_t, 3>>& shifts, int64_t pixels, int64_t lanes) {
  const auto spans = [&](int axis) {
    return std::any_of(shifts.begin(), shifts.end(),
                       [&](const auto& shift) { return shift[axis] != shifts.front()[axis]; });
  };
  std::array<int, 4> order = {3, 2, 1, 0};
  if (spans(0) && !spans(1)) std::swap(order[1], order[2]);
  const int64_t extent[4] = {g.batch, g.tile_grid[0], g.tile_grid[1], g.tile_grid[2]};
  int64_t left = std::max<int64_t>(pixels, 1), inner = 1;
  for (int i : order) {
    g.box[i] = whole_vectors(extent[i], left, inner, i == 3 || !g.direct ? lanes : 1);
    g.boxes[i] = parts(i == 0 ? g.batch : g.grid[i - 1], g.box[i]);
    left = g.box[i] < extent[i] ? 1 : left / g.box[i];
    inner *= g.box[i];
  }
}

// The residues of the taps' inputs modulo the step, in the order of the taps: every axis's with all of the others'.
class Residues {
 public:
  Residues(const Gather& gather, const int64_t* step) : step_{step[0], step[1], step[2]} {
    for (const auto& shift : gather.shifts) {
      for (int i = 0; i < kAxes; ++i) {
        const int64_t r = of(shift[i], i);
        if (std::find(axis_[i].begin(), axis_[i].end(), r) == axis_[i].end()) axis_[i].push_back(r);
      }
    }
  }

  int64_t count() const { return static_cast<int64_t>(axis_[0].size() * axis_[1].size() * axis_[2].size()); }

  int64_t index(const std::array<int64_t, 3>& shift) const {
    int64_t index = 0;
    for (int i = 0; i < kAxes; ++i) {
      const auto at = std::find(axis_[i].begin(), axis_[i].end(), of(shift[i], i)) - axis_[i].begin();
      index = index * static_cast<int64_t>(axis_[i].size()) + at;
    }
    return index;
  }

  std::vector<int64_t> list() const {
    std::vector<int64_t> all;
    for (int64_t z : axis_[0]) {
      for (int64_t y : axis_[1]) {
        for (int64_t x : axis_[2]) all.insert(all.end(), {z, y, x});
      }
    }
    return all;
  }

 private:
  int64_t of(int64_t shift, int axis) const { return shift - floor_div(shift, step_[axis]) * step_[axis]; }

  int64_t step_[kAxes];
  std::vector<int64_t> axis_[kAxes];
};

// How many cells of zeros before a row, or rows before an image, stand for those after the one before it as well. Tiles
// are written in that order.
int64_t shared_margin(const GatherPlan& g, int axis) {
  if (g.boxes[axis + 1] > 1 || g.stride[axis] > 1) return 0;
  const int64_t before = -g.low[axis], after = g.low[axis] + g.cells[axis] - g.source[axis];
  // No cell is the place of two outputs.
  return std::max<int64_t>(0, std::min({before, after, g.cells[axis] - g.box[axis + 1]}));
}

}  // namespace

// Boxes, tile, offsets. False where the tile would be too large.
bool lay_out(Gather& gather, const Blocking& blocking, const ConvKernels& k) {
  GatherPlan& g = gather.plan;
  g.taps = static_cast<int64_t>(gather.shifts.size());
  g.compact = blocking.compact;
  g.outer = blocking.outer;
  g.direct = blocking.direct && g.taps > 0 && stores_directly(g, k);
  std::copy_n(blocking.tile_grid ? blocking.tile_grid : g.grid, kAxes, g.tile_grid);

  // Where every residue modulo the stride is read, the outer product needs no split: it reads cells wherever they are.
  const int64_t all_residues = g.stride[0] * g.stride[1] * g.stride[2];
  const bool split = !blocking.without_tile && (!g.outer || Residues(gather, g.stride).count() < all_residues);
  const int64_t whole[3] = {1, 1, 1};
  const int64_t* step = split ? g.stride : whole;  // inputs between neighbouring cells
  const Residues residues(gather, step);
  g.residues = residues.count();
  gather.residue = residues.list();

  // Plans that see one tile have the same boxes, whatever they themselves read of it.
  const auto& seen = blocking.seen ? *blocking.seen : gather.shifts;
  bool inside = true;
  int64_t span[3];
  for (int i = 0; i < 3; ++i) {
    int64_t low = 0, high = 0;
    for (size_t t = 0; t < seen.size(); ++t) {
      const int64_t cell = floor_div(seen[t][i], step[i]);
      low = t == 0 ? cell : std::min(low, cell);
      high = t == 0 ? cell : std::max(high, cell);
    }
    for (const auto& shift : gather.shifts) {
      inside = inside && shift[i] >= 0 && (g.grid[i] - 1) * g.stride[i] + shift[i] < g.source[i];
    }
    g.move[i] = g.stride[i] / step[i];
    g.low[i] = low;
    span[i] = high - low;
  }
  const auto set_tile = [&](int64_t pixels) {
    set_boxes(g, seen, pixels, g.outer ? 1 : k.lanes);
    for (int i = 0; i < 3; ++i) g.cells[i] = (g.box[i + 1] - 1) * g.move[i] + 1 + span[i];
  };
  // Whether no run is shorter than a vector, at the end of a row neither.
  const auto whole_runs = [&] {
    const int64_t rest = g.grid[2] % g.box[3];
    return (rest == 0 ? g.box[3] : rest) >= k.lanes;
  };
  set_tile(blocking.pixels);
  g.direct = g.direct && whole_runs();

  // Read in place: the outer product reads nothing but what it multiplies, in any order of memory. Vectors of outputs
  // that are multiplied more than once come from a tile: there channels that stand pages apart do not drive each other
  // out of the first cache.
  const int64_t reach = (g.box[0] - 1) * g.in_batch + (g.source[0] - 1) * g.in_axis[0] +
                        (g.source[1] - 1) * g.in_axis[1] + (g.source[2] - 1) * g.in_axis[2];
  g.raw = blocking.may_be_raw && (g.outer || g.direct) && inside && g.taps > 0 &&
          (k.item == k.sum_item || g.in_words) && g.channels * g.in_channel + reach < (int64_t{1} << 31);

  const int64_t cells = g.cells[0] * g.cells[1] * g.cells[2] * g.box[0] * std::max<int64_t>(1, g.residues);
  const int64_t taps = std::max<int64_t>(1, g.taps);
  int64_t block = g.channels * taps <= 2 * blocking.depth ? g.channels : std::max<int64_t>(1, blocking.depth / taps);
  if (!g.raw) block = std::min(block, std::max<int64_t>(1, blocking.tile / (cells * k.sum_item)));
  g.channel_block = even_part(g.channels, block);
  g.direct = g.direct && g.channel_block == g.channels;  // outputs are written once, some of them by two vectors
  // After the channels are chosen: in which order they are summed must not depend on the threads.
  if (blocking.share < blocking.pixels) {
    set_tile(blocking.share);
    if (g.direct && !whole_runs()) set_tile(blocking.pixels);
  }
  // In the input's order: the channels are innermost in both, or the last axis is.
  const bool channels_inner =
      (g.outer || blocking.may_be_inner) && g.in_channel == 1 && g.in_axis[2] != 1 && g.channel_block > 1;
  g.tile_cell = channels_inner ? spread(g.channel_block, k) : 1;
  // Few channels that are all of a pixel: rows of the tile are rows of the input, or of two pairs for each pixel.
  const bool three = g.pair_alone && g.pair_axis == 4 && g.channels == 2;
  const bool whole_pixels = g.channels == g.channel_block && g.in_axis[2] == (three ? 3 : g.channels) && step[2] == 1;
  const bool few = !k.pairs || g.in_words ? g.channels < k.lanes : three;
  if (g.outer && channels_inner && whole_pixels && few) g.tile_cell = g.channels;
  g.tile_row = g.tile_cell * (g.cells[2] - (blocking.shares_margins ? shared_margin(g, 2) : 0));
  g.tile_plane = g.tile_row * (g.cells[1] - (blocking.shares_margins ? shared_margin(g, 1) : 0));
  g.tile_image = g.tile_plane * g.cells[0];
  // With the margin that the last rows share with nothing.
  g.tile_residue =
      g.tile_image * g.box[0] + g.cells[1] * g.tile_row - g.tile_plane + g.tile_cell * g.cells[2] - g.tile_row;
  g.tile_channel = channels_inner ? 1 : spread(std::max<int64_t>(1, g.tile_residue * g.residues), k);
  g.tile_size = channels_inner ? g.tile_residue * g.residues : g.tile_channel * g.channel_block;
  if (blocking.without_tile) return true;
  if (!g.raw && g.tile_size * k.sum_item > kMostTileBytes) return false;

  const int64_t offset_channels = blocking.without_offsets ? 1 : g.channel_block;
  gather.offset.resize(offset_channels * g.taps);
  for (int64_t t = 0; t < g.taps; ++t) {
    const auto& shift = gather.shifts[t];
    const int64_t pitch[3] = {g.tile_plane, g.tile_row, g.tile_cell};
    int64_t offset = 0;
    for (int i = 0; i < 3; ++i) {
      offset += g.raw ? shift[i] * g.in_axis[i] : (floor_div(shift[i], step[i]) - g.low[i]) * pitch[i];
    }
    if (!g.raw) offset += residues.index(shift) * g.tile_residue;
    for (int64_t c = 0; c < offset_channels; ++c) {
      gather.offset[c * g.taps + t] = static_cast<int32_t>(offset + c * (g.raw ? g.in_channel : g.tile_channel));
    }
  }

  const int64_t runs = g.box[0] * g.box[1] * g.box[2];
  const int64_t columns = g.compact ? runs * g.box[3] : g.tile_image * g.box[0];
  const int64_t widest = 8 * k.lanes;  // a sweep may go past the last column by less than this
  g.columns = g.direct ? 0 : g.outer ? runs * g.box[3] : spread(columns + widest, k);
  g.at_tile = 0;
  g.at_own = aligned(g.raw ? 0 : (g.tile_size + 2 * widest) * k.sum_item);
  g.at_sums = g.at_own;
  return true;
}

}  // namespace convarith::cpu
