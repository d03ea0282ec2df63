#include "conv_engine.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "../simplify.h"

namespace convarith::cpu {
namespace {

constexpr int64_t kPackedBytes = int64_t{24} << 20;  // of packed weights, and of panels and sums, at a time
constexpr int64_t kTileBytes = int64_t{1} << 20;
constexpr int64_t kMostPhases = 1024;

std::atomic<int> forced{-1};
std::atomic<bool> winograd{true};

// Memory for the length of one call.
class Buffer {
 public:
  explicit Buffer(int64_t bytes) : data_(std::aligned_alloc(64, (std::max<int64_t>(bytes, 1) + 63) / 64 * 64)) {
    TORCH_CHECK(data_, "out of memory: ", bytes, " bytes of scratch");
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  char* get() const { return static_cast<char*>(data_); }

 private:
  void* data_;
};

// A gather's plan with the tables that it points to.
struct Gather {
  GatherPlan plan = {};
  std::vector<std::array<int64_t, 3>> shifts;
  std::vector<int64_t> tap_weight;
  std::vector<int64_t> residue;
  std::vector<int32_t> offset;
  bool swapped = false;  // the weights are the input, and the input the weights

  void point() {
    plan.tap_weight = tap_weight.data();
    plan.residue = residue.data();
    plan.offset = offset.data();
  }
};

// The same sums as a smaller problem: see as_product(), and where a kernel of 1 moves over all of its input the axes
// are one.
Problem simplify(const Problem& problem) {
  Problem p = as_product(problem);
  bool pointwise = true;
  for (const Axis& a : p.axis) {
    pointwise = pointwise && a.kernel == 1 && a.stride == 1 && a.lo == 0 && a.hi == 0;
  }
  const std::array<int64_t, kAxes> input = input_of(p);
  if (pointwise && p.input_numel() == 1) {  // one pixel: the batch is the axis
    p.axis[2].input = p.output[2] = p.batch;
    p.x.axis[2] = p.x.batch;
    p.y.axis[2] = p.y.batch;
    p.batch = 1;
  } else if (pointwise && contiguous_axes(p.x, input) && contiguous_axes(p.y, input)) {
    p.axis[2].input = p.output[2] = p.input_numel();
    p.axis[0] = p.axis[1] = kTrivialAxis;
    p.output[0] = p.output[1] = 1;
    p.x.axis[2] = p.y.axis[2] = 1;
  }
  return p;
}

// Whether a padded zero is ever multiplied.
bool pads(const Problem& p) {
  for (int i = 0; i < kAxes; ++i) {
    const Axis& a = p.axis[i];
    if (input_index(a, 0, 0) < 0 || input_index(a, p.output[i] - 1, a.kernel - 1) >= a.input) return true;
  }
  return false;
}

void set_sides(GatherPlan& g, const Strides& in, const Strides& out) {
  g.in_batch = in.batch;
  g.in_channel = in.channel;
  g.out_batch = out.batch;
  g.out_channel = out.channel;
  g.out_group = g.rows * out.channel;
  for (int i = 0; i < kAxes; ++i) {
    g.in_axis[i] = in.axis[i];
    g.out_axis[i] = out.axis[i];
  }
}

// Calls body(t0, t1, t2) for the taps, last axis fastest.
template <typename Body>
void for_taps(const Problem& p, const Body& body) {
  for (int64_t t0 = 0; t0 < p.axis[0].kernel; ++t0) {
    for (int64_t t1 = 0; t1 < p.axis[1].kernel; ++t1) {
      for (int64_t t2 = 0; t2 < p.axis[2].kernel; ++t2) body(std::array<int64_t, 3>{t0, t1, t2});
    }
  }
}

// y = C x. For the weight's gradient every tap stays, for its weight must be written.
Gather forward_gather(const Problem& p, bool all_taps) {
  Gather result;
  GatherPlan& g = result.plan;
  g.batch = p.batch;
  g.groups = p.groups;
  g.rows = p.out_channels;
  g.channels = p.in_channels;
  set_sides(g, p.x, p.y);
  g.w_group = p.out_channels * p.w.batch;
  g.w_row = p.w.batch;
  g.w_channel = p.w.channel;
  for (int i = 0; i < kAxes; ++i) {
    g.grid[i] = p.output[i];
    g.stride[i] = p.axis[i].stride;
    g.source[i] = p.axis[i].input;
  }
  for_taps(p, [&](const std::array<int64_t, 3>& t) {
    std::array<int64_t, 3> shift;
    int64_t weight = 0;
    bool meets = true;
    for (int i = 0; i < kAxes; ++i) {
      const Range run = outputs_of_tap(p.axis[i], p.output[i], t[i]);
      meets = meets && run.begin < run.end;
      shift[i] = input_index(p.axis[i], 0, t[i]);
      weight += t[i] * p.w.axis[i];
    }
    if (!meets && !all_taps) return;
    result.shifts.push_back(shift);
    result.tap_weight.push_back(weight);
  });
  return result;
}

// x = C^T y: one gather for each phase of the stride, over the taps of that phase; no inserted zero exists.
std::vector<Gather> transposed_gathers(const Problem& p) {
  std::vector<Gather> result;
  std::array<int64_t, 3> phases;
  for (int i = 0; i < kAxes; ++i) phases[i] = std::min(p.axis[i].stride, p.axis[i].input);
  for (int64_t phase = 0; phase < phases[0] * phases[1] * phases[2]; ++phase) {
    const std::array<int64_t, 3> r = {phase / (phases[2] * phases[1]), phase / phases[2] % phases[1],
                                      phase % phases[2]};
    Gather gather;
    GatherPlan& g = gather.plan;
    g.batch = p.batch;
    g.groups = p.groups;
    g.rows = p.in_channels;
    g.channels = p.out_channels;
    set_sides(g, p.y, p.x);
    g.w_group = p.out_channels * p.w.batch;
    g.w_row = p.w.channel;
    g.w_channel = p.w.batch;
    for (int i = 0; i < kAxes; ++i) {
      const Axis& a = p.axis[i];
      g.grid[i] = (a.input - r[i] + a.stride - 1) / a.stride;
      g.stride[i] = 1;
      g.source[i] = p.output[i];
      g.out_offset += r[i] * p.x.axis[i];
      g.out_axis[i] = a.stride * p.x.axis[i];
    }
    for_taps(p, [&](const std::array<int64_t, 3>& t) {
      std::array<int64_t, 3> shift;
      int64_t weight = 0;
      for (int i = 0; i < kAxes; ++i) {
        const Axis& a = p.axis[i];
        const int64_t scaled = r[i] + a.lo - t[i] * a.dilation;
        if (scaled - floor_div(scaled, a.stride) * a.stride != 0) return;
        shift[i] = floor_div(scaled, a.stride);
        if (shift[i] >= g.source[i] || shift[i] + g.grid[i] <= 0) return;
        weight += t[i] * p.w.axis[i];
      }
      gather.shifts.push_back(shift);
      gather.tap_weight.push_back(weight);
    });
    result.push_back(std::move(gather));
  }
  return result;
}

// simplify() made the batch an axis.
bool one_pixel(const Problem& p) {
  return p.batch == 1 && p.axis[0].input == 1 && p.axis[1].input == 1 && p.x.axis[2] == p.x.batch &&
         p.y.axis[2] == p.y.batch && p.kernel_numel() == 1 && p.axis[2].stride == 1 && p.axis[2].lo == 0 &&
         p.axis[2].input == p.output[2];
}

// x = C^T y where C has one pixel, a product of matrices: the channels of x and w follow each other in memory, so they
// are the outputs, y is the weight and w the input.
Gather product_gather(const Problem& p) {
  Gather result;
  GatherPlan& g = result.plan;
  g.batch = 1;
  g.groups = p.groups;
  g.rows = p.axis[2].input;
  g.channels = p.out_channels;
  for (int i = 0; i < kAxes; ++i) {
    g.grid[i] = g.source[i] = i == 2 ? p.in_channels : 1;
    g.stride[i] = 1;
    g.in_axis[i] = g.out_axis[i] = i == 2 ? 1 : 0;
  }
  g.in_channel = p.w.batch;
  g.out_channel = p.x.batch;
  g.out_group = p.in_channels * p.x.channel;
  g.w_group = p.out_channels * p.y.channel;
  g.w_row = p.y.batch;
  g.w_channel = p.y.channel;
  result.shifts.push_back({0, 0, 0});
  result.tap_weight.push_back(0);
  result.swapped = true;
  return result;
}

int64_t aligned(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

// A pitch that is a multiple of 4 KB puts all rows into the same lines of the first cache.
int64_t spread(int64_t elements, const ConvKernels& k) {
  const int64_t rounded = (elements + k.lanes - 1) / k.lanes * k.lanes;
  return rounded * k.sum_item % 4096 == 0 ? rounded + k.lanes : rounded;
}

int64_t parts(int64_t size, int64_t part) {
  return (size + part - 1) / part;
}

// As equal parts as can be, none larger than `part`.
int64_t even_part(int64_t size, int64_t part) {
  return parts(size, parts(size, std::max<int64_t>(1, std::min(size, part))));
}

// As even_part, but among the parts down to half the size the one whose outputs fill vectors best.
int64_t whole_vectors(int64_t size, int64_t part, int64_t inner, int64_t lanes) {
  const int64_t largest = even_part(size, part);
  int64_t best = largest;
  double best_cost = 0;
  for (int64_t p = largest; p >= std::max<int64_t>(1, largest / 2) && p > largest - 64; --p) {
    const int64_t whole = size / p, rest = size % p;
    const int64_t vectors = whole * parts(p * inner, lanes) + parts(rest * inner, lanes);
    // A box costs something by itself.
    const double cost = static_cast<double>(vectors) + 0.2 * static_cast<double>(whole + (rest > 0));
    if (p == largest || cost < best_cost) {
      best = p;
      best_cost = cost;
    }
  }
  return best;
}

struct Blocking {
  bool panel;
  int64_t pixels;   // of a box, about
  int64_t depth;    // channels * taps of a tile, about
  bool may_be_raw;  // the input may be read where it stands
};

// Boxes, tile, offsets. False where the tile would be too large.
bool lay_out(Gather& gather, const Blocking& blocking, const ConvKernels& k) {
  GatherPlan& g = gather.plan;
  g.taps = static_cast<int64_t>(gather.shifts.size());
  g.panel = blocking.panel;

  int64_t left = std::max<int64_t>(blocking.pixels, 1), inner = 1;
  const int64_t extent[4] = {g.batch, g.grid[0], g.grid[1], g.grid[2]};
  for (int i = 3; i >= 0; --i) {
    g.box[i] = whole_vectors(extent[i], left, inner, k.lanes);
    g.boxes[i] = parts(extent[i], g.box[i]);
    left = g.boxes[i] > 1 ? 1 : left / g.box[i];
    inner *= g.box[i];
  }

  int64_t high[3] = {0, 0, 0};
  bool inside = true;
  std::vector<std::array<int64_t, 3>> residues;
  std::vector<int64_t> residue_of;
  for (size_t t = 0; t < gather.shifts.size(); ++t) {
    std::array<int64_t, 3> r;
    for (int i = 0; i < 3; ++i) {
      const int64_t shift = gather.shifts[t][i], cell = floor_div(shift, g.stride[i]);
      r[i] = shift - cell * g.stride[i];
      g.low[i] = t == 0 ? cell : std::min(g.low[i], cell);
      high[i] = t == 0 ? cell : std::max(high[i], cell);
      inside = inside && shift >= 0 && (g.grid[i] - 1) * g.stride[i] + shift < g.source[i];
    }
    const auto found = std::find(residues.begin(), residues.end(), r);
    residue_of.push_back(found - residues.begin());
    if (found == residues.end()) residues.push_back(r);
  }
  g.residues = static_cast<int64_t>(residues.size());
  for (const auto& r : residues) gather.residue.insert(gather.residue.end(), r.begin(), r.end());

  for (int i = 0; i < 3; ++i) g.cells[i] = g.box[i + 1] + high[i] - g.low[i];
  g.tile_row = g.cells[2];
  g.tile_plane = g.tile_row * g.cells[1];
  g.tile_image = g.tile_plane * g.cells[0];
  g.tile_residue = g.tile_image * g.box[0];
  g.tile_channel = spread(std::max<int64_t>(1, g.tile_residue * g.residues), k);

  const int64_t taps = std::max<int64_t>(1, g.taps);
  int64_t block = g.channels * taps <= 2 * blocking.depth ? g.channels : std::max<int64_t>(1, blocking.depth / taps);
  block = std::min(block, std::max<int64_t>(1, kTileBytes / (g.tile_channel * k.sum_item)));
  g.channel_block = even_part(g.channels, block);
  if (g.tile_channel * g.channel_block * k.sum_item > 16 * kTileBytes) return false;

  // Read in place: whole vectors may be read from a panel's source only where the tensor goes on.
  g.raw =
      blocking.may_be_raw && inside && g.taps > 0 && g.in_axis[2] == 1 && g.stride[2] == 1 && k.item == k.sum_item &&
      g.channel_block * g.in_channel + (g.source[0] * g.in_axis[0] + g.source[1] * g.in_axis[1]) < (int64_t{1} << 31);
  gather.offset.resize(g.channel_block * g.taps);
  for (int64_t c = 0; c < g.channel_block; ++c) {
    for (int64_t t = 0; t < g.taps; ++t) {
      const auto& shift = gather.shifts[t];
      int64_t offset = 0;
      if (g.raw) {
        offset = c * g.in_channel + shift[0] * g.in_axis[0] + shift[1] * g.in_axis[1] + shift[2];
      } else {
        const int64_t pitch[3] = {g.tile_plane, g.tile_row, 1};
        offset = c * g.tile_channel + residue_of[t] * g.tile_residue;
        for (int i = 0; i < 3; ++i) offset += (floor_div(shift[i], g.stride[i]) - g.low[i]) * pitch[i];
      }
      gather.offset[c * g.taps + t] = static_cast<int32_t>(offset);
    }
  }

  const int64_t runs = g.box[0] * g.box[1] * g.box[2];
  const int64_t columns = g.panel ? runs * g.box[3] : g.tile_image * g.box[0];
  const int64_t widest = 8 * k.lanes;  // a sweep may go past the last column by less than this
  g.columns = spread(columns + widest, k);
  g.at_tile = 0;
  g.at_panel = aligned(g.raw ? 0 : (g.channel_block * g.tile_channel + 2 * widest) * k.sum_item);
  g.at_sums = g.at_panel + aligned((g.channel_block * g.taps * k.vectors * k.lanes + widest) * k.sum_item);
  return true;
}

// Room for sums and runs, once the rows are known.
void lay_out_sums(GatherPlan& g, const ConvKernels& k) {
  const int64_t blocks = parts(g.rows, k.row_block);
  const int64_t rows = std::min(g.rows, parts(blocks, g.row_split) * k.row_block);
  g.at_runs = g.at_sums + aligned(rows * g.columns * k.sum_item);
  g.scratch = g.at_runs + aligned(g.box[0] * g.box[1] * g.box[2] * static_cast<int64_t>(sizeof(Run)));
}

int64_t box_count(const GatherPlan& g) {
  return g.boxes[0] * g.boxes[1] * g.boxes[2] * g.boxes[3];
}

int64_t gather_macs(const GatherPlan& g) {
  return g.batch * g.groups * g.rows * g.channels * g.taps * g.grid[0] * g.grid[1] * g.grid[2];
}

// The cost model ------------------------------------------------------------------------------------------------------

// A gather in units of one vector's multiply-add, for one row of weights.
Blocking gather_blocking(const Gather& gather, const ConvKernels& k, int64_t threads, std::optional<Algorithm> wanted) {
  const GatherPlan& g = gather.plan;
  Blocking b = {};
  b.may_be_raw = true;
  b.depth = 288;
  // Sums of a box stay in the second cache; a thirteenth vector makes 14 x 14 or 4 times 7 x 7 outputs a box.
  b.pixels = std::clamp<int64_t>((int64_t{1} << 19) / (g.rows * k.sum_item), 13 * k.lanes, 1024);
  // Enough boxes for every thread, where it cannot have rows of its own.
  const int64_t outputs = g.batch * g.grid[0] * g.grid[1] * g.grid[2] * g.groups;
  if (g.rows < 4 * threads * k.row_block) {
    b.pixels = std::clamp<int64_t>(outputs / (4 * threads), std::min(b.pixels, k.vectors * k.lanes), b.pixels);
  }
  // Cycles of one (channel, tap) for a panel of outputs: multiplying; and either copying its pieces, or the share of
  // the tile's margins, which are multiplied too.
  int64_t span[3] = {0, 0, 0};
  for (int i = 0; i < 3; ++i) {
    for (const auto& a : gather.shifts) {
      for (const auto& c : {gather.shifts.front(), gather.shifts.back()}) {
        span[i] = std::max(span[i], std::abs(a[i] - c[i]) / g.stride[i]);
      }
    }
  }
  const auto margin = [&](int i) { return 1 + static_cast<double>(span[i]) / static_cast<double>(g.grid[i]); };
  const double multiply = static_cast<double>(g.rows * k.vectors);
  const double pieces = 1 + static_cast<double>(k.vectors * k.lanes) / static_cast<double>(g.grid[2]);
  double waste = margin(2);
  if (g.grid[1] * g.grid[2] * 2 <= b.pixels && g.batch > 1) waste *= margin(1);
  if (g.grid[0] > 1) waste *= margin(1) * (g.grid[1] * g.grid[2] <= b.pixels ? margin(0) : 1);
  b.panel = multiply + 4 * pieces + 2 <= 1.05 * multiply * waste || g.rows > 64;
  if (wanted == Algorithm::kPanel) b.panel = true;
  if (wanted == Algorithm::kOffset) b.panel = false;
  if (!b.panel) b.may_be_raw = false;
  return b;
}

std::optional<Algorithm> wanted_algorithm() {
  const int value = forced.load(std::memory_order_relaxed);
  return value < 0 ? std::nullopt : std::optional<Algorithm>(static_cast<Algorithm>(value));
}

int64_t thread_count() {
  return at::in_parallel_region() ? 1 : std::max(1, at::get_num_threads());
}

// All that a pass with gathers needs; empty where they cannot do it.
std::vector<Gather> plan_gathers(const Problem& p, Pass pass, const ConvKernels& k) {
  std::vector<Gather> gathers;
  if (pass == Pass::kInput) {
    int64_t phases = 1;
    for (const Axis& a : p.axis) {
      if (std::min(a.stride, a.input) > kMostPhases) return {};
      phases *= std::min(a.stride, a.input);
    }
    if (phases > kMostPhases || phases * p.kernel_numel() > (int64_t{1} << 20)) return {};
    if (one_pixel(p) && p.w.channel == 1 && p.x.channel == 1) {
      gathers.push_back(product_gather(p));
    } else {
      gathers = transposed_gathers(p);
    }
  } else {
    gathers.push_back(forward_gather(p, false));
  }
  const int64_t threads = thread_count();
  int64_t packed = 0;
  for (Gather& gather : gathers) {
    GatherPlan& g = gather.plan;
    if (!lay_out(gather, gather_blocking(gather, k, threads, wanted_algorithm()), k)) return {};
    const int64_t tasks = box_count(g) * g.groups * static_cast<int64_t>(gathers.size());
    g.row_split = std::clamp<int64_t>(parts(3 * threads, tasks), 1, parts(g.rows, k.row_block));
    if (threads == 1) g.row_split = 1;
    lay_out_sums(g, k);
    g.packed = packed;
    packed += g.groups * g.rows * g.channels * g.taps;
  }
  for (Gather& gather : gathers) gather.point();
  return gathers;
}

// Running -------------------------------------------------------------------------------------------------------------

// One task per thread's share; work too small for a second thread stays on this one.
template <typename Body>
void parallel(int64_t tasks, int64_t macs, const Body& body) {
  constexpr int64_t kWorthAThread = 1 << 17;
  const int64_t share = std::max<int64_t>(1, macs / std::max<int64_t>(1, tasks));
  at::parallel_for(0, tasks, std::max<int64_t>(1, kWorthAThread / share), body);
}

// Several tasks in a row are a thread's; more of them than threads even out what boxes at the edge save.
void run_gathers(std::vector<Gather>& gathers, const ConvKernels& k, const void* in, int64_t in_count, const void* w,
                 void* out) {
  std::vector<GatherPlan> plans;
  int64_t most_tasks = 0, macs = 0, scratch = 0, packed = 0;
  for (const Gather& gather : gathers) {
    const GatherPlan& g = gather.plan;
    plans.push_back(g);
    most_tasks = std::max(most_tasks, box_count(g) * g.groups * g.row_split);
    macs += gather_macs(g);
    scratch = std::max(scratch, g.scratch);
    packed = std::max(packed, g.packed + g.groups * g.rows * g.channels * g.taps);
  }
  const Buffer weights((packed + 2 * k.lanes) * k.sum_item);
  if (plans.size() == 1 || packed < (1 << 16)) {
    for (const GatherPlan& g : plans) {
      parallel(k.pack_tasks(g), 4 * g.groups * g.rows * g.channels * g.taps,
               [&](int64_t begin, int64_t end) { k.pack(g, w, weights.get(), begin, end); });
    }
  } else {
    at::parallel_for(0, static_cast<int64_t>(plans.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) k.pack(plans[i], w, weights.get(), 0, k.pack_tasks(plans[i]));
    });
  }
  const auto count = static_cast<int64_t>(plans.size());
  parallel(most_tasks * count, macs, [&](int64_t begin, int64_t end) {
    const Buffer mine(scratch);
    k.gather(plans.data(), count, in, in_count, weights.get(), out, mine.get(), begin, end);
  });
}

// Winograd ------------------------------------------------------------------------------------------------------------

struct Winograd {
  Gather gather;
  WinogradPlan plan = {};
  std::vector<int32_t> channel_offset;
};

// Where a 3 x 3 gather of stride 1 stands in its input: the tap of (i, j), i and j in steps from the lowest shift.
std::optional<std::array<int64_t, 9>> dense_3x3(const Gather& gather) {
  const GatherPlan& g = gather.plan;
  if (gather.shifts.size() != 9 || g.grid[0] != 1 || g.source[0] != 1) return std::nullopt;
  if (g.stride[1] != 1 || g.stride[2] != 1) return std::nullopt;
  std::array<int64_t, 3> low = gather.shifts[0];
  for (const auto& s : gather.shifts) {
    for (int i = 0; i < 3; ++i) low[i] = std::min(low[i], s[i]);
  }
  std::array<int64_t, 9> taps;
  taps.fill(-1);
  for (size_t t = 0; t < 9; ++t) {
    const int64_t y = gather.shifts[t][1] - low[1], x = gather.shifts[t][2] - low[2];
    if (gather.shifts[t][0] != 0 || y > 2 || x > 2) return std::nullopt;
    taps[3 * y + x] = gather.tap_weight[t];
  }
  if (std::find(taps.begin(), taps.end(), -1) != taps.end()) return std::nullopt;
  return taps;
}

// Bytes of transformed weights.
int64_t winograd_weights(const GatherPlan& g, int64_t rows, const ConvKernels& k) {
  return g.groups * parts(rows, k.row_block) * 36 * (g.channels * k.row_block + 16) * 4;
}

// Rows whose transformed weights are held at a time.
int64_t winograd_rows(const GatherPlan& g, const ConvKernels& k) {
  return even_part(g.rows, std::max<int64_t>(k.row_block, kPackedBytes / 2 / (g.groups * g.channels * 36 * 4)));
}

std::optional<Winograd> plan_winograd(const Gather& direct, const ConvKernels& k) {
  const auto wanted = wanted_algorithm();
  if (k.sum_item != 4 || (wanted && *wanted != Algorithm::kWinograd) || (!wanted && !winograd_enabled())) {
    return std::nullopt;
  }
  const auto taps = dense_3x3(direct);
  if (!taps) return std::nullopt;
  const GatherPlan& d = direct.plan;
  const int64_t tiles_y = parts(d.grid[1], 4), tiles_x = parts(d.grid[2], 4);
  if (!wanted) {
    // In multiply-adds of one vector, as measured: products, transformed weights, and a transform per run of tiles.
    const auto lanes = static_cast<double>(k.lanes);
    const double rows = static_cast<double>(d.rows), channels = static_cast<double>(d.channels);
    const double batch = static_cast<double>(d.batch);
    const double direct_cost = rows * channels * (9 * batch * static_cast<double>(d.grid[1] * d.grid[2]) / lanes + 5);
    const double tiles = batch * static_cast<double>(tiles_y * tiles_x);
    const double transforms = batch * static_cast<double>(tiles_y * parts(tiles_x, k.lanes));
    const double cost =
        rows * channels * (43 * tiles / lanes + 70 * 16 / lanes) + transforms * (600 * channels + 500 * rows);
    if (channels < 8 || rows < 8 || cost > 0.8 * direct_cost) return std::nullopt;
  }

  Winograd result;
  WinogradPlan& plan = result.plan;
  result.gather.plan = d;
  GatherPlan& g = result.gather.plan;
  plan.height = d.grid[1];
  plan.width = d.grid[2];
  std::copy(taps->begin(), taps->end(), plan.tap_of);
  g.grid[1] = tiles_y;
  g.grid[2] = tiles_x;
  g.stride[1] = g.stride[2] = 4;
  std::array<int64_t, 3> low = direct.shifts[0];
  for (const auto& s : direct.shifts) {
    for (int i = 0; i < 3; ++i) low[i] = std::min(low[i], s[i]);
  }
  for (int64_t y = 0; y < 6; ++y) {
    for (int64_t x = 0; x < 6; ++x) {
      result.gather.shifts.push_back({0, low[1] + y, low[2] + x});
      result.gather.tap_weight.push_back(0);
    }
  }
  Blocking blocking = {};
  blocking.panel = true;
  blocking.depth = 8 * 36;
  const int64_t threads = thread_count(), tiles = d.batch * tiles_y * tiles_x * d.groups;
  // Whole sweeps of the microkernel; transformed inputs of a few megabytes at most.
  const int64_t sweep = k.vectors * k.lanes;
  blocking.pixels = std::clamp<int64_t>((int64_t{1} << 20) / (36 * 4 * g.channels), sweep, 7 * k.lanes);
  blocking.pixels = std::clamp<int64_t>(parts(tiles, 2 * threads), std::min(k.lanes, blocking.pixels), blocking.pixels);
  if (!lay_out(result.gather, blocking, k)) return std::nullopt;
  const int64_t columns = g.box[0] * g.box[2] * g.box[3];
  const int64_t row_blocks = parts(winograd_rows(g, k), k.row_block), boxes = box_count(g) * g.groups;
  g.row_split = threads == 1 ? 1 : std::clamp<int64_t>(parts(2 * threads, boxes), 1, row_blocks);
  plan.pitch = spread(columns + 2 * k.lanes, k);
  plan.row_chunk = std::min<int64_t>(64, parts(g.rows, k.row_block) * k.row_block);
  result.channel_offset.resize(g.channels);
  for (int64_t c = 0; c < g.channels; ++c) result.channel_offset[c] = static_cast<int32_t>(c * plan.pitch);
  plan.input_step = spread(g.channels * plan.pitch, k);
  plan.product_step = spread(plan.row_chunk * plan.pitch, k);
  plan.shared_size = aligned((36 * plan.input_step + 4 * k.lanes) * 4) / 4;
  plan.at_inputs = g.at_panel;
  plan.at_products = plan.at_inputs + aligned((36 * plan.input_step + 4 * k.lanes) * 4);
  plan.at_strip = plan.at_products + aligned((36 * plan.product_step + 4 * k.lanes) * 4);
  g.at_runs = plan.at_strip + aligned(16 * (g.box[3] + 2 * k.lanes) * 4);
  g.scratch = g.at_runs + aligned(g.box[0] * g.box[2] * static_cast<int64_t>(sizeof(Run)));
  if (g.scratch > kPackedBytes / 2) return std::nullopt;
  result.gather.point();
  plan.channel_offset = result.channel_offset.data();
  plan.gather = g;
  return result;
}

// Bytes of all transformed inputs where they are kept: several passes over the rows would transform them again.
int64_t winograd_shared(const WinogradPlan& plan, const ConvKernels& k) {
  const GatherPlan& g = plan.gather;
  const int64_t bytes = box_count(g) * g.groups * plan.shared_size * 4;
  return (winograd_rows(g, k) < g.rows || g.row_split > 1) && bytes <= kPackedBytes / 2 ? bytes : 0;
}

void run_winograd(Winograd& winograd, const ConvKernels& k, const void* in, const void* w, void* out) {
  WinogradPlan& plan = winograd.plan;
  plan.gather = winograd.gather.plan;
  GatherPlan& g = plan.gather;
  const int64_t rows = g.rows, at_once = winograd_rows(g, k);
  const Buffer packed(winograd_weights(g, at_once, k));
  const Buffer shared(winograd_shared(plan, k));
  const int64_t split = g.row_split, boxes = box_count(g) * g.groups;
  const auto run = [&](Stage stage, void* out_rows) {
    plan.stage = stage;
    parallel(boxes * g.row_split, gather_macs(g), [&](int64_t begin, int64_t end) {
      const Buffer mine(g.scratch);
      k.winograd(plan, in, packed.get(), out_rows, mine.get(), begin, end);
    });
  };
  const bool fused = winograd_shared(plan, k) == 0;
  plan.shared = shared.get();
  if (!fused) {
    g.row_split = std::clamp<int64_t>(parts(2 * thread_count(), boxes), 1, parts(g.channels, g.channel_block));
    run(kInputs, nullptr);
  }
  for (int64_t row = 0; row < rows; row += at_once) {
    g.rows = std::min(at_once, rows - row);
    g.row_split = std::min(split, parts(g.rows, k.row_block));
    const char* w_rows = static_cast<const char*>(w) + row * g.w_row * k.item;
    parallel(k.pack_tasks(g), 36 * 8 * g.groups * g.rows * g.channels,
             [&](int64_t begin, int64_t end) { k.winograd_pack(plan, w_rows, packed.get(), begin, end); });
    run(fused ? kFused : kProducts, static_cast<char*>(out) + row * g.out_channel * k.item);
  }
}

int64_t packed_bytes(const std::vector<Gather>& gathers, const ConvKernels& k) {
  int64_t total = 0;
  for (const Gather& g : gathers) total += g.plan.groups * g.plan.rows * g.plan.channels * g.plan.taps;
  return total * k.sum_item;
}

// Rows whose weights are packed at a time.
int64_t rows_at_once(const std::vector<Gather>& gathers, const ConvKernels& k) {
  const int64_t rows = gathers[0].plan.rows, bytes = packed_bytes(gathers, k);
  if (bytes <= kPackedBytes) return rows;
  return even_part(rows, std::max<int64_t>(1, kPackedBytes / std::max<int64_t>(1, bytes / rows)));
}

// The plans for some of the rows only.
void take_rows(std::vector<Gather>& gathers, int64_t rows, const ConvKernels& k) {
  int64_t packed = 0;
  for (Gather& gather : gathers) {
    GatherPlan& g = gather.plan;
    g.rows = rows;
    g.row_split = std::min(g.row_split, parts(rows, k.row_block));
    lay_out_sums(g, k);
    g.packed = packed;
    packed += g.groups * g.rows * g.channels * g.taps;
  }
}

struct WeightGradient {
  Gather gather;
  WeightPlan plan = {};
  int64_t rows_at_once = 0;
  int64_t boxes_at_once = 0;
};

std::optional<WeightGradient> plan_weight(const Problem& p, const ConvKernels& k) {
  WeightGradient result;
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
  if (!lay_out(result.gather, blocking, k)) return std::nullopt;
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
  return result;
}

int64_t weight_bytes(const WeightGradient& w, const ConvKernels& k) {
  const GatherPlan& g = w.gather.plan;
  const int64_t panels = w.plan.dot ? 0 : w.boxes_at_once * g.groups * w.plan.box_pixels * w.plan.columns;
  return (panels + g.groups * w.rows_at_once * w.plan.columns) * k.sum_item + thread_count() * g.scratch;
}

void run_weight(WeightGradient& gradient, const ConvKernels& k, const void* x, const void* y, void* w) {
  WeightPlan& plan = gradient.plan;
  plan.gather = gradient.gather.plan;
  const GatherPlan& g = plan.gather;
  const int64_t rows = g.channels * g.taps, boxes = box_count(g);
  const int64_t panel_elements = plan.dot ? 0 : gradient.boxes_at_once * g.groups * plan.box_pixels * plan.columns;
  const Buffer panels(panel_elements * k.sum_item);
  const Buffer sums(g.groups * gradient.rows_at_once * plan.columns * k.sum_item);
  for (plan.first_row = 0; plan.first_row < rows; plan.first_row += gradient.rows_at_once) {
    plan.row_count = std::min(gradient.rows_at_once, rows - plan.first_row);
    std::memset(sums.get(), 0, g.groups * plan.row_count * plan.columns * k.sum_item);
    for (plan.box_begin = 0; plan.box_begin < boxes; plan.box_begin += gradient.boxes_at_once) {
      plan.box_end = std::min(boxes, plan.box_begin + gradient.boxes_at_once);
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

bool all_finite(const ConvKernels& k, const void* data, int64_t count) {
  constexpr int64_t kChunk = 1 << 16;
  std::atomic<bool> ok{true};
  at::parallel_for(0, parts(count, kChunk), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && ok.load(std::memory_order_relaxed); ++i) {
      const char* chunk = static_cast<const char*>(data) + i * kChunk * k.item;
      if (!k.finite(chunk, std::min(kChunk, count - i * kChunk))) ok.store(false, std::memory_order_relaxed);
    }
  });
  return ok.load();
}

// Below this, a plan costs more than it saves.
constexpr int64_t kFewMacs = 4096;

bool wants_reference(const Problem& p) {
  const auto wanted = wanted_algorithm();
  if (wanted) return *wanted == Algorithm::kReference;
  return p.batch * p.groups * p.out_channels * p.in_channels * p.output_numel() * p.kernel_numel() < kFewMacs;
}

}  // namespace

const char* algorithm_name(Algorithm algorithm) {
  static constexpr const char* names[] = {"reference", "panel", "offset", "outer", "dot", "winograd"};
  return names[static_cast<int>(algorithm)];
}

void force_algorithm(const std::string& name) {
  if (name == "auto") {
    forced.store(-1);
    return;
  }
  for (int a = 0; a <= static_cast<int>(Algorithm::kWinograd); ++a) {
    if (name == algorithm_name(static_cast<Algorithm>(a))) {
      forced.store(a);
      return;
    }
  }
  throw std::invalid_argument("no algorithm is called '" + name + "'");
}

void set_winograd(bool enabled) {
  winograd.store(enabled);
}
bool winograd_enabled() {
  return winograd.load();
}

Explanation explain(const Problem& problem, Pass pass, int dtype) {
  Explanation e = {Algorithm::kReference, 0, 0, 0};
  e.multiplications = problem.batch * problem.groups * problem.out_channels * problem.in_channels *
                      problem.output_numel() * problem.kernel_numel();
  if (dtype < 0 || e.multiplications == 0 || wants_reference(problem)) return e;
  const ConvKernels& k = active_kernels(dtype);
  const Problem p = simplify(problem);
  if (pass == Pass::kWeight) {
    const auto gradient = plan_weight(p, k);
    if (!gradient) return e;
    e.algorithm = gradient->plan.dot ? Algorithm::kDot : Algorithm::kOuter;
    e.scratch = weight_bytes(*gradient, k);
    e.phases = 1;
    return e;
  }
  auto gathers = plan_gathers(p, pass, k);
  if (gathers.empty()) return e;
  if (gathers.size() == 1) {
    if (const auto w = plan_winograd(gathers[0], k)) {
      e.algorithm = Algorithm::kWinograd;
      e.phases = 1;
      e.multiplications = gather_macs(w->gather.plan);
      e.scratch = winograd_weights(w->gather.plan, winograd_rows(w->gather.plan, k), k) + winograd_shared(w->plan, k) +
                  thread_count() * w->gather.plan.scratch;
      return e;
    }
  }
  e.algorithm = gathers[0].plan.panel ? Algorithm::kPanel : Algorithm::kOffset;
  e.phases = static_cast<int64_t>(gathers.size());
  e.multiplications = 0;
  for (const Gather& g : gathers) e.multiplications += gather_macs(g.plan);
  take_rows(gathers, rows_at_once(gathers, k), k);
  int64_t scratch = 0;
  for (const Gather& g : gathers) scratch = std::max(scratch, g.plan.scratch);
  e.scratch = packed_bytes(gathers, k) + thread_count() * scratch;
  return e;
}

bool run_fast(const Problem& problem, Pass pass, int dtype, const void* input, int64_t input_count, const void* other,
              int64_t other_count, void* output) {
  if (wants_reference(problem)) return false;
  const ConvKernels& k = active_kernels(dtype);
  // Padding is multiplied here, by weights or by y; 0 * Inf would be NaN where C has no entry at all.
  if (pads(problem) && !all_finite(k, other, other_count)) return false;
  const Problem p = simplify(problem);
  if (pass == Pass::kWeight) {
    auto gradient = plan_weight(p, k);
    if (!gradient) return false;
    run_weight(*gradient, k, input, other, output);
    return true;
  }
  auto gathers = plan_gathers(p, pass, k);
  if (gathers.empty()) return false;
  if (gathers.size() == 1) {
    if (auto w = plan_winograd(gathers[0], k)) {
      run_winograd(*w, k, input, other, output);
      return true;
    }
  }
  if (gathers[0].swapped) std::swap(input, other), std::swap(input_count, other_count);
  const int64_t bytes = packed_bytes(gathers, k), rows = gathers[0].plan.rows;
  if (bytes <= kPackedBytes) {
    run_gathers(gathers, k, input, input_count, other, output);
    return true;
  }
  // Too many weights to pack at once: some rows at a time.
  const int64_t at_once = rows_at_once(gathers, k);
  for (int64_t row = 0; row < rows; row += at_once) {
    take_rows(gathers, std::min(at_once, rows - row), k);
    const GatherPlan& g = gathers[0].plan;
    run_gathers(gathers, k, input, input_count, static_cast<const char*>(other) + row * g.w_row * k.item,
                static_cast<char*>(output) + row * g.out_channel * k.item);
  }
  return true;
}

}  // namespace convarith::cpu
