// Depthwise convolutions and small groups: which problems they serve, their plan and their run.
#include "conv_planning.h"

namespace convarith::cpu {
namespace {

constexpr int64_t kMostChannels = 4;  // of a group, in and out
constexpr int64_t kMostPhases = 16;   // along an axis
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

// One axis of outputs: the phases, and for each the taps and the inputs that its first output sees through them.
struct AxisPhases {
  struct Tap {
    int64_t input, tap;
  };
  int64_t out_step = 1, in_step = 1;
  int64_t low = 0, high = 0;  // of those inputs
  std::vector<std::vector<Tap>> taps;
};

AxisPhases axis_phases(const Axis& a, int64_t outputs, bool transposed, bool rows) {
  AxisPhases result;
  if (a.stride == 1) {  // rows of the same residue see the same rows of the input
    result.out_step = result.in_step = rows ? a.dilation : 1;
  } else if (transposed) {
    result.out_step = a.stride;
  } else {
    result.in_step = a.stride;
  }
  result.taps.resize(std::min(result.out_step, outputs));
  bool first = true;
  for (size_t r = 0; r < result.taps.size(); ++r) {
    for (int64_t t = 0; t < a.kernel; ++t) {
      const int64_t output = static_cast<int64_t>(r);
      const int64_t scaled = transposed ? output + a.lo - t * a.dilation : input_index(a, output, t);
      const int64_t input = transposed ? floor_div(scaled, a.stride) : scaled;
      if (transposed && scaled != input * a.stride) continue;
      result.taps[r].push_back({input, t});
      result.low = first ? input : std::min(result.low, input);
      result.high = first ? input : std::max(result.high, input);
      first = false;
    }
    if (transposed) std::reverse(result.taps[r].begin(), result.taps[r].end());
  }
  return result;
}

// Taps of a column of the kernel in runs of inputs that are `step` apart, none longer than `most`.
std::vector<std::vector<AxisPhases::Tap>> runs_of(std::vector<AxisPhases::Tap> taps, int64_t step, int64_t most) {
  std::vector<std::vector<AxisPhases::Tap>> runs;
  while (!taps.empty()) {
    std::vector<AxisPhases::Tap> run, rest;
    for (const auto& tap : taps) {
      const bool next = run.empty() || tap.input == run.back().input + step;
      (next && static_cast<int64_t>(run.size()) < most ? run : rest).push_back(tap);
    }
    runs.push_back(std::move(run));
    taps = std::move(rest);
  }
  return runs;
}

// Lanes along the channels ------------------------------------------------------------------------------------------

struct Channelwise : Plan {
  explicit Channelwise(const ConvKernels& kernels) : k(kernels) {}
  Explanation explain() const override {
    const int64_t sums_bytes = pass == Pass::kWeight ? sums() * k.sum_item : 0;
    return {Algorithm::kDepthwise, sums_bytes + thread_count() * plan.scratch, plan.out_step[0] * plan.out_step[1],
            macs};
  }
  bool add_bias(const void* bias) override {
    plan.bias = bias;
    return true;
  }
  void run(const void* in, int64_t in_count, const void* other, int64_t other_count, void* out) override;
  int64_t sums() const { return plan.parts * plan.channels * plan.members * plan.kernel[0] * plan.kernel[1]; }

