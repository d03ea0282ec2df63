// Depthwise convolutions and small groups with lanes along the channels: their plan and its run.
#include "conv_phases.h"

namespace convarith::cpu {
namespace {

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
  const int64_t window = d.high[0] - d.low[0] + 1, span = d.high[1] - d.low[1];
  d.tile_rows = std::min(d.source[0], window);
  const int64_t cell = d.members * k.lanes * k.sum_item;
  const int64_t columns = (kTileBytes / (std::max<int64_t>(1, d.tile_rows) * cell) - span) / d.in_step[1];
  constexpr int64_t kLeastColumns = 14;
  d.box[1] = whole(d.grid[1], std::max(kLeastColumns, columns) * d.out_step[1], d.out_step[1]);
  d.cells = (parts(d.box[1], d.out_step[1]) - 1) * d.in_step[1] + span + 1;
  d.tile_pitch = spread(d.cells * d.members * k.lanes, k);
  const int64_t tile_bytes = d.tile_rows * d.tile_pitch * k.sum_item;
  if (tile_bytes > kMostTileBytes) return false;
  const int64_t rows = kBoxBytes / (d.source[1] * d.channels * k.item) / d.in_step[0];
  d.box[0] = whole(d.grid[0], std::max(4 * window, rows) * d.out_step[0], d.out_step[0]);
  for (int i = 0; i < 2; ++i) d.boxes[i] = parts(d.grid[i], d.box[i]);
  d.at_input = weight_bytes(d, k);
  d.at_lines = d.at_input + aligned(tile_bytes);
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
  cut_in_place(d, k, 1, d.pair_taps > 0 ? kPairSumBytes : kPixelBytes);
  // Parts are small enough for that, and have sums far smaller than themselves.
  const int64_t pixels = d.batch * d.grid[0] * d.grid[1], taps = d.kernel[0] * d.kernel[1];
  d.parts = std::clamp<int64_t>(pixels / (8 * taps), 1, d.batch * d.boxes[0]);
  d.at_lines = weight_bytes(d, k);
  d.scratch = d.at_lines + line_bytes(d);
}

// Where outputs that are neighbours do not see the same inputs, kernels of many taps read them from a copy.
constexpr int64_t kDirectTaps = 9;

}  // namespace

PlanPtr plan_channelwise(const Problem& p, Pass pass, const ConvKernels& k) {
  const bool transposed = pass == Pass::kInput, sums = pass == Pass::kWeight;
  const Strides &in = transposed ? p.y : p.x, &out = transposed ? p.x : p.y;
  if (p.in_channels != p.out_channels || p.in_channels == 3 || k.lanes % p.in_channels != 0) return nullptr;
  auto made = std::make_unique<Channelwise>(k);
  Channelwise& result = *made;
  result.pass = pass;
  ChannelwisePlan& d = result.plan;
  d.members = p.in_channels;
  d.channels = p.groups * d.members;
  set_sides(p, transposed, d);
  std::array<AxisPhases, 2> axes;
  if (!set_phases(p, transposed, d, axes)) return nullptr;
  for (int i = 0; i < 2; ++i) {
    d.in_axis[i] = in.axis[i + 1];
    d.out_axis[i] = out.axis[i + 1];
    d.low[i] = axes[i].low;
    d.high[i] = axes[i].high;
  }
  const bool last = in.channel == 1 && out.channel == 1;
  if (!last || d.channels < k.lanes || std::max(d.source[0] * d.source[1], d.grid[0] * d.grid[1]) <= 1) return nullptr;
  d.w_group = p.out_channels * p.w.batch;
  d.w_row = transposed ? p.w.channel : p.w.batch;
  d.w_member = transposed ? p.w.batch : p.w.channel;
  result.macs = d.batch * d.channels * d.members * p.output_numel() * p.kernel_numel();
  const bool slides = p.axis[2].stride == 1 && p.axis[2].dilation == 1;
  d.direct = sums || (d.members == 1 && (slides || p.kernel_numel() <= kDirectTaps));
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

}  // namespace convarith::cpu
