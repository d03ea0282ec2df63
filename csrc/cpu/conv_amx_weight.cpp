// The weight's gradient by AMX: its plan, its cost, and its run.
#include "../simplify.h"
#include "conv_planning.h"

namespace convarith::cpu {
namespace {

constexpr int64_t kShares = 8;                       // of the boxes, with sums of their own
constexpr int64_t kSharedSums = int64_t{4} << 20;    // bytes, of all shares
constexpr int64_t kTaskSums = int64_t{1} << 19;      // bytes: of a task they stay in the second cache
constexpr int64_t kTaskColumns = 512 / kAmxColumns;  // and so does a box of y
constexpr int64_t kMostPieces = int64_t{1} << 16;    // that a thread lists of a box
constexpr int64_t kLineBytes = int64_t{1} << 19;     // of lines of a box
constexpr int64_t kBlockBytes = kAmxRows * kAmxColumns * sizeof(float);

// Cycles of a product of two registers, alone and beside others; of copying a vector of a row of x, by strides; of
// packing 16 columns of a step of y; of reading and writing a block's sums; of rounding a sum, where w is dense or not.
// And of pixels: of copying 32 rows of a step of x and of transposing 32 columns of one of y, and of a line's part.
constexpr double kProduct = 22, kAlone = 30, kCopy = 2.5, kPerStride = 2, kScalar = 40, kPack = 85, kSums = 150,
                 kRound = 0.3, kScatter = 2, kCopyPixels = 60, kTurnPixels = 200, kLinePart = 3;

// How a gradient is taken.
struct Way {
  bool swapped, pixels, lines;  // x is taken for y, and y for x; as AmxWeightPlan has them
};

// Outputs of a box, about. Where few columns meet a row of x, all of it stays in the first cache.
int64_t box_outputs(const Problem& p) {
  return p.out_channels <= 2 * kAmxColumns ? kAmxOutputs / 2 : kAmxOutputs;
}

double copy_cycles(int64_t stride) {
  return stride == 1                  ? kCopy
         : stride == 2 || stride == 4 ? kCopy + kPerStride * static_cast<double>(stride - 1)
                                      : kScalar;
}

bool pixels_follow(const Strides& s, int64_t channels) {
  return s.channel == 1 || channels == 1;
}

// Cycles of all, by one thread.
double cycles_of(const Problem& p, const Way& way) {
  const int64_t columns = p.out_channels, runs = p.batch * p.output[0] * p.output[1], outputs = runs * p.output[2];
  const int64_t rows = way.lines    ? p.in_channels * p.kernel_numel()
                       : way.pixels ? parts(p.in_channels, kAmxRegister) * kAmxRegister * p.kernel_numel()
                                    : p.in_channels * p.kernel_numel();
  const auto as_double = [](int64_t v) { return static_cast<double>(v); };
  const double steps = as_double(parts(outputs, kAmxNumbers));
  const double high = as_double(parts(rows, kAmxRegister)), wide = as_double(parts(columns, kAmxRegister));
  const bool alone = columns <= kAmxRegister || (way.pixels && !way.lines ? p.in_channels : rows) <= kAmxRegister;
  const double products = steps * high * wide * (alone ? kAlone : kProduct);
  const double copied = way.pixels
                            ? steps * as_double(parts(rows, kAmxRows)) * kCopyPixels
                            : as_double(rows * runs * parts(p.output[2], kAmxNumbers)) * copy_cycles(p.axis[2].stride);
  const double copies = copied * as_double(parts(columns, kTaskColumns * kAmxColumns));
  const double packed = steps * (way.pixels ? as_double(parts(columns, kAmxColumns)) * kTurnPixels : wide * kPack);
  const double boxes = as_double(parts(outputs, box_outputs(p)));
  const double sums = boxes * high * wide / 4 * kSums;
  const bool straight = p.w.batch == 1 || p.w.channel == (way.pixels ? 1 : p.kernel_numel());
  const double stored = as_double(p.in_channels * p.kernel_numel() * columns) * (straight ? kRound : kScatter);
  const double lines = way.lines ? as_double(outputs * line_parts(forward_gather(p, true))) * kLinePart : 0;
  return as_double(p.groups) * (products + copies + packed + sums + stored + lines) / kMeasuredCycles;
}

// Bytes of packed columns.
int64_t panels_of_box(const AmxWeightPlan& plan, int64_t columns) {
  const int64_t steps = plan.pixels ? plan.most_steps | 1 : plan.most_steps;
  return parts(columns, kAmxRegister) * steps * kAmxRegister * kAmxPairs * static_cast<int64_t>(sizeof(uint32_t));
}

struct AmxWeight : Plan {
  explicit AmxWeight(const ConvKernels& kernels) : k(kernels) {}

