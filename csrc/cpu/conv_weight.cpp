// The weight's gradient: its plan and its run.
#include <cstring>

#include "conv_planning.h"

namespace convarith::cpu {
namespace {

// Where few sums are taken over many boxes, this many shares of the boxes have sums of their own.
constexpr int64_t kShares = 8;
constexpr int64_t kSharedSums = int64_t{4} << 20;   // bytes, of all shares
constexpr int64_t kPanelBytes = int64_t{32} << 10;  // of a block of columns of a box

struct WeightGradient : Plan {
  explicit WeightGradient(const ConvKernels& kernels) : k(kernels) {}
  Explanation explain() const override;
  void run(const void* x, int64_t x_count, const void* y, int64_t y_count, void* w) override;

  const ConvKernels& k;
  Gather gather;
  WeightPlan plan = {};
  int64_t rows_at_once = 0;
  int64_t boxes_at_once = 0;
  bool swapped = false;  // x is taken for y, and y for x
};

// Elements of packed y: of the boxes of a pass, unless every task packs its own.
int64_t panel_size(const WeightPlan& plan, int64_t boxes_at_once) {
  const bool own = plan.dot || plan.box_tasks > 1;
  return own ? 0 : boxes_at_once * plan.gather.groups * plan.box_pixels * plan.columns;
}

int64_t sum_size(const WeightPlan& plan, int64_t rows) {
  return plan.box_tasks * plan.gather.groups * rows * plan.columns;
}

Explanation WeightGradient::explain() const {
  const GatherPlan& g = plan.gather;
  return {plan.dot ? Algorithm::kDot : Algorithm::kOuter,
          (panel_size(plan, boxes_at_once) + sum_size(plan, rows_at_once)) * k.sum_item + thread_count() * g.scratch, 1,
          gather_macs(g)};
}

void WeightGradient::run(const void* x, int64_t, const void* y, int64_t, void* w) {
  const GatherPlan& g = plan.gather;
  const int64_t rows = g.channels * g.taps, boxes = box_count(g);
  if (swapped) std::swap(x, y);
  const Buffer panels(panel_size(plan, boxes_at_once) * k.sum_item);
  const Buffer sums(sum_size(plan, rows_at_once) * k.sum_item);
  for (plan.first_row = 0; plan.first_row < rows; plan.first_row += rows_at_once) {
    plan.row_count = std::min(rows_at_once, rows - plan.first_row);
    if (plan.dot) std::memset(sums.get(), 0, sum_size(plan, plan.row_count) * k.sum_item);
    for (plan.box_begin = 0; plan.box_begin < boxes; plan.box_begin += boxes_at_once) {
      plan.box_end = std::min(boxes, plan.box_begin + boxes_at_once);
      const int64_t pixels = (plan.box_end - plan.box_begin) * plan.box_pixels;
      if (panel_size(plan, 1) > 0) {
        parallel(k.weight_pack_tasks(plan), 4 * g.groups * pixels * plan.columns, [&](int64_t begin, int64_t end) {
          const Buffer mine(g.scratch);
          k.weight_pack(plan, y, panels.get(), mine.get(), begin, end);
        });
      }
      parallel(g.groups * plan.row_tasks * plan.box_tasks, g.groups * plan.row_count * pixels * plan.columns,
               [&](int64_t begin, int64_t end) {
                 const Buffer mine(g.scratch);
                 k.weight_sum(plan, x, y, panels.get(), sums.get(), mine.get(), begin, end);
               });
    }
    parallel(k.weight_store_tasks(plan), 4 * g.groups * g.rows * plan.row_count,
             [&](int64_t begin, int64_t end) { k.weight_store(plan, sums.get(), w, begin, end); });
  }
}

// A kernel of one tap that moves over all of its input: x and y are alike.
bool symmetric(const Problem& p) {
  return std::all_of(p.axis.begin(), p.axis.end(),
                     [](const Axis& a) { return a.kernel == 1 && a.stride == 1 && a.lo == 0 && a.hi == 0; });
}

Problem swap_sides(Problem p) {
  std::swap(p.in_channels, p.out_channels);
  std::swap(p.x, p.y);
  std::swap(p.w.batch, p.w.channel);
  return p;
}

// Cycles of the outer product with lanes along the out channels: multiplications, two vectors at a time, packing y and
// storing w, where most is to be transposed.
double outer_cost(const Problem& p, const ConvKernels& k) {
  const auto vectors = static_cast<double>(parts(p.out_channels, k.lanes)), rows = static_cast<double>(p.in_channels);
  const auto outputs = static_cast<double>(p.batch * p.output_numel());
  const auto moved = [](bool straight) { return straight ? 1.5 : 6.; };
  return vectors * (outputs * rows / 2 * (vectors < 2 ? 1.3 : 1) + outputs * moved(p.y.channel == 1) +
                    rows * moved(p.w.batch == 1));
}

}  // namespace

PlanPtr plan_weight(const Problem& problem, const ConvKernels& k) {
  auto made = std::make_unique<WeightGradient>(k);
  WeightGradient& result = *made;
  Problem p = problem;
  if (symmetric(p)) {
    const Problem other = swap_sides(p);
    result.swapped = outer_cost(other, k) < outer_cost(p, k);
    if (result.swapped) p = other;
  }
  result.gather = forward_gather(p, true);
  result.gather.plan.w_group = problem.out_channels * problem.w.batch;
  WeightPlan& plan = result.plan;
  if (k.pairs) make_pairs(result.gather.plan, pair_axis_of(result.gather.plan));
  const int64_t columns = result.gather.plan.rows;
  const int64_t threads = thread_count();
  const auto wanted = wanted_algorithm();
  // Few columns leave most lanes of a vector of them empty; a run of outputs may fill more of its vectors.
  const int64_t length = result.gather.plan.grid[2];
  const int64_t dot_lanes = columns * parts(length, k.lanes) * k.lanes,
                outer_lanes = length * parts(columns, k.lanes) * k.lanes;
  plan.dot = columns * 4 <= k.lanes || (columns * 2 <= k.lanes && dot_lanes * 4 < outer_lanes * 3);
  if (wanted == Algorithm::kDot) plan.dot = columns <= 4 * k.lanes;
  if (wanted == Algorithm::kOuter) plan.dot = false;

  Blocking blocking = {};
  blocking.compact = true;  // runs count outputs
  blocking.outer = !plan.dot;
  blocking.may_be_raw = !plan.dot;
  // A block of packed columns stays in the first cache while all rows pass; dots add up their lanes once a box.
  const int64_t pixel_bytes = std::min(parts(columns, k.lanes), k.outer_vectors) * k.lanes * k.sum_item;
  blocking.pixels = plan.dot ? 4096 : std::clamp<int64_t>(kPanelBytes / pixel_bytes, 128, 256);
  blocking.depth = 1 << 30;
  blocking.tile = 1 << 18;
  if (!lay_out(result.gather, blocking, k)) return nullptr;
  result.gather.point();
  plan.gather = result.gather.plan;
  GatherPlan& g = plan.gather;
  const int64_t runs = g.box[0] * g.box[1] * g.box[2];
  plan.box_pixels = runs * g.box[3];
  plan.columns = padded_rows(g, k);

  const int64_t rows = g.channels * g.taps, boxes = box_count(g);
  plan.box_tasks = std::clamp<int64_t>(kShares / g.groups, 1, boxes);
  if (plan.box_tasks * g.groups * rows * plan.columns * k.sum_item > kSharedSums) plan.box_tasks = 1;
  const bool own = plan.dot || plan.box_tasks > 1;
  result.rows_at_once =
      even_part(rows, std::max<int64_t>(k.row_block, kPackedBytes / (g.groups * plan.columns * k.sum_item)));
  const int64_t box_bytes = panel_size(plan, 1) * k.sum_item;
  result.boxes_at_once = own ? boxes : std::clamp<int64_t>(kPackedBytes / 3 / box_bytes, 1, boxes);
  // Shares of the rows: enough for the threads, whole channels where there are enough of them.
  const int64_t tasks = g.groups * plan.box_tasks;
  plan.row_tasks = threads == 1 || plan.box_tasks > 1
                       ? 1
                       : std::clamp<int64_t>(parts(4 * threads, tasks), 1, parts(rows, k.row_block));
  const int64_t lines = plan.dot ? g.rows * runs * ((g.box[3] + k.lanes - 1) / k.lanes * k.lanes)
                        : own    ? plan.box_pixels * plan.columns
                                 : 0;
  g.at_runs = g.at_own + aligned(lines * k.sum_item);
  g.at_pixels = g.at_runs + aligned(runs * static_cast<int64_t>(sizeof(Run)));
  g.scratch = g.at_pixels + aligned(plan.box_pixels * static_cast<int64_t>(sizeof(int32_t)));
  return made;
}

}  // namespace convarith::cpu
