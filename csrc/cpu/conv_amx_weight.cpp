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
constexpr int64_t kStepOutputs = 32, kRegister = 16;
constexpr int64_t kBlockBytes = kAmxRows * kAmxColumns * sizeof(float);

// Cycles of a product of two registers, alone and beside others; of copying a vector of a row of x, by strides; of
// packing 16 columns of a step of y; of reading and writing a block's sums; of rounding a sum, where w is dense or not.
constexpr double kProduct = 22, kAlone = 30, kCopy = 2.5, kPerStride = 2, kScalar = 40, kPack = 85, kSums = 150,
                 kRound = 0.3, kScatter = 2;

// Outputs of a box, about. Where few columns meet a row of x, all of it stays in the first cache.
int64_t box_outputs(const Problem& p) {
  return p.out_channels <= 2 * kAmxColumns ? 256 : 512;
}

double copy_cycles(int64_t stride) {
  return stride == 1                  ? kCopy
         : stride == 2 || stride == 4 ? kCopy + kPerStride * static_cast<double>(stride - 1)
                                      : kScalar;
}

// Cycles of all, by one thread.
double amx_weight_cycles(const Problem& p) {
  const int64_t rows = p.in_channels * p.kernel_numel(), columns = p.out_channels;
  const int64_t runs = p.batch * p.output[0] * p.output[1];
  const auto as_double = [](int64_t v) { return static_cast<double>(v); };
  const double steps = as_double(parts(runs * p.output[2], kStepOutputs));
  const double high = as_double(parts(rows, kRegister)), wide = as_double(parts(columns, kRegister));
  const double products = steps * high * wide * (columns > kRegister && rows > kRegister ? kProduct : kAlone);
  const double copies = as_double(rows) * as_double(runs * parts(p.output[2], kStepOutputs)) *
                        copy_cycles(p.axis[2].stride) * as_double(parts(columns, kTaskColumns * kAmxColumns));
  const double boxes = as_double(parts(runs * p.output[2], box_outputs(p)));
  const double sums = boxes * high * wide / 4 * kSums;
  const bool straight = p.w.batch == 1 || p.w.channel == p.kernel_numel();
  const double stored = as_double(rows * columns) * (straight ? kRound : kScatter);
  return as_double(p.groups) * (products + copies + steps * wide * kPack + sums + stored) / kMeasuredCycles;
}

struct AmxWeight : Plan {
  explicit AmxWeight(const ConvKernels& kernels) : k(kernels) {}

  double cycles() const override { return cost; }

