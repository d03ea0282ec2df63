// Winograd: which convolutions it serves, its plan and its run.
#include <atomic>

#include "../simplify.h"
#include "conv_planning.h"

namespace convarith::cpu {
namespace {

struct Winograd : Plan {
  explicit Winograd(const ConvKernels& kernels) : k(kernels) {}
  Explanation explain() const override;
  double cycles() const override { return cost; }
  std::optional<bool> finite_weights() const override { return finite; }
  bool add_bias(const void* bias) override {
    plan.bias = bias;
    return true;
  }
  void run(const void* in, int64_t in_count, const void* w, int64_t w_count, void* out) override;

  const ConvKernels& k;
  WinogradPlan plan = {};
  std::vector<ResidueTaps> taps_of;
  double cost = 0;
  std::atomic<bool> finite{true};
};

int64_t chunks(const WinogradPlan& p) {
  return parts(p.in.lanes, kWinogradChunk);
}

int64_t panels(const WinogradPlan& p) {
  return parts(p.out.lanes, kWinogradPanel);
}

int64_t box_count(const WinogradPlan& p) {
  return p.boxes[0] * p.boxes[1] * p.boxes[2];
}

int64_t tile_count(const WinogradPlan& p) {
  return p.images * parts(p.cells[0], p.outputs[0]) * parts(p.cells[1], p.outputs[1]);
}

int64_t residues_of(const WinogradSide& s) {
  return s.residues[0] * s.residues[1] * s.residues[2];
}

// Products of a tile between all lanes of both sides.
int64_t lane_products(const WinogradPlan& p) {
  int64_t products = p.in.lanes * p.out.lanes;
  for (int i = 0; i < 2; ++i) {
    int64_t residues = 1, of_axis = 1;
    for (const WinogradSide* s : {&p.in, &p.out}) {
      residues *= s->residues[i + 1];
      of_axis *= (p.tile[i] - 1) * s->residues[i + 1] + s->full[i];
    }
    products = products / residues * (of_axis / p.tile[i]);
  }
  return products;
}

int64_t multiplications(const WinogradPlan& p) {
  return p.groups * tile_count(p) * lane_products(p);
}

Explanation Winograd::explain() const {
  return {Algorithm::kWinograd, thread_count() * plan.scratch, plan.out.residues[1] * plan.out.residues[2],
          multiplications(plan)};
}

// A thread transforms all that it multiplies: to read what another one wrote, and to write it again in the next call,
// takes longer than the transforms.
void Winograd::run(const void* in, int64_t, const void* w, int64_t, void* out) {
  parallel(box_count(plan) * plan.groups * plan.row_shares, multiplications(plan), [&](int64_t begin, int64_t end) {
    const Buffer mine(plan.scratch);
    if (!k.winograd(plan, in, w, out, mine.get(), begin, end)) finite = false;
  });
}

struct WinogradGradient : Plan {
  explicit WinogradGradient(const ConvKernels& kernels) : k(kernels) {}
  Explanation explain() const override;
  double cycles() const override { return cost; }
  std::optional<bool> finite_weights() const override { return finite; }
  void run(const void* x, int64_t x_count, const void* y, int64_t y_count, void* w) override;