  const ConvKernels& k;
  Pass pass = Pass::kOutput;
  ChannelwisePlan plan = {};
  std::vector<RowTap> row_tap;
  std::vector<ColumnRun> column_run;
  std::vector<int64_t> row_begin, column_begin;
  int64_t macs = 0;
};

void Channelwise::run(const void* in, int64_t, const void* other, int64_t, void* out) {
  if (pass != Pass::kWeight) {
    parallel(plan.batch * plan.boxes[0] * plan.boxes[1] * plan.blocks, macs, [&](int64_t begin, int64_t end) {
      const Buffer mine(plan.scratch);
      k.channelwise(plan, in, other, out, mine.get(), begin, end);
    });
    return;
  }
  const Buffer all(sums() * k.sum_item);
  parallel(plan.parts * plan.blocks, macs, [&](int64_t begin, int64_t end) {
    const Buffer mine(plan.scratch);
    k.channelwise_sum(plan, in, other, all.get(), mine.get(), begin, end);
  });
  parallel(plan.channels, sums(),
           [&](int64_t begin, int64_t end) { k.channelwise_store(plan, all.get(), out, begin, end); });
}

// Whole boxes: as equal as can be, multiples of `step`.
int64_t whole(int64_t size, int64_t part, int64_t step) {
  return parts(even_part(size, part), step) * step;
}

// The taps of all phases of both axes.
void tabulate(Channelwise& result, const std::array<AxisPhases, 2>& axes, int64_t lanes) {
  ChannelwisePlan& d = result.plan;
  for (const auto& taps : axes[0].taps) {
    result.row_begin.push_back(static_cast<int64_t>(result.row_tap.size()));
    for (const auto& tap : taps) result.row_tap.push_back({tap.input, tap.tap});
  }
  result.row_begin.push_back(static_cast<int64_t>(result.row_tap.size()));
  d.row_tap = result.row_tap.data();
  d.row_begin = result.row_begin.data();
  if (result.pass == Pass::kWeight) return;
  const int64_t first = d.direct ? 0 : d.low[1];
  for (const auto& taps : axes[1].taps) {
    result.column_begin.push_back(static_cast<int64_t>(result.column_run.size()));
    for (size_t t = 0; t < taps.size();) {
      size_t size = 1;
      while (d.in_step[1] == 1 && t + size < taps.size() &&
             taps[t + size].input == taps[t].input + static_cast<int64_t>(size)) {
        ++size;
      }
      size = size >= 7 ? 7 : size >= 5 ? 5 : size >= 3 ? 3 : 1;
      const int64_t apart = size > 1 ? taps[t + 1].tap - taps[t].tap : 0;
      for (int64_t c = 0; c < d.members; ++c) {
        result.column_run.push_back({static_cast<int64_t>(size), taps[t].input - first, c * lanes,
                                     (taps[t].tap * d.members + c) * lanes, apart * d.members * lanes});
      }
      t += size;
    }
  }
  result.column_begin.push_back(static_cast<int64_t>(result.column_run.size()));
  int64_t paired = 0;
  for (size_t i = 0; d.pair_taps > 0 && i < result.column_run.size(); ++i) {
    const ColumnRun& run = result.column_run[i];
    for (int64_t t = 0; t < run.taps; ++t) d.pair_weight[paired++] = run.weight + t * run.weight_step;
  }
  d.column_run = result.column_run.data();
  d.column_begin = result.column_begin.data();
}

// ChannelwisePlan::pair_taps, where products are of pairs.
int64_t paired_taps(const ChannelwisePlan& d) {
  const int64_t taps = d.kernel[1];
  const bool neighbours = d.high[1] - d.low[1] == taps - 1 && d.out_step[1] == 1 && d.in_step[1] <= 2;
  return d.direct && d.members == 1 && neighbours && (taps == 3 || taps == 5 || taps == 7) ? taps : 0;
}

constexpr int64_t kTileBytes = int64_t{32} << 10, kMostTileBytes = int64_t{1} << 18;
constexpr int64_t kBoxBytes = int64_t{384} << 10;  // of all channels of the inputs that a box sees

// Of the weights and biases of a block, and of the lines that a row of outputs sees.
int64_t weight_bytes(const ChannelwisePlan& d, const ConvKernels& k) {
  const int64_t unit = d.pair_taps > 0 ? 2 : 1;  // vectors that stay together
  const int64_t vectors = d.direct ? unit * parts(parts(d.channels, unit * k.lanes), d.blocks) : 1;
  return aligned(vectors * (d.kernel[0] * d.kernel[1] * d.members + 1) * k.lanes * k.sum_item);
}

int64_t line_bytes(const ChannelwisePlan& d) {
  return aligned(2 * d.kernel[0] * static_cast<int64_t>(sizeof(void*)));
}

// Boxes, tile and scratch of a plan for outputs; false where a tile would be too large.
bool lay_out_tile(ChannelwisePlan& d, const ConvKernels& k) {
  const int64_t vector = k.lanes * k.sum_item, cell = d.members * vector;
  const int64_t window = d.high[0] - d.low[0] + 1, span = d.high[1] - d.low[1];
  // Short rows are transposed together, then copied to the tile.
  const bool short_rows = d.transposing && 4 * d.source[1] < 3 * k.lanes && d.low[1] <= 0 &&
                          d.high[1] + (d.grid[1] - 1) / d.out_step[1] * d.in_step[1] + 1 >= d.source[1];
  d.fill_rows = short_rows ? parts(4 * k.lanes, d.source[1]) : 1;
  d.tile_rows = std::min(d.source[0], window + d.fill_rows - 1);
  const int64_t columns = (kTileBytes / (std::max<int64_t>(1, d.tile_rows) * cell) - span) / d.in_step[1];
  constexpr int64_t kLeastColumns = 14;
  d.box[1] =
      d.transposing ? d.grid[1] : whole(d.grid[1], std::max(kLeastColumns, columns) * d.out_step[1], d.out_step[1]);
  d.cells = (parts(d.box[1], d.out_step[1]) - 1) * d.in_step[1] + span + 1;
  d.tile_pitch = spread(d.cells * d.members * k.lanes, k);
  const int64_t tile_bytes = d.tile_rows * d.tile_pitch * k.sum_item;
  if (tile_bytes > kMostTileBytes) return false;
  const int64_t rows = kBoxBytes / (d.source[1] * (d.transposing ? vector : d.channels * k.item)) / d.in_step[0];
  d.box[0] = whole(d.grid[0], std::max(4 * window, rows) * d.out_step[0], d.out_step[0]);
  for (int i = 0; i < 2; ++i) d.boxes[i] = parts(d.grid[i], d.box[i]);
  d.flat_pixels = std::max(4 * k.lanes, d.fill_rows * d.source[1]);
  d.at_input = weight_bytes(d, k);
  d.at_output = d.at_input + aligned(tile_bytes);
  d.at_flat = d.at_output + (d.transposing ? d.box[0] * d.grid[1] * vector : 0);
  d.at_lines = d.at_flat + (d.transposing ? d.flat_pixels * vector : 0);
  d.scratch = d.at_lines + line_bytes(d);
  return true;
}

// Bytes of a box's rows; where pairs are summed, to add a box's sums would take as long as to make those of few rows.
constexpr int64_t kPixelBytes = int64_t{256} << 10, kPairSumBytes = int64_t{1024} << 10;

// Where pixels are read in place: rows whose channels stay in the second cache with what they see, and blocks of
// channels whose weights stay in the first with it. Memory hands out neighbours sooner, so blocks are small only where
// there would be few tasks. The last vector has the one before it in its block.
void cut_in_place(ChannelwisePlan& d, const ConvKernels& k, int64_t images, int64_t box_bytes) {
  constexpr int64_t kNear = int64_t{16} << 20;  // bytes of all pixels
  d.asks = d.batch * d.channels * k.item * (d.source[0] * d.source[1] + d.grid[0] * d.grid[1]) > kNear;
  constexpr int64_t kWeightBytes = int64_t{24} << 10, kEnough = 16;
  const int64_t row_bytes = d.channels * k.item * (d.grid[1] + d.source[1]);
  d.box[0] = whole(d.grid[0], std::max(2 * d.kernel[0], box_bytes / row_bytes), d.out_step[0]);
  d.box[1] = d.grid[1];
  for (int i = 0; i < 2; ++i) d.boxes[i] = parts(d.grid[i], d.box[i]);
  const int64_t vectors = parts(d.channels, k.lanes);
  const int64_t wanted = std::max(parts(vectors * d.kernel[0] * d.kernel[1] * k.lanes * k.sum_item, kWeightBytes),
                                  parts(kEnough, images * d.boxes[0]));
  d.blocks = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, vectors / 2));
}

