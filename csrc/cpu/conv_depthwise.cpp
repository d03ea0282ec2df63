// Depthwise convolutions and small groups: which problems they serve, their plan and their run.
#include "conv_phases.h"

namespace convarith::cpu {
namespace {

constexpr int64_t kMostChannels = 4;  // of a group, in and out
constexpr int64_t kMostResidues = 8;  // as conv_depthwise.h has room for
constexpr int64_t kMostColumns = 1024;
constexpr int64_t kStripBytes = int64_t{24} << 10;
constexpr int64_t kChunkBytes = int64_t{6} << 10;
constexpr int64_t kMostStripBytes = int64_t{1} << 18;
constexpr int64_t kTasks = 64;  // of a weight's gradient: enough for many threads, whose number may not matter

struct Depthwise : Plan {
  explicit Depthwise(const ConvKernels& kernels) : k(kernels) {}
  Explanation explain() const override;
  bool add_bias(const void* bias) override {
    plan.bias = bias;
    return true;
  }
  void run(const void* in, int64_t in_count, const void* w, int64_t w_count, void* out) override;
  void point();

  const ConvKernels& k;
  Pass pass = Pass::kOutput;
  DepthwisePlan plan = {};
  std::vector<RowPhase> row_phase;
  std::vector<ColumnPhase> column_phase;
  std::vector<TapRows> tap_rows;
  std::vector<int64_t> shift, phase_taps, tap_weight;
  int64_t macs = 0;
};

void Depthwise::point() {
  plan.row_phase = row_phase.data();
  plan.column_phase = column_phase.data();
  plan.tap_rows = tap_rows.data();
  plan.shift = shift.data();
  plan.phase_taps = phase_taps.data();
  plan.tap_weight = tap_weight.data();
}

int64_t sums_bytes(const DepthwisePlan& p, const ConvKernels& k) {
  return p.parts * p.groups * p.rows * p.channels * p.taps * k.sum_item;
}

Explanation Depthwise::explain() const {
  const int64_t sums = pass == Pass::kWeight ? sums_bytes(plan, k) : 0;
  return {Algorithm::kDepthwise, sums + thread_count() * plan.scratch, plan.row_phases * plan.column_phases, macs};
}

void Depthwise::run(const void* in, int64_t, const void* other, int64_t, void* out) {
  if (pass != Pass::kWeight) {
    const auto sweep = plan.in_place ? k.depthwise_in_place : k.depthwise;
    parallel(plan.batch * plan.groups * plan.boxes[0] * plan.boxes[1], macs, [&](int64_t begin, int64_t end) {
      const Buffer mine(plan.scratch);
      sweep(plan, in, other, out, mine.get(), begin, end);
    });
    return;
  }
  const auto sum = plan.in_place ? k.depthwise_in_place_sum : k.depthwise_sum;
  const Buffer sums(sums_bytes(plan, k));
  parallel(plan.parts * plan.groups, macs, [&](int64_t begin, int64_t end) {
    const Buffer mine(plan.scratch);
    sum(plan, in, other, sums.get(), mine.get(), begin, end);
  });
  parallel(plan.groups, plan.parts * plan.groups * plan.rows * plan.channels * plan.taps,
           [&](int64_t begin, int64_t end) { k.depthwise_store(plan, sums.get(), out, begin, end); });
}

// Whether there are kernels for rows that are read where they stand.
bool has_kernels_in_place(const Problem& p, const ConvKernels& k) {
  const int64_t stride = p.axis[2].stride, side = p.axis[2].kernel;
  if (side < 3 || side > k.most_in_place || side % 2 == 0 || stride > (side == 3 ? 2 : 1)) return false;
  return std::all_of(p.axis.begin() + 1, p.axis.end(),
                     [&](const Axis& a) { return a.kernel == side && a.stride == stride && a.dilation == 1; });
}

// Rows that are read where they stand: DepthwisePlan::in_place. False where they cannot be.
bool lay_out_in_place(Depthwise& result, const Problem& p) {
  DepthwisePlan& d = result.plan;
  const ConvKernels& k = result.k;
  const bool transposed = result.pass == Pass::kInput;
  if (d.in_axis[1] != 1 || d.out_axis[1] != 1 || !has_kernels_in_place(p, k)) return false;
  if (std::max(d.source[1], d.grid[1]) > INT32_MAX) return false;  // columns are compared as 32 bits
  const int64_t stride = p.axis[2].stride, side = p.axis[2].kernel;
  for (int i = 0; i < 2; ++i) {
    const Axis& a = p.axis[i + 1];
    d.out_step[i] = transposed ? stride : 1;
    d.in_step[i] = transposed ? 1 : stride;
    d.low[i] = transposed && stride == 1 ? a.lo - (side - 1) : -a.lo;
  }
  if (transposed && stride == 2 && d.low[0] != d.low[1]) return false;
  // Kernels of 3 x 3, and all gradients of weights, take every vector of inputs for whole but a row's first and last.
  const int64_t whole_inputs = (parts(d.grid[1], d.out_step[1] * k.lanes) - 1) * d.in_step[1] * k.lanes;
  const bool inside = d.low[1] <= 0 && d.low[1] > -side && d.source[1] >= whole_inputs + (side == 3 ? 0 : d.low[1]);
  if ((side == 3 || result.pass == Pass::kWeight) && !inside) return false;
  d.window = side;
  d.in_place = true;

  const int64_t box_rows = result.pass == Pass::kWeight ? 64 : 32;
  d.box[0] = whole(d.grid[0], box_rows, d.out_step[0]);
  d.box[1] = d.grid[1];
  d.boxes[0] = parts(d.grid[0], d.box[0]);
  d.boxes[1] = 1;

  d.row_phases = d.column_phases = 1;
  d.taps = side * side;
  for (int64_t i = 0; i < d.taps; ++i) {  // a transposed convolution without a step is one of the reversed kernel
    const int64_t tap = transposed && stride == 1 ? d.taps - 1 - i : i;
    result.tap_weight.push_back(tap / side * p.w.axis[2] + tap % side * p.w.axis[1]);
  }
  result.phase_taps = {0, d.taps};
  result.macs = d.batch * d.groups * d.rows * d.channels * d.taps * p.output_numel();

  d.at_weights = aligned(std::max(d.source[1], d.grid[1]) * k.item);
  d.scratch = d.at_weights + d.rows * d.channels * d.taps * k.sum_item * (result.pass == Pass::kWeight ? k.lanes : 1);
  d.parts = std::clamp<int64_t>(kTasks / d.groups, 1, d.batch * d.boxes[0]);
  result.point();
  return true;
}

// Whether planes are so small that rows would leave lanes empty, or rows are split by a stride, which costs more than
// to transpose them, of which the weight's gradient has two.
bool wants_planes(const Problem& p, Pass pass, const ConvKernels& k) {
  const int64_t channels = p.groups * p.in_channels * p.out_channels, width = p.axis[2].input;
  if (channels > p.groups || 2 * channels < k.lanes) return false;
  if (has_kernels_in_place(p, k)) {
    return 4 * width <= (p.axis[2].kernel > 3 ? 7 : 6) * k.lanes - (pass == Pass::kWeight ? k.lanes : 0);
  }
  const int64_t stride = std::max(p.axis[1].stride, p.axis[2].stride);
  return stride > 2 || width <= (stride == 2 ? 7 : 3) * k.lanes;
}

// Whether a group's channels had better be a gather's: where rows are split by a stride, and its tile is copied for all
// of its rows.
bool gathers_pay(const Problem& p, Pass pass, const ConvKernels& k) {
  const bool strided = p.axis[1].stride > 1 || p.axis[2].stride > 1;
  if (!strided || pass == Pass::kWeight || has_kernels_in_place(p, k)) return false;
  return pass == Pass::kOutput || (p.in_channels == kMostChannels && p.axis[2].input <= 3 * k.lanes);
}

}  // namespace

PlanPtr plan_depthwise(const Problem& p, Pass pass, const ConvKernels& k) {
  const auto wanted = wanted_algorithm();
  if (wanted && *wanted != Algorithm::kDepthwise) return nullptr;
  const int64_t channels = std::max(p.in_channels, p.out_channels);
  if (channels > kMostChannels) return nullptr;
  // With more than half a block of rows, lanes along the gathers' outputs are faster.
  const bool lanes_along_outputs = p.x.axis[2] == 1 && p.y.axis[2] == 1;
  if (!wanted && lanes_along_outputs && 2 * channels > k.row_block) return nullptr;
  if (!wanted && p.groups == 1 && p.in_channels * p.out_channels > 1) return nullptr;
  if (!wanted && channels > 1 && lanes_along_outputs && gathers_pay(p, pass, k)) return nullptr;
  const Axis& plane = p.axis[0];
  if (plane.input != 1 || plane.kernel != 1 || p.output[0] != 1 || plane.lo != 0) return nullptr;

  auto made = std::make_unique<Depthwise>(k);
  Depthwise& result = *made;
  result.pass = pass;
  DepthwisePlan& d = result.plan;
  const bool transposed = pass == Pass::kInput;
  const Strides &in = transposed ? p.y : p.x, &out = transposed ? p.x : p.y;
  set_sides(p, transposed, d);
  d.groups = p.groups;
  d.rows = transposed ? p.in_channels : p.out_channels;
  d.channels = transposed ? p.out_channels : p.in_channels;
  d.w_group = p.out_channels * p.w.batch;
  d.w_row = transposed ? p.w.channel : p.w.batch;
  d.w_channel = transposed ? p.w.batch : p.w.channel;
  for (int i = 0; i < 2; ++i) {
    d.in_axis[i] = in.axis[i + 1];
    d.out_axis[i] = out.axis[i + 1];
  }
  // Gathers and dots have products of pairs, these kernels have not; but dots copy what has its channels innermost.
  const bool pairs_pay = !wanted && k.pairs && d.channels > 1;
  if (pairs_pay && pass == Pass::kWeight && p.x.channel != 1) return nullptr;
  if (wants_planes(p, pass, k)) {
    if (PlanPtr plan = plan_planes(p, pass, k)) return plan;
  }
  const bool narrow = 2 * d.grid[1] <= k.lanes * (transposed ? p.axis[2].stride : 1);  // most lanes would be empty
  if (!narrow && !pairs_pay && lay_out_in_place(result, p)) return made;
  if (PlanPtr plan = plan_channelwise(p, pass, k)) return plan;
  if (pairs_pay) return nullptr;
  if (narrow && lay_out_in_place(result, p)) return made;

  std::array<AxisPhases, 2> axes;
  for (int i = 0; i < 2; ++i) {
    const Axis& a = p.axis[i + 1];
    if (std::max(a.stride, i == 0 ? a.dilation : 1) > kMostPhases) return nullptr;
    axes[i] = axis_phases(a, d.grid[i], transposed, i == 0);
    d.out_step[i] = axes[i].out_step;
    d.in_step[i] = axes[i].in_step;
    d.low[i] = axes[i].low;
  }
  if (d.in_step[1] > kMostResidues) return nullptr;
  d.row_phases = static_cast<int64_t>(axes[0].taps.size());
  d.column_phases = static_cast<int64_t>(axes[1].taps.size());
  d.window = axes[0].high - axes[0].low + 1;
  const int64_t span = (axes[1].high - axes[1].low) / d.in_step[1];  // in cells

  // Boxes: whole rows unless they are very long, and as many as the strip may hold.
  d.box[1] = whole(d.grid[1], kMostColumns, d.out_step[1]);
  const int64_t vectors = parts(parts(d.box[1], d.out_step[1]), k.lanes);
  d.cells = vectors * k.lanes + span;
  const int64_t margin = std::max<int64_t>(0, parts(-d.low[1], d.in_step[1]));  // cells before the inputs
  d.lead = parts(margin, k.lanes) * k.lanes - margin;
  d.residue_pitch = spread(d.lead + d.cells + k.lanes, k);
  d.row_pitch = d.in_step[1] * d.residue_pitch;
  const int64_t row_bytes = d.channels * d.row_pitch * k.sum_item;
  const int64_t block_rows = d.grid[0] > d.out_step[0] ? k.sweep_rows : 1;
  const int64_t strip_rows = std::max(kStripBytes / row_bytes, 2 * d.window + block_rows * d.in_step[0]);
  d.box[0] = whole(d.grid[0], std::max<int64_t>(1, (strip_rows - d.window) / d.in_step[0] * d.out_step[0]),
                   block_rows * d.out_step[0]);
  for (int i = 0; i < 2; ++i) d.boxes[i] = parts(d.grid[i], d.box[i]);
  const int64_t rows = parts(parts(d.box[0], d.out_step[0]), block_rows) * block_rows;
  d.strip_rows = (rows - 1) * d.in_step[0] + d.window;
  d.channel_pitch = d.strip_rows * d.row_pitch;
  if (d.channels * d.channel_pitch * k.sum_item > kMostStripBytes) return nullptr;

  d.chunk = block_rows == 1
                ? 1
                : std::clamp(kChunkBytes / row_bytes / d.in_step[0] / block_rows * block_rows, block_rows, rows);
  if (in.axis[2] == 1 && d.chunk < rows) {
    d.ahead = d.chunk * d.in_step[0] * in.axis[1];
    d.ahead_line = d.source[1];
  }

  // Taps, in the order in which they are added.
  const int64_t most_height = pass == Pass::kWeight ? k.weigh_height : k.sweep_height;
  for (size_t x = 0; x < axes[1].taps.size(); ++x) {
    const auto begin = static_cast<int64_t>(result.shift.size());
    for (const auto& tap : axes[1].taps[x]) {
      const int64_t at = tap.input - d.low[1];
      result.shift.push_back(at % d.in_step[1] * d.residue_pitch + at / d.in_step[1]);
    }
    result.column_phase.push_back({static_cast<int64_t>(x), begin, static_cast<int64_t>(result.shift.size())});
  }
  for (size_t y = 0; y < axes[0].taps.size(); ++y) {
    const auto runs = runs_of(axes[0].taps[y], d.in_step[0], most_height);
    const auto begin = static_cast<int64_t>(result.tap_rows.size());
    for (const auto& run : runs) {
      result.tap_rows.push_back({run.front().input - d.low[0], static_cast<int64_t>(run.size())});
    }
    result.row_phase.push_back({static_cast<int64_t>(y), begin, static_cast<int64_t>(result.tap_rows.size())});
    const bool shared = y > 0 && p.axis[1].stride == 1;
    for (size_t x = 0; x < axes[1].taps.size(); ++x) {
      if (!shared) {
        result.phase_taps.push_back(static_cast<int64_t>(result.tap_weight.size()));
        for (const auto& run : runs) {
          for (const auto& column : axes[1].taps[x]) {
            for (const auto& row : run) {
              result.tap_weight.push_back(row.tap * p.w.axis[1] + column.tap * p.w.axis[2]);
            }
          }
        }
        result.phase_taps.push_back(static_cast<int64_t>(result.tap_weight.size()));
      } else {
        const std::array<int64_t, 2> same = {result.phase_taps[2 * x], result.phase_taps[2 * x + 1]};
        result.phase_taps.insert(result.phase_taps.end(), same.begin(), same.end());
      }
    }
  }
  d.taps = static_cast<int64_t>(result.tap_weight.size());
  result.macs = d.batch * d.groups * d.rows * d.channels * d.taps * p.output_numel();

  const int64_t pairs = d.rows * d.channels;
  d.at_weights = aligned((d.channels * d.channel_pitch + d.residue_pitch + k.lanes) * k.sum_item);
  if (pass == Pass::kWeight) {
    d.gradient_rows = d.out_step[0] * rows;
    d.gradient_pitch = spread((vectors + 1) * k.lanes, k);
    d.parts = std::clamp<int64_t>(kTasks / d.groups, 1, d.batch * d.boxes[0] * d.boxes[1]);
    d.at_bounce = d.at_weights + aligned(pairs * d.taps * k.lanes * k.sum_item);
    d.scratch = d.at_bounce + aligned(d.gradient_rows * d.gradient_pitch * k.sum_item);
  } else {
    d.at_bounce = d.at_weights + aligned(pairs * d.taps * k.sum_item);
    d.scratch = d.at_bounce + aligned(d.out_step[1] * d.chunk * k.sweep_vectors * k.lanes * k.sum_item);
  }
  result.point();
  return made;
}

}  // namespace convarith::cpu