  const ConvKernels& k;
  WinogradPlan plan = {};
  std::vector<ResidueTaps> taps_of;
  double cost = 0;
  std::atomic<bool> finite{true};
};

int64_t gradient_tasks(const WinogradPlan& p) {
  return p.shares * p.groups * p.out_blocks * p.in_blocks;
}

// Bytes of the shares' own gradients.
int64_t share_bytes(const WinogradPlan& p) {
  return p.shares * p.w_count * int64_t{sizeof(float)};
}

int64_t gradient_bytes(const WinogradPlan& p) {
  return p.shares > 1 ? share_bytes(p) : 0;
}

Explanation WinogradGradient::explain() const {
  return {Algorithm::kWinograd, gradient_bytes(plan) + plan.workers * plan.scratch, 1, multiplications(plan)};
}

// As above; only the shares' gradients are written by one thread and read by another.
void WinogradGradient::run(const void* x, int64_t, const void* y, int64_t, void* w) {
  const Buffer buffer(gradient_bytes(plan));
  float* gradients = reinterpret_cast<float*>(buffer.get());
  const int64_t tasks = gradient_tasks(plan);
  at::parallel_for(0, tasks, parts(tasks, plan.workers), [&](int64_t begin, int64_t end) {
    const Buffer mine(plan.scratch);
    if (!k.winograd_gradient(plan, x, y, gradients, w, mine.get(), begin, end)) finite = false;
  });
  if (plan.shares == 1) return;
  parallel(plan.w_count, plan.w_count * plan.shares,
           [&](int64_t begin, int64_t end) { k.winograd_add_shares(plan, gradients, w, begin, end); });
}

WinogradSide side(const Strides& s, int64_t channels) {
  WinogradSide r = {};
  r.channels = channels;
  r.batch = s.batch;
  r.group = channels * s.channel;
  r.channel = s.channel;
  for (int i = 0; i < kAxes; ++i) {
    r.step[i] = r.residues[i] = r.apart[i] = 1;
    r.axis[i] = s.axis[i];
  }
  for (int i = 0; i < 2; ++i) r.kernel_parts[i] = 1;
  return r;
}

// A kernel along z takes y's place where nothing is along y.
Problem with_kernel_in_plane(Problem p) {
  if (p.axis[0].kernel == 1 || !is_pointwise(p.axis[1]) || p.axis[1].input > 1) return p;
  std::swap(p.axis[0], p.axis[1]);
  std::swap(p.output[0], p.output[1]);
  for (Strides* s : {&p.x, &p.y, &p.w}) std::swap(s->axis[0], s->axis[1]);
  return p;
}

constexpr int64_t kMostParts = 9;  // of a kernel along all axes, and taps along z

// The two sides, the taps and where their weights stand. False where there is no such algorithm.
bool describe(const Problem& p, Pass pass, const ConvKernels& k, WinogradPlan& plan,
              std::vector<ResidueTaps>& taps_of) {
  const Axis& planes = p.axis[0];
  if (planes.stride != 1 || p.axis[1].stride * p.axis[2].stride > 16) return false;
  const bool transposed = pass == Pass::kInput;
  WinogradSide x = side(p.x, p.in_channels), y = side(p.y, p.out_channels);
  WinogradSide& summed = transposed ? y : x;
  for (int i = 0; i < 2; ++i) {
    const int64_t taps = parts(p.axis[i + 1].kernel, p.axis[i + 1].stride);
    summed.kernel_parts[i] = parts(taps, kWinogradTaps);
    plan.taps[i] = parts(taps, summed.kernel_parts[i]);
  }
  summed.residues[0] = planes.kernel * summed.kernel_parts[0] * summed.kernel_parts[1];
  if (plan.taps[0] * plan.taps[1] == 1 || summed.residues[0] > kMostParts) return false;

  plan.groups = p.groups;
  plan.images = p.batch;
  plan.planes = transposed ? planes.input : p.output[0];
  x.first[0] = -planes.lo;
  x.extent[0] = planes.input;
  y.extent[0] = p.output[0];
  for (int i = 1; i < kAxes; ++i) {
    const Axis& a = p.axis[i];
    if (a.stride > 1 && a.dilation > 1) return false;
    x.step[i] = a.stride * a.dilation;
    y.step[i] = a.dilation;
    x.residues[i] = a.stride;
    plan.phases[i - 1] = a.dilation;
    x.first[i] = -a.lo;
    x.extent[i] = a.input;
    y.extent[i] = p.output[i];
    plan.cells[i - 1] = parts(p.output[i], a.dilation);
    if (transposed) {  // cell j of x is made by cells j - taps + 1 to j of y
      const int64_t first = floor_div(a.lo, x.step[i]);
      plan.cells[i - 1] = floor_div(a.input - 1 + a.lo, x.step[i]) + 1 - first;
      x.first[i] += first * x.step[i];
      y.first[i] = (first - plan.taps[i - 1] + 1) * y.step[i];
    }
    summed.part_apart[i - 1] = plan.taps[i - 1] * (transposed ? -y.step[i] : x.step[i]);
  }
  plan.images *= plan.planes * plan.phases[0] * plan.phases[1];
  summed.apart[0] = planes.dilation;
  if (transposed) {  // plane z of x is made by planes z + lo - tap * dilation of y
    x.first[0] = 0;
    y.first[0] = planes.lo;
    y.apart[0] = -planes.dilation;
  }
  for (WinogradSide* s : {&x, &y}) {
    const int64_t residues = residues_of(*s);
    s->lanes = s->channels * residues;
    s->block = residues == 1 || s->channels % k.lanes == 0 ? k.lanes : 1;
    for (int i = 0; i < 2; ++i) {
      const Axis& a = p.axis[i + 1];
      const bool all = s->residues[i + 1] == 1 || s->block == 1 || summed.kernel_parts[i] > 1;
      s->full[i] = all ? s->residues[i + 1] : a.kernel - (plan.taps[i] - 1) * a.stride;
    }
  }
  plan.in = transposed ? y : x;
  plan.out = transposed ? x : y;
  plan.w_group = p.out_channels * p.w.batch;
  plan.w_out = transposed ? p.w.channel : p.w.batch;
  plan.w_in = transposed ? p.w.batch : p.w.channel;
  plan.kernel = p.kernel_numel();
  plan.w_count = p.groups * p.out_channels * p.in_channels * plan.kernel;
  plan.w_tap = p.w.axis[2];
  const int64_t row = p.axis[2].kernel * plan.w_tap;
  plan.whole_kernel = plan.w_tap > 0 && (p.axis[1].kernel == 1 || p.w.axis[1] == row) &&
                      (planes.kernel == 1 || p.w.axis[0] == p.axis[1].kernel * row);
  if (!plan.whole_kernel) plan.w_tap = 1;
  plan.kernels_follow = plan.w_in == (plan.w_tap == 1 ? plan.kernel : 1);
  // Where a chunk has all residues of its channels.
  plan.stores_kernels = plan.whole_kernel && (plan.w_out == 1 || plan.kernels_follow) &&
                        (residues_of(plan.in) == 1 || kWinogradChunk % (residues_of(plan.in) * plan.in.block) == 0);
  plan.chunk_taps = plan.stores_kernels ? kWinogradChunk / residues_of(plan.in) * plan.kernel : 0;
  // Of both sides' residues, the first ones are the summed side's, and the others x's.
  for (int64_t residue = 0; residue < summed.residues[0] * x.residues[1] * x.residues[2]; ++residue) {
    const int64_t first[2] = {residue / x.residues[2] % x.residues[1], residue % x.residues[2]};
    const int64_t r0 = residue / x.residues[2] / x.residues[1], r1 = r0 / summed.kernel_parts[1];
    const int64_t part[2] = {r1 % summed.kernel_parts[0], r0 % summed.kernel_parts[1]};
    ResidueTaps taps = {{}, 0, 0, true};
    for (int64_t t = 0; t < plan.taps[0] * plan.taps[1]; ++t) {
      int64_t tap[2] = {t / plan.taps[1], t % plan.taps[1]};
      int64_t at = r1 / summed.kernel_parts[0] * p.w.axis[0];
      bool real = true;
      for (int i = 0; i < 2; ++i) {
        if (transposed) tap[i] = plan.taps[i] - 1 - tap[i];
        tap[i] = (part[i] * plan.taps[i] + tap[i]) * x.residues[i + 1] + first[i];
        real = real && tap[i] < p.axis[i + 1].kernel;
        at += tap[i] * p.w.axis[i + 1];
      }
      taps.at[t] = real ? static_cast<int32_t>(at / plan.w_tap) : -1;
      taps.all = taps.all && real;
    }
    if (plan.taps[0] > 1) taps.row = taps.at[plan.taps[1]] - taps.at[0];
    if (plan.taps[1] > 1) taps.column = taps.at[1] - taps.at[0];
    taps_of.push_back(taps);
  }
  return true;
}

constexpr int64_t kMostPhaseProducts = 4608;  // of a box with a tile of every phase: about kBoxProducts

// Boxes of about `most` tiles at most: whole images, or whole rows of tiles, or parts of a row; of all phases along x,
// whose elements take turns there, where those are not too many.
void set_boxes(WinogradPlan& p, int64_t most) {
  const int64_t rows = parts(p.cells[0], p.outputs[0]), columns = parts(p.cells[1], p.outputs[1]);
  const int64_t phases = p.phases[1] * p.products <= kMostPhaseProducts ? p.phases[1] : 1;
  most = std::max<int64_t>(1, most / phases);
  p.box[2] = even_part(columns, most);
  p.box[1] = p.box[2] < columns ? 1 : even_part(rows, most / columns);
  const bool whole = p.box[1] == rows && p.box[2] == columns;
  p.box[0] = phases * (whole ? even_part(p.images / phases, most / (rows * columns)) : 1);
  p.boxes[0] = parts(p.images, p.box[0]);
  p.boxes[1] = parts(rows, p.box[1]);
  p.boxes[2] = parts(columns, p.box[2]);
  p.box_tiles = p.box[0] * p.box[1] * p.box[2];
  p.chunk_size = p.products * (p.box_tiles * kWinogradChunk + kWinogradApart);
}

// What takes turns: residues that a chunk or panel has all of, and phases that a box has all of. And the scratch of a
// thread where the transforms load and store cells.
void lay_out_cells(WinogradPlan& p, const ConvKernels& k) {
  int64_t cells = 1, width = 0;
  for (int i = 0; i < 2; ++i) {
    WinogradSide& s = i == 0 ? p.in : p.out;
    const int64_t lanes = i == 0 ? kWinogradChunk : kWinogradPanel;
    const bool whole = s.residues[2] == 1 || lanes % (s.residues[2] * s.block) == 0;
    s.turns = s.block > 1 && whole && p.box[0] % p.phases[1] == 0 ? s.step[2] : 1;
    width = p.box[i + 1] * p.outputs[i] + p.tile[i];
    cells *= width;
  }
  width *= std::max(p.in.turns, p.out.turns);
  cells = std::max(cells * std::max(p.in.turns, p.out.turns), kWinogradChunk * p.kernel);
  p.at_cells = 0;
  p.at_line = p.at_cells + aligned(cells * k.lanes * 4);
  p.at_products = p.at_line + aligned(width * k.lanes * 4);
}

// Bytes of a box's products of `lanes` lanes.
int64_t box_bytes(const WinogradPlan& p, int64_t lanes) {
  return p.products * (p.box_tiles * lanes + kWinogradApart) * 4;
}

// The cost model, in cycles of one thread as measured with 16 lanes, of some tiles between some lanes: products;
// transforms of the tiles of both sides, and loads or stores of their cells, which cost more where they take turns and
// much more where lanes are not neighbouring channels; transforms of the weights.
double cycles(const WinogradPlan& p, int64_t tiles, int64_t in, int64_t out, const ConvKernels& k) {
  // Kernels are read once for all residues of a chunk and of a panel; a part that lacks taps is copied.
  const auto reads_of = [](const WinogradSide& s, int64_t lanes) {
    const int64_t reads = parts(residues_of(s) * s.block, lanes);
    return s.kernel_parts[0] * s.kernel_parts[1] > 1 ? 2 * reads : reads;
  };
  const int64_t reads = reads_of(p.in, kWinogradChunk) * reads_of(p.out, kWinogradPanel);
  const auto vectors = [&](int64_t lanes) { return static_cast<double>(parts(lanes, k.lanes)); };
  const int64_t outputs = p.outputs[0] * p.outputs[1];
  // A square's rows do not stay in registers where these are few.
  const double transform = (p.tile[0] > 1 && p.tile[1] > 1 ? 8 : 5) * (few_registers(k) ? 1.25 : 1);
  const auto tile_cycles = [&](const WinogradSide& s, int64_t lanes) {
    const double cell = s.block == 1 ? 3 : s.step[2] > 1 ? 0.5 : 0.2;
    return transform * static_cast<double>(p.products) * vectors(lanes) + cell * static_cast<double>(outputs * lanes);
  };
  const double pairs = static_cast<double>(in) * vectors(out);
  const double products = static_cast<double>(lane_products(p)) / static_cast<double>(p.in.lanes * p.out.lanes);
  return static_cast<double>(tiles) * (0.54 * products * pairs + tile_cycles(p.in, in) + tile_cycles(p.out, out)) +
         static_cast<double>(3 * p.products + 10 * reads * p.taps[0] * p.taps[1]) * pairs;
}

// The tile that costs least: along both axes the same where they do not differ.
void choose_tile(WinogradPlan& p, Pass pass, const ConvKernels& k) {
  const bool alike = p.taps[0] == p.taps[1] && p.cells[0] == p.cells[1];
  const auto smallest = [&](int i) { return p.taps[i] == 1 ? 1 : std::max(kWinogradTiles[0], p.taps[i] + 1); };
  const auto largest = [&](int i) { return p.taps[i] == 1 ? 1 : kWinogradTiles[1]; };
  double best = 0;
  for (int64_t y = smallest(0); y <= largest(0); ++y) {
    for (int64_t x = alike ? y : smallest(1); x <= (alike ? y : largest(1)); ++x) {
      WinogradPlan tried = p;
      tried.products = y * x;
      for (int i = 0; i < 2; ++i) {
        tried.tile[i] = i == 0 ? y : x;
        tried.outputs[i] = tried.tile[i] + 1 - p.taps[i];
        // Only the last tap makes the product at infinity, only the first that at 0; a transposed convolution turns
        // kernels.
        tried.missing[i] = pass == Pass::kInput ? 0 : tried.tile[i] - 1;
      }
      const double cost = cycles(tried, tile_count(tried), p.in.lanes, p.out.lanes, k);
      if (best > 0 && cost >= best) continue;
      p = tried;
      best = cost;
    }
  }
}

// Beside products of pairs, whose other costs weigh more than the model says where both sides have many lanes; half
// precisions of lanes that are not neighbours have a longer way.
double beside_pairs(const WinogradPlan& p, const ConvKernels& k) {
  const bool square = p.tile[0] > 1 && p.tile[1] > 1;
  if (square && std::min(p.in.lanes, p.out.lanes) >= 2 * k.lanes) return 0.95;
  return p.out.channel == 1 ? 1 : 1.15;
}

// Of everything. A gradient's elements have a longer way back, the longest where each is stored by itself, and threads
// wait, and add shares.
double all_cycles(const WinogradPlan& p, Pass pass, const ConvKernels& k) {
  const auto groups = static_cast<double>(p.groups);
  double cost = groups * cycles(p, tile_count(p), p.in.lanes, p.out.lanes, k) + far_weight_cycles(p.w_count, k);
  if (pass == Pass::kWeight) {
    cost += 2.7 * groups * static_cast<double>(p.products * p.in.lanes * parts(p.out.lanes, k.lanes)) + 120'000;
    if (!p.stores_kernels) cost += 4 * static_cast<double>(p.w_count);
  } else if (k.pairs) {
    cost *= beside_pairs(p, k);
  }
  return cost;
}

constexpr int64_t kFewLanes = 8;  // too few to fill the transforms

bool suits(const WinogradPlan& p, Pass pass) {
  if (p.out.lanes <= kFewLanes && (pass != Pass::kInput || p.in.lanes <= kFewLanes)) return false;
  return pass != Pass::kOutput || p.in.lanes > kFewLanes;
}

constexpr int64_t kBoxProducts = 4032;  // of a box's tiles; those for a panel fill less than half of the second cache
constexpr int64_t kFewTiles = 24;       // of a box, to be worth its reading of the weights
constexpr int64_t kFewUses = 3;  // of a thread's weights, which are transformed again sooner than read from memory
constexpr int64_t kMostScratch = int64_t{64} << 20;

// Boxes of at most `most` tiles that threads share evenly; false where there are none.
bool set_even_boxes(WinogradPlan& p, int64_t most, int64_t threads) {
  const int64_t tiles = tile_count(p);
  for (int64_t count = parts(tiles, most); parts(tiles, count) >= kFewTiles; ++count) {
    set_boxes(p, parts(tiles, count));
    const int64_t tasks = box_count(p) * p.groups;
    if (tasks >= threads && 16 * parts(tasks, threads) * p.box_tiles * threads <= 17 * tiles * p.groups) return true;
  }
  return false;
}

PlanPtr plan_products(const WinogradPlan& described, std::vector<ResidueTaps> taps_of, double cost,
                      const ConvKernels& k) {
  auto made = std::make_unique<Winograd>(k);
  made->cost = cost;
  made->taps_of = std::move(taps_of);
  WinogradPlan& plan = made->plan;
  plan = described;
  plan.taps_of = made->taps_of.data();
  // Enough boxes for every thread, where panels are few; and transformed inputs of two boxes a thread at most.
  const int64_t threads = thread_count(), shares = parts(2 * threads, plan.groups * panels(plan));
  const int64_t tile_bytes = plan.products * kWinogradChunk * chunks(plan) * 4;
  const int64_t most_tiles = kBoxProducts / plan.products;
  const int64_t room = std::clamp<int64_t>((int64_t{40} << 20) / (2 * threads * tile_bytes), 1, most_tiles);
  plan.row_shares = 1;
  if (threads == 1) {
    set_boxes(plan, room);
  } else if (plan.groups * tile_count(plan) <= most_tiles || !set_even_boxes(plan, room, threads)) {
    set_boxes(plan, std::min(room, std::max<int64_t>(parts(tile_count(plan), shares), 16)));
    plan.row_shares = std::clamp<int64_t>(parts(2 * threads, box_count(plan) * plan.groups), 1, panels(plan));
  }
  // Weights are kept for a thread's next boxes, where they are not too large to be read again and again.
  const int64_t block = plan.products * kWinogradWeights * 4, blocks = plan.groups * panels(plan) * chunks(plan);
  plan.keeps_weights = box_count(plan) > kFewUses * threads && threads * blocks * block <= kPackedBytes;
  lay_out_cells(plan, k);
  plan.at_weights = plan.at_products + aligned(box_bytes(plan, kWinogradPanel));
  plan.at_inputs = plan.at_weights + aligned((plan.keeps_weights ? blocks : 1) * block);
  plan.scratch = plan.at_inputs + aligned(chunks(plan) * plan.chunk_size * 4);
  return made->explain().scratch <= kMostScratch ? PlanPtr(std::move(made)) : nullptr;
}

constexpr int64_t kGradientProducts = 6144;  // of a box's tiles, to be worth their transform back to the gradient
constexpr int64_t kShareProducts = 9216;     // and a gradient of their own
constexpr int64_t kMostShares = 16;
constexpr int64_t kShareBytes = int64_t{8} << 20;      // of all shares' gradients
constexpr int64_t kThreadBytes = int64_t{16} << 20;    // of a thread's scratch
constexpr int64_t kThreadProducts = int64_t{1} << 18;  // to be worth a thread

// Tiles of the boxes before box `index`.
int64_t tiles_before(const WinogradPlan& p, int64_t index) {
  const int64_t extent[3] = {p.images, parts(p.cells[0], p.outputs[0]), parts(p.cells[1], p.outputs[1])};
  return entries_before(p.boxes, p.box, extent, index);
}

constexpr int64_t kBoxTiles = 5;  // that take as long as the transform back to the gradient, for each box
constexpr int64_t kBoxesTried = 8;

// Boxes of kGradientProducts at most, such that the shares have about as many tiles.
void set_boxes_of_shares(WinogradPlan& p) {
  const int64_t most = std::min(parts(tile_count(p), p.shares), kGradientProducts / p.products),
                step = parts(most, 3 * kBoxesTried);
  int64_t best = 0, best_size = most;
  for (int64_t size = most; 3 * size > 2 * most; size -= step) {
    set_boxes(p, size);
    const int64_t boxes = box_count(p);
    int64_t longest = 0;
    for (int64_t share = 0; share < p.shares; ++share) {
      const int64_t begin = share * boxes / p.shares, end = (share + 1) * boxes / p.shares;
      longest = std::max(longest, tiles_before(p, end) - tiles_before(p, begin) + kBoxTiles * (end - begin));
    }
    if (size < most && longest >= best) continue;
    best = longest;
    best_size = size;
  }
  set_boxes(p, best_size);
}

// Sums over the tiles are split at boxes and shares, which must not depend on the number of threads. Blocks of chunks
// and panels may: each repeats the other side's transforms.
PlanPtr plan_gradient(const WinogradPlan& described, std::vector<ResidueTaps> taps_of, double cost,
                      const ConvKernels& k) {
  auto made = std::make_unique<WinogradGradient>(k);
  made->cost = cost;
  made->taps_of = std::move(taps_of);
  WinogradPlan& plan = made->plan;
  plan = described;
  plan.taps_of = made->taps_of.data();
  const int64_t tiles = tile_count(plan);
  for (plan.shares = 1; 2 * plan.shares * kShareProducts <= tiles * plan.products; plan.shares *= 2) {
    if (2 * plan.shares * plan.groups > kMostShares || 2 * share_bytes(plan) > kShareBytes) break;
  }
  set_boxes_of_shares(plan);
  plan.shares = std::min(plan.shares, box_count(plan));
  lay_out_cells(plan, k);
  const int64_t threads = std::min(thread_count(), parts(multiplications(plan), kThreadProducts));
  WinogradPlan best = {};
  double best_cycles = 0;
  for (plan.in_blocks = 1; plan.in_blocks <= chunks(plan); plan.in_blocks *= 2) {
    for (plan.out_blocks = 1; plan.out_blocks <= panels(plan); plan.out_blocks *= 2) {
      const int64_t in = parts(chunks(plan), plan.in_blocks), out = parts(panels(plan), plan.out_blocks);
      const int64_t sums = plan.shares < box_count(plan) ? in * out : 0;
      plan.at_sums = plan.at_products + aligned(plan.products * kWinogradWeights * 4);
      plan.at_kernels =
          plan.at_sums + aligned(sums * kWinogradChunk * kWinogradPanel * plan.taps[0] * plan.taps[1] * 4);
      plan.at_inputs = plan.at_kernels + aligned(plan.chunk_taps * kWinogradPanel * 4);
      plan.at_outputs = plan.at_inputs + aligned(box_bytes(plan, kWinogradChunk));
      plan.scratch = plan.at_outputs + aligned(out * box_bytes(plan, kWinogradPanel));
      if (plan.scratch > kThreadBytes) continue;
      const int64_t tasks = gradient_tasks(plan);
      plan.workers = std::min({threads, tasks, (kMostScratch - gradient_bytes(plan)) / plan.scratch});
      const double total = static_cast<double>(parts(tasks, plan.workers)) *
                           cycles(plan, parts(tiles, plan.shares), std::min(plan.in.lanes, in * kWinogradChunk),
                                  std::min(plan.out.lanes, out * kWinogradPanel), k);
      if (best.workers > 0 && total >= best_cycles) continue;
      best = plan;
      best_cycles = total;
    }
  }
  plan = best;
  return plan.workers > 0 ? PlanPtr(std::move(made)) : nullptr;
}

}  // namespace

PlanPtr plan_winograd(const Problem& problem, Pass pass, const ConvKernels& k, Cheapest& cheapest) {
  const auto wanted = wanted_algorithm();
  if (k.sum_item != 4 || (wanted && *wanted != Algorithm::kWinograd) || (!wanted && !winograd_enabled())) {
    return nullptr;
  }
  WinogradPlan plan = {};
  std::vector<ResidueTaps> taps_of;
  if (!describe(with_kernel_in_plane(problem), pass, k, plan, taps_of)) return nullptr;
  choose_tile(plan, pass, k);
  const double cost = all_cycles(plan, pass, k);
  if ((!wanted && !suits(plan, pass)) || !cheapest.beaten_by(cost)) return nullptr;
  const auto make = pass == Pass::kWeight ? plan_gradient : plan_products;
  return make(plan, std::move(taps_of), cost, k);
}

}  // namespace convarith::cpu
