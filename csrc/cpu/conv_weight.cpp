// The weight's gradient: its plan and its run.
#include "../simplify.h"
#include "conv_planning.h"

namespace convarith::cpu {
namespace {

// Where few sums are taken over many boxes, this many shares of the boxes have sums of their own.
constexpr int64_t kShares = 8;
constexpr int64_t kSharedSums = int64_t{4} << 20;      // bytes, of all shares
constexpr int64_t kPanelBytes = int64_t{32} << 10;     // of a block of columns of a box
constexpr int64_t kDotPanelBytes = int64_t{28} << 10;  // of the columns of a box that are multiplied together
constexpr int64_t kLongRow = 96;                       // of y, which is read in place
constexpr int64_t kListedOutputs = 4096;               // most outputs that every thread lists, for patches
constexpr int64_t kPatchRows = 24;                     // to be worth packing patches again
constexpr int64_t kDotSums = int64_t{1} << 20;         // bytes of vectors of sums, of a thread

struct WeightGradient : Plan {
  explicit WeightGradient(const ConvKernels& kernels) : k(kernels) {}
  Explanation explain() const override;
  // Copied to the cells of a tile, y has zeros between its rows; and the last output of an odd number is a pair with a
  // zero.
  bool multiplies_zeros(bool pads) const override { return pads || k.pairs || (plan.dot && !plan.in_place); }
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

std::array<int64_t, kAxes> kernel_of(const Problem& p) {
  return {p.axis[0].kernel, p.axis[1].kernel, p.axis[2].kernel};
}

bool unit_strides(const Problem& p) {
  return std::all_of(p.axis.begin(), p.axis.end(), [](const Axis& a) { return a.stride == 1; });
}

// Outputs of a box of dots: those columns that are multiplied together stay in the first cache while all rows pass.
int64_t dot_pixels(int64_t columns, const ConvKernels& k) {
  return std::min<int64_t>(4096, kDotPanelBytes / k.sum_item / std::min(columns, k.dot_columns));
}

constexpr double kPixelCycles = 14;  // of a pair of pixels, to copy

// Of two vectors; where products are of pairs, of half of those, but for tiles of pixels, which have longer rows.
double product_cycles(const Problem& p, const ConvKernels& k) {
  return !k.pairs ? 0.5 : p.x.channel == 1 ? 0.3 : 0.25;
}

// Cycles of the outer product with lanes along the out channels: multiplications, two vectors at a time, packing y and
// storing w, where most is to be transposed.
double outer_cost(const Problem& p, const ConvKernels& k) {
  const auto vectors = static_cast<double>(parts(p.out_channels, k.lanes));
  const auto rows = static_cast<double>(p.in_channels * p.kernel_numel());
  const auto outputs = static_cast<double>(p.batch * p.output_numel());
  const auto moved = [](bool straight) { return straight ? 1.5 : 6.; };
  return vectors * (outputs * rows * product_cycles(p, k) * (vectors < 2 ? 1.3 : 1) +
                    outputs * moved(p.y.channel == 1) + rows * moved(p.w.batch == 1));
}

// And of dots: copying y where rows are short, the lanes beside a row's outputs, which are multiplied too, and adding
// the lanes of the sums.
double dot_cost(const Problem& p, const ConvKernels& k) {
  const Axis& a = p.axis[2];
  const int64_t span = (a.kernel - 1) * a.dilation / a.stride;
  const auto width = static_cast<double>(std::min(parts(p.output[2], k.lanes) * k.lanes, p.output[2] + span));
  const double vectors =
      static_cast<double>(p.batch * p.output[0] * p.output[1]) * width / static_cast<double>(k.lanes);
  const double boxes = vectors * static_cast<double>(k.lanes) / static_cast<double>(dot_pixels(p.out_channels, k));
  const auto rows = static_cast<double>(p.in_channels * p.kernel_numel());
  const auto columns = static_cast<double>(p.out_channels);
  const double copy = p.y.axis[2] != 1 ? 15 : p.output[2] < kLongRow ? 3 : 0;
  return columns * (vectors * (rows * product_cycles(p, k) * 1.3 + copy) + rows * (2 * boxes + 5));
}

// Cells of a tile from a box's first output to its last one.
int64_t cells_of_box(const GatherPlan& g) {
  return (g.box[0] - 1) * g.tile_image + (g.box[1] - 1) * g.move[0] * g.tile_plane +
         (g.box[2] - 1) * g.move[1] * g.tile_row + g.box[3];
}

std::unique_ptr<WeightGradient> plan_at_once(const Problem& problem, const ConvKernels& k) {
  auto made = std::make_unique<WeightGradient>(k);
  WeightGradient& result = *made;
  Problem p = problem;
  if (is_pointwise(p)) {
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
  const int64_t lanes_bytes = p.in_channels * p.kernel_numel() * columns * k.lanes * k.sum_item;
  plan.dot = lanes_bytes <= kDotSums && (dot_cost(p, k) < outer_cost(p, k) || wanted == Algorithm::kDot);
  if (wanted == Algorithm::kOuter) plan.dot = false;

  Blocking blocking = {};
  blocking.compact = true;  // runs count outputs
  blocking.outer = !plan.dot;
  // A block of packed columns stays in the first cache while all rows pass.
  const int64_t pixel_bytes = std::min(parts(columns, k.lanes), k.outer_vectors) * k.lanes * k.sum_item;
  blocking.pixels = plan.dot ? dot_pixels(columns, k) : std::clamp<int64_t>(kPanelBytes / pixel_bytes, 128, 256);
  blocking.may_be_raw = blocking.outer;  // dots read vectors of a tile
  blocking.depth = 1 << 30;
  blocking.tile = 1 << 18;
  if (!lay_out(result.gather, blocking, k)) return nullptr;
  result.gather.point();
  plan.gather = result.gather.plan;
  GatherPlan& g = plan.gather;
  const int64_t runs = g.box[0] * g.box[1] * g.box[2];
  plan.box_pixels = runs * g.box[3];
  plan.columns = padded_rows(g, k);
  // With y copied to the cells of the tile a box is one run; otherwise every row may end in a part of a vector.
  const bool parts_of_vectors = k.lanes * k.sum_item == 64;
  const bool whole = parts_of_vectors || (g.grid[2] % k.lanes == 0 && g.box[3] % k.lanes == 0);
  plan.in_place = plan.dot && k.item == k.sum_item && g.out_axis[2] == 1 && g.box[3] >= kLongRow && whole;

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
  const int64_t panel = plan.dot ? (plan.in_place ? 0 : (g.rows * parts(cells_of_box(g), k.lanes) + 1) * k.lanes)
                        : own    ? plan.box_pixels * plan.columns
                                 : 0;
  const int64_t lanes_of_task = plan.dot ? parts(result.rows_at_once, plan.row_tasks) * plan.columns * k.lanes : 0;
  g.at_sums = g.at_own + aligned(panel * k.sum_item);
  g.at_runs = g.at_sums + aligned(lanes_of_task * k.sum_item);
  g.at_pixels = g.at_runs + aligned(runs * static_cast<int64_t>(sizeof(Run)));
  g.scratch = g.at_pixels + aligned(plan.box_pixels * static_cast<int64_t>(sizeof(int32_t)));
  return made;
}

// See weight_patches() in conv_weight.h.
struct WeightGradientOfPatches : Plan {
  explicit WeightGradientOfPatches(const ConvKernels& kernels) : k(kernels) {}

  Explanation explain() const override {
    return {Algorithm::kOuter, thread_count() * plan.gather.scratch, 1, gather_macs(plan.gather)};
  }

  bool multiplies_zeros(bool pads) const override { return pads; }

  void run(const void* x, int64_t, const void* y, int64_t, void* w) override {
    const GatherPlan& g = plan.gather;
    parallel(tasks * plan.row_tasks, gather_macs(g), [&](int64_t begin, int64_t end) {
      const Buffer mine(g.scratch);
      k.weight_sum(plan, x, y, nullptr, w, mine.get(), begin, end);
    });
  }

  const ConvKernels& k;
  Gather gather;
  WeightPlan plan = {};
  int64_t tasks = 0;  // groups and blocks of columns
};

// Whether packing patches of x costs less than packing y and transposing the sums. Where neighbouring outputs do not
// read neighbours, or patches are of several taps, they are packed one number after the other. Few entries of a patch
// leave most lanes empty.
bool wants_patches(const Problem& p, const ConvKernels& k) {
  const int64_t outputs = p.batch * p.output_numel(), entries = p.in_channels * p.kernel_numel(), rows = p.out_channels;
  if (p.kernel_numel() > 1) return outputs <= std::min(kListedOutputs / 16, rows);
  const bool straight = unit_strides(p) && p.x.axis[2] == 1;
  return 2 * entries > k.lanes && outputs <= (straight ? kListedOutputs : kListedOutputs / 4) &&
         outputs * (entries - rows) <= 8 * entries * rows;
}

// For those; otherwise null.
PlanPtr plan_patches(const Problem& p, const ConvKernels& k) {
  const auto wanted = wanted_algorithm();
  if (k.item != k.sum_item || (wanted && *wanted != Algorithm::kOuter)) return nullptr;
  if (!wants_patches(p, k) || !contiguous_axes(p.w, kernel_of(p))) return nullptr;
  auto made = std::make_unique<WeightGradientOfPatches>(k);
  const int64_t outputs = p.batch * p.output_numel(), width = k.outer_vectors * k.lanes;
  made->gather = forward_gather(p, true);
  Blocking blocking = {};
  blocking.compact = blocking.outer = blocking.may_be_raw = true;
  blocking.pixels = outputs;
  blocking.depth = 1 << 30;
  blocking.tile = 1 << 20;
  if (!lay_out(made->gather, blocking, k)) return nullptr;
  made->gather.point();
  WeightPlan& plan = made->plan;
  plan.gather = made->gather.plan;
  GatherPlan& g = plan.gather;
  int64_t reach = (g.batch - 1) * g.out_batch;
  for (int i = 0; i < kAxes; ++i) reach += (g.grid[i] - 1) * g.out_axis[i];
  const int64_t needed = std::min(g.channels, width / g.taps + 2);  // channels that a block of columns may be of
  if (box_count(g) > 1 || g.channel_block < needed || reach >= int64_t{1} << 31) return nullptr;
  plan.patches = true;
  plan.box_pixels = even_part(outputs, std::clamp<int64_t>(kPanelBytes / (width * k.sum_item), 128, 256));
  // Shares of the rows pack patches again: no more of them than it takes to have all threads do as much.
  const int64_t threads = thread_count(), most = std::max<int64_t>(1, g.rows / kPatchRows);
  made->tasks = g.groups * parts(parts(g.channels * g.taps, k.lanes), k.outer_vectors);
  plan.row_tasks = 1;
  while (plan.row_tasks < most && made->tasks * plan.row_tasks < 4 * threads &&
         made->tasks * plan.row_tasks % threads != 0) {
    ++plan.row_tasks;
  }
  const int64_t runs = g.box[0] * g.box[1] * g.box[2];
  g.at_sums = g.at_own + aligned(plan.box_pixels * width * k.sum_item);
  g.at_runs = g.at_sums + aligned(plan.box_pixels < outputs ? g.rows * width * k.sum_item : 0);
  g.at_pixels = g.at_runs + aligned(runs * static_cast<int64_t>(sizeof(Run)));
  g.scratch = g.at_pixels + aligned(2 * outputs * static_cast<int64_t>(sizeof(int32_t)));
  return made;
}

// A kernel along one axis, of whose taps each is a product of matrices: what it sees of x and y follows each other in
// memory and is read where it stands.
struct WeightGradientOfTaps : Plan {
  struct Tap {
    int64_t x, y, w;  // the first element of each
    std::unique_ptr<WeightGradient> plan;
  };
  explicit WeightGradientOfTaps(const ConvKernels& kernels) : k(kernels) {}

  Explanation explain() const override {
    Explanation e = taps[0].plan->explain();
    e.phases = static_cast<int64_t>(taps.size());
    for (size_t t = 1; t < taps.size(); ++t) {
      const Explanation other = taps[t].plan->explain();
      e.scratch = std::max(e.scratch, other.scratch);
      e.multiplications += other.multiplications;
    }
    return e;
  }

  // A tap's product has the inputs that exist.
  bool multiplies_zeros(bool /*pads*/) const override {
    return std::any_of(taps.begin(), taps.end(), [](const Tap& tap) { return tap.plan->multiplies_zeros(false); });
  }

  void run(const void* x, int64_t x_count, const void* y, int64_t y_count, void* w) override {
    for (Tap& tap : taps) {
      tap.plan->run(static_cast<const char*>(x) + tap.x * k.item, x_count - tap.x,
                    static_cast<const char*>(y) + tap.y * k.item, y_count - tap.y,
                    static_cast<char*>(w) + tap.w * k.item);
    }
  }

  const ConvKernels& k;
  std::vector<Tap> taps;
};

// For kernels along an axis before the last one, whose tile would copy x for every tap; otherwise null.
PlanPtr plan_taps(const Problem& p, const ConvKernels& k) {
  const int axis = p.axis[0].kernel > 1 ? 0 : 1;
  const Axis& a = p.axis[axis];
  if (a.kernel == 1 || a.stride > 1 || (axis == 1 && p.output[0] * p.axis[0].input > 1)) return nullptr;
  int64_t inner = 1;  // outputs between neighbours along the axis
  for (int i = axis + 1; i < kAxes; ++i) {
    if (!is_pointwise(p.axis[i])) return nullptr;
    inner *= p.output[i];
  }
  if (inner < kLongRow || !contiguous_axes(p.x, input_of(p)) || !contiguous_axes(p.y, p.output)) return nullptr;
  auto made = std::make_unique<WeightGradientOfTaps>(k);
  for (int64_t t = 0; t < a.kernel; ++t) {
    const Range run = outputs_of_tap(a, p.output[axis], t);
    if (run.begin >= run.end) return nullptr;
    Problem product = p;
    product.axis = {kTrivialAxis, kTrivialAxis, kTrivialAxis};
    product.axis[2].input = product.output[2] = (run.end - run.begin) * inner;
    product.output[0] = product.output[1] = 1;
    product.x.axis = product.y.axis = {0, 0, 1};
    auto plan = plan_at_once(product, k);
    if (!plan) return nullptr;
    made->taps.push_back(
        {input_index(a, run.begin, t) * inner, run.begin * inner, t * p.w.axis[axis], std::move(plan)});
  }
  return made;
}

}  // namespace

double weight_cycles(const Problem& p, const ConvKernels& k) {
  const double outer = is_pointwise(p) ? std::min(outer_cost(p, k), outer_cost(swap_sides(p), k)) : outer_cost(p, k);
  const int64_t weights = p.groups * p.out_channels * p.in_channels * p.kernel_numel();
  const auto inputs = static_cast<double>(p.batch * p.groups * p.in_channels * p.input_numel());
  // Pairs of pixels are copied one by one, however few channels they have.
  const bool by_pixel = k.pairs && p.x.channel == 1 && p.in_channels > 1;
  const double pixels = by_pixel ? kPixelCycles * static_cast<double>(p.batch * p.groups * p.input_numel()) : 0;
  return static_cast<double>(p.groups) * std::min(outer, dot_cost(p, k)) + weight_vector_cycles(weights, k) +
         far_weight_cycles(weights, k) + pixels + kCopyCycles * inputs / static_cast<double>(k.lanes);
}

PlanPtr plan_weight(const Problem& p, const ConvKernels& k) {
  if (PlanPtr plan = plan_patches(p, k)) return plan;
  if (PlanPtr plan = plan_taps(p, k)) return plan;
  return plan_at_once(p, k);
}

}  // namespace convarith::cpu
