// Depthwise convolutions of small planes: their plan and its run. See PlanesPlan.
#include "conv_phases.h"

namespace convarith::cpu {
namespace {

struct Planes : Plan {
  explicit Planes(const ConvKernels& kernels) : k(kernels) {}
  Explanation explain() const override {
    const int64_t scratch = sums_bytes() + thread_count() * plan.scratch;
    return {Algorithm::kDepthwise, scratch, plan.out_step[0] * plan.out_step[1], macs};
  }
  bool add_bias(const void* bias) override {
    plan.bias = bias;
    return true;
  }
  void run(const void* in, int64_t, const void* other, int64_t, void* out) override {
    if (plan.parts > 0) return run_sums(in, other, out);
    parallel(plan.batch * plan.boxes * plan.blocks, macs, [&](int64_t begin, int64_t end) {
      const Buffer mine(plan.scratch);
      k.planes(plan, in, other, out, mine.get(), begin, end);
    });
  }
  void run_sums(const void* x, const void* y, void* w) const {
    const Buffer sums(sums_bytes());
    parallel(plan.parts * plan.blocks, macs, [&](int64_t begin, int64_t end) {
      const Buffer mine(plan.scratch);
      k.planes_sum(plan, x, y, sums.get(), mine.get(), begin, end);
    });
    parallel(plan.blocks, sums_bytes(),
             [&](int64_t begin, int64_t end) { k.planes_store(plan, sums.get(), w, begin, end); });
  }
  int64_t sums_bytes() const {
    return plan.parts * plan.blocks * plan.kernel[0] * plan.kernel[1] * k.lanes * k.sum_item;
  }

  // Taps of all phases of both axes; place(cell) is where a cell stands in a row of the tile.
  template <typename PlaceOf>
  void add_runs(const std::array<AxisPhases, 2>& axes, const PlaceOf& place) {
    for (size_t y = 0; y < axes[0].taps.size(); ++y) {
      for (size_t x = 0; x < axes[1].taps.size(); ++x) {
        const auto begin = static_cast<int64_t>(runs.size());
        for (const auto& row : axes[0].taps[y]) {
          const int64_t in = (row.input - axes[0].low) * plan.tile_row, weight = row.tap * plan.kernel[1];
          for (const auto& some : runs_of(axes[1].taps[x], plan.in_step[1], k.plane_taps)) {
            runs.push_back({row.input, in + place(some[0].input - axes[1].low), (weight + some[0].tap) * k.lanes,
                            taps_apart(some) * k.lanes, static_cast<int64_t>(some.size())});
          }
        }
        phase.push_back({{static_cast<int64_t>(y), static_cast<int64_t>(x)}, begin, static_cast<int64_t>(runs.size())});
      }
    }
    plan.phases = static_cast<int64_t>(phase.size());
    plan.phase = phase.data();
    plan.run = runs.data();
  }

  // The same of the weight's gradient, where there is one phase.
  template <typename PlaceOf>
  void add_tap_blocks(const Problem& p, const std::array<AxisPhases, 2>& axes, const PlaceOf& place) {
    const int64_t height = plan.kernel[0];
    for (const auto& some : runs_of(axes[1].taps[0], plan.in_step[1], k.tap_columns)) {
      const auto columns = static_cast<int64_t>(some.size());
      const int64_t rows = even_part(height, std::min(k.tap_rows, k.tap_sums / columns));
      for (int64_t row = 0; row < height; row += rows) {
        const int64_t input = axes[0].taps[0][row].input, weight = row * plan.kernel[1] + some[0].tap;
        tap_blocks.push_back({input, (input - axes[0].low) * plan.tile_row + place(some[0].input - axes[1].low),
                              weight * k.lanes, taps_apart(some) * k.lanes, std::min(rows, height - row), columns});
      }
    }
    plan.tap_blocks = static_cast<int64_t>(tap_blocks.size());
    plan.tap_block = tap_blocks.data();
    plan.tap_apart = p.axis[1].dilation;
  }

