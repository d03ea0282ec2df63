// Gathers: plans, the cost model of their blocking, and their run. conv_layout.cpp lays them out.
#include <numeric>

#include "conv_planning.h"

namespace convarith::cpu {
namespace {

constexpr int64_t kOwnBytes = int64_t{1} << 19;    // of weights that a thread packs for itself
constexpr int64_t kCopyCost = 256;                 // of a tile's element, in products with a row
constexpr int64_t kMostTile = int64_t{1} << 20;    // of inputs that every thread copies then
constexpr int64_t kMostRaw = int64_t{1} << 23;     // or reads where they stand
constexpr int64_t kFirstCache = int64_t{1} << 15;  // most of it
constexpr int64_t kDirectDepth = 1024;             // most channels * taps of sums that are stored directly
constexpr int64_t kTileOfAll = int64_t{3} << 17;   // bytes of a tile of all channels, which several phases see
constexpr int64_t kDirectTile = 3 << 14;           // outputs * channels of a box of these, about

// Images, channels and where they stand: of y = C x, or of x = C^T y.
void set_sides(GatherPlan& g, const Problem& p, bool transposed) {
  const Strides &in = transposed ? p.y : p.x, &out = transposed ? p.x : p.y;
  g.batch = p.batch;
  g.groups = p.groups;
  g.rows = transposed ? p.in_channels : p.out_channels;
  g.channels = transposed ? p.out_channels : p.in_channels;
  g.w_group = p.out_channels * p.w.batch;
  g.w_row = transposed ? p.w.channel : p.w.batch;
  g.w_channel = transposed ? p.w.batch : p.w.channel;
  g.in_batch = in.batch;
  g.in_channel = in.channel;
  g.in_group = g.channels * in.channel;
  g.out_batch = out.batch;
  g.out_channel = out.channel;
  g.out_group = g.rows * out.channel;
  for (int i = 0; i < kAxes; ++i) {
    g.in_axis[i] = in.axis[i];
    g.out_axis[i] = out.axis[i];
    g.phases[i] = 1;
  }
}

}  // namespace

// y = C x. For the weight's gradient every tap stays, for its weight must be written.
Gather forward_gather(const Problem& p, bool all_taps) {
  Gather result;
  GatherPlan& g = result.plan;
  set_sides(g, p, /*transposed=*/false);
  for (int i = 0; i < kAxes; ++i) {
    g.grid[i] = p.output[i];
    g.stride[i] = p.axis[i].stride;
    g.source[i] = p.axis[i].input;
  }
  for_taps(p, [&](const std::array<int64_t, 3>& t) {
    std::array<int64_t, 3> shift;
    int64_t weight = 0;
    bool meets = true;
    for (int i = 0; i < kAxes; ++i) {
      const Range run = outputs_of_tap(p.axis[i], p.output[i], t[i]);
      meets = meets && run.begin < run.end;
      shift[i] = input_index(p.axis[i], 0, t[i]);
      weight += t[i] * p.w.axis[i];
    }
    if (!meets && !all_taps) return;
    result.shifts.push_back(shift);
    result.tap_weight.push_back(weight);
  });
  return result;
}

// Where nothing but a row of odd length is left, one image of one axis, half of every product is wasted.
int64_t pair_axis_of(const GatherPlan& g) {
  const int64_t extent[4] = {g.batch, g.grid[0], g.grid[1], g.grid[2]};
  int64_t best = 0;
  for (int64_t axis = 1; axis < 4; ++axis) {
    // The two halves of a row are read as vectors, and so as long as each other.
    if (axis == 3 && extent[3] % 2 != 0) continue;
    if (parts(extent[axis], 2) * extent[best] < parts(extent[best], 2) * extent[axis]) best = axis;
  }
  return best;
}

void make_pairs(GatherPlan& g, int64_t axis) {
  int64_t& extent = axis == 0 ? g.batch : axis < 4 ? g.grid[axis - 1] : g.channels;
  g.pair_axis = axis;
  g.pair_alone = extent % 2 != 0;
  g.pair_apart = extent = parts(extent, 2);
}

namespace {

// Pairs of channels: of neighbours, where they follow each other in memory and are an even number.
void pair_channels(Gather& gather) {
  GatherPlan& g = gather.plan;
  const bool even_channels = g.channels % 2 == 0;
  make_pairs(g, 4);
  const auto even = [](int64_t a) { return a % 2 == 0; };
  g.in_words =
      even_channels && g.in_channel == 1 && even(g.in_batch) && std::all_of(g.in_axis, g.in_axis + kAxes, even);
  if (!g.in_words) return;
  for (int64_t* pitch : {&g.in_batch, &g.in_group, &g.in_axis[0], &g.in_axis[1], &g.in_axis[2]}) *pitch /= 2;
  g.w_words = g.w_channel == 1 && even(g.w_row) && std::all_of(g.w_phase, g.w_phase + kAxes, even) &&
              std::all_of(gather.tap_weight.begin(), gather.tap_weight.end(), even);
  if (!g.w_words) {
    g.w_channel *= 2;
    return;
  }
  g.w_group /= 2;
  g.w_row /= 2;
  for (int64_t& apart : g.w_phase) apart /= 2;
  for (int64_t& at : gather.tap_weight) at /= 2;
}

// A phase of one axis of a transposed convolution: its outputs, its taps that meet an input, and how far from the
// output's cell each reads.
struct AxisPhase {
  int64_t outputs;
  std::vector<int64_t> taps, shifts;
};

AxisPhase axis_phase(const Axis& a, int64_t source, int64_t phase) {
  AxisPhase result = {parts(a.input - phase, a.stride), {}, {}};
  for (int64_t t = 0; t < a.kernel; ++t) {
    const int64_t scaled = phase + a.lo - t * a.dilation, shift = floor_div(scaled, a.stride);
    if (shift * a.stride != scaled || shift >= source || shift + result.outputs <= 0) continue;
    result.taps.push_back(t);
    result.shifts.push_back(shift);
  }
  return result;
}

// How many phases that follow each other see the same inputs, by taps that follow each other: as many from every
// multiple of them on.
int64_t alike_phases(const std::vector<AxisPhase>& phases) {
  const auto alike = [&](size_t first, size_t apart) {
    const AxisPhase &a = phases[first], &b = phases[first + apart];
    return !a.taps.empty() && a.outputs == b.outputs && a.shifts == b.shifts &&
           a.taps.front() + static_cast<int64_t>(apart) == b.taps.front();
  };
  size_t count = 1;
  while (count < phases.size() && alike(0, count)) ++count;
  if (phases.size() % count != 0) return 1;
  for (size_t i = 0; i < phases.size(); ++i) {
    if (!alike(i / count * count, i % count)) return 1;
  }
  return static_cast<int64_t>(count);
}

// The phase `r` of a transposed convolution, and those merged with it; its last axis may be a whole row, without taps.
Gather phase_gather(const Problem& p, const std::array<int64_t, 3>& r, const std::array<const AxisPhase*, 3>& of,
                    const std::array<int64_t, 3>& merged) {
  Gather gather;
  GatherPlan& g = gather.plan;
  set_sides(g, p, /*transposed=*/true);
  for (int i = 0; i < kAxes; ++i) {
    g.grid[i] = of[i]->outputs;
    g.stride[i] = 1;
    g.source[i] = p.output[i];
    g.out_offset += r[i] * p.x.axis[i];
    g.out_axis[i] = (of[i]->outputs == p.axis[i].input ? 1 : p.axis[i].stride) * p.x.axis[i];
    g.phases[i] = merged[i];
    g.out_phase[i] = p.x.axis[i];
    g.w_phase[i] = p.w.axis[i];
    g.rows *= merged[i];
  }
  for (size_t z = 0; z < of[0]->taps.size(); ++z) {
    for (size_t y = 0; y < of[1]->taps.size(); ++y) {
      for (size_t x = 0; x < of[2]->taps.size(); ++x) {
        gather.shifts.push_back({of[0]->shifts[z], of[1]->shifts[y], of[2]->shifts[x]});
        gather.tap_weight.push_back(of[0]->taps[z] * p.w.axis[0] + of[1]->taps[y] * p.w.axis[1] +
                                    of[2]->taps[x] * p.w.axis[2]);
      }
    }
  }
  return gather;
}

// x = C^T y: one gather for each phase of the stride, over the taps of that phase; no inserted zero exists. Zeros of
// the result are written in rows, or with the outputs that they follow. Where they can be, phases are merged if wanted.
std::vector<Gather> transposed_gathers(const Problem& p, bool merging) {
  std::vector<Gather> result;
  std::array<std::vector<AxisPhase>, kAxes> phases;
  std::array<int64_t, kAxes> merged = {1, 1, 1};
  for (int i = 0; i < kAxes; ++i) {
    for (int64_t r = 0; r < std::min(p.axis[i].stride, p.axis[i].input); ++r) {
      phases[i].push_back(axis_phase(p.axis[i], p.output[i], r));
    }
    merging = merging && std::all_of(phases[i].begin(), phases[i].end(), [](const auto& a) { return !a.taps.empty(); });
    merged[i] = alike_phases(phases[i]);
  }
  if (!merging || merged[2] == 1 || p.x.axis[2] != 1) merged = {1, 1, 1};
  const AxisPhase whole = {p.axis[2].input, {}, {}};
  const int64_t planes = phases[0].size(), rows = phases[1].size(), columns = phases[2].size();
  const bool fills = p.axis[2].stride == 2 && p.axis[2].input % 2 == 0 && p.x.axis[2] == 1 && p.x.channel != 1 &&
                     phases[2][1].taps.empty() && !phases[2][0].taps.empty();
  for (int64_t z = 0; z < planes; z += merged[0]) {
    for (int64_t y = 0; y < rows; y += merged[1]) {
      const AxisPhase &of_z = phases[0][z], &of_y = phases[1][y];
      if (of_z.taps.empty() || of_y.taps.empty()) {
        result.push_back(phase_gather(p, {z, y, 0}, {&of_z, &of_y, &whole}, merged));
        continue;
      }
      for (int64_t x = 0; x < (fills ? 1 : columns); x += merged[2]) {
        result.push_back(phase_gather(p, {z, y, x}, {&of_z, &of_y, &phases[2][x]}, merged));
        result.back().plan.fills = fills;
      }
    }
  }
  return result;
}

}  // namespace

bool few_phases(const Problem& p, int64_t most) {
  int64_t phases = 1;
  for (const Axis& a : p.axis) {
    if (std::min(a.stride, a.input) > most) return false;
    phases *= std::min(a.stride, a.input);
  }
  return phases <= most && phases * p.kernel_numel() <= (int64_t{1} << 20);
}

size_t deepest_of(const std::vector<Gather>& gathers) {
  const auto fewer_taps = [](const Gather& a, const Gather& b) { return a.shifts.size() < b.shifts.size(); };
  return std::max_element(gathers.begin(), gathers.end(), fewer_taps) - gathers.begin();
}

std::vector<Gather> plain_gathers(const Problem& p, bool transposed) {
  if (transposed) return transposed_gathers(p, false);
  return {forward_gather(p, false)};
}

namespace {

// simplify() made the batch an axis.
bool one_pixel(const Problem& p) {
  return p.batch == 1 && p.axis[0].input == 1 && p.axis[1].input == 1 && p.x.axis[2] == p.x.batch &&
         p.y.axis[2] == p.y.batch && p.kernel_numel() == 1 && p.axis[2].stride == 1 && p.axis[2].lo == 0 &&
         p.axis[2].input == p.output[2];
}

// x = C^T y where C has one pixel, a product of matrices: the channels of x and w follow each other in memory, so they
// are the outputs, y is the weight and w the input.
Gather product_gather(const Problem& p) {
  Gather result;
  GatherPlan& g = result.plan;
  g.batch = 1;
  g.groups = p.groups;
  g.rows = p.axis[2].input;
  g.channels = p.out_channels;
  for (int i = 0; i < kAxes; ++i) {
    g.grid[i] = g.source[i] = i == 2 ? p.in_channels : 1;
    g.stride[i] = 1;
    g.in_axis[i] = g.out_axis[i] = i == 2 ? 1 : 0;
    g.phases[i] = 1;
  }
  g.in_channel = p.w.batch;
  g.in_group = g.channels * g.in_channel;
  g.out_channel = p.x.batch;
  g.out_group = p.in_channels * p.x.channel;
  g.w_group = p.out_channels * p.y.channel;
  g.w_row = p.y.batch;
  g.w_channel = p.y.channel;
  result.shifts.push_back({0, 0, 0});
  result.tap_weight.push_back(0);
  result.swapped = true;
  return result;
}

int64_t merged_phases(const GatherPlan& g) {
  return g.phases[0] * g.phases[1] * g.phases[2];
}

// Room for sums and runs, once the rows are known.
void lay_out_sums(GatherPlan& g, const ConvKernels& k) {
  const int64_t runs = g.box[0] * g.box[1] * g.box[2];
  g.at_runs = g.at_sums + aligned(padded_rows(g, k) * g.columns * k.sum_item);
  g.at_pixels = g.at_runs + aligned(runs * static_cast<int64_t>(sizeof(Run)));
  const int64_t pixels = g.outer ? runs * g.box[3] : 0;
  g.at_places = g.at_pixels + aligned(pixels * static_cast<int64_t>(sizeof(int32_t)));
  g.scratch = g.at_places + aligned(pixels * static_cast<int64_t>(sizeof(int64_t)));
}

// The cost model ------------------------------------------------------------------------------------------------------

// Of a vector, from and to memory: an input that the outer product reads where it stands; a result.
constexpr double kReadCycles = 5, kWriteCycles = 6;
// And of one from the tile, which begins anywhere: as long as its products with two rows.
constexpr double kLoadCycles = 1.2;

// How to block a gather, and along what to have the lanes.
Blocking gather_blocking(const Gather& gather, const ConvKernels& k, int64_t threads, std::optional<Algorithm> wanted) {
  const GatherPlan& g = gather.plan;
  Blocking b = {};
  b.depth = 288;
  // Sums of a box stay in the second cache; a thirteenth vector makes 14 x 14 or 4 times 7 x 7 outputs a box.
  b.pixels = std::clamp<int64_t>((int64_t{1} << 19) / (g.rows * k.sum_item), 13 * k.lanes, 1024);
  // Lanes along the outputs multiply the margins of the tile too; lanes along the rows fill them up with zeros.
  int64_t span[3] = {0, 0, 0};
  for (int i = 0; i < 3; ++i) {
    for (const auto& a : gather.shifts) {
      for (const auto& c : {gather.shifts.front(), gather.shifts.back()}) {
        span[i] = std::max(span[i], std::abs(a[i] - c[i]) / g.stride[i]);
      }
    }
  }
  const auto margin = [&](int i) { return 1 + static_cast<double>(span[i]) / static_cast<double>(g.grid[i]); };
  const auto stride = static_cast<double>(g.stride[0] * g.stride[1] * g.stride[2]);
  double waste = margin(2);
  bool by_image = false;
  if (g.grid[0] == 1 && g.grid[1] * g.grid[2] * 2 <= b.pixels && g.batch > 1) {
    // An image that ends with its last output, in whole vectors, or images with the margins between them.
    const int64_t row = g.grid[2] + span[2], image = g.grid[1] * g.grid[2];
    const int64_t alone = parts((g.grid[1] - 1) * row + g.grid[2], k.lanes) * k.lanes;
    const int64_t together = (g.grid[1] + span[1]) * row;
    by_image = alone <= together;
    waste = static_cast<double>(std::min(alone, together)) / static_cast<double>(image);
  }
  if (g.grid[0] > 1) waste *= margin(1) * (g.grid[1] * g.grid[2] <= b.pixels ? margin(0) : 1);
  // Cycles of an output: multiplications, two vectors at a time, and storing; and copying its share of a tile whose
  // neighbours are not neighbours in memory.
  const auto rows = static_cast<double>(g.rows), lanes = static_cast<double>(k.lanes);
  const auto channels = static_cast<double>(g.channels), taps = static_cast<double>(gather.shifts.size());
  const auto vectors_of = [&](int64_t count) { return static_cast<double>(parts(count, k.lanes)); };
  const double vectors = vectors_of(g.rows);
  double copied = g.stride[2] * g.in_axis[2] > 2 ? std::min(taps, stride) : 0;
  // Where channels are neighbours there, vectors of them are transposed.
  if (g.in_channel == 1 && stride == 1) copied *= std::min(1.0, 0.4 * vectors_of(g.channels) * lanes / channels);
  // Of a tap alone, what the outer product reads where it stands: a channel of many small images in as many places.
  const bool by_lines = gather.shifts.size() == 1 && g.in_channel != 1;
  if (by_lines && stride == 1) {
    copied = (g.batch > 1 && g.grid[0] * g.grid[1] * g.grid[2] <= 4 * k.lanes ? 16 : 2.5) / lanes;
  }
  // The outer product stores some of every row at a time, and such pitches put all rows into one set of the cache.
  const double store = merged_phases(g) > 1 || g.out_channel == 1 ? 0.3
                       : g.out_channel * k.item % 4096 == 0       ? 1.6
                       : k.pairs                                  ? 1.2
                                                                  : 0.7;
  // Where registers are few, so are the vectors that lines of a tap alone, read where they stand, are multiplied by.
  const bool lines_cost = few_registers(k) && by_lines && stride == 1 && merged_phases(g) == 1;
  const double outer_cost = vectors < 2 ? 1.5 : lines_cost ? 1.1 : 1;
  const double sweep_cost = few_registers(k) ? 1.05 : k.pairs ? 1.1 : 1.15;
  const double outer = channels * taps * vectors / 2 * outer_cost + store * rows;
  const double swept_cells = std::max(rows / 2 * sweep_cost, kLoadCycles) * waste / lanes;
  const double cells = channels * (taps * swept_cells + copied) + 0.7 * rows;
  // Stored directly, runs are whole vectors, of which a sweep should fill the registers, and all channels are summed.
  const int64_t row_block = even_part(g.rows, k.row_block), run_vectors = parts(g.grid[2], k.lanes);
  const int64_t sweep = std::min(g.grid[2] / k.lanes, k.vectors);
  const bool fills_registers = sweep == k.vectors || row_block * sweep >= k.row_block * k.vectors / 2;
  const double run_waste = static_cast<double>(run_vectors) * lanes / static_cast<double>(g.grid[2]);
  // A block of rows alone reads every input but once, where it stands.
  const bool reads_once = gather.shifts.size() == 1 && stride == 1 && g.in_axis[2] == 1 && g.rows <= k.row_block;
  const double swept = taps * (rows / lanes / 2 * run_waste + 0.07);
  const double direct = channels * (swept + (reads_once ? 0 : copied)) + 0.2 * rows;
  const bool can_be_direct = stores_directly(g, k) && fills_registers && channels * taps <= kDirectDepth;
  b.direct = can_be_direct && (reads_once || direct < cells);
  b.may_be_raw = b.direct && reads_once;
  // Blocks of rows that do not fill vectors are packed slowly, for however few outputs; those of few rows that follow
  // each other in memory bring a line for each channel.
  const double weight = few_registers(k) && g.w_row == 1 ? 0.8 : 0.3;
  const double packing =
      weight * channels * taps * rows / static_cast<double>(g.batch * g.grid[0] * g.grid[1] * g.grid[2]);
  const double offset = (b.direct ? direct : cells) + packing;
  b.outer = outer < offset;
  b.cycles = std::min(outer, offset);
  if (wanted == Algorithm::kOuter) b.outer = true;
  if (wanted == Algorithm::kOffset) b.outer = false;
  if (b.outer) {
    // A block's weights stay in the first cache while pixels pass; of a tap alone, every channel that they meet brings
    // a line of its own, and those that are asked for ahead.
    const int64_t step = std::min(parts(g.rows, k.lanes), k.outer_vectors) * k.lanes * k.sum_item;
    b.depth = (by_lines ? kFirstCache / 2 : kFirstCache) / step;
    b.tile = 1 << 18;
    // Sums and tile stay in the second cache, beside the weights that pass through.
    const int64_t channels_at_once = std::max<int64_t>(1, b.depth / static_cast<int64_t>(gather.shifts.size() + 1));
    b.pixels =
        std::min(b.pixels, std::max<int64_t>(196, (int64_t{3} << 17) / k.sum_item / (g.rows + channels_at_once)));
    b.compact = true;
    b.direct = false;
  } else if (b.direct) {
    b.depth = kDirectDepth;
    const int64_t residues = std::clamp<int64_t>(gather.shifts.size(), 1, g.stride[0] * g.stride[1] * g.stride[2]);
    b.pixels = std::clamp<int64_t>(kDirectTile / (g.channels * residues), 16 * k.lanes, 1024);
  } else if (by_image) {
    b.pixels = g.grid[1] * g.grid[2];
  }
  // Enough boxes for every thread, where it cannot have rows of its own.
  const int64_t outputs = g.batch * g.grid[0] * g.grid[1] * g.grid[2] * g.groups;
  const int64_t row_tasks = b.outer ? parts(g.rows, k.outer_vectors * k.lanes) : g.rows / k.row_block;
  b.share = b.pixels;
  if (row_tasks < 4 * threads) {
    const int64_t few = row_tasks < threads ? std::clamp<int64_t>(outputs / threads, 32, 128) : 128;
    const int64_t least = b.outer ? few : k.vectors * k.lanes;
    b.share = std::clamp<int64_t>(outputs / (4 * threads), std::min(b.pixels, least), b.pixels);
  }
  return b;
}

// Gathers that read something.
int64_t reading(const std::vector<Gather>& gathers) {
  return std::count_if(gathers.begin(), gathers.end(), [](const Gather& a) { return !a.shifts.empty(); });
}

// Lays out gathers, each with a tile of its own. False where one would be too large.
bool lay_out_alone(std::vector<Gather>& gathers, Blocking blocking, const ConvKernels& k) {
  const bool one = reading(gathers) < 2;
  for (Gather& gather : gathers) {
    GatherPlan& g = gather.plan;
    if (blocking.outer) blocking.may_be_raw = (gather.shifts.size() == 1 && g.stride[2] == 1) || g.in_channel == 1;
    if (!lay_out(gather, blocking, k)) return false;
    g.one_tile = one && (g.raw || g.taps == 0 || g.channel_block == g.channels);
  }
  return true;
}

// Lays them out such that all see one tile, of all channels, which the tasks of a box copy but once. False where they
// cannot.
bool lay_out_together(std::vector<Gather>& gathers, Blocking blocking, const ConvKernels& k) {
  if (reading(gathers) < 2) return false;
  const GatherPlan& any = gathers[deepest_of(gathers)].plan;
  std::vector<std::array<int64_t, 3>> seen;
  int64_t tile_grid[kAxes] = {};
  for (const Gather& gather : gathers) {
    if (gather.shifts.empty()) continue;
    seen.insert(seen.end(), gather.shifts.begin(), gather.shifts.end());
    for (int i = 0; i < kAxes; ++i) tile_grid[i] = std::max(tile_grid[i], gather.plan.grid[i]);
  }
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  blocking.seen = &seen;
  blocking.tile_grid = tile_grid;
  if (!blocking.outer) {
    blocking.pixels = std::min(blocking.pixels, std::max(13 * k.lanes, kTileOfAll / (any.channels * k.sum_item)));
    blocking.share = std::min(blocking.share, blocking.pixels);
    blocking.depth = kDirectDepth;
  }
  if (!lay_out_alone(gathers, blocking, k)) return false;
  bool same_boxes = true;  // which depend on the threads, as the order in which channels are summed must not
  for (const Gather& gather : gathers) {
    const GatherPlan& g = gather.plan;
    if (g.taps == 0) continue;
    if (!g.raw && g.channel_block < g.channels) return false;
    same_boxes = same_boxes && std::equal(g.boxes, g.boxes + 4, any.boxes);
  }
  for (Gather& gather : gathers) gather.plan.one_tile = same_boxes;
  return true;
}

std::vector<Gather> gathers_of(const Problem& p, Pass pass, const ConvKernels& k, bool merging) {
  std::vector<Gather> gathers;
  if (pass == Pass::kInput) {
    if (!few_phases(p)) return {};
    if (one_pixel(p) && p.w.channel == 1 && p.x.channel == 1) {
      gathers.push_back(product_gather(p));
    } else {
      gathers = transposed_gathers(p, merging);
    }
  } else {
    gathers.push_back(forward_gather(p, false));
  }
  if (k.pairs) {
    for (Gather& gather : gathers) pair_channels(gather);
  }
  const int64_t threads = thread_count();
  // The phases of a transposed convolution are blocked alike, by the deepest one, so that tasks in turn are even.
  const Gather& deepest = gathers[deepest_of(gathers)];
  Blocking blocking = gather_blocking(deepest, k, threads, wanted_algorithm());
  if (!blocking.outer && merged_phases(deepest.plan) > 1) return gathers_of(p, pass, k, /*merging=*/false);
  if (!lay_out_together(gathers, blocking, k) && !lay_out_alone(gathers, blocking, k)) return {};
  // The tile stays while other plans take their turn.
  int64_t tile = 0;
  for (const Gather& gather : gathers) tile = std::max(tile, gather.plan.at_own);
  for (Gather& gather : gathers) gather.plan.at_own = gather.plan.at_sums = tile;
  return gathers;
}

}  // namespace

std::vector<Gather> gathers_of(const Problem& p, Pass pass, const ConvKernels& k) {
  return gathers_of(p, pass, k, wanted_algorithm() != Algorithm::kOffset);
}

double gather_cycles(const Problem& p, Pass pass, const ConvKernels& k) {
  if (pass == Pass::kInput && !few_phases(p)) return std::numeric_limits<double>::infinity();
  std::vector<Gather> gathers = plain_gathers(p, pass == Pass::kInput);
  const auto lanes = static_cast<double>(k.lanes), count = static_cast<double>(gathers.size());
  const auto most_taps = static_cast<int64_t>(gathers[deepest_of(gathers)].shifts.size());
  double total = 0;
  int64_t weights = 0;
  for (Gather& gather : gathers) {
    GatherPlan& g = gather.plan;
    const auto inputs = static_cast<double>(g.batch * g.groups * g.channels * g.source[0] * g.source[1] * g.source[2]);
    weights += g.groups * g.rows * g.channels * static_cast<int64_t>(gather.shifts.size());
    if (k.pairs) pair_channels(gather);
    const Blocking blocking = gather_blocking(gather, k, 1, std::nullopt);
    const auto outputs = static_cast<double>(g.batch * g.groups * g.grid[0] * g.grid[1] * g.grid[2]);
    // Phases see one tile, which with lanes along the outputs must have all channels.
    const bool together = blocking.outer || g.channels * most_taps <= 2 * kDirectDepth;
    const double copy = (blocking.outer ? kReadCycles : kCopyCycles) / (together ? count : 1);
    total += outputs * (blocking.cycles + kWriteCycles * static_cast<double>(g.rows) / lanes) + inputs * copy / lanes;
  }
  // Pairs are packed by words, half as many, and nothing is done to them.
  return total + (k.pairs ? 0.25 : 1) * (weight_vector_cycles(weights, k) + far_weight_cycles(weights, k));
}

namespace {

int64_t packed_bytes(const std::vector<Gather>& gathers, const ConvKernels& k) {
  int64_t total = 0;
  for (const Gather& g : gathers) total += packed_size(g.plan, k);
  return total * k.sum_item;
}

// Rows that passes are multiples of: whole vectors, and all phases of a channel.
int64_t row_unit(const GatherPlan& g, const ConvKernels& k) {
  return std::lcm(g.outer ? k.lanes : k.row_block, merged_phases(g));
}

// How the rows are cut into passes that pack their weights one after the other.
struct RowPasses {
  int64_t rows;  // of a pass, at most
  bool own;      // a thread makes passes of its own; otherwise all threads make each together
};

RowPasses row_passes(const std::vector<Gather>& gathers, const ConvKernels& k, int64_t threads) {
  const GatherPlan& g = gathers[0].plan;
  const int64_t bytes = packed_bytes(gathers, k);
  int64_t taps = 0, copies = 0;
  bool stays = g.groups == 1;  // the tile, through all passes
  for (const Gather& gather : gathers) {
    taps += gather.plan.taps;
    const bool copied = gather.plan.taps > 0 && !gather.plan.raw;
    copies = !copied ? copies : gather.plan.one_tile ? 1 : copies + 1;
    stays = stays && gather.plan.one_tile && box_count(gather.plan) == 1;
  }
  // Where the weights outweigh the input, threads read all of that, but only their own weights, and those while they
  // are in the second cache. Passes should not copy more than they multiply, but every thread may have one.
  const int64_t input = g.batch * g.groups * g.channels * g.source[0] * g.source[1] * g.source[2] * k.sum_item;
  if (input <= std::min(bytes, copies > 0 ? kMostTile : kMostRaw)) {
    const int64_t unit = row_unit(g, k), units = parts(g.rows, unit);
    // An element meets the taps of its residue.
    const int64_t meets = std::max<int64_t>(1, taps / (g.stride[0] * g.stride[1] * g.stride[2]));
    const int64_t least = copies > 0 && !stays ? parts(kCopyCost * (k.pairs ? 2 : 1) * copies, meets) : 1;
    const int64_t most = std::min(units, std::max(g.rows / least, threads));
    const int64_t passes = std::min(parts(bytes, kOwnBytes * threads), most / threads) * threads;
    const int64_t rows = parts(units, std::max<int64_t>(1, passes)) * unit;
    const bool even = 4 * passes * rows <= 5 * g.rows;  // about as much for every thread
    if (passes > 0 && even) return {rows, true};
  }
  if (bytes <= kPackedBytes) return {g.rows, false};
  const int64_t most = std::max<int64_t>(1, kPackedBytes / std::max<int64_t>(1, bytes / g.rows));
  const int64_t phases = merged_phases(g);
  return {even_part(g.rows / phases, std::max<int64_t>(1, most / phases)) * phases, false};
}

int64_t outputs_before(const GatherPlan& g, int64_t index) {
  const int64_t extent[4] = {g.batch, g.grid[0], g.grid[1], g.grid[2]};
  return entries_before(g.boxes, g.box, extent, index);
}

// Where a slice begins, of as many that are as much work as each other: in row blocks, of every group of every box.
int64_t slice_begin(const GatherPlan& g, int64_t slice, int64_t slices, const ConvKernels& k) {
  const int64_t blocks = g.groups * row_blocks(g, k), boxes = box_count(g);
  const int64_t before = outputs_before(g, boxes) * slice;  // in the slices' part of an output
  int64_t box = 0;
  for (int64_t end = boxes; end - box > 1;) {
    const int64_t middle = (box + end) / 2;
    (outputs_before(g, middle) * slices <= before ? box : end) = middle;
  }
  const int64_t first = outputs_before(g, box), size = (outputs_before(g, box + 1) - first) * slices;
  return box * blocks + (2 * (before - first * slices) * blocks + size) / (2 * size);
}

// What a pass over the rows [first, first + count) runs.
struct RowPass {
  std::vector<GatherPlan> plans;
  const void* w;
  int64_t slices;
  std::vector<int64_t> cuts;  // of the slices, which are one for every thread
  int64_t macs;               // of all plans
  int64_t packed, scratch;    // bytes
};

RowPass pass_of(const std::vector<Gather>& gathers, int64_t first, int64_t count, const void* w, int64_t slices,
                const ConvKernels& k) {
  RowPass pass = {};
  pass.slices = slices;
  int64_t packed = 0;
  const int64_t channel = first / merged_phases(gathers[0].plan);
  pass.w = static_cast<const char*>(w) + channel * gathers[0].plan.w_row * (gathers[0].plan.w_words ? 2 : 1) * k.item;
  for (const Gather& gather : gathers) {
    GatherPlan g = gather.plan;
    g.rows = count;
    g.out_offset += channel * g.out_channel;
    if (g.bias) g.bias = static_cast<const char*>(g.bias) + channel * k.item;
    g.packed = packed;
    packed = spread(packed + packed_size(g, k), k);
    lay_out_sums(g, k);
    for (int64_t slice = 0; slice <= slices; ++slice) pass.cuts.push_back(slice_begin(g, slice, slices, k));
    pass.macs += gather_macs(g);
    pass.scratch = std::max(pass.scratch, g.scratch);
    pass.plans.push_back(g);
  }
  pass.packed = (packed + 2 * k.lanes) * k.sum_item;
  return pass;
}

// All threads together.
void run_together(const RowPass& pass, const ConvKernels& k, const void* in, void* out) {
  const auto count = static_cast<int64_t>(pass.plans.size());
  const GatherPlan* plans = pass.plans.data();
  const Buffer weights(pass.packed);
  parallel(k.pack_tasks(plans[0]), pass.packed,
           [&](int64_t begin, int64_t end) { k.pack(plans, count, pass.w, weights.get(), begin, end); });
  parallel(pass.slices, pass.macs, [&](int64_t begin, int64_t end) {
    const Buffer mine(pass.scratch);
    HeldTile held;
    k.gather(plans, count, pass.cuts.data(), pass.slices, in, weights.get(), out, mine.get(), held, begin, end);
  });
}

// One thread alone.
void run_alone(const RowPass& pass, const ConvKernels& k, const void* in, void* out, char* weights, char* scratch,
               HeldTile& held) {
  const auto count = static_cast<int64_t>(pass.plans.size());
  const GatherPlan* plans = pass.plans.data();
  k.pack(plans, count, pass.w, weights, 0, k.pack_tasks(plans[0]));
  k.gather(plans, count, pass.cuts.data(), pass.slices, in, weights, out, scratch, held, 0, pass.slices);
}

struct Gathers : Plan {
  Gathers(std::vector<Gather> all, const ConvKernels& kernels, int64_t most_threads)
      : gathers(std::move(all)), k(kernels), threads(most_threads), passes(row_passes(gathers, kernels, most_threads)) {
    for (Gather& gather : gathers) gather.point();
  }

