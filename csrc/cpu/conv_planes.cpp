// Depthwise convolutions of small planes: their plan and its run. See PlanesPlan.
#include "conv_phases.h"

namespace convarith::cpu {
namespace {

struct Planes : Plan {
  explicit Planes(const ConvKernels& kernels) : k(kernels) {}
  Explanation explain() const override {
    return {Algorithm::kDepthwise, thread_count() * plan.scratch, plan.out_step[0] * plan.out_step[1], macs};
  }
  bool add_bias(const void* bias) override {
    plan.bias = bias;
    return true;
  }
  void run(const void* in, int64_t, const void* w, int64_t, void* out) override {
    parallel(plan.batch * plan.boxes * plan.blocks, macs, [&](int64_t begin, int64_t end) {
      const Buffer mine(plan.scratch);
      k.planes(plan, in, w, out, mine.get(), begin, end);
    });
  }

  const ConvKernels& k;
  PlanesPlan plan = {};
  std::vector<PlanePhase> phase;
  std::vector<PlaneRun> runs;
  std::vector<int32_t> column;
  int64_t macs = 0;
};

// Of a tile and of what comes of it, which stay in the second cache: boxes of fewer rows would transpose more of them
// again.
constexpr int64_t kTileBytes = int64_t{128} << 10, kMostTileBytes = int64_t{512} << 10;
constexpr int64_t kKeptWeights = int64_t{256} << 10;

}  // namespace

PlanPtr plan_planes(const Problem& p, Pass pass, const ConvKernels& k) {
  const bool transposed = pass == Pass::kInput;
  const Strides &in = transposed ? p.y : p.x, &out = transposed ? p.x : p.y;
  if (pass == Pass::kWeight || k.planes == nullptr) return nullptr;
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

  for (size_t y = 0; y < axes[0].taps.size(); ++y) {
    for (size_t x = 0; x < axes[1].taps.size(); ++x) {
      const auto begin = static_cast<int64_t>(made->runs.size());
      for (const auto& row : axes[0].taps[y]) {
        const int64_t in = (row.input - axes[0].low) * d.tile_row, weight = row.tap * d.kernel[1];
        for (const auto& some : runs_of(axes[1].taps[x], d.in_step[1], k.plane_taps)) {
          const int64_t apart = some.size() > 1 ? some[1].tap - some[0].tap : 0;
          made->runs.push_back({row.input, in + place(some[0].input - axes[1].low), (weight + some[0].tap) * k.lanes,
                                apart * k.lanes, static_cast<int64_t>(some.size())});
        }
      }
      made->phase.push_back(
          {{static_cast<int64_t>(y), static_cast<int64_t>(x)}, begin, static_cast<int64_t>(made->runs.size())});
    }
  }
  d.phases = static_cast<int64_t>(made->phase.size());
  d.phase = made->phase.data();
  d.run = made->runs.data();
  d.column = made->column.data();

  d.blocks = parts(d.channels, k.lanes);
  const int64_t weights = (p.kernel_numel() + 1) * k.lanes * k.sum_item;
  d.packed_blocks = d.blocks * weights <= kKeptWeights ? d.blocks : 1;
  d.at_places = aligned(d.packed_blocks * weights);
  d.at_tile = d.at_places + aligned(d.tile_rows * d.source[1] * static_cast<int64_t>(sizeof(int32_t)));
  d.at_results = d.at_tile + aligned(d.tile_rows * row_bytes);
  d.scratch = d.at_results + results;
  return made;
}

}  // namespace convarith::cpu