// The same, and scratch, of a plan for outputs.
void lay_out_direct(ChannelwisePlan& d, const ConvKernels& k) {
  cut_in_place(d, k, d.batch, kPixelBytes);
  d.at_pairs = weight_bytes(d, k);
  // Pairs take less room than the weights they are made of.
  d.at_lines = d.at_pairs + (d.pair_taps > 0 ? weight_bytes(d, k) : 0);
  d.scratch = d.at_lines + line_bytes(d);
}

// The same of a plan for the weight's gradient.
void lay_out_sums(ChannelwisePlan& d, const ConvKernels& k) {
  d.box[0] = d.grid[0];
  d.boxes[0] = 1;
  if (d.direct) cut_in_place(d, k, 1, d.pair_taps > 0 ? kPairSumBytes : kPixelBytes);
  // Parts are small enough for that, and have sums far smaller than themselves.
  const int64_t pixels = d.batch * d.grid[0] * d.grid[1], taps = d.kernel[0] * d.kernel[1];
  d.parts = std::clamp<int64_t>(pixels / (8 * taps), 1, d.batch * d.boxes[0]);
  d.at_input = weight_bytes(d, k);
  d.at_output = d.at_input + aligned(d.transposing ? d.source[0] * d.source[1] * k.lanes * k.sum_item : 0);
  d.at_lines = d.at_output + aligned(d.transposing ? d.grid[0] * d.grid[1] * k.lanes * k.sum_item : 0);
  d.scratch = d.at_lines + line_bytes(d);
}