  Explanation explain() const override {
    const RowPass pass = pass_at(0, nullptr);
    Explanation e = {};
    e.algorithm = gathers[0].plan.outer ? Algorithm::kOuter : Algorithm::kOffset;
    e.phases = static_cast<int64_t>(gathers.size()) * merged_phases(gathers[0].plan);
    e.multiplications = macs();
    e.scratch = (passes.own ? threads : 1) * pass.packed + threads * pass.scratch;
    return e;
  }

  bool add_bias(const void* bias) override {
    if (gathers[0].swapped) return false;  // a row is a pixel there
    for (Gather& gather : gathers) {
      gather.plan.bias = bias;
      gather.plan.bias_group = gather.plan.rows / merged_phases(gather.plan);
    }
    return true;
  }

  void run(const void* in, int64_t, const void* w, int64_t, void* out) override {
    if (gathers[0].swapped) std::swap(in, w);
    const int64_t count = parts(gathers[0].plan.rows, passes.rows);
    if (!passes.own) {
      for (int64_t i = 0; i < count; ++i) run_together(pass_at(i, w), k, in, out);
      return;
    }
    parallel(count, macs(), [&](int64_t begin, int64_t end) {
      const RowPass largest = pass_at(0, w);
      const Buffer weights(largest.packed), mine(largest.scratch);
      HeldTile held;
      for (int64_t i = begin; i < end; ++i) run_alone(pass_at(i, w), k, in, out, weights.get(), mine.get(), held);
    });
  }

  RowPass pass_at(int64_t i, const void* w) const {
    const int64_t first = i * passes.rows, rows = std::min(passes.rows, gathers[0].plan.rows - first);
    return pass_of(gathers, first, rows, w, passes.own ? 1 : threads, k);
  }

  int64_t macs() const {
    int64_t total = 0;
    for (const Gather& gather : gathers) total += gather_macs(gather.plan);
    return total;
  }

  std::vector<Gather> gathers;
  const ConvKernels& k;
  const int64_t threads;
  const RowPasses passes;
};

}  // namespace

PlanPtr plan_gathers(std::vector<Gather> gathers, const ConvKernels& k, int64_t threads) {
  return gathers.empty() ? nullptr : std::make_unique<Gathers>(std::move(gathers), k, threads);
}

}  // namespace convarith::cpu