  double cycles() const override { return cost; }

  int64_t panel_bytes() const {
    const GatherPlan& g = plan.gather;
    return plan.own_panels ? 0 : box_count(g) * g.groups * panels_of_box(plan, g.rows);
  }
  int64_t blocks() const {
    const GatherPlan& g = plan.gather;
    return g.groups * plan.row_blocks * parts(g.rows, kAmxColumns);
  }
  int64_t shared_bytes() const { return plan.box_tasks > 1 ? plan.box_tasks * blocks() * kBlockBytes : 0; }
  int64_t tasks() const { return plan.gather.groups * plan.row_tasks * plan.column_tasks * plan.box_tasks; }

  Explanation explain() const override {
    return {Algorithm::kAmx, panel_bytes() + shared_bytes() + std::min(thread_count(), tasks()) * plan.scratch, 1,
            gather_macs(plan.gather)};
  }

  void run(const void* x, int64_t, const void* y, int64_t, void* w) override {
    if (swapped) std::swap(x, y);
    const GatherPlan& g = plan.gather;
    const Buffer panels(panel_bytes()), shares(shared_bytes());
    if (!plan.own_panels) {
      parallel(k.amx_weight_pack_tasks(plan), panel_bytes() / 8,
               [&](int64_t begin, int64_t end) { k.amx_weight_pack(plan, y, panels.get(), begin, end); });
    }
    float* sums = reinterpret_cast<float*>(shares.get());
    parallel(tasks(), gather_macs(g) / 8, [&](int64_t begin, int64_t end) {
      const Buffer mine(plan.scratch);
      k.amx_weight_sum(plan, x, y, panels.get(), sums, w, mine.get(), begin, end);
    });
    if (plan.box_tasks == 1) return;
    parallel(k.amx_weight_store_tasks(plan), shared_bytes() / 8,
             [&](int64_t begin, int64_t end) { k.amx_weight_store(plan, sums, w, begin, end); });
  }

