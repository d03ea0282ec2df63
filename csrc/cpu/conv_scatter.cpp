// x = C^T y by one product of matrices, and its scattering: every pixel of y times all weights, in the order in which
// they stand in memory, and then the sums of what meets in a pixel of x. For few pixels and many weights: sorting those
// by phases and taps, or transforming them, would cost more than the products.
#include "../simplify.h"
#include "conv_planning.h"

namespace convarith::cpu {
namespace {

constexpr double kScatterCycles = 5;  // of a product's entry, to be added to where it belongs

// The product's row of a pixel is [in channel][tap].
Problem product_of(const Problem& p, int64_t pitch) {
  Problem product = p;
  product.in_channels *= p.kernel_numel();
  for (int i = 0; i < kAxes; ++i) {
    product.axis[i] = kTrivialAxis;
    product.axis[i].input = p.output[i];
  }
  const int64_t line = p.output[2] * pitch, plane = p.output[1] * line;
  product.x = {p.output[0] * plane, 1, {plane, line, pitch}};
  product.w = {p.w.batch, 1, {0, 0, 1}};
  return product;
}

struct Scatter : Plan {
  Scatter(const Problem& problem, PlanPtr plan, int64_t row, double all_cycles, const ConvKernels& kernels)
      : p(problem), product(std::move(plan)), pitch(row), cost(all_cycles), k(kernels) {
    for (int i = 0; i < kAxes; ++i) {
      for (int64_t o = 0; o < p.output[i]; ++o) taps[i].push_back(taps_of_output(p.axis[i], o));
    }
  }

  double cycles() const override { return cost; }

  Explanation explain() const override {
    Explanation e = product->explain();
    e.scratch += bytes();
    return e;
  }

  bool add_bias(const void* to_add) override {
    bias = to_add;
    return true;
  }

  void run(const void* y, int64_t y_count, const void* w, int64_t w_count, void* x) override {
    const Buffer products(bytes());
    product->run(y, y_count, w, w_count, products.get());
    const int64_t channels = p.groups * p.in_channels;
    parallel(p.batch * channels, p.batch * channels * p.output_numel() * p.kernel_numel(),
             [&](int64_t begin, int64_t end) {
               for (int64_t i = begin; i < end; ++i) {
                 if (k.item == 4) {
                   scatter<float>(products.get(), i / channels, i % channels, x);
                 } else {
                   scatter<double>(products.get(), i / channels, i % channels, x);
                 }
               }
             });
  }

  template <typename T>
  void scatter(const void* products, int64_t image, int64_t channel, void* out) const {
    T* to = static_cast<T*>(out) + image * p.x.batch + channel * p.x.channel;
    const std::array<int64_t, kAxes>& step = p.x.axis;
    const T value = bias == nullptr ? T(0) : static_cast<const T*>(bias)[channel];
    for (int64_t z = 0; z < p.axis[0].input; ++z) {
      for (int64_t y = 0; y < p.axis[1].input; ++y) {
        for (int64_t x = 0; x < p.axis[2].input; ++x) to[z * step[0] + y * step[1] + x * step[2]] = value;
      }
    }
    const T* from = static_cast<const T*>(products) + image * p.output_numel() * pitch + channel * p.kernel_numel();
    for (int64_t z = 0; z < p.output[0]; ++z) {
      for (int64_t y = 0; y < p.output[1]; ++y) {
        for (int64_t x = 0; x < p.output[2]; ++x, from += pitch) add_pixel({z, y, x}, from, to);
      }
    }
  }

  // The products of an output with all taps, to the inputs that it sees.
  template <typename T>
  void add_pixel(const std::array<int64_t, kAxes>& o, const T* from, T* to) const {
    const Range along[kAxes] = {taps[0][o[0]], taps[1][o[1]], taps[2][o[2]]};
    const int64_t step = p.axis[2].dilation * p.x.axis[2];
    for (int64_t z = along[0].begin; z < along[0].end; ++z) {
      for (int64_t y = along[1].begin; y < along[1].end; ++y) {
        const T* row = from + (z * p.axis[1].kernel + y) * p.axis[2].kernel;
        T* line = to + input_index(p.axis[0], o[0], z) * p.x.axis[0] + input_index(p.axis[1], o[1], y) * p.x.axis[1] +
                  input_index(p.axis[2], o[2], 0) * p.x.axis[2];
        for (int64_t t = along[2].begin; t < along[2].end; ++t) line[t * step] += row[t];
      }
    }
  }

  int64_t bytes() const { return p.batch * p.output_numel() * pitch * k.item; }

  const Problem p;
  const PlanPtr product;
  const int64_t pitch;  // from one pixel's products to the next's
  const double cost;
  const ConvKernels& k;
  const void* bias = nullptr;
  std::vector<Range> taps[kAxes];
};

}  // namespace

PlanPtr plan_scatter(const Problem& p, Pass pass, const ConvKernels& k, Cheapest& cheapest) {
  const int64_t taps = p.kernel_numel(), pixels = p.batch * p.output_numel(), channels = p.groups * p.in_channels;
  if (pass != Pass::kInput || wanted_algorithm() || k.item != k.sum_item || taps == 1) return nullptr;
  const std::array<int64_t, kAxes> kernel = {p.axis[0].kernel, p.axis[1].kernel, p.axis[2].kernel};
  if (!contiguous_axes(p.w, kernel)) return nullptr;
  const int64_t pitch = spread(channels * taps, k);
  if (pixels * pitch * k.item > kPackedBytes) return nullptr;
  const Problem products = product_of(p, pitch);
  const double cost = gather_cycles(products, pass, k) + kScatterCycles * static_cast<double>(pixels * channels * taps);
  if (!cheapest.beaten_by(cost)) return nullptr;
  PlanPtr product = plan_gathers(gathers_of(products, pass, k), k);
  return product ? std::make_unique<Scatter>(p, std::move(product), pitch, cost, k) : nullptr;
}

}  // namespace convarith::cpu