  int64_t panel_bytes() const {
    const GatherPlan& g = plan.gather;
    if (plan.own_panels) return 0;
    return box_count(g) * g.groups * parts(g.rows, kRegister) * plan.most_steps * kRegister * kAmxPairs * k.sum_item;
  }
  int64_t blocks() const {
    const GatherPlan& g = plan.gather;
    return g.groups * parts(g.channels * g.taps, kAmxRows) * parts(g.rows, kAmxColumns);
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
  AmxWeightPlan plan = {};
  double cost = 0;
  bool swapped = false;  // x is taken for y, and y for x
};

// Neither the boxes nor their shares depend on the threads.
void set_tasks(AmxWeightPlan& plan, int64_t blocks, const ConvKernels& k) {
  const GatherPlan& g = plan.gather;
  const int64_t threads = thread_count(), boxes = box_count(g);
  const int64_t rows = parts(g.channels * g.taps, kAmxRows), columns = parts(g.rows, kAmxColumns);
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
  const int64_t panels =
      boxes * g.groups * parts(g.rows, kRegister) * plan.most_steps * kRegister * kAmxPairs * k.sum_item;
  plan.own_panels = plan.row_tasks == 1 || panels > kPackedBytes;
}

std::unique_ptr<AmxWeight> make_plan(const Problem& p, int64_t w_group, const ConvKernels& k) {
  auto made = std::make_unique<AmxWeight>(k);
  made->gather = forward_gather(p, true);
  Blocking blocking = {};
  blocking.compact = true;
  blocking.pixels = box_outputs(p);
  blocking.depth = blocking.tile = 1;  // there is none
  if (!lay_out(made->gather, blocking, k)) return nullptr;
  made->gather.point();
  for (const auto& shift : made->gather.shifts) made->shift.insert(made->shift.end(), shift.begin(), shift.end());
  AmxWeightPlan& plan = made->plan;
  GatherPlan& g = plan.gather = made->gather.plan;
  g.w_group = w_group;
  if (g.source[2] == 1) g.in_axis[2] = 1;
  plan.shift = made->shift.data();
  plan.dense = g.w_channel == g.taps;
  for (int64_t t = 0; t < g.taps; ++t) plan.dense = plan.dense && g.tap_weight[t] == t;
  const int64_t outputs = g.box[0] * (g.box[1] * (g.box[2] * (g.box[3] + 1) + 1) + 1);
  plan.most_steps = parts(outputs, kStepOutputs);
  set_tasks(plan, made->blocks(), k);
  const int64_t rows = parts(parts(g.channels * g.taps, kAmxRows), plan.row_tasks);
  const int64_t columns = parts(parts(g.rows, kAmxColumns), plan.column_tasks);
  const int64_t pieces =
      g.box[0] * g.box[1] * g.box[2] * parts(g.box[3], kStepOutputs / (g.stride[2] == 4 ? 2 : 1)) + 1;
  int64_t reach = (g.box[0] - 1) * std::abs(g.in_batch);
  for (int i = 0; i < kAxes; ++i) {
    const int64_t cells = g.box[i + 1] * g.stride[i] + p.axis[i].kernel * p.axis[i].dilation + std::abs(p.axis[i].lo);
    reach += cells * std::abs(g.in_axis[i]);
  }
  if (reach >= int64_t{1} << 31) return nullptr;
  if (g.taps * pieces > kMostPieces) return nullptr;
  constexpr int64_t kSight = 6 * sizeof(int64_t), kPiece = 4 * sizeof(int32_t);
  plan.at_rows = aligned(plan.own_panels ? 2 * columns * plan.most_steps * kRegister * kAmxPairs * k.sum_item : 0);
  plan.at_pieces = plan.at_rows + aligned(((plan.most_steps + 1) * kAmxRows + 1) * kStepOutputs * k.item);
  plan.at_sights = plan.at_pieces + aligned(g.taps * pieces * kPiece);
  plan.at_sums = plan.at_sights + aligned(g.taps * kSight);
  plan.scratch = plan.at_sums + (plan.box_tasks > 1 ? 0 : rows * columns * kBlockBytes);
  return made;
}

}  // namespace

PlanPtr plan_amx_weight(const Problem& problem, Pass pass, const ConvKernels& k, Cheapest& cheapest) {
  const auto wanted = wanted_algorithm();
  if (pass != Pass::kWeight || !k.amx_weight_sum || (wanted && *wanted != Algorithm::kAmx)) return nullptr;
  // Rows of inputs and outputs, not channels, follow each other.
  if ((problem.x.axis[2] != 1 && problem.axis[2].input > 1) || (problem.y.axis[2] != 1 && problem.output[2] > 1)) {
    return nullptr;
  }
  Problem p = problem;
  double cost = amx_weight_cycles(p);
  bool swapped = false;
  if (is_pointwise(p)) {
    const Problem other = swap_sides(p);
    const double other_cost = amx_weight_cycles(other);
    swapped = other_cost < cost;
    if (swapped) {
      p = other;
      cost = other_cost;
    }
  }
  if (!wanted && !cheapest.beaten_by(cost)) return nullptr;
  auto plan = make_plan(p, problem.out_channels * problem.w.batch, k);
  if (!plan) return nullptr;
  plan->swapped = swapped;
  plan->cost = cost;
  return plan;
}

}  // namespace convarith::cpu