  const ConvKernels& k;
  Gather gather;
  std::vector<int64_t> shift;
  Lines lines;
  AmxWeightPlan plan = {};
  double cost = 0;
  bool swapped = false;  // x is taken for y, and y for x
};

// Neither the boxes nor their shares depend on the threads.
void set_tasks(AmxWeightPlan& plan, int64_t blocks) {
  const GatherPlan& g = plan.gather;
  const int64_t threads = thread_count(), boxes = box_count(g);
  const int64_t rows = plan.row_blocks, columns = parts(g.rows, kAmxColumns);
  plan.box_tasks = 1;
  if (kShares * blocks * kBlockBytes <= kSharedSums && (boxes >= kShares || blocks < kShares)) {
    plan.box_tasks = std::min(kShares, boxes);
  }
  plan.column_tasks = parts(columns, kTaskColumns);
  const int64_t width = parts(columns, plan.column_tasks), others = g.groups * plan.column_tasks * plan.box_tasks;
  plan.row_tasks = plan.box_tasks > 1 ? 1 : parts(rows, std::max<int64_t>(1, kTaskSums / (width * kBlockBytes)));
  // As many for every thread.
  while (plan.row_tasks < rows && plan.row_tasks * others < 4 * threads && plan.row_tasks * others % threads != 0) {
    ++plan.row_tasks;
  }
  plan.own_panels = plan.row_tasks == 1 || boxes * g.groups * panels_of_box(plan, g.rows) > kPackedBytes;
}

// Room for what rows of outputs are copied by; false where that is too much.
bool lay_out_rows(AmxWeightPlan& plan, const Problem& p, const ConvKernels& k) {
  const GatherPlan& g = plan.gather;
  const int64_t pieces = g.box[0] * g.box[1] * g.box[2] * parts(g.box[3], kAmxNumbers / (g.stride[2] == 4 ? 2 : 1)) + 1;
  int64_t reach = (g.box[0] - 1) * std::abs(g.in_batch);
  for (int i = 0; i < kAxes; ++i) {
    const int64_t cells = g.box[i + 1] * g.stride[i] + p.axis[i].kernel * p.axis[i].dilation + std::abs(p.axis[i].lo);
    reach += cells * std::abs(g.in_axis[i]);
  }
  if (reach >= int64_t{1} << 31) return false;
  if (g.taps * pieces > kMostPieces) return false;
  constexpr int64_t kSight = 6 * sizeof(int64_t), kPiece = 4 * sizeof(int32_t);
  plan.at_pieces = plan.at_rows + aligned(((plan.most_steps + 1) * kAmxRows + 1) * kAmxNumbers * k.item);
  plan.at_sights = plan.at_pieces + aligned(g.taps * pieces * kPiece);
  plan.at_sums = plan.at_sights + aligned(g.taps * kSight);
  return true;
}

void lay_out_pixels(AmxWeightPlan& plan, const ConvKernels& k) {
  plan.at_loads = plan.at_rows + aligned(plan.most_steps * kAmxNumbers * kAmxRows * k.item);
  plan.at_sums = plan.at_loads + aligned(plan.lines.parts * static_cast<int64_t>(sizeof(LineLoad)));
}

std::unique_ptr<AmxWeight> make_plan(const Problem& p, const Way& way, int64_t w_group, const ConvKernels& k) {
  auto made = std::make_unique<AmxWeight>(k);
  made->swapped = way.swapped;
  made->gather = forward_gather(p, true);
  if (way.lines) made->lines = lines_of(made->gather);
  Blocking blocking = {};
  blocking.compact = blocking.without_tile = true;
  blocking.pixels = box_outputs(p);
  blocking.depth = INT32_MAX;
  blocking.tile = INT64_MAX;
  if (!lay_out(made->gather, blocking, k)) return nullptr;
  made->gather.point();
  made->lines.point();
  for (const auto& shift : made->gather.shifts) made->shift.insert(made->shift.end(), shift.begin(), shift.end());
  AmxWeightPlan& plan = made->plan;
  GatherPlan& g = plan.gather = made->gather.plan;
  g.w_group = w_group;
  if (g.source[2] == 1 && !way.pixels) g.in_axis[2] = 1;
  plan.shift = made->shift.data();
  plan.pixels = way.pixels;
  plan.lines = made->lines.plan;
  if (way.lines) {
    plan.row_blocks = parts(plan.lines.depth, kAmxRows);
    plan.dense = plan.lines.straight;
  } else if (way.pixels) {
    plan.row_blocks = g.taps * parts(g.channels, kAmxRows);
    plan.dense = g.w_channel == 1;
  } else {
    plan.row_blocks = parts(g.channels * g.taps, kAmxRows);
    plan.dense = g.w_channel == g.taps;
    for (int64_t t = 0; t < g.taps; ++t) plan.dense = plan.dense && g.tap_weight[t] == t;
  }
  // Rows of outputs may each be one longer, see Places.
  const int64_t rows_of_box = g.box[0] * (g.box[1] * (g.box[2] * (g.box[3] + 1) + 1) + 1);
  const int64_t outputs = way.pixels ? g.box[0] * g.box[1] * g.box[2] * g.box[3] : rows_of_box;
  plan.most_steps = parts(outputs, kAmxNumbers);
  set_tasks(plan, made->blocks());
  const int64_t rows = parts(plan.row_blocks, plan.row_tasks);
  const int64_t columns = parts(parts(g.rows, kAmxColumns), plan.column_tasks);
  plan.at_rows = aligned(plan.own_panels ? panels_of_box(plan, columns * kAmxColumns) : 0);
  if (way.pixels) {
    lay_out_pixels(plan, k);
  } else if (!lay_out_rows(plan, p, k)) {
    return nullptr;
  }
  plan.scratch = plan.at_sums + (plan.box_tasks > 1 ? 0 : rows * columns * kBlockBytes);
  return made;
}

}  // namespace

PlanPtr plan_amx_weight(const Problem& problem, Pass pass, const ConvKernels& k, Cheapest& cheapest) {
  const auto wanted = wanted_algorithm();
  if (pass != Pass::kWeight || !k.amx_weight_sum || (wanted && *wanted != Algorithm::kAmx)) return nullptr;
  const bool rows =
      (problem.x.axis[2] == 1 || problem.axis[2].input == 1) && (problem.y.axis[2] == 1 || problem.output[2] == 1);
  const bool pixels = pixels_follow(problem.x, problem.in_channels) && pixels_follow(problem.y, problem.out_channels);
  double cost = std::numeric_limits<double>::infinity();
  std::optional<Way> best;
  const auto consider = [&](const Way& way) {
    const double cycles = cycles_of(way.swapped ? swap_sides(problem) : problem, way);
    if (cycles >= cost) return;
    cost = cycles;
    best = way;
  };
  for (const bool swapped : {false, true}) {
    if (swapped && !is_pointwise(problem)) continue;
    if (rows) consider({swapped, false, false});
    if (pixels) consider({swapped, true, false});
    if (pixels && !is_pointwise(problem) && problem.in_channels < kAmxRows) consider({swapped, true, true});
  }
  if (!best || !cheapest.beaten_by(cost)) return nullptr;
  auto plan =
      make_plan(best->swapped ? swap_sides(problem) : problem, *best, problem.out_channels * problem.w.batch, k);
  if (plan) plan->cost = cost;
  return plan;
}

}  // namespace convarith::cpu
