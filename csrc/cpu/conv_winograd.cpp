// Winograd: which convolutions it serves, its plan and its run.
#include "conv_planning.h"

namespace convarith::cpu {
namespace {

struct Winograd : Plan {
  explicit Winograd(const ConvKernels& kernels) : k(kernels) {}
  Explanation explain() const override;
  void run(const void* in, int64_t in_count, const void* w, int64_t w_count, void* out) override;

  const ConvKernels& k;
  Gather gather;
  WinogradPlan plan = {};
  std::vector<int32_t> channel_offset;
};

// Where a 3 x 3 gather of stride 1 stands in its input: the tap of (i, j), i and j in steps from the lowest shift.
std::optional<std::array<int64_t, 9>> dense_3x3(const Gather& gather) {
  const GatherPlan& g = gather.plan;
  if (gather.shifts.size() != 9 || g.grid[0] != 1 || g.source[0] != 1) return std::nullopt;
  if (g.stride[1] != 1 || g.stride[2] != 1) return std::nullopt;
  std::array<int64_t, 3> low = gather.shifts[0];
  for (const auto& s : gather.shifts) {
    for (int i = 0; i < 3; ++i) low[i] = std::min(low[i], s[i]);
  }
  std::array<int64_t, 9> taps;
  taps.fill(-1);
  for (size_t t = 0; t < 9; ++t) {
    const int64_t y = gather.shifts[t][1] - low[1], x = gather.shifts[t][2] - low[2];
    if (gather.shifts[t][0] != 0 || y > 2 || x > 2) return std::nullopt;
    taps[3 * y + x] = gather.tap_weight[t];
  }
  if (std::find(taps.begin(), taps.end(), -1) != taps.end()) return std::nullopt;
  return taps;
}

// Bytes of transformed weights.
int64_t winograd_weights(const GatherPlan& g, int64_t rows, const ConvKernels& k) {
  return g.groups * parts(rows, k.row_block) * 36 * (g.channels * k.row_block + 16) * 4;
}

// Rows whose transformed weights are held at a time.
int64_t winograd_rows(const GatherPlan& g, const ConvKernels& k) {
  return even_part(g.rows, std::max<int64_t>(k.row_block, kPackedBytes / 2 / (g.groups * g.channels * 36 * 4)));
}

// Bytes of all transformed inputs where they are kept: several passes over the rows would transform them again.
int64_t winograd_shared(const WinogradPlan& plan, const ConvKernels& k) {
  const GatherPlan& g = plan.gather;
  const int64_t bytes = box_count(g) * g.groups * plan.shared_size * 4;
  return (winograd_rows(g, k) < g.rows || g.row_split > 1) && bytes <= kPackedBytes / 2 ? bytes : 0;
}

Explanation Winograd::explain() const {
  const GatherPlan& g = plan.gather;
  const int64_t weights = winograd_weights(g, winograd_rows(g, k), k);
  return {Algorithm::kWinograd, weights + winograd_shared(plan, k) + thread_count() * g.scratch, 1, gather_macs(g)};
}

void Winograd::run(const void* in, int64_t, const void* w, int64_t, void* out) {
  GatherPlan& g = plan.gather;
  const int64_t rows = g.rows, at_once = winograd_rows(g, k);
  const Buffer packed(winograd_weights(g, at_once, k));
  const Buffer shared(winograd_shared(plan, k));
  const int64_t split = g.row_split, boxes = box_count(g) * g.groups;
  const auto run = [&](Stage stage, void* out_rows) {
    plan.stage = stage;
    parallel(boxes * g.row_split, gather_macs(g), [&](int64_t begin, int64_t end) {
      const Buffer mine(g.scratch);
      k.winograd(plan, in, packed.get(), out_rows, mine.get(), begin, end);
    });
  };
  const bool fused = winograd_shared(plan, k) == 0;
  plan.shared = shared.get();
  if (!fused) {
    g.row_split = std::clamp<int64_t>(parts(2 * thread_count(), boxes), 1, parts(g.channels, g.channel_block));
    run(kInputs, nullptr);
  }
  for (int64_t row = 0; row < rows; row += at_once) {
    g.rows = std::min(at_once, rows - row);
    g.row_split = std::min(split, parts(g.rows, k.row_block));
    const char* w_rows = static_cast<const char*>(w) + row * g.w_row * k.item;
    parallel(k.pack_tasks(g), 36 * 8 * g.groups * g.rows * g.channels,
             [&](int64_t begin, int64_t end) { k.winograd_pack(plan, w_rows, packed.get(), begin, end); });
    run(fused ? kFused : kProducts, static_cast<char*>(out) + row * g.out_channel * k.item);
  }
}

}  // namespace

PlanPtr plan_winograd(const Gather& direct, const ConvKernels& k) {
  const auto wanted = wanted_algorithm();
  if (k.sum_item != 4 || (wanted && *wanted != Algorithm::kWinograd) || (!wanted && !winograd_enabled())) {
    return nullptr;
  }
  const auto taps = dense_3x3(direct);
  if (!taps) return nullptr;
  const GatherPlan& d = direct.plan;
  const int64_t tiles_y = parts(d.grid[1], 4), tiles_x = parts(d.grid[2], 4);
  if (!wanted) {
    // In multiply-adds of one vector, as measured: products, transformed weights, and a transform per run of tiles.
    const auto lanes = static_cast<double>(k.lanes);
    const double rows = static_cast<double>(d.rows), channels = static_cast<double>(d.channels);
    const double batch = static_cast<double>(d.batch);
    const double direct_cost = rows * channels * (9 * batch * static_cast<double>(d.grid[1] * d.grid[2]) / lanes + 5);
    const double tiles = batch * static_cast<double>(tiles_y * tiles_x);
    const double transforms = batch * static_cast<double>(tiles_y * parts(tiles_x, k.lanes));
    const double cost =
        rows * channels * (43 * tiles / lanes + 70 * 16 / lanes) + transforms * (600 * channels + 500 * rows);
    if (channels < 8 || rows < 8 || cost > 0.8 * direct_cost) return nullptr;
  }

  auto made = std::make_unique<Winograd>(k);
  Winograd& result = *made;
  WinogradPlan& plan = result.plan;
  result.gather.plan = d;
  GatherPlan& g = result.gather.plan;
  plan.height = d.grid[1];
  plan.width = d.grid[2];
  std::copy(taps->begin(), taps->end(), plan.tap_of);
  g.grid[1] = tiles_y;
  g.grid[2] = tiles_x;
  g.stride[1] = g.stride[2] = 4;
  std::array<int64_t, 3> low = direct.shifts[0];
  for (const auto& s : direct.shifts) {
    for (int i = 0; i < 3; ++i) low[i] = std::min(low[i], s[i]);
  }
  for (int64_t y = 0; y < 6; ++y) {
    for (int64_t x = 0; x < 6; ++x) {
      result.gather.shifts.push_back({0, low[1] + y, low[2] + x});
      result.gather.tap_weight.push_back(0);
    }
  }
  Blocking blocking = {};
  blocking.panel = true;
  blocking.depth = 8 * 36;
  const int64_t threads = thread_count(), tiles = d.batch * tiles_y * tiles_x * d.groups;
  // Whole sweeps of the microkernel; transformed inputs of a few megabytes at most.
  const int64_t sweep = k.vectors * k.lanes;
  blocking.pixels = std::clamp<int64_t>((int64_t{1} << 20) / (36 * 4 * g.channels), sweep, 7 * k.lanes);
  blocking.pixels = std::clamp<int64_t>(parts(tiles, 2 * threads), std::min(k.lanes, blocking.pixels), blocking.pixels);
  if (!lay_out(result.gather, blocking, k)) return nullptr;
  const int64_t columns = g.box[0] * g.box[2] * g.box[3];
  const int64_t row_blocks = parts(winograd_rows(g, k), k.row_block), boxes = box_count(g) * g.groups;
  g.row_split = threads == 1 ? 1 : std::clamp<int64_t>(parts(2 * threads, boxes), 1, row_blocks);
  plan.pitch = spread(columns + 2 * k.lanes, k);
  plan.row_chunk = std::min<int64_t>(64, parts(g.rows, k.row_block) * k.row_block);
  result.channel_offset.resize(g.channels);
  for (int64_t c = 0; c < g.channels; ++c) result.channel_offset[c] = static_cast<int32_t>(c * plan.pitch);
  plan.input_step = spread(g.channels * plan.pitch, k);
  plan.product_step = spread(plan.row_chunk * plan.pitch, k);
  plan.shared_size = aligned((36 * plan.input_step + 4 * k.lanes) * 4) / 4;
  plan.at_inputs = g.at_panel;
  plan.at_products = plan.at_inputs + aligned((36 * plan.input_step + 4 * k.lanes) * 4);
  plan.at_strip = plan.at_products + aligned((36 * plan.product_step + 4 * k.lanes) * 4);
  g.at_runs = plan.at_strip + aligned(16 * (g.box[3] + 2 * k.lanes) * 4);
  g.scratch = g.at_runs + aligned(g.box[0] * g.box[2] * static_cast<int64_t>(sizeof(Run)));
  if (g.scratch > kPackedBytes / 2) return nullptr;
  result.gather.point();
  plan.channel_offset = result.channel_offset.data();
  plan.gather = g;
  return made;
}

}  // namespace convarith::cpu
