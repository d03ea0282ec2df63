// Gathers by AMX: plans, their cost, and their run.
#include <numeric>

#include "conv_planning.h"

namespace convarith::cpu {
namespace {

// Cycles: of a step of a block with one or two registers of rows, and of its weights where they do not stay near; of a
// copied pair of a panel, of a line's part and of its weights where they stand otherwise; of an output's rounding and
// of one that goes further than beside its neighbour; and of a tile's pair, of one of neighbouring channels, and of
// one, and a row of them, that come from further.
constexpr double kSteps[] = {100, 130}, kFarStep = 60, kPanelPair = 3, kLinePart = 3, kLineWeight = 2, kStore = 0.3,
                 kScatter = 10, kCell = 0.8, kInnerCell = 0.15, kFarCell = 3, kFarRow = 100;
constexpr int64_t kFewSets = 1024;                // numbers, so far apart that they share a few sets of the first cache
constexpr int64_t kNearBytes = int64_t{1} << 18;  // of weights that a block of lines passes
constexpr int64_t kTileBytes = int64_t{1} << 18;  // of inputs, beside the weights in the second cache
constexpr int64_t kLeastPixels = 128, kMostPixels = 4096;

struct AmxGather {
  Gather gather;
  std::vector<int32_t> step;
  Lines lines;
  AmxPlan plan;
};

// Whether phases see one tile, being equally large.
bool sees_one_tile(const std::vector<Gather>& gathers) {
  const GatherPlan& any = gathers[deepest_of(gathers)].plan;
  return std::all_of(gathers.begin(), gathers.end(), [&](const Gather& a) {
    return a.shifts.empty() || std::equal(a.plan.grid, a.plan.grid + kAxes, any.grid);
  });
}

int64_t row_blocks(const GatherPlan& g) {
  return parts(g.rows, kAmxRows);
}

// That are multiplied, of a box.
int64_t cells_of(const GatherPlan& g) {
  return g.compact ? g.box[0] * g.box[1] * g.box[2] * g.box[3] : g.tile_image / g.tile_cell * g.box[0];
}

// Whether lines of a single tap are pixels, which are registers' lines where they stand: all inside of the input, in
// whole lines of the cache, and not all in a few of its sets.
bool lines_in_place(const Gather& gather) {
  const GatherPlan& g = gather.plan;
  if (gather.shifts.size() != 1 || g.in_channel != 1 || g.channels % kAmxNumbers != 0) return false;
  int64_t apart = g.in_batch | g.in_group;
  for (int i = 0; i < 3; ++i) {
    const int64_t shift = gather.shifts[0][i];
    if (shift < 0 || (g.grid[i] - 1) * g.stride[i] + shift >= g.source[i]) return false;
    apart |= g.in_axis[i];
  }
  return apart % kAmxNumbers == 0 && g.stride[2] * g.in_axis[2] % kFewSets != 0;
}

// Of so many channels.
int64_t steps_of(int64_t channels, int64_t taps, AmxInputs inputs) {
  return inputs == AmxInputs::kCells    ? parts(channels, kAmxNumbers) * taps
         : inputs == AmxInputs::kPanels ? parts(parts(channels, 2) * taps, kAmxPairs)
                                        : parts(channels * taps, kAmxNumbers);
}

// Of a block of columns, all rows.
double block_cycles(int64_t rows, int64_t steps, AmxInputs inputs) {
  const int64_t rest = rows % kAmxRows;
  const double step =
      kSteps[1] * static_cast<double>(rows / kAmxRows) + (rest == 0 ? 0 : kSteps[rest > kAmxRows / 2 ? 1 : 0]);
  return static_cast<double>(steps) * (step + (inputs == AmxInputs::kPanels ? kPanelPair * kAmxPairs : 0));
}

// Cycles of plain gathers, by one thread. Boxes, which depend on the threads, have no part in it.
double cycles_of(const std::vector<Gather>& gathers, AmxInputs inputs) {
  const auto as_double = [](int64_t v) { return static_cast<double>(v); };
  double total = 0;
  for (const Gather& gather : gathers) {
    const GatherPlan& g = gather.plan;
    const auto taps = static_cast<int64_t>(gather.shifts.size());
    if (taps == 0) continue;
    int64_t low = gather.shifts[0][2], high = low;
    for (const auto& shift : gather.shifts) {
      low = std::min(low, shift[2]);
      high = std::max(high, shift[2]);
    }
    const bool lines = inputs == AmxInputs::kLines, panels = inputs == AmxInputs::kPanels;
    const int64_t images = g.batch * g.groups, rows = images * g.grid[0] * g.grid[1];
    const int64_t width = g.grid[2] + (lines ? 0 : (high - low) / g.stride[2]);  // cells of a row
    const int64_t steps = steps_of(g.channels, taps, inputs), blocks = row_blocks(g);
    const bool near = !lines || blocks * steps * kAmxRows * kAmxNumbers * 2 <= kNearBytes;
    const double block = block_cycles(g.rows, steps, inputs) + (near ? 0 : as_double(blocks * steps) * kFarStep);
    const bool scattered = g.out_axis[2] > 2 && (g.out_channel != 1 || panels);
    total += as_double(rows * width) / kAmxColumns * block;
    total += as_double(rows * g.grid[2] * g.rows) * (scattered ? kScatter : kStore);
    if (lines) {
      const bool straight = g.channels == 1 || g.w_channel == (g.in_channel == 1 ? 1 : taps);
      total += lines_in_place(gather) ? 0 : as_double(rows * g.grid[2] * line_parts(gather)) * kLinePart;
      total += straight ? 0 : as_double(g.groups * g.rows * g.channels * taps) * kLineWeight;
    } else {
      const int64_t inputs_seen = images * parts(g.channels, 2) * g.source[0] * g.source[1] * g.source[2];
      const bool inner = !panels && g.in_channel == 1 && g.channels > 1, far = !inner && g.stride[2] * g.in_axis[2] > 2;
      const double cell = far ? kFarCell + kFarRow / as_double(width) : inner ? kInnerCell : kCell;
      total += as_double(inputs_seen) * cell / as_double(sees_one_tile(gathers) ? gathers.size() : 1);
    }
  }
  return total;
}

// Into how many shares of `blocks`, at most so many, a task is split: what costs least by cost(split). A thread alone
// takes all.
template <typename Cost>
int64_t even_split(int64_t blocks, int64_t most, int64_t threads, const Cost& cost) {
  int64_t best = 1;
  double best_cost = 0;
  for (int64_t split = 1; split <= (threads == 1 ? 1 : std::min(blocks, most)); ++split) {
    const double of_all = cost(split);
    if (split == 1 || of_all < best_cost) {
      best = split;
      best_cost = of_all;
    }
  }
  return best;
}

// Into how many shares of its row blocks a task is split: a share costs a tile.
int64_t row_split(const AmxGather& a, int64_t plans, int64_t threads) {
  const GatherPlan& g = a.plan.gather;
  const int64_t tasks = box_count(g) * g.groups * plans, blocks = row_blocks(g);
  const auto cells = static_cast<double>(cells_of(g));
  const double copy = cells * (a.plan.lines.parts > 0 ? static_cast<double>(a.plan.lines.parts) * kLinePart
                                                      : static_cast<double>(g.channels * g.residues) * kCell);
  const double block =
      cells / kAmxColumns * block_cycles(g.rows, a.plan.steps, a.plan.inputs) / static_cast<double>(blocks);
  return even_split(blocks, 2 * threads, threads, [&](int64_t split) {
    const double share = copy + block * static_cast<double>(parts(blocks, split));
    return share * static_cast<double>(parts(tasks * split, threads));
  });
}

// Where all taps of a kernel stand: as many, one after the other; 0 where they do not.
int64_t kernel_in_memory(const Problem& p) {
  int64_t size = 1;
  for (int i = kAxes - 1; i >= 0; --i) {
    if (p.axis[i].kernel > 1 && p.w.axis[i] != size) return 0;
    size *= p.axis[i].kernel;
  }
  return size > 1 ? size : 0;
}

// Empty where they cannot be.
std::vector<AmxGather> amx_gathers(const Problem& p, std::vector<Gather> gathers, AmxInputs inputs,
                                   const ConvKernels& k, int64_t threads) {
  const bool one_tile = inputs == AmxInputs::kLines ? gathers.size() == 1 : sees_one_tile(gathers);
  const size_t deepest = deepest_of(gathers);
  std::vector<AmxGather> result;
  for (Gather& gather : gathers) {
    result.push_back({std::move(gather), {}, {}, {}});
    AmxGather& a = result.back();
    a.plan.steps = steps_of(a.gather.plan.channels, static_cast<int64_t>(a.gather.shifts.size()), inputs);
    if (inputs != AmxInputs::kLines) {
      make_pairs(a.gather.plan, 4);
    } else if (!a.gather.shifts.empty()) {
      a.lines = lines_of(a.gather);
    }
  }
  const GatherPlan& any = result[deepest].gather.plan;
  const bool panels = inputs == AmxInputs::kPanels, lines = inputs == AmxInputs::kLines;

  const int64_t outputs = any.batch * any.groups * any.grid[0] * any.grid[1] * any.grid[2];
  Blocking blocking = {};
  blocking.compact = blocking.without_tile = lines;
  blocking.shares_margins = true;
  blocking.may_be_inner = inputs == AmxInputs::kCells;
  blocking.without_offsets = !panels;
  blocking.depth = INT32_MAX;
  blocking.tile = INT64_MAX;
  blocking.pixels = std::clamp(kTileBytes / (any.channels * k.sum_item), kLeastPixels, kMostPixels);
  if (row_blocks(any) < 4 * threads) {
    blocking.pixels = std::clamp(outputs / (4 * threads), kLeastPixels, blocking.pixels);
  }
  std::vector<std::array<int64_t, 3>> seen;
  if (one_tile && result.size() > 1) {
    for (const AmxGather& a : result) seen.insert(seen.end(), a.gather.shifts.begin(), a.gather.shifts.end());
    blocking.seen = &seen;
  }
  const int64_t kernel = kernel_in_memory(p);
  int64_t tile_bytes = 0, parts_bytes = 0, runs_bytes = 0, panel_bytes = 0;
  for (AmxGather& a : result) {
    GatherPlan& g = a.gather.plan;
    if (!lay_out(a.gather, blocking, k)) return {};
    AmxPlan& plan = a.plan;
    plan.inputs = inputs;
    plan.lines = a.lines.plan;
    plan.in_place = lines && lines_in_place(a.gather);
    plan.tile_channels = panels ? g.channels : parts(g.channels, kAmxPairs) * kAmxPairs;
    const bool inner = g.tile_cell > 1;
    plan.pitch = panels ? kAmxColumns : lines ? (plan.steps | 1) * kAmxPairs : inner ? g.tile_cell : kAmxPairs;
    plan.w_pair = inner ? 2 * g.w_channel : g.w_channel;
    plan.w_second = inner ? g.w_channel : g.pair_apart * g.w_channel;
    plan.kernel = kernel;
    for (int64_t s = 0; s < plan.steps; ++s) {
      const int64_t channel = s / std::max<int64_t>(1, g.taps) * kAmxPairs, tap = s % std::max<int64_t>(1, g.taps);
      const int64_t at = panels  ? s * kAmxPairs * kAmxColumns
                         : lines ? s * kAmxPairs
                         : inner ? a.gather.offset[tap] + channel
                                 : a.gather.offset[tap] * kAmxPairs + channel * g.tile_channel;
      a.step.push_back(static_cast<int32_t>(at));
    }
    plan.gather = g;
    const int64_t runs = g.box[0] * g.box[1] * g.box[2], blocks = parts(cells_of(g), kAmxColumns);
    plan.row_split = row_split(a, static_cast<int64_t>(result.size()), threads);
    g.one_tile = one_tile;
    const int64_t tile = inner ? g.tile_size : plan.tile_channels * g.tile_channel;
    const int64_t beyond = 2 * kAmxColumns * (panels ? 1 : plan.pitch);  // a block of cells may end there
    const int64_t loads = plan.lines.parts * static_cast<int64_t>(sizeof(LineLoad));
    tile_bytes = std::max(tile_bytes, lines ? loads : (tile + beyond) * k.sum_item);
    runs_bytes = std::max(runs_bytes, (2 * runs + blocks) * static_cast<int64_t>(sizeof(Run)));
    parts_bytes = std::max(parts_bytes, (blocks + 1) * static_cast<int64_t>(sizeof(int64_t)));
    const int64_t panel = lines    ? kAmxColumns * plan.pitch
                          : panels ? plan.steps * kAmxPairs * kAmxColumns
                                   : kAmxPairs * g.tile_channel;
    panel_bytes = std::max(panel_bytes, panel * k.sum_item);
  }
  for (AmxGather& a : result) {
    GatherPlan& g = a.gather.plan;
    g.at_tile = 0;
    g.at_sums = aligned(tile_bytes);
    g.at_runs = g.at_sums + kAmxRows * kAmxColumns * k.sum_item;
    a.plan.at_parts = g.at_runs + aligned(runs_bytes);
    a.plan.at_panel = a.plan.at_parts + aligned(parts_bytes);
    g.scratch = a.plan.at_panel + aligned(panel_bytes);
  }
  return result;
}

struct Amx : Plan {
  Amx(std::vector<AmxGather> all, double cost, const ConvKernels& kernels)
      : gathers(std::move(all)), k(kernels), of_all(cost) {
    const GatherPlan& any = gathers[0].gather.plan;
    int64_t row_bytes = 0;
    for (AmxGather& a : gathers) {
      a.gather.point();
      a.lines.point();
      a.plan.gather = a.gather.plan;
      a.plan.lines = a.lines.plan;
      a.plan.step = a.step.data();
      row_bytes += any.groups * a.plan.steps * kAmxRows * kAmxPairs * k.sum_item;
    }
    const int64_t blocks = std::max<int64_t>(1, kPackedBytes / std::max<int64_t>(1, row_bytes));
    rows_at_once = std::min(any.rows, blocks * kAmxRows);
  }