// Planes up to this size are transposed; with a stride, where the sweeps would split rows, larger ones are.
constexpr int64_t kTransposedPixels = 256, kTransposedStridedPixels = 4096;
// Where outputs that are neighbours do not see the same inputs, kernels of many taps read them from a copy.
constexpr int64_t kDirectTaps = 9;

PlanPtr plan_channelwise(const Problem& p, Pass pass, const ConvKernels& k) {
  const bool transposed = pass == Pass::kInput, sums = pass == Pass::kWeight;
  const Strides &in = transposed ? p.y : p.x, &out = transposed ? p.x : p.y;
  if (p.in_channels != p.out_channels || p.in_channels == 3 || k.lanes % p.in_channels != 0) return nullptr;
  auto made = std::make_unique<Channelwise>(k);
  Channelwise& result = *made;
  result.pass = pass;
  ChannelwisePlan& d = result.plan;
  d.batch = p.batch;
  d.members = p.in_channels;
  d.channels = p.groups * d.members;
  std::array<AxisPhases, 2> axes;
  for (int i = 0; i < 2; ++i) {
    const Axis& a = p.axis[i + 1];
    d.kernel[i] = a.kernel;
    d.grid[i] = transposed ? a.input : p.output[i + 1];
    d.source[i] = transposed ? p.output[i + 1] : a.input;
    d.in_axis[i] = in.axis[i + 1];
    d.out_axis[i] = out.axis[i + 1];
    d.w_axis[i] = p.w.axis[i + 1];
    if (a.stride > kMostPhases) return nullptr;
    axes[i] = axis_phases(a, d.grid[i], transposed, false);
    d.out_step[i] = axes[i].out_step;
    d.in_step[i] = axes[i].in_step;
    d.low[i] = axes[i].low;
    d.high[i] = axes[i].high;
  }
  const auto plane = [](const Strides& s, const int64_t* size) {
    return (s.axis[2] == 1 || size[1] == 1) && (s.axis[1] == size[1] || size[0] == 1);
  };
  const int64_t pixels = std::max(d.source[0] * d.source[1], d.grid[0] * d.grid[1]);
  const bool last = in.channel == 1 && out.channel == 1 && d.channels >= k.lanes && pixels > 1;
  d.transposing = !last;
  if (d.transposing && sums && k.item != k.sum_item) return nullptr;
  const bool strided = p.axis[1].stride > 1 || p.axis[2].stride > 1;
  if (d.transposing && (pixels > (strided ? kTransposedStridedPixels : kTransposedPixels) || d.members > 1 ||
                        2 * d.channels < k.lanes || k.sum_item != 4 || !plane(in, d.source) || !plane(out, d.grid))) {
    return nullptr;
  }
  d.in_batch = in.batch;
  d.in_channel = in.channel;
  d.out_batch = out.batch;
  d.out_channel = out.channel;
  d.w_group = p.out_channels * p.w.batch;
  d.w_row = transposed ? p.w.channel : p.w.batch;
  d.w_member = transposed ? p.w.batch : p.w.channel;
  result.macs = d.batch * d.channels * d.members * p.output_numel() * p.kernel_numel();
  const bool slides = p.axis[2].stride == 1 && p.axis[2].dilation == 1;
  d.direct = !d.transposing && (sums || (d.members == 1 && (slides || p.kernel_numel() <= kDirectTaps)));
  if (k.pairs) d.pair_taps = paired_taps(d);
  d.blocks = parts(d.channels, k.lanes);
  if (sums) {
    lay_out_sums(d, k);
  } else if (d.direct) {
    lay_out_direct(d, k);
  } else if (!lay_out_tile(d, k)) {
    return nullptr;
  }
  tabulate(result, axes, k.lanes);
  return made;
}

