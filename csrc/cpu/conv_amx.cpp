// Gathers by AMX: plans, their cost, and their run.
#include "conv_planning.h"

namespace convarith::cpu {
namespace {

// Cycles: of a step of a block with one or two registers of rows, of a copied pair of a panel, of an output's rounding
// and of one that goes further than beside its neighbour, and of a tile's pair and of one, and a row of them, that come
// from further.
constexpr double kSteps[] = {100, 130}, kPanelPair = 3, kStore = 0.3, kScatter = 10, kCell = 0.8, kFarCell = 3,
                 kFarRow = 100;
constexpr int64_t kTileBytes = int64_t{1} << 18;  // of inputs, beside the weights in the second cache
constexpr int64_t kLeastPixels = 128, kMostPixels = 4096;

struct AmxGather {
  Gather gather;
  std::vector<int32_t> step;
  AmxPlan plan;
};

int64_t row_blocks(const GatherPlan& g) {
  return parts(g.rows, kAmxRows);
}

// That are multiplied, of a box.
int64_t cells_of(const GatherPlan& g) {
  return g.tile_image / g.tile_cell * g.box[0];
}

int64_t steps_of(const GatherPlan& g, int64_t taps, bool panels) {
  return panels ? parts(g.channels * taps, kAmxPairs) : parts(g.channels, kAmxPairs) * taps;
}

// Of a block of columns, all rows.
double block_cycles(const GatherPlan& g, int64_t taps, bool panels) {
  const int64_t rest = g.rows % kAmxRows;
  const double rows =
      kSteps[1] * static_cast<double>(g.rows / kAmxRows) + (rest == 0 ? 0 : kSteps[rest > kAmxRows / 2 ? 1 : 0]);
  return static_cast<double>(steps_of(g, taps, panels)) * (rows + (panels ? kPanelPair * kAmxPairs : 0));
}

// Cycles of everything, by one thread. What depends on the boxes, which depend on the threads, is left out.
double cycles_of(const std::vector<AmxGather>& gathers) {
  double total = 0;
  for (const AmxGather& a : gathers) {
    const GatherPlan& g = a.plan.gather;
    if (g.taps == 0) continue;
    int64_t low = a.gather.shifts[0][2], high = low;
    for (const auto& shift : a.gather.shifts) {
      low = std::min(low, shift[2]);
      high = std::max(high, shift[2]);
    }
    const int64_t lines = g.batch * g.groups * g.grid[0] * g.grid[1], width = g.grid[2] + (high - low) / g.stride[2];
    const int64_t inputs = g.batch * g.groups * g.channels * g.source[0] * g.source[1] * g.source[2];
    const bool far = g.stride[2] * g.in_axis[2] > 2 && g.tile_cell == 1;
    const bool scattered = g.out_axis[2] > 2 && (g.out_channel != 1 || a.plan.panels);
    total += static_cast<double>(lines * width) / kAmxColumns * block_cycles(g, g.taps, a.plan.panels) +
             static_cast<double>(lines * g.grid[2] * g.rows) * (scattered ? kScatter : kStore) +
             static_cast<double>(inputs) * (far ? kFarCell + kFarRow / static_cast<double>(width) : kCell) /
                 static_cast<double>(g.one_tile ? gathers.size() : 1);
  }
  return total;
}

// Into how many shares of its row blocks a task is split: a share costs a tile.
int64_t row_split(const GatherPlan& g, bool panels, int64_t plans, int64_t threads) {
  const int64_t tasks = box_count(g) * g.groups * plans, blocks = row_blocks(g);
  const auto cells = static_cast<double>(cells_of(g));
  const double copy = cells * static_cast<double>(g.channels * g.residues) * kCell;
  const double block = cells / kAmxColumns * block_cycles(g, g.taps, panels) / static_cast<double>(blocks);
  int64_t best = 1;
  double best_cost = 0;
  for (int64_t split = 1; split <= std::min(blocks, 2 * threads); ++split) {
    const double share = copy + block * static_cast<double>(parts(blocks, split));
    const double cost = share * static_cast<double>(parts(tasks * split, threads));
    if (split == 1 || cost < best_cost) {
      best = split;
      best_cost = cost;
    }
    if (threads == 1) break;
  }
  return best;
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
std::vector<AmxGather> amx_gathers(const Problem& p, Pass pass, const ConvKernels& k, int64_t threads) {
  std::vector<AmxGather> result;
  for (Gather& gather : plain_gathers(p, pass == Pass::kInput)) {
    make_pairs(gather.plan, 4);
    result.push_back({std::move(gather), {}, {}});
  }
  const auto fewer_taps = [](const auto& a, const auto& b) { return a.gather.shifts.size() < b.gather.shifts.size(); };
  const Gather& deepest = std::max_element(result.begin(), result.end(), fewer_taps)->gather;
  const GatherPlan& any = deepest.plan;
  const auto taps = static_cast<int64_t>(deepest.shifts.size());
  const bool panels = block_cycles(any, taps, true) < block_cycles(any, taps, false);

  const int64_t outputs = any.batch * any.groups * any.grid[0] * any.grid[1] * any.grid[2];
  Blocking blocking = {};
  blocking.shares_margins = true;
  blocking.may_be_inner = !panels;
  blocking.depth = INT32_MAX;
  blocking.tile = INT64_MAX;
  blocking.pixels = std::clamp(kTileBytes / (any.channels * k.sum_item), kLeastPixels, kMostPixels);
  if (row_blocks(any) < 4 * threads) {
    blocking.pixels = std::clamp(outputs / (4 * threads), kLeastPixels, blocking.pixels);
  }
  std::vector<std::array<int64_t, 3>> seen;
  const bool one_tile = std::all_of(result.begin(), result.end(), [&](const AmxGather& a) {
    return a.gather.shifts.empty() || std::equal(a.gather.plan.grid, a.gather.plan.grid + kAxes, any.grid);
  });
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
    plan.panels = panels;
    plan.steps = steps_of(g, g.taps, panels);
    plan.tile_channels = panels ? g.channels : parts(g.channels, kAmxPairs) * kAmxPairs;
    const bool inner = g.tile_cell > 1;
    plan.pitch = panels ? kAmxColumns : inner ? g.tile_cell : kAmxPairs;
    plan.kernel = kernel;
    for (int64_t s = 0; s < plan.steps; ++s) {
      const int64_t channel = panels ? 0 : s / g.taps * kAmxPairs, tap = panels ? 0 : s % g.taps;
      const int64_t at = panels  ? s * kAmxPairs * kAmxColumns
                         : inner ? a.gather.offset[tap] + channel
                                 : a.gather.offset[tap] * kAmxPairs + channel * g.tile_channel;
      a.step.push_back(static_cast<int32_t>(at));
    }
    const int64_t runs = g.box[0] * g.box[1] * g.box[2], blocks = parts(cells_of(g), kAmxColumns);
    g.row_split = row_split(g, panels, static_cast<int64_t>(result.size()), threads);
    g.one_tile = one_tile;
    const int64_t tile = inner ? g.tile_size : plan.tile_channels * g.tile_channel;
    const int64_t beyond = 2 * kAmxColumns * (panels ? 1 : plan.pitch);  // a block of cells may end there
    tile_bytes = std::max(tile_bytes, (tile + beyond) * k.sum_item);
    runs_bytes = std::max(runs_bytes, (2 * runs + blocks) * static_cast<int64_t>(sizeof(Run)));
    parts_bytes = std::max(parts_bytes, (blocks + 1) * static_cast<int64_t>(sizeof(int64_t)));
    panel_bytes = std::max(panel_bytes, kAmxPairs * k.sum_item * (panels ? plan.steps * kAmxColumns : g.tile_channel));
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
  Amx(std::vector<AmxGather> all, const ConvKernels& kernels) : gathers(std::move(all)), k(kernels) {
    const GatherPlan& any = gathers[0].gather.plan;
    int64_t row_bytes = 0;
    for (AmxGather& a : gathers) {
      a.gather.point();
      a.plan.gather = a.gather.plan;
      a.plan.step = a.step.data();
      row_bytes += any.groups * a.plan.steps * kAmxRows * kAmxPairs * k.sum_item;
    }
    const int64_t blocks = std::max<int64_t>(1, kPackedBytes / std::max<int64_t>(1, row_bytes));
    rows_at_once = std::min(any.rows, blocks * kAmxRows);
  }

  double cycles() const override { return cycles_of(gathers) / kMeasuredCycles; }

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
      g.row_split = std::min(g.row_split, row_blocks(g));
      g.out_offset += first * g.out_channel;
      if (g.bias) g.bias = static_cast<const char*>(g.bias) + first * k.item;
      g.packed = packed;
      packed += g.groups * row_blocks(g) * plan.steps * kAmxRows * kAmxPairs;
      *turns = std::max(*turns, box_count(g) * g.groups * g.row_split);
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
  int64_t rows_at_once;
};

}  // namespace

PlanPtr plan_amx(const Problem& p, Pass pass, const ConvKernels& k, Cheapest& cheapest) {
  const auto wanted = wanted_algorithm();
  if (pass == Pass::kWeight || !k.amx_gather || (wanted && *wanted != Algorithm::kAmx)) return nullptr;
  // Channels or rows follow each other.
  const auto follows = [](const Strides& s, int64_t extent) { return s.channel == 1 || s.axis[2] == 1 || extent == 1; };
  if (!follows(p.x, p.axis[2].input) || !follows(p.y, p.output[2])) return nullptr;
  if (pass == Pass::kInput && !few_phases(p, kAmxPhases)) return nullptr;
  std::vector<AmxGather> gathers = amx_gathers(p, pass, k, thread_count());
  if (gathers.empty()) return nullptr;
  auto plan = std::make_unique<Amx>(std::move(gathers), k);
  if (!wanted && !cheapest.beaten_by(plan->cycles())) return nullptr;
  return plan;
}

}  // namespace convarith::cpu