  double cycles() const override { return of_all; }

  Explanation explain() const override {
    Explanation e = {};
    e.algorithm = Algorithm::kAmx;
    e.phases = static_cast<int64_t>(gathers.size());
    for (const AmxGather& a : gathers) e.multiplications += gather_macs(a.plan.gather);
    int64_t turns, packed;
    plans_of(0, nullptr, &turns, &packed);
    e.scratch = packed + std::min(thread_count(), turns) * gathers[0].plan.gather.scratch;
    return e;
  }

  bool add_bias(const void* bias) override {
    for (AmxGather& a : gathers) {
      a.plan.gather.bias = bias;
      a.plan.gather.bias_group = a.plan.gather.rows;
    }
    return true;
  }

  // Of the rows from `first` on.
  std::vector<AmxPlan> plans_of(int64_t first, const void** w, int64_t* turns, int64_t* packed_bytes) const {
    std::vector<AmxPlan> plans;
    int64_t packed = 0;
    *turns = 0;
    for (const AmxGather& a : gathers) {
      AmxPlan plan = a.plan;
      GatherPlan& g = plan.gather;
      g.rows = std::min(rows_at_once, g.rows - first);
      plan.row_split = std::min(plan.row_split, row_blocks(g));
      g.out_offset += first * g.out_channel;
      if (g.bias) g.bias = static_cast<const char*>(g.bias) + first * k.item;
      g.packed = packed;
      packed += g.groups * row_blocks(g) * plan.steps * kAmxRows * kAmxPairs;
      *turns = std::max(*turns, box_count(g) * g.groups * plan.row_split);
      plans.push_back(plan);
    }
    if (w) *w = static_cast<const char*>(*w) + first * plans[0].gather.w_row * k.item;
    *packed_bytes = packed * k.sum_item;
    return plans;
  }