  const ConvKernels& k;
  PlanesPlan plan = {};
  std::vector<PlanePhase> phase;
  std::vector<PlaneRun> runs;
  std::vector<PlaneTaps> tap_blocks;
  std::vector<int32_t> column;
  int64_t macs = 0;
};

// Of a tile and of what comes of it, which stay in the second cache: boxes of fewer rows would transpose more of them
// again.
constexpr int64_t kTileBytes = int64_t{128} << 10, kMostTileBytes = int64_t{512} << 10;
constexpr int64_t kKeptWeights = int64_t{256} << 10;
constexpr int64_t kTasks = 32;  // of a weight's gradient: enough for many threads, whose number may not matter

}  // namespace

PlanPtr plan_planes(const Problem& p, Pass pass, const ConvKernels& k) {
  const bool transposed = pass == Pass::kInput;
  const Strides &in = transposed ? p.y : p.x, &out = transposed ? p.x : p.y;
  if (k.planes == nullptr) return nullptr;
  auto made = std::make_unique<Planes>(k);
  PlanesPlan& d = made->plan;
  set_sides(p, transposed, d);
  std::array<AxisPhases, 2> axes;
  if (!set_phases(p, transposed, d, axes)) return nullptr;
  if (!dense_plane(in, d.source) || !dense_plane(out, d.grid)) return nullptr;
  d.channels = p.groups;
  d.w_channel = p.w.batch;
  made->macs = p.batch * p.groups * p.output_numel() * p.kernel_numel();

  // The tile: columns, those of a residue together, and a cell for inputs that no output sees.
  const int64_t vector = k.lanes * k.sum_item;
  const int64_t columns = (parts(d.grid[1], d.out_step[1]) - 1) * d.in_step[1] + axes[1].high - axes[1].low + 1;
  if (std::max({columns, d.source[1], d.grid[1]}) > kMostTileBytes / vector) return nullptr;
  const int64_t cells = parts(columns, d.in_step[1]);
  d.tile_row = spread((d.in_step[1] * cells + 1) * k.lanes, k);
  d.low = axes[0].low;
  const int64_t window = axes[0].high - axes[0].low + 1, row_bytes = d.tile_row * k.sum_item;
  const int64_t seen = (kTileBytes / row_bytes - window) / d.in_step[0] + 1;  // rows of a phase that a tile serves
  const int64_t most = 2 * kTileBytes / (d.grid[1] * vector) / d.out_step[0];
  d.box = whole(d.grid[0], std::max<int64_t>(1, std::min(seen, most)) * d.out_step[0], d.out_step[0]);
  d.boxes = parts(d.grid[0], d.box);
  d.tile_rows = (d.box / d.out_step[0] - 1) * d.in_step[0] + window;
  const int64_t results = d.box * d.grid[1] * vector;
  if (std::max({d.tile_rows * row_bytes, d.tile_rows * d.source[1] * vector, results}) > kMostTileBytes) return nullptr;
  const auto place = [&](int64_t cell) { return (cell % d.in_step[1] * cells + cell / d.in_step[1]) * k.lanes; };
  for (int64_t x = 0; x < d.source[1]; ++x) {
    const int64_t cell = x - axes[1].low;
    const bool is_seen = cell >= 0 && cell < columns;
    made->column.push_back(static_cast<int32_t>(is_seen ? place(cell) : d.in_step[1] * cells * k.lanes));
  }

  pass == Pass::kWeight ? made->add_tap_blocks(p, axes, place) : made->add_runs(axes, place);
  d.column = made->column.data();

  d.blocks = parts(d.channels, k.lanes);
  if (pass == Pass::kWeight) d.parts = std::min(parts(kTasks, d.blocks), p.batch);
  const int64_t weights = pass == Pass::kWeight ? 0 : (p.kernel_numel() + 1) * k.lanes * k.sum_item;
  d.packed_blocks = d.blocks * weights <= kKeptWeights ? d.blocks : 1;
  d.at_places = aligned(d.packed_blocks * weights);
  d.at_tile = d.at_places + aligned(d.tile_rows * d.source[1] * static_cast<int64_t>(sizeof(int32_t)));
  d.at_results = d.at_tile + aligned(d.tile_rows * row_bytes);
  d.scratch = d.at_results + results;
  return made;
}

}  // namespace convarith::cpu
