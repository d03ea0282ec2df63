// Lanes along the images: planes of some vectors of images are transposed to [channel][row][column][image], padded,
// and the sums transposed back. Products are then of whole vectors, however small planes are, and a stride or a phase
// is a row or column of them. The images are a gather's last axis, without taps; its first are the rows and columns.
#include <cstring>

#include "../simplify.h"
#include "conv_planning.h"

namespace convarith::cpu {
namespace {

constexpr double kProduct = 0.57, kLatency = 4;  // cycles: of a vector's product, and until another can be added to it
// Of an element that is transposed: in the second cache, or from and to where images drive each other out of the first
// one, or memory.
constexpr double kTranspose = 0.7, kFarTranspose = 2.5;
constexpr int64_t kNear = int64_t{2} << 20;       // bytes of both sides
constexpr int64_t kTileBytes = int64_t{1} << 19;  // of a task's inputs and sums, which stay in the second cache

// Rows or columns of both sides. Cells are outputs, or, transposed, the outputs of all phases together.
struct Window {
  int64_t first, step;  // the input that cell 0 sees first, and how far from it the next cell's is
  int64_t outputs;      // of a cell
  int64_t all, cells;   // and those of a task
  int64_t inputs;       // that these see

  int64_t tasks() const { return parts(all, cells); }
  void take(int64_t count) {
    inputs += (count - cells) * step;
    cells = count;
  }
};

Window window_of(const Axis& a, int64_t outputs, bool transposed) {
  if (!transposed) {
    return {-a.lo, a.stride, 1, outputs, outputs, (outputs - 1) * a.stride + (a.kernel - 1) * a.dilation + 1};
  }
  // What a tap reads for cell 0, in the only phase that has the tap.
  const auto reads = [&](int64_t tap) { return ceil_div(a.lo - tap * a.dilation, a.stride); };
  const int64_t first = reads(a.kernel - 1), cells = parts(a.input, a.stride);
  return {first, 1, a.stride, cells, cells, cells + reads(0) - first};
}

// One side's planes.
struct Side {
  int64_t channels, rows, columns;
  int64_t batch, channel, row;  // strides
  int64_t tile_channel, tile_row;
};

Side side_of(const Strides& s, int64_t channels, int64_t rows, int64_t columns) {
  return {channels, rows, columns, s.batch, s.channel, s.axis[1], 0, 0};
}

struct Images : Plan {
  Images(const Problem& p, Pass pass, const ConvKernels& kernels);
  bool lay_out(const Problem& p);
  bool fits() const { return tile_bytes(in) + tile_bytes(out) <= kTileBytes; }
  double cycles() const override { return cost; }
  Explanation explain() const override;
  bool add_bias(const void* bias) override { return product->add_bias(bias); }
  void run(const void* x, int64_t, const void* w, int64_t, void* y) override;

  int64_t tasks() const { return parts(batch, images) * window[0].tasks(); }
  int64_t task_macs() const { return macs * window[0].cells * images; }
  int64_t tile_bytes(const Side& side) const { return side.channels * side.tile_channel * k.item; }
  double product_cycles(int64_t vectors) const;
  void set_rows(int64_t count);
  void fill(const char* x, int64_t image, int64_t cell, char* tile) const;
  void put(const char* sums, int64_t image, int64_t cell, char* y) const;