  void run(const void* in, int64_t, const void* w, int64_t, void* out) override {
    for (int64_t first = 0; first < gathers[0].plan.gather.rows; first += rows_at_once) {
      const void* weights = w;
      int64_t turns, packed_bytes;
      const std::vector<AmxPlan> plans = plans_of(first, &weights, &turns, &packed_bytes);
      const auto count = static_cast<int64_t>(plans.size());
      const Buffer packed(packed_bytes);
      int64_t macs = 0;
      for (const AmxPlan& plan : plans) macs += gather_macs(plan.gather) / 8;
      parallel(k.amx_pack_tasks(plans[0]), packed_bytes,
               [&](int64_t begin, int64_t end) { k.amx_pack(plans.data(), count, weights, packed.get(), begin, end); });
      parallel(turns, macs, [&](int64_t begin, int64_t end) {
        const Buffer mine(plans[0].gather.scratch);
        k.amx_gather(plans.data(), count, turns, in, packed.get(), out, mine.get(), begin, end);
      });
    }
  }

  std::vector<AmxGather> gathers;
  const ConvKernels& k;
  const double of_all;
  int64_t rows_at_once;
};

}  // namespace

namespace {

bool line_of_pixels(const GatherPlan& g) {
  return g.in_channel == 1 || g.channels == 1;
}

// Taps in the order of lines, as runs.
std::vector<std::vector<int64_t>> line_runs(const Gather& gather) {
  const GatherPlan& g = gather.plan;
  const auto& shifts = gather.shifts;
  std::vector<int64_t> order(shifts.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return shifts[a] < shifts[b]; });
  const bool side_by_side = g.in_axis[2] == (line_of_pixels(g) ? g.channels : 1);
  std::vector<std::vector<int64_t>> runs;
  for (size_t i = 0; i < order.size(); ++i) {
    std::array<int64_t, 3> before = shifts[order[i]];
    --before[2];
    if (i == 0 || !side_by_side || shifts[order[i - 1]] != before) runs.emplace_back();
    runs.back().push_back(order[i]);
  }
  return runs;
}

}  // namespace

