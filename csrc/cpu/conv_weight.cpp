// The weight's gradient: its plan and its run.
#include <cstring>

#include "conv_planning.h"

namespace convarith::cpu {

namespace {

struct WeightGradient : Plan {
  explicit WeightGradient(const ConvKernels& kernels) : k(kernels) {}
  Explanation explain() const override;
  void run(const void* x, int64_t x_count, const void* y, int64_t y_count, void* w) override;

  const ConvKernels& k;
  Gather gather;
  WeightPlan plan = {};
  int64_t rows_at_once = 0;
  int64_t boxes_at_once = 0;
};

Explanation WeightGradient::explain() const {
  const GatherPlan& g = plan.gather;
  const int64_t panels = plan.dot ? 0 : boxes_at_once * g.groups * plan.box_pixels * plan.columns;
  return {plan.dot ? Algorithm::kDot : Algorithm::kOuter,
          (panels + g.groups * rows_at_once * plan.columns) * k.sum_item + thread_count() * g.scratch, 1,
          gather_macs(g)};
}

void WeightGradient::run(const void* x, int64_t, const void* y, int64_t, void* w) {
  const GatherPlan& g = plan.gather;
  const int64_t rows = g.channels * g.taps, boxes = box_count(g);
  const int64_t panel_elements = plan.dot ? 0 : boxes_at_once * g.groups * plan.box_pixels * plan.columns;
  const Buffer panels(panel_elements * k.sum_item);
  const Buffer sums(g.groups * rows_at_once * plan.columns * k.sum_item);
  for (plan.first_row = 0; plan.first_row < rows; plan.first_row += rows_at_once) {
    plan.row_count = std::min(rows_at_once, rows - plan.first_row);
    std::memset(sums.get(), 0, g.groups * plan.row_count * plan.columns * k.sum_item);
    for (plan.box_begin = 0; plan.box_begin < boxes; plan.box_begin += boxes_at_once) {
      plan.box_end = std::min(boxes, plan.box_begin + boxes_at_once);
      const int64_t pixels = (plan.box_end - plan.box_begin) * plan.box_pixels;
      if (!plan.dot) {
        parallel((plan.box_end - plan.box_begin) * g.groups, 4 * g.groups * pixels * plan.columns,
                 [&](int64_t begin, int64_t end) { k.weight_pack(plan, y, panels.get(), begin, end); });
      }
      parallel(g.groups * plan.row_tasks, g.groups * plan.row_count * pixels * plan.columns,
               [&](int64_t begin, int64_t end) {
                 const Buffer mine(g.scratch);
                 k.weight_sum(plan, x, y, panels.get(), sums.get(), mine.get(), begin, end);
               });
    }
    parallel(k.weight_store_tasks(plan), 4 * g.groups * g.rows * plan.row_count,
             [&](int64_t begin, int64_t end) { k.weight_store(plan, sums.get(), w, begin, end); });
  }
}

}  // namespace

PlanPtr plan_weight(const Problem& p, const ConvKernels& k) {
  auto made = std::make_unique<WeightGradient>(k);
  WeightGradient& result = *made;
  result.gather = forward_gather(p, true);
  WeightPlan& plan = result.plan;
  GatherPlan& g = result.gather.plan;
  const int64_t threads = thread_count();
  const auto wanted = wanted_algorithm();
  // Fewer columns than a quarter of a vector: most of what the lanes along columns multiply would be thrown away.
  plan.dot = g.rows * 4 <= k.lanes;
  if (wanted == Algorithm::kDot) plan.dot = g.rows <= 4 * k.lanes;
  if (wanted == Algorithm::kOuter) plan.dot = false;

  Blocking blocking = {};
  blocking.panel = true;  // runs count outputs
  blocking.may_be_raw = !plan.dot;
  blocking.pixels = plan.dot ? 1024 : 256;
  blocking.depth = 1 << 30;
  if (!lay_out(result.gather, blocking, k)) return nullptr;
  const int64_t pixels = g.box[0] * g.box[1] * g.box[2] * g.box[3];
  const int64_t runs = g.box[0] * g.box[1] * g.box[2];
  plan.box_pixels = pixels;
  const int64_t vectors = parts(g.rows, k.lanes);
  plan.column_block = plan.dot ? g.rows : parts(vectors, parts(vectors, k.vectors)) * k.lanes;
  plan.column_blocks = parts(g.rows, plan.column_block);
  plan.columns = plan.column_block * plan.column_blocks;

  const int64_t rows = g.channels * g.taps;
  result.rows_at_once =
      even_part(rows, std::max<int64_t>(k.row_block, kPackedBytes / (g.groups * plan.columns * k.sum_item)));
  const int64_t box_bytes = plan.dot ? 0 : g.groups * pixels * plan.columns * k.sum_item;
  result.boxes_at_once =
      box_bytes == 0 ? box_count(g) : std::clamp<int64_t>(kPackedBytes / 3 / box_bytes, 1, box_count(g));
  // Shares of the rows: enough for the threads, whole channels where there are enough of them.
  plan.row_tasks = threads == 1 ? 1 : std::clamp<int64_t>(parts(4 * threads, g.groups), 1, parts(rows, k.row_block));
  const int64_t lines = plan.dot ? g.rows * runs * ((g.box[3] + k.lanes - 1) / k.lanes * k.lanes) : 0;
  g.at_runs = g.at_panel + aligned(lines * k.sum_item);
  g.scratch = g.at_runs + aligned(runs * static_cast<int64_t>(sizeof(Run)));
  result.gather.point();
  plan.gather = g;
  return made;
}

}  // namespace convarith::cpu
