#include "conv_plan.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <vector>

#include "../simplify.h"

namespace convarith::cuda {
namespace {

constexpr int64_t kPackedBytes = int64_t{24} << 20;
constexpr int64_t kPartialBytes = int64_t{32} << 20;
constexpr int64_t kSmall = int64_t{1} << 30;  // indices below it can be added in 32 bits

struct Forced {
  std::optional<Algorithm> algorithm;
  std::optional<Tile> tile;
  int splits = 0;
  int64_t packed_bytes = 0;
};
Forced forced;

int64_t parts(int64_t size, int64_t part) {
  return (size + part - 1) / part;
}

int64_t element_size(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
    case DType::kHalf:
      return 2;
    case DType::kFloat:
      return 4;
    default:
      return 8;
  }
}

int64_t sum_size(DType dtype) {
  return dtype == DType::kDouble ? 8 : 4;
}

// What all phases together are: sizes for bounds and costs.
struct Totals {
  int64_t columns;  // outputs of the largest phase, all images
  int64_t depth;    // channels * taps of the largest phase
  int64_t multiplications;
};

// The plan's tensors and phases; nothing where an index does not fit.
std::optional<ConvPlan> plan_gather(const Problem& p, Pass pass, Totals& totals) {
  const bool transposed = pass == Pass::kInput;
  const Strides &in = transposed ? p.y : p.x, &out = transposed ? p.x : p.y;
  const int64_t rows = transposed ? p.in_channels : p.out_channels;
  const int64_t channels = transposed ? p.out_channels : p.in_channels;
  if (std::max({p.batch, p.groups * rows, p.groups * channels}) >= kSmall) return std::nullopt;

  ConvPlan plan = {};
  plan.batch = static_cast<int32_t>(p.batch);
  plan.groups = static_cast<int32_t>(p.groups);
  plan.rows = static_cast<int32_t>(rows);
  plan.channels = static_cast<int32_t>(channels);
  plan.by_channels = fast_divisor(channels);
  plan.by_groups = fast_divisor(p.groups);
  plan.by_batch = fast_divisor(p.batch);
  plan.in_batch = in.batch;
  plan.in_channel = in.channel;
  plan.in_group = channels * in.channel;
  plan.out_batch = out.batch;
  plan.out_row = out.channel;
  plan.out_group = rows * out.channel;
  plan.w_group = p.out_channels * p.w.batch;
  plan.w_row = transposed ? p.w.channel : p.w.batch;
  plan.w_channel = transposed ? p.w.batch : p.w.channel;

  int64_t phases = 1, taps = 1, grid = 1, taps_by_grid = 1, in_span = channels * in.channel, out_span = 0;
  for (int i = 0; i < kAxes; ++i) {
    const Axis& a = p.axis[i];
    const int64_t count = transposed ? phase_count(a) : 1;
    if (count > kMostPhases) return std::nullopt;
    PlanAxis& axis = plan.axis[i];
    axis.phases = static_cast<int32_t>(count);
    axis.in = in.axis[i];
    axis.out = out.axis[i];
    axis.w = p.w.axis[i];
    int64_t most_taps = 0, most_grid = 0, sum = 0;
    for (int64_t phase = 0; phase < count; ++phase) {
      GatherAxis g = transposed ? phase_axis(a, p.output[i], phase) : forward_axis(a, p.output[i]);
      if (pass != Pass::kWeight) g = trimmed(g);  // every entry of w is written, also of taps that meet nothing
      plan.pads = plan.pads || pads(g);
      const int64_t reach = (g.grid - 1) * g.stride + std::abs(g.shift) + g.taps * std::abs(g.shift_step) + g.source;
      if (reach >= kSmall || g.taps >= kSmall || g.first_tap >= kSmall) return std::nullopt;
      in_span += reach * in.axis[i];
      out_span += g.grid * out.axis[i];
      if (in_span >= kSmall) return std::nullopt;
      axis.source = static_cast<int32_t>(g.source);
      axis.stride = static_cast<int32_t>(g.stride);
      axis.tap_step = static_cast<int32_t>(g.tap_step);
      axis.place_step = static_cast<int32_t>(g.place_step);
      if (g.taps > 0) axis.shift_step = static_cast<int32_t>(g.shift_step);
      axis.phase[phase] = {static_cast<int32_t>(g.grid),
                           static_cast<int32_t>(g.taps),
                           static_cast<int32_t>(g.shift),
                           static_cast<int32_t>(g.first_tap),
                           static_cast<int32_t>(g.first_place),
                           fast_divisor(g.grid),
                           fast_divisor(std::max<int64_t>(1, g.taps))};
      most_taps = std::max(most_taps, g.taps);
      most_grid = std::max(most_grid, g.grid);
      sum += g.taps * g.grid;
    }
    phases *= count;
    taps *= most_taps;
    grid *= most_grid;
    taps_by_grid *= sum;
    if (taps >= kSmall || grid >= kSmall) return std::nullopt;
  }
  plan.phases = static_cast<int32_t>(phases);
  totals.columns = p.batch * grid;
  totals.depth = taps * channels;
  totals.multiplications = p.batch * p.groups * rows * channels * taps_by_grid;
  if (totals.columns >= kSmall || totals.depth >= kSmall / 128) return std::nullopt;
  // The images that a tile, or a stage, of outputs reaches into.
  const int64_t images = std::min(p.batch, 128 / std::max<int64_t>(1, grid) + 2);
  if (in_span + images * in.batch >= kSmall) return std::nullopt;
  if (pass == Pass::kWeight && out_span + images * out.batch + 128 * out.channel >= kSmall) return std::nullopt;
  return plan;
}

int64_t total_groups(const ConvPlan& plan) {
  return int64_t{plan.phases} * plan.groups;
}

// Elements between neighbouring columns, and along the depth's fastest index: what neighbouring threads should read.
int64_t column_step(const ConvPlan& plan, bool of_out) {
  for (int i = kAxes - 1; i >= 0; --i) {
    const PlanAxis& a = plan.axis[i];
    if (a.phase[0].grid > 1) return of_out ? a.out * a.place_step : a.in * a.stride;
  }
  return of_out ? plan.out_batch : plan.in_batch;
}

// The cost model ------------------------------------------------------------------------------------------------------
//
// In cycles of one multiprocessor, all of them alike. The rates are those of the data sheets of the A100 and the H100,
// rounded down to what both reach, and of counted instructions; they rank the kernels, and predict no time.

constexpr double kLaunch = 3000;       // a kernel more
constexpr double kBlock = 1500;        // to fill a pipeline and to store a tile
constexpr double kBytesPerCycle = 12;  // of device memory, for each multiprocessor
constexpr double kLanes = 128;         // instructions of one lane per cycle
constexpr double kLoads = 32;          // loads of one lane per cycle

double product_rate(Algorithm algorithm, DType dtype) {  // multiply-adds per cycle
  if (algorithm == Algorithm::kMultiplyAdd) return 128;
  return dtype == DType::kDouble ? 64 : dtype == DType::kFloat ? 512 : 1024;
}

double ratio(int64_t a, int64_t b) {
  return static_cast<double>(a) / static_cast<double>(b);
}

struct Choice {
  Algorithm algorithm = Algorithm::kReference;
  Tile tile = Tile::k64x64;
  int64_t splits = 1;
  double cycles = 0;
};

// Splits of a sum of `steps` steps, each at least `least` long, so that `blocks` of them fill the device.
int64_t fitting_splits(int64_t blocks, int64_t wanted, int64_t steps, int64_t least, int64_t bytes_per_split) {
  const int64_t most =
      std::min(std::max<int64_t>(1, steps / least), kPartialBytes / std::max<int64_t>(1, bytes_per_split));
  return std::clamp<int64_t>(wanted / std::max<int64_t>(1, blocks), 1,
                             std::max<int64_t>(1, std::min<int64_t>(most, 1024)));
}

// The extent of a weight gradient's or a gather's product: its columns, and the depth that is summed over.
struct Product {
  int64_t columns;
  int64_t depth;
};
Product product_of(Pass pass, const Totals& totals) {
  return pass == Pass::kWeight ? Product{totals.depth, totals.columns} : Product{totals.columns, totals.depth};
}

double partial_cycles(int64_t splits, int64_t bytes_per_split, DeviceLimits device) {
  return splits == 1 ? 0 : kLaunch + 2 * ratio(splits * bytes_per_split, device.multiprocessors) / kBytesPerCycle;
}

Choice product_choice(const ConvPlan& plan, Pass pass, const Totals& totals, DType dtype, Algorithm algorithm,
                      Tile tile, DeviceLimits device) {
  const auto [columns, rows, threads] = tile_size(tile);
  const Product product = product_of(pass, totals);
  const int64_t stage = kDepthBytes / element_size(dtype), steps = std::max<int64_t>(1, parts(product.depth, stage));
  const int64_t tiles = parts(product.columns, columns) * parts(plan.rows, rows) * total_groups(plan);
  const int64_t split_bytes = product.columns * plan.rows * total_groups(plan) * sum_size(dtype);
  const double multiply = ratio(int64_t{columns} * rows * stage, 1) / product_rate(algorithm, dtype);
  // About ten instructions for an element or a vector; one more for each element of a vector across the lines.
  const auto loads = [&](Load load, int64_t lines) {
    const double elements =
        ratio(lines * stage * element_size(dtype), load == Load::kElements ? element_size(dtype) : 16);
    return 10 * elements + (load == Load::kAcross ? ratio(lines * stage, 1) : 0);
  };
  const double load = loads(plan.in_load, columns) + loads(pass == Pass::kWeight ? plan.out_load : Load::kAlong, rows);
  const double step = std::max(multiply, load / kLanes) + 40;
  Choice best = {algorithm, tile, 1, 0};
  const int64_t many = forced.splits > 0 ? std::clamp<int64_t>(forced.splits, 1, steps)
                                         : fitting_splits(tiles, 2 * device.multiprocessors, steps, 4, split_bytes);
  for (const int64_t splits : {int64_t{1}, many}) {
    const double waves = ratio(parts(tiles * splits, device.multiprocessors), 1);
    const double cycles = waves * (kBlock + ratio(parts(steps, splits), 1) * step) +
                          partial_cycles(splits, split_bytes, device) + (plan.packed ? kLaunch : 0);
    if (best.cycles == 0 || cycles < best.cycles || forced.splits > 0) {
      best.splits = splits;
      best.cycles = cycles;
    }
  }
  return best;
}

// Rows that a thread of the direct gather has.
int64_t direct_rows(const ConvPlan& plan) {
  return plan.rows > 1 ? kDirectRows : 1;
}

int64_t row_blocks(const ConvPlan& plan) {
  return parts(plan.rows, direct_rows(plan));
}

// Blocks of the direct weight gradient, of one split.
int64_t direct_weight_blocks(const ConvPlan& plan, const Totals& totals) {
  return parts(plan.groups, plan.group_lanes ? kDirectLanes : 1) * plan.rows * parts(totals.depth, kDirectColumns);
}

Choice direct_choice(const ConvPlan& plan, Pass pass, const Totals& totals, DType dtype, DeviceLimits device) {
  Choice choice = {Algorithm::kDirect, Tile::k64x64, 1, 0};
  const double share = ratio(totals.multiplications, device.multiprocessors);
  const double bytes = ratio(element_size(dtype) * plan.batch * plan.groups * (int64_t{plan.rows} + plan.channels) *
                                 (totals.columns / plan.batch),
                             device.multiprocessors);
  if (pass == Pass::kWeight) {
    const int64_t blocks = direct_weight_blocks(plan, totals);
    const int64_t split_bytes = totals.depth * plan.rows * plan.groups * sum_size(dtype);
    const int64_t per_thread = plan.group_lanes ? kDirectThreads / kDirectLanes : kDirectThreads;
    choice.splits = forced.splits > 0 ? std::clamp<int64_t>(forced.splits, 1, totals.columns)
                                      : fitting_splits(blocks, 8 * device.multiprocessors, totals.columns,
                                                       8 * per_thread, split_bytes);
    const double idle = std::max(1.0, ratio(device.multiprocessors, blocks * choice.splits));
    // Each product loads one input, after about ten instructions.
    choice.cycles = kBlock + idle * std::max(share * 11 / kLanes, bytes / kBytesPerCycle) +
                    partial_cycles(choice.splits, split_bytes, device);
    return choice;
  }
  const double rows = ratio(plan.rows, row_blocks(plan));
  const double threads = ratio(totals.columns * total_groups(plan) * row_blocks(plan), kDirectOutputs);
  const double idle = std::max(1.0, 256.0 * device.multiprocessors / threads);
  // A weight and an input serve the outputs and the rows of a thread.
  const double loads = (rows + kDirectOutputs) / (rows * kDirectOutputs);
  choice.cycles =
      kBlock + std::max(idle * share * std::max(loads / kLoads, 6 * loads / kLanes), bytes / kBytesPerCycle);
  return choice;
}

// Layout of the chosen kernel
// ------------------------------------------------------------------------------------------

// Weights that stand as the product reads them: (tap, channel) contiguous, and whole vectors.
bool weights_in_place(const ConvPlan& plan, const Totals& totals, int64_t vector, int64_t size, int alignment) {
  if (plan.phases != 1 || alignment < 16 || totals.depth % vector != 0) return false;
  if (plan.channels > 1 && plan.w_channel != 1) return false;
  int64_t step = plan.channels, offset = 0;
  for (int i = kAxes - 1; i >= 0; --i) {
    const PlanAxis& a = plan.axis[i];
    if (a.phase[0].taps > 1 && a.w * a.tap_step != step) return false;
    step *= a.phase[0].taps;
    offset += a.phase[0].first_tap * a.w;
  }
  const int64_t line = 16 / size;
  return plan.w_row % line == 0 && plan.w_group % line == 0 && offset % line == 0 && 128 * plan.w_row < kSmall;
}

// Whether whole vectors of channels can be read, of the input or of the output.
bool reads_channels(const ConvPlan& plan, bool of_out, int64_t vector) {
  const int64_t channels = of_out ? plan.rows : plan.channels;
  if ((of_out ? plan.out_row : plan.in_channel) != 1 || channels % vector != 0) return false;
  if ((of_out ? plan.out_batch : plan.in_batch) % vector != 0) return false;
  return std::all_of(std::begin(plan.axis), std::end(plan.axis), [&](const PlanAxis& a) {
    return (of_out ? a.out : a.in) % vector == 0 || (of_out ? a.phase[0].grid : a.source) == 1;
  });
}

// Whether whole vectors of neighbouring outputs can: they stand, or read, side by side, and no vector leaves its image.
bool reads_columns(const ConvPlan& plan, bool of_out, int64_t vector) {
  if (plan.phases != 1) return false;
  int64_t step = 1;
  for (int i = kAxes - 1; i >= 0; --i) {
    const PlanAxis& a = plan.axis[i];
    const PlanPhase& phase = a.phase[0];
    const bool reads_itself = phase.taps == 1 && phase.shift == 0 && a.stride == 1 && a.source == phase.grid;
    if (!of_out && !reads_itself) return false;
    if (phase.grid > 1 && (of_out ? a.out : a.in) != step) return false;
    step *= phase.grid;
  }
  return step % vector == 0 && (of_out ? plan.out_batch : plan.in_batch) % vector == 0 &&
         (of_out ? plan.out_row : plan.in_channel) % vector == 0;
}

void lay_out_product(ConvPlan& plan, Pass pass, const Totals& totals, DType dtype, Alignment alignment) {
  const int64_t size = element_size(dtype), vector = 16 / size;
  const int64_t in_step = column_step(plan, false), out_step = column_step(plan, true);
  const bool in_channels = alignment.in == 16 && reads_channels(plan, false, vector);
  const bool in_columns = alignment.in == 16 && reads_columns(plan, false, vector);
  if (pass == Pass::kWeight) {  // the depth counts columns
    plan.in_along_depth = in_step <= plan.in_channel;
    plan.out_along_depth = out_step <= plan.out_row;
    if (alignment.w == 16 && in_channels && reads_channels(plan, true, vector)) {
      plan.in_load = plan.out_load = Load::kAcross;
    } else if (alignment.w == 16 && reads_columns(plan, true, vector)) {
      plan.in_load = in_columns ? Load::kAlong : Load::kElements;
      plan.out_load = Load::kAlong;
    }
    return;
  }
  plan.in_load = in_channels ? Load::kAlong : in_columns ? Load::kAcross : Load::kElements;
  plan.in_along_depth = plan.in_channel < in_step;
  plan.stores_along_rows = plan.out_row < out_step;
  plan.packed = !weights_in_place(plan, totals, vector, size, alignment.w);
  if (!plan.packed) {
    plan.packed_group = plan.w_group;
    plan.packed_row = plan.w_row;
    return;
  }
  plan.packed_row = parts(totals.depth, vector) * vector;
  plan.packed_group = plan.rows * plan.packed_row;
  plan.packed_phase = plan.groups * plan.packed_group;
}

// Packing in pieces of the rows, if the weights are many.
void take_rows(Kernel& kernel, int64_t size) {
  ConvPlan& plan = kernel.plan;
  kernel.rows_at_once = plan.rows;
  if (!plan.packed) return;
  const int64_t row_bytes = total_groups(plan) * plan.packed_row * size;
  const int64_t limit = forced.packed_bytes > 0 ? forced.packed_bytes : kPackedBytes;
  kernel.rows_at_once = std::clamp<int64_t>(limit / std::max<int64_t>(1, row_bytes), 1, plan.rows);
  if (kernel.rows_at_once < plan.rows && kernel.rows_at_once > 128) kernel.rows_at_once -= kernel.rows_at_once % 128;
  plan.packed_group = kernel.rows_at_once * plan.packed_row;
  plan.packed_phase = plan.groups * plan.packed_group;
  kernel.packed_bytes = parts(kernel.rows_at_once * row_bytes, 256) * 256;
}

void lay_out_direct(ConvPlan& plan, Pass pass) {
  // Neighbours along the groups where that is how memory goes.
  plan.group_lanes =
      plan.groups > 1 && plan.in_group < column_step(plan, false) && plan.in_channel < column_step(plan, false);
  plan.by_x = fast_divisor(plan.axis[2].phase[0].grid);
  plan.by_y = fast_divisor(pass == Pass::kWeight ? plan.axis[1].phase[0].grid
                                                 : parts(plan.axis[1].phase[0].grid, kDirectOutputs));
  plan.by_z = fast_divisor(plan.axis[0].phase[0].grid);
  plan.by_row_blocks = fast_divisor(row_blocks(plan));
}

constexpr const char* kAlgorithms[] = {"reference", "direct", "multiply_add", "tensor_core"};
constexpr const char* kTiles[] = {"128x128", "128x32", "64x64"};

std::vector<Choice> choices(const ConvPlan& direct, const ConvPlan& product, Pass pass, const Totals& totals,
                            DType dtype, bool allow_tf32, DeviceLimits device) {
  std::vector<Choice> result;
  const auto fits = [&](int64_t blocks) { return blocks < kSmall; };
  const auto wanted = [&](Algorithm algorithm, std::optional<Tile> tile) {
    return (!forced.algorithm || *forced.algorithm == algorithm) && (!tile || !forced.tile || *forced.tile == *tile);
  };
  const int64_t direct_threads = totals.columns * total_groups(direct) * row_blocks(direct);
  if (fits(pass == Pass::kWeight ? direct_weight_blocks(direct, totals) : direct_threads) &&
      wanted(Algorithm::kDirect, {})) {
    result.push_back(direct_choice(direct, pass, totals, dtype, device));
  }
  for (const Algorithm algorithm : {Algorithm::kMultiplyAdd, Algorithm::kTensorCore}) {
    if (algorithm == Algorithm::kMultiplyAdd && dtype != DType::kFloat) continue;
    if (algorithm == Algorithm::kTensorCore && dtype == DType::kFloat && !allow_tf32) continue;
    for (const Tile tile : {Tile::k128x128, Tile::k128x32, Tile::k64x64}) {
      if (dtype == DType::kDouble && tile != Tile::k64x64) continue;
      const TileSize size = tile_size(tile);
      const int64_t columns = product_of(pass, totals).columns;
      if (!wanted(algorithm, tile)) continue;
      if (!fits(parts(columns, size.columns) * parts(product.rows, size.rows) * total_groups(product))) continue;
      result.push_back(product_choice(product, pass, totals, dtype, algorithm, tile, device));
    }
  }
  return result;
}

}  // namespace