int64_t line_parts(const Gather& gather) {
  const GatherPlan& g = gather.plan;
  const auto runs = static_cast<int64_t>(line_runs(gather).size());
  const auto taps = static_cast<int64_t>(gather.shifts.size());
  return runs * (line_of_pixels(g) ? 1 : g.channels) + g.channels * taps / kAmxNumbers;
}

Lines lines_of(const Gather& gather) {
  const GatherPlan& g = gather.plan;
  const bool pixels = line_of_pixels(g);
  Lines result;
  AmxLines& l = result.plan;
  l.tap = pixels ? g.channels : 1;
  l.low = l.high = gather.shifts[0][2];
  for (const auto& shift : gather.shifts) {
    l.low = std::min(l.low, shift[2]);
    l.high = std::max(l.high, shift[2]);
  }
  const std::vector<std::vector<int64_t>> runs = line_runs(gather);
  for (int64_t channel = 0; channel < (pixels ? 1 : g.channels); ++channel) {
    for (const std::vector<int64_t>& run : runs) {
      const auto& shift = gather.shifts[run[0]];
      int64_t source = channel * g.in_channel;
      for (int i = 0; i < 3; ++i) source += shift[i] * g.in_axis[i];
      const auto begin = static_cast<int64_t>(result.weight.size());
      const int64_t end = begin + static_cast<int64_t>(run.size()) * l.tap;
      for (int64_t at = begin, next; at < end; at = next) {
        const int64_t vector = at / kAmxNumbers, lane_0 = vector * kAmxNumbers;
        next = std::min(end, lane_0 + kAmxNumbers);
        if (at == lane_0) result.first.push_back(static_cast<int32_t>(result.part.size()));
        const uint64_t lanes = (uint64_t{1} << (next - lane_0)) - (uint64_t{1} << (at - lane_0));
        result.part.push_back({{shift[0], shift[1], shift[2]},
                               source + lane_0 - begin,
                               vector,
                               lane_0 - begin,
                               static_cast<uint32_t>(lanes)});
      }
      for (const int64_t tap : run) {
        for (int64_t c = 0; c < l.tap; ++c) {
          result.weight.push_back(gather.tap_weight[tap] + (channel + c) * g.w_channel);
        }
      }
    }
  }
  l.parts = static_cast<int64_t>(result.part.size());
  result.first.push_back(static_cast<int32_t>(l.parts));
  l.depth = static_cast<int64_t>(result.weight.size());
  l.straight = true;
  for (int64_t i = 0; i < l.depth; ++i) l.straight = l.straight && result.weight[i] == i;
  return result;
}