// Rows that are read where they stand: DepthwisePlan::in_place. False where they cannot be.
bool lay_out_in_place(Depthwise& result, const Problem& p) {
  DepthwisePlan& d = result.plan;
  const ConvKernels& k = result.k;
  const bool transposed = result.pass == Pass::kInput;
  if (d.in_axis[1] != 1 || d.out_axis[1] != 1) return false;
  if (std::max(d.source[1], d.grid[1]) > INT32_MAX) return false;  // columns are compared as 32 bits
  const int64_t stride = p.axis[2].stride, side = p.axis[2].kernel;
  if (side < 3 || side > k.most_in_place || side % 2 == 0) return false;
  if (stride > (side == 3 ? 2 : 1)) return false;
  for (int i = 0; i < 2; ++i) {
    const Axis& a = p.axis[i + 1];
    if (a.kernel != side || a.stride != stride || a.dilation != 1) return false;
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
  const Axis& plane = p.axis[0];
  if (plane.input != 1 || plane.kernel != 1 || p.output[0] != 1 || plane.lo != 0) return nullptr;

  auto made = std::make_unique<Depthwise>(k);
  Depthwise& result = *made;
  result.pass = pass;
  DepthwisePlan& d = result.plan;
  const bool transposed = pass == Pass::kInput;
  const Strides &in = transposed ? p.y : p.x, &out = transposed ? p.x : p.y;
  d.batch = p.batch;
  d.groups = p.groups;
  d.rows = transposed ? p.in_channels : p.out_channels;
  d.channels = transposed ? p.out_channels : p.in_channels;
  d.in_batch = in.batch;
  d.in_channel = in.channel;
  d.out_batch = out.batch;
  d.out_channel = out.channel;
  d.w_group = p.out_channels * p.w.batch;
  d.w_row = transposed ? p.w.channel : p.w.batch;
  d.w_channel = transposed ? p.w.batch : p.w.channel;
  for (int i = 0; i < 2; ++i) {
    d.grid[i] = transposed ? p.axis[i + 1].input : p.output[i + 1];
    d.source[i] = transposed ? p.output[i + 1] : p.axis[i + 1].input;
    d.in_axis[i] = in.axis[i + 1];
    d.out_axis[i] = out.axis[i + 1];
  }
  // Gathers and dots have products of pairs, these kernels have not; but dots copy what has its channels innermost.
  const bool pairs_pay = !wanted && k.pairs && d.channels > 1;
  if (pairs_pay && pass == Pass::kWeight && p.x.channel != 1) return nullptr;
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