  const ConvKernels& k;
  const bool transposed;
  Side in, out;
  Window window[2];
  int64_t batch, images;  // of all, and of a task
  int64_t rows;           // of the gathers
  int64_t macs;           // of an image and a row of cells
  double cost;
  PlanPtr product;
};

Images::Images(const Problem& p, Pass pass, const ConvKernels& kernels)
    : k(kernels), transposed(pass == Pass::kInput), batch(p.batch) {
  const Side x = side_of(p.x, p.groups * p.in_channels, p.axis[1].input, p.axis[2].input);
  const Side y = side_of(p.y, p.groups * p.out_channels, p.output[1], p.output[2]);
  in = transposed ? y : x;
  out = transposed ? x : y;
  for (int i = 0; i < 2; ++i) window[i] = window_of(p.axis[i + 1], p.output[i + 1], transposed);
  rows = transposed ? p.in_channels : p.out_channels;
  // Cycles of all images' vectors, and of those that are left empty in the last task.
  const int64_t vectors = parts(batch, k.lanes);
  double least = 0;
  for (int64_t some = std::min(vectors, k.vectors); some > 0; --some) {
    const double all = product_cycles(some) * static_cast<double>(parts(vectors, some) * some);
    if (least > 0 && all >= least) continue;
    images = some * k.lanes;
    least = all;
  }
  for (int64_t count = 1;; ++count) {
    set_rows(parts(window[0].all, count));
    if (fits() || window[0].cells == 1) break;
  }
  macs = p.groups * p.in_channels * p.out_channels * p.kernel_numel() * window[1].cells;
  const Window& lines = window[0];
  const int64_t inputs = in.channels * std::min(lines.inputs, in.rows) * std::min(window[1].inputs, in.columns);
  const int64_t outputs = out.channels * lines.cells * lines.outputs * out.columns;
  const bool apart = out.batch * k.item % 4096 != 0 && in.batch * k.item % 4096 != 0;
  const bool near =
      batch * (in.channels * in.rows * in.columns + out.channels * out.rows * out.columns) * k.item <= kNear;
  const double transpose = near && apart ? kTranspose : kFarTranspose;
  const int64_t weights = p.groups * p.in_channels * p.out_channels * p.kernel_numel();
  cost = static_cast<double>(tasks()) * (product_cycles(images / k.lanes) * static_cast<double>(task_macs() / k.lanes) +
                                         transpose * static_cast<double>((inputs + outputs) * images) +
                                         0.3 * weight_vector_cycles(weights, k));  // packed by every task, from near
  // Enough tasks for every thread; after the cost, for what that decides must not depend on the threads.
  set_rows(std::min(lines.cells, parts(lines.all, parts(thread_count(), parts(batch, images)))));
}

// Of a vector, with so many of them beside it, all of which are summed by themselves.
double Images::product_cycles(int64_t vectors) const {
  return std::max(kProduct, kLatency / static_cast<double>(even_part(rows, k.row_block) * vectors));
}

void Images::set_rows(int64_t count) {
  window[0].take(count);
  in.tile_row = window[1].inputs * images;
  in.tile_channel = spread(window[0].inputs * in.tile_row, k);
  out.tile_row = window[1].cells * window[1].outputs * images;
  out.tile_channel = spread(window[0].cells * window[0].outputs * out.tile_row, k);
}

// The tile's problem: its inputs are all there, and every phase sees as many.
bool Images::lay_out(const Problem& p) {
  Problem q = p;
  q.batch = 1;
  for (int i = 0; i < 2; ++i) {
    const Axis& a = p.axis[i + 1];
    const Window& w = window[i];
    const int64_t low = transposed ? a.lo - w.first * a.stride : 0;
    q.axis[i] = {transposed ? w.cells * a.stride : w.inputs, a.kernel, a.stride, low, 0, a.dilation};
    q.output[i] = transposed ? w.inputs : w.cells;
    q.w.axis[i] = p.w.axis[i + 1];
  }
  q.axis[2] = kTrivialAxis;
  q.axis[2].input = q.output[2] = images;
  q.w.axis[2] = 0;
  (transposed ? q.y : q.x) = {0, in.tile_channel, {in.tile_row, images, 1}};
  (transposed ? q.x : q.y) = {0, out.tile_channel, {out.tile_row, images, 1}};
  std::vector<Gather> gathers = plain_gathers(q, transposed);
  Blocking b = {};
  b.direct = b.may_be_raw = true;
  b.pixels = b.depth = INT32_MAX;
  for (Gather& gather : gathers) {
    GatherPlan& g = gather.plan;
    if (!convarith::cpu::lay_out(gather, b, k) || (g.taps > 0 && !(g.direct && g.raw))) return false;
  }
  product = plan_gathers(std::move(gathers), k, 1);
  return true;
}

Explanation Images::explain() const {
  Explanation e = product->explain();
  e.algorithm = Algorithm::kImages;
  e.multiplications = macs * batch * window[0].all;
  e.scratch = std::min(thread_count(), tasks()) * (e.scratch + tile_bytes(in) + tile_bytes(out));
  return e;
}

// Calls body(row of the tile, row of the plane, rows) for those that exist, as many at a time as follow each other.
template <typename Body>
void for_rows(int64_t first, int64_t rows, int64_t extent, bool consecutive, const Body& body) {
  const int64_t begin = std::clamp<int64_t>(-first, 0, rows), end = std::clamp<int64_t>(extent - first, begin, rows);
  const int64_t some = consecutive ? end - begin : 1;
  for (int64_t y = begin; y < end; y += some) body(y, first + y, some);
}

void Images::fill(const char* x, int64_t image, int64_t cell, char* tile) const {
  const Window &rows = window[0], &columns = window[1];
  const int64_t count = std::min(images, batch - image), first = rows.first + cell * rows.step;
  const int64_t left = std::clamp<int64_t>(-columns.first, 0, columns.inputs);
  const int64_t right = std::clamp<int64_t>(in.columns - columns.first, left, columns.inputs);
  const bool whole_rows = right - left == columns.inputs, whole = first >= 0 && first + rows.inputs <= in.rows;
  if (count < images || !whole_rows || !whole) std::memset(tile, 0, tile_bytes(in));
  if (left == right) return;
  x += (image * in.batch + std::max<int64_t>(0, columns.first)) * k.item;
  for (int64_t c = 0; c < in.channels; ++c) {
    for_rows(first, rows.inputs, in.rows, whole_rows && columns.inputs == in.row,
             [&](int64_t to, int64_t y, int64_t n) {
               k.transpose(x + (c * in.channel + y * in.row) * k.item, in.batch, count, n * (right - left),
                           tile + (c * in.tile_channel + to * in.tile_row + left * images) * k.item, images);
             });
  }
}

void Images::put(const char* sums, int64_t image, int64_t cell, char* y) const {
  const Window& rows = window[0];
  const int64_t count = std::min(images, batch - image), first = cell * rows.outputs;
  const bool whole_rows = out.tile_row == out.columns * images && out.row == out.columns;
  for (int64_t c = 0; c < out.channels; ++c) {
    for_rows(first, rows.cells * rows.outputs, out.rows, whole_rows, [&](int64_t from, int64_t to, int64_t n) {
      k.transpose(sums + (c * out.tile_channel + from * out.tile_row) * k.item, images, n * out.columns, count,
                  y + (image * out.batch + c * out.channel + to * out.row) * k.item, out.batch);
    });
  }
}

void Images::run(const void* x, int64_t, const void* w, int64_t, void* y) {
  const int64_t shares = window[0].tasks();
  parallel(tasks(), task_macs() * tasks(), [&](int64_t begin, int64_t end) {
    const Buffer tile(tile_bytes(in)), sums(tile_bytes(out));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / shares * images, cell = task % shares * window[0].cells;
      fill(static_cast<const char*>(x), image, cell, tile.get());
      product->run(tile.get(), 0, w, 0, sums.get());
      put(sums.get(), image, cell, static_cast<char*>(y));
    }
  });
}

}  // namespace

PlanPtr plan_images(const Problem& p, Pass pass, const ConvKernels& k, Cheapest& cheapest) {
  const auto wanted = wanted_algorithm();
  if (wanted && *wanted != Algorithm::kImages) return nullptr;
  const Axis& z = p.axis[0];
  if (pass == Pass::kWeight || !k.transpose || !is_pointwise(z) || z.input != 1) return nullptr;
  if (pass == Pass::kInput && !few_phases(p)) return nullptr;
  if ((p.x.axis[2] != 1 && p.axis[2].input > 1) || (p.y.axis[2] != 1 && p.output[2] > 1)) return nullptr;
  if (!wanted && 2 * p.batch <= k.lanes) return nullptr;
  auto made = std::make_unique<Images>(p, pass, k);
  if (!made->fits() || !cheapest.beaten_by(made->cycles())) return nullptr;
  return made->lay_out(p) ? PlanPtr(std::move(made)) : nullptr;
}

}  // namespace convarith::cpu