PlanPtr plan_amx(const Problem& p, Pass pass, const ConvKernels& k, Cheapest& cheapest) {
  const auto wanted = wanted_algorithm();
  if (pass == Pass::kWeight || !k.amx_gather || (wanted && *wanted != Algorithm::kAmx)) return nullptr;
  // Channels or rows follow each other.
  const auto follows = [](const Strides& s, int64_t extent) { return s.channel == 1 || s.axis[2] == 1 || extent == 1; };
  if (!follows(p.x, p.axis[2].input) || !follows(p.y, p.output[2])) return nullptr;
  if (pass == Pass::kInput && !few_phases(p, kAmxPhases)) return nullptr;
  std::vector<Gather> plain = plain_gathers(p, pass == Pass::kInput);
  AmxInputs best = AmxInputs::kCells;
  double cost = cycles_of(plain, best);
  for (const AmxInputs inputs : {AmxInputs::kPanels, AmxInputs::kLines}) {
    const double other = cycles_of(plain, inputs);
    if (other >= cost) continue;
    best = inputs;
    cost = other;
  }
  cost /= kMeasuredCycles;
  if (!cheapest.beaten_by(cost)) return nullptr;
  std::vector<AmxGather> gathers = amx_gathers(p, std::move(plain), best, k, thread_count());
  if (gathers.empty()) return nullptr;
  return std::make_unique<Amx>(std::move(gathers), cost, k);
}

}  // namespace convarith::cpu
