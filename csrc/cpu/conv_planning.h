// What the plans of all passes share: tables, layout, memory, threads. Made of Problems, read by the kernels.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "conv_amx_plan.h"
#include "conv_engine.h"
#include "conv_plan.h"

namespace convarith::cpu {

constexpr int64_t kPackedBytes = int64_t{24} << 20;  // of packed weights, and of panels and sums, at a time

// What a thread's calls have released and its next calls take again: fresh pages from the system would cost more than
// what is computed in them. Bounded, and freed with the thread.
class Kept {
 public:
  struct Block {
    void* data = nullptr;
    int64_t bytes = 0;
  };
  Kept() = default;
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;
  ~Kept() {
    for (const Block& block : blocks_) std::free(block.data);
  }

  // The smallest that has room, unless it is far too large; or an empty one.
  Block take(int64_t bytes) {
    Block* best = nullptr;
    for (Block& block : blocks_) {
      if (block.bytes >= bytes && block.bytes / 4 <= bytes && (best == nullptr || block.bytes < best->bytes)) {
        best = &block;
      }
    }
    return best == nullptr ? Block{} : std::exchange(*best, {});
  }

  // In place of the smallest.
  void keep(Block block) {
    Block* least = &blocks_[0];
    int64_t total = block.bytes;
    for (Block& other : blocks_) {
      if (other.bytes < least->bytes) least = &other;
      total += other.bytes;
    }
    if (block.bytes > least->bytes && total - least->bytes <= kMost) std::swap(block, *least);
    std::free(block.data);
  }