const char* algorithm_name(Algorithm algorithm) {
  return kAlgorithms[static_cast<int>(algorithm)];
}

const char* tile_name(Tile tile) {
  return kTiles[static_cast<int>(tile)];
}

void force_kernel(const std::string& name, int splits, int64_t packed_bytes) {
  Forced wanted;
  wanted.splits = splits;
  wanted.packed_bytes = packed_bytes;
  if (name != "auto") {
    const std::string algorithm = name.substr(0, name.find(':'));
    for (int i = 0; i < 4; ++i) {
      if (algorithm == kAlgorithms[i]) wanted.algorithm = static_cast<Algorithm>(i);
      if (i < 3 && name == algorithm + ":" + kTiles[i]) wanted.tile = static_cast<Tile>(i);
    }
    if (!wanted.algorithm || (name != algorithm && !wanted.tile)) {
      throw std::invalid_argument("no algorithm is called '" + name + "'");
    }
  }
  forced = wanted;
}

Kernel choose_kernel(const Problem& problem, Pass pass, DType dtype, bool allow_tf32, Alignment alignment,
                     DeviceLimits device) {
  Kernel kernel = {};
  kernel.rows_at_once = problem.out_channels;
  kernel.multiplications = problem.batch * problem.groups * problem.out_channels * problem.in_channels *
                           problem.output_numel() * problem.kernel_numel();
  const bool fast =
      dtype == DType::kFloat || dtype == DType::kDouble || dtype == DType::kBFloat16 || dtype == DType::kHalf;
  if (!fast || forced.algorithm == Algorithm::kReference) return kernel;
  Totals totals = {};
  const std::optional<ConvPlan> direct = plan_gather(problem, pass, totals);
  if (!direct) return kernel;

  // A kernel that covers its input is one long column of channels.
  Totals product_totals = {};
  std::optional<ConvPlan> covered = plan_gather(as_product(problem), pass, product_totals);
  if (!covered) covered = plan_gather(problem, pass, product_totals);
  ConvPlan product = *covered;
  ConvPlan planned = *direct;
  lay_out_direct(planned, pass);
  lay_out_product(product, pass, product_totals, dtype, alignment);
  std::vector<Choice> found = choices(planned, product, pass, product_totals, dtype, allow_tf32, device);
  if (found.empty()) {  // forced to what cannot do it
    const Forced before = forced;
    forced = {};
    found = choices(planned, product, pass, product_totals, dtype, allow_tf32, device);
    forced = before;
  }
  if (found.empty()) return kernel;
  const Choice best = *std::min_element(found.begin(), found.end(),
                                        [](const Choice& a, const Choice& b) { return a.cycles < b.cycles; });

  kernel.algorithm = best.algorithm;
  kernel.tile = best.tile;
  kernel.tf32 = best.algorithm == Algorithm::kTensorCore && dtype == DType::kFloat;
  const bool is_direct = best.algorithm == Algorithm::kDirect;
  const Totals& mine = is_direct ? totals : product_totals;
  kernel.plan = is_direct ? planned : product;
  ConvPlan& plan = kernel.plan;
  kernel.rows_at_once = plan.rows;
  kernel.multiplications = mine.multiplications;
  const Product extent = product_of(pass, mine);
  int64_t steps = extent.depth;
  if (is_direct) {
    if (plan.group_lanes && pass != Pass::kWeight) {
      kernel.packed_bytes =
          parts(problem.kernel_numel() * plan.channels * plan.groups * plan.rows * element_size(dtype), 256) * 256;
      plan.packed = kernel.packed_bytes <= kPackedBytes;
      if (!plan.packed) kernel.packed_bytes = 0;
    }
  } else {
    steps = parts(extent.depth, kDepthBytes / element_size(dtype));
    plan.column_tiles = static_cast<int32_t>(parts(extent.columns, tile_size(best.tile).columns));
    take_rows(kernel, element_size(dtype));
  }
  plan.steps_per_split = static_cast<int32_t>(parts(std::max<int64_t>(1, steps), best.splits));
  plan.splits = static_cast<int32_t>(parts(std::max<int64_t>(1, steps), plan.steps_per_split));
  if (plan.splits > 1) {
    kernel.partial_bytes = plan.splits * extent.columns * kernel.rows_at_once * total_groups(plan) * sum_size(dtype);
  }
  return kernel;
}

}  // namespace convarith::cuda