 private:
  static constexpr int64_t kMost = int64_t{32} << 20;
  std::array<Block, 4> blocks_ = {};
};

// Memory for the length of one call.
class Buffer {
 public:
  explicit Buffer(int64_t bytes) {
    bytes = (std::max<int64_t>(bytes, 1) + 63) / 64 * 64;
    block_ = kept().take(bytes);
    if (block_.data == nullptr) block_ = {std::aligned_alloc(64, bytes), bytes};
    TORCH_CHECK(block_.data, "out of memory: ", bytes, " bytes of scratch");
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { kept().keep(block_); }
  char* get() const { return static_cast<char*>(block_.data); }

 private:
  static Kept& kept() {
    thread_local Kept kept;
    return kept;
  }

  Kept::Block block_;
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

inline int64_t aligned(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

// A pitch that is a multiple of 4 KB puts all rows into the same lines of the first cache.
inline int64_t spread(int64_t elements, const ConvKernels& k) {
  const int64_t rounded = (elements + k.lanes - 1) / k.lanes * k.lanes;
  return rounded * k.sum_item % 4096 == 0 ? rounded + k.lanes : rounded;
}

inline int64_t parts(int64_t size, int64_t part) {
  return (size + part - 1) / part;
}

// As equal parts as can be, none larger than `part`.
inline int64_t even_part(int64_t size, int64_t part) {
  return parts(size, parts(size, std::max<int64_t>(1, std::min(size, part))));
}

// Half of what the costs were measured with: as with AVX2 and SSE.
inline bool few_registers(const ConvKernels& k) {
  return k.outer_vectors < 3;
}

// Rows of packed weights, as the kernels round them up.
inline int64_t padded_rows(const GatherPlan& g, const ConvKernels& k) {
  return g.outer ? parts(g.rows, k.lanes) * k.lanes : g.rows;
}

inline int64_t packed_size(const GatherPlan& g, const ConvKernels& k) {
  return g.groups * padded_rows(g, k) * g.channels * g.taps;
}

inline int64_t row_blocks(const GatherPlan& g, const ConvKernels& k) {
  return parts(padded_rows(g, k), g.outer ? k.outer_vectors * k.lanes : k.row_block);
}

// Whether sums may go from registers to where they belong, as they are.
inline bool stores_directly(const GatherPlan& g, const ConvKernels& k) {
  return g.out_axis[2] == 1 && !g.fills && k.item == k.sum_item;
}

inline int64_t box_count(const GatherPlan& g) {
  return g.boxes[0] * g.boxes[1] * g.boxes[2] * g.boxes[3];
}

inline int64_t gather_macs(const GatherPlan& g) {
  const int64_t products = g.batch * g.groups * g.rows * g.channels * g.taps * g.grid[0] * g.grid[1] * g.grid[2];
  if (g.pair_apart == 0) return products;
  return 2 * products - (g.pair_alone ? products / g.pair_apart : 0);
}

// Of an array that is cut into boxes: its entries in the boxes before box `index`.
template <int kBoxAxes>
int64_t entries_before(const int64_t (&boxes)[kBoxAxes], const int64_t (&box)[kBoxAxes],
                       const int64_t (&extent)[kBoxAxes], int64_t index) {
  int64_t before = 0, inner = 1;  // inner: entries along the axes that are done
  for (int i = kBoxAxes - 1; i >= 0; --i) {
    const int64_t at = i > 0 ? index % boxes[i] : index, begin = std::min(at * box[i], extent[i]);
    before = begin * inner + std::min(box[i], extent[i] - begin) * before;
    inner *= extent[i];
    index /= boxes[i];
  }
  return before;
}

inline int64_t thread_count() {
  return at::in_parallel_region() ? 1 : std::max(1, at::get_num_threads());
}

// One task per thread's share; work too small for a second thread stays on this one.
template <typename Body>
void parallel(int64_t tasks, int64_t macs, const Body& body) {
  constexpr int64_t kWorthAThread = 1 << 17;
  const int64_t share = std::max<int64_t>(1, macs / std::max<int64_t>(1, tasks));
  at::parallel_for(0, tasks, std::max<int64_t>(1, kWorthAThread / share), body);
}

// The algorithm that a test forces, or none.
std::optional<Algorithm> wanted_algorithm();

// One way to compute a pass of a problem: what it would cost, and the doing of it. Each family makes its own, or none
// where it cannot; choose() in conv_engine.cpp takes the one that costs least.
struct Plan {
  virtual ~Plan() = default;
  virtual Explanation explain() const = 0;
  // By the cost model, of those that are chosen by it.
  virtual double cycles() const { return 0; }
  // Has run() add a bias to every channel of the result; false where it cannot.
  virtual bool add_bias(const void*) { return false; }
  // Whether the weights that run() was given, or made, are finite; none, before and after, where it does not find out.
  virtual std::optional<bool> finite_weights() const { return std::nullopt; }
  // Of the weight's gradient, whether zeros that x and y do not have are multiplied where the problem pads, or does
  // not.
  virtual bool multiplies_zeros(bool /*pads*/) const { return true; }
  // As run_fast() in conv_engine.h. A plan runs once.
  virtual void run(const void* input, int64_t input_count, const void* other, int64_t other_count, void* output) = 0;
};
using PlanPtr = std::unique_ptr<Plan>;

// Gathers -----------------------------------------------------------------------------------------------------------

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
Gather forward_gather(const Problem& p, bool all_taps);

// Whether conv_transpose has so few phases that each may have a gather.
bool few_phases(const Problem& p, int64_t most = 1024);

// The weight's gradient with x taken for y, and y for x, which where a kernel of 1 moves over all of x is the same.
inline Problem swap_sides(Problem p) {
  std::swap(p.in_channels, p.out_channels);
  std::swap(p.x, p.y);
  std::swap(p.w.batch, p.w.channel);
  return p;
}

// The gathers of conv or conv_transpose as they are, before they are blocked.
std::vector<Gather> plain_gathers(const Problem& p, bool transposed);

// Of phases, the one with most taps.
size_t deepest_of(const std::vector<Gather>& gathers);

// Where products are made of pairs (GatherPlan): of an axis, as `box`, or 4, the channels; and which of the outputs'
// axes leaves fewest alone.
void make_pairs(GatherPlan& g, int64_t axis);
int64_t pair_axis_of(const GatherPlan& g);

struct Blocking {
  bool compact;
  bool outer;
  bool direct;
  int64_t pixels;                   // of a box, about
  int64_t share = INT64_MAX;        // of a box where less, so that every thread has some
  int64_t depth;                    // channels * taps of a tile, about
  double cycles;                    // of an output, by the cost model
  int64_t tile = int64_t{1} << 20;  // bytes, at most, where there are channels to leave for another
  bool may_be_raw;                  // the input may be read where it stands
  bool shares_margins;              // zeros beside a row or below an image are those of the next one, too
  bool may_be_inner;                // channels may be a tile's innermost axis, which of the outer product they may, too
  bool without_tile;                // outputs are all that is laid out
  bool without_offsets;             // of a tile's channels, but for those of the first one
  // What a tile has to show, and to how many outputs; otherwise the gather's own.
  const std::vector<std::array<int64_t, 3>>* seen = nullptr;
  const int64_t* tile_grid = nullptr;
};

// Boxes, tile, offsets. False where the tile would be too large.
bool lay_out(Gather& gather, const Blocking& blocking, const ConvKernels& k);

// The gathers of conv or conv_transpose; empty where they cannot do it.
std::vector<Gather> gathers_of(const Problem& p, Pass pass, const ConvKernels& k);

// The cost model ----------------------------------------------------------------------------------------------------

// Costs are cycles of one thread, and do not depend on how many there are. A product of two vectors takes half of one,
// which is what the registers allow; what is measured is kMeasuredCycles times as long. benchmarks/run.py --choices
// compares what is chosen by them with what is fastest.
constexpr double kMeasuredCycles = 1.5;

// Of a vector of inputs that are copied or packed: they come from memory.
constexpr double kCopyCycles = 13;

// Of a vector of weights, to be packed or, of a gradient, to be stored; and at least of a line of them where they
// outgrow the second cache, at the memory's pace.
constexpr double kWeightCycles = 17, kFarWeightCycles = 40;
constexpr int64_t kFarWeights = 4 << 20;  // bytes

inline double weight_vector_cycles(int64_t weights, const ConvKernels& k) {
  return static_cast<double>(weights) / static_cast<double>(k.lanes) * kWeightCycles;
}
// What weights take longer that are far.
inline double far_weight_cycles(int64_t weights, const ConvKernels& k) {
  if (weights * k.item <= kFarWeights) return 0;
  const double lines = static_cast<double>(weights * k.item) / 64;
  return std::max(0., lines * kFarWeightCycles - weight_vector_cycles(weights, k));
}

// What the direct kernels would cost: gathers, or the weight's gradient by dots or outer products. Infinity where they
// cannot.
double gather_cycles(const Problem& p, Pass pass, const ConvKernels& k);
double weight_cycles(const Problem& p, const ConvKernels& k);

// What a family has to beat: the cheapest so far, and at first the direct kernels, whose cost is found out where they
// have a rival.
struct Cheapest {
  const Problem& p;
  const Pass pass;
  const ConvKernels& k;
  double cycles = -1;

  // By whatever is forced, too.
  bool beaten_by(double other) {
    if (wanted_algorithm()) return true;
    if (cycles < 0) cycles = pass == Pass::kWeight ? weight_cycles(p, k) : gather_cycles(p, pass, k);
    return other < cycles;
  }
};

// Lines of AMX, with the tables that they point to.
struct Lines {
  AmxLines plan = {};
  std::vector<LinePart> part;
  std::vector<int32_t> first;
  std::vector<int64_t> weight;

  void point() {
    plan.part = part.data();
    plan.first = first.data();
    plan.weight = weight.data();
  }
};
Lines lines_of(const Gather& gather);
// How many parts they would have.
int64_t line_parts(const Gather& gather);

// The families ------------------------------------------------------------------------------------------------------

// May run many times, also at once, by at most so many threads.
PlanPtr plan_gathers(std::vector<Gather> gathers, const ConvKernels& k, int64_t threads = thread_count());
PlanPtr plan_weight(const Problem& p, const ConvKernels& k);

// Where it can, the fastest.
PlanPtr plan_depthwise(const Problem& p, Pass pass, const ConvKernels& k);

// Where they are cheaper.
PlanPtr plan_scatter(const Problem& p, Pass pass, const ConvKernels& k, Cheapest& cheapest);
PlanPtr plan_images(const Problem& p, Pass pass, const ConvKernels& k, Cheapest& cheapest);
PlanPtr plan_amx(const Problem& p, Pass pass, const ConvKernels& k, Cheapest& cheapest);
PlanPtr plan_amx_weight(const Problem& p, Pass pass, const ConvKernels& k, Cheapest& cheapest);
PlanPtr plan_winograd(const Problem& p, Pass pass, const ConvKernels& k, Cheapest& cheapest);

}  // namespace convarith::cpu
