// The window kernels without torch, against plain loops: for sanitizers, as engine.cpp.
//
//   windows [CASES] [SEED]
//
// Small integers: maxima, sums and places are exact in every dtype; means, powers and roots have a tolerance.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <vector>

#include "../../csrc/cpu/pooling_rows.h"
#include "tensors.h"

namespace {

using convarith::Axis;
using convarith::kAxes;
using convarith::Windows;
namespace cpu = convarith::cpu;
using cpu::Pooling;
using cpu::Weights;
typedef std::vector<double> Values;

Windows w;
int dtype;
int64_t runs = 0;

bool make_windows() {
  w.inner = draw(0, 3) == 0 ? draw(2, 20) : 1;
  w.planes = draw(0, 1) ? draw(1, 3) : draw(4, 70);
  constexpr int64_t kLongest[] = {7, 40, 180};  // short rows have kernels of their own, and so have long ones
  const int64_t axes = draw(1, 3), longest = kLongest[draw(0, 2)];
  for (int i = 0; i < kAxes; ++i) {
    Axis& a = w.axis[i] = convarith::kTrivialAxis;
    const bool ceil = draw(0, 1);
    if (i >= kAxes - axes) {
      a.input = draw(1, i == kAxes - 1 ? longest : 9);
      a.kernel = draw(1, 4);
      a.stride = draw(1, 4);
      a.dilation = draw(1, 3);
      a.lo = a.hi = draw(0, a.kernel / 2);
      Axis rounded = a;
      if (ceil) rounded.hi += a.stride - 1;
      if (!convarith::fits(rounded)) return false;
    }
    w.output[i] = convarith::pooling_output_size(a, ceil);
    if (w.output[i] < 1) return false;
  }
  return w.planes * w.inner * std::max(w.input_numel(), w.output_numel() * w.kernel_numel()) < 200'000;
}

// Calls body(input, output, tap), or body(input, output, o0, o1, o2), for every pair that a window has, in the order of
// its taps.
template <typename Body>
void for_pairs(const Body& body) {
  const auto& [a0, a1, a2] = w.axis;
  const auto is_in = [](int64_t i, const Axis& a) { return i >= 0 && i < a.input; };
  for (int64_t p = 0; p < w.planes; ++p) {
    for (int64_t o0 = 0; o0 < w.output[0]; ++o0) {
      for (int64_t o1 = 0; o1 < w.output[1]; ++o1) {
        for (int64_t o2 = 0; o2 < w.output[2]; ++o2) {
          const int64_t o = ((p * w.output[0] + o0) * w.output[1] + o1) * w.output[2] + o2;
          for (int64_t t = 0; t < w.kernel_numel(); ++t) {
            const int64_t i0 = o0 * a0.stride + t / a2.kernel / a1.kernel * a0.dilation - a0.lo;
            const int64_t i1 = o1 * a1.stride + t / a2.kernel % a1.kernel * a1.dilation - a1.lo;
            const int64_t i2 = o2 * a2.stride + t % a2.kernel * a2.dilation - a2.lo;
            if (!is_in(i0, a0) || !is_in(i1, a1) || !is_in(i2, a2)) continue;
            const int64_t i = ((p * a0.input + i0) * a1.input + i1) * a2.input + i2;
            for (int64_t c = 0; c < w.inner; ++c) {
              if constexpr (std::is_invocable_v<Body, int64_t, int64_t, int64_t>) {
                body(i * w.inner + c, o * w.inner + c, t);
              } else {
                body(i * w.inner + c, o * w.inner + c, o0, o1, o2);
              }
            }
          }
        }
      }
    }
  }
}

Values draw_values(int64_t count, int low, int high) {
  Values v(count);
  for (double& e : v) e = static_cast<double>(draw(low, high));
  return v;
}

Tensor tensor_of(const Values& from) {
  Tensor t(static_cast<int64_t>(from.size()), kItem[dtype]);
  for (size_t i = 0; i < from.size(); ++i) put(t.data.get(), static_cast<int64_t>(i), dtype, static_cast<int>(from[i]));
  return t;
}

Tensor room(size_t count) {
  Tensor t(static_cast<int64_t>(count), kItem[dtype]);
  std::memset(t.data.get(), 0xff, static_cast<size_t>(t.size));
  return t;
}

std::string describe() {
  std::string text = "planes " + std::to_string(w.planes) + " inner " + std::to_string(w.inner);
  for (int i = 0; i < kAxes; ++i) {
    const Axis& a = w.axis[i];
    text += " (i" + std::to_string(a.input) + " k" + std::to_string(a.kernel) + " s" + std::to_string(a.stride) + " p" +
            std::to_string(a.lo) + " d" + std::to_string(a.dilation) + " o" + std::to_string(w.output[i]) + ")";
  }
  return text;
}

void check(const std::string& what, const Tensor& result, const Values& expected, double tolerance) {
  ++runs;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double got = get(result.data.get(), static_cast<int64_t>(i), dtype);
    if (std::abs(got - expected[i]) <= tolerance * (1 + std::abs(expected[i]))) continue;
    std::printf("%s, dtype %d, %s: entry %zu is %.9g, not %.9g\n", what.c_str(), dtype, describe().c_str(), i, got,
                expected[i]);
    std::exit(1);
  }
}

double rounding() {
  return dtype == 0 ? 1e-4 : dtype == 1 ? 1e-10 : dtype == 2 ? 2e-2 : 3e-3;
}

// The maxima's taps, and the adjoint of picking by any taps.
void check_taps(const cpu::WindowKernels& kernels, bool minimum, const Tensor& in, const Values& y, const Values& tap) {
  const auto outputs = static_cast<int64_t>(y.size());
  const std::unique_ptr<uint8_t[]> taps(new uint8_t[outputs]);
  const Tensor out = room(outputs);
  cpu::Planned planned = cpu::Planned::forward(w, kernels, {});
  const cpu::PoolPlan& plan = planned.plan();
  cpu::parallel_pool_rows(
      plan, cpu::pooled_rows(w), cpu::pooled_row_work(w), [&](char* scratch, int64_t begin, int64_t end) {
        kernels.max_pool_with_taps(minimum, plan, in.data.get(), out.data.get(), taps.get(), scratch, begin, end);
      });
  check("max with taps", out, y, 0);
  for (int64_t o = 0; o < outputs; ++o) {
    if (taps[o] == static_cast<uint8_t>(tap[o])) continue;
    std::printf("tap %lld of %s is %d, not %g\n", static_cast<long long>(o), describe().c_str(), taps[o], tap[o]);
    std::exit(1);
  }
  const Values g = draw_values(outputs, -4, 4);
  const Tensor grad = tensor_of(g);
  for (const bool on_padding : {false, true}) {
    for (int64_t o = 0; on_padding && o < outputs; ++o) taps[o] = static_cast<uint8_t>(draw(0, w.kernel_numel() - 1));
    Values gx(w.planes * w.input_numel() * w.inner);
    for_pairs([&](int64_t i, int64_t o, int64_t t) { gx[i] += t == taps[o] ? g[o] : 0; });
    const Tensor result = room(gx.size());
    bool valid = cpu::run_tap_scatter(kernels, w, grad.data.get(), taps.get(), result.data.get());
    check("scattered by taps", result, gx, 0);
    const int64_t wrong = draw(0, outputs - 1);
    const uint8_t right = taps[wrong];
    taps[wrong] = static_cast<uint8_t>(draw(w.kernel_numel(), 255));
    valid &= !cpu::run_tap_scatter(kernels, w, grad.data.get(), taps.get(), result.data.get());
    taps[wrong] = right;
    if (!valid) {
      std::printf("taps of %s are looked at wrongly\n", describe().c_str());
      std::exit(1);
    }
  }
}

void check_maximum(const cpu::WindowKernels& kernels, bool minimum) {
  const int64_t inputs = w.planes * w.input_numel() * w.inner, outputs = w.planes * w.output_numel() * w.inner;
  const Values x = draw_values(inputs, -9, 9);
  Values y(outputs), place(outputs, -1), tap(outputs);
  for_pairs([&](int64_t i, int64_t o, int64_t t) {
    if (place[o] >= 0 && !(minimum ? x[i] < y[o] : x[i] > y[o])) return;
    y[o] = x[i];
    place[o] = static_cast<double>(i / w.inner % w.input_numel());
    tap[o] = static_cast<double>(t);
  });
  for (const double at : place) {
    if (at < 0) return;  // an empty window, which operators refuse
  }
  const Tensor in = tensor_of(x);
  Tensor out = room(outputs);
  cpu::run_pool(kernels, minimum ? Pooling::kMin : Pooling::kMax, w, {}, 0, in.data.get(), out.data.get());
  check(minimum ? "min" : "max", out, y, 0);

  out = room(outputs);
  const std::unique_ptr<int64_t[]> indices(new int64_t[outputs]);
  cpu::Planned planned = cpu::Planned::forward(w, kernels, {});
  const cpu::PoolPlan& plan = planned.plan();
  cpu::parallel_pool_rows(
      plan, cpu::pooled_rows(w), cpu::pooled_row_work(w), [&](char* scratch, int64_t begin, int64_t end) {
        kernels.max_pool_with_indices(minimum, plan, in.data.get(), out.data.get(), indices.get(), scratch, begin, end);
      });
  check("max with indices", out, y, 0);
  for (int64_t o = 0; o < outputs; ++o) {
    if (indices[o] == static_cast<int64_t>(place[o])) continue;
    std::printf("index %lld of %s is %lld, not %g\n", static_cast<long long>(o), describe().c_str(),
                static_cast<long long>(indices[o]), place[o]);
    std::exit(1);
  }
  check_taps(kernels, minimum, in, y, tap);
  const int64_t numel = w.input_numel();
  if (!kernels.are_indices(indices.get(), outputs, numel)) {
    std::printf("indices refused\n");
    std::exit(1);
  }
  Values sums(numel);
  for (int64_t o = 0; o < outputs; ++o) sums[indices[o]] += y[o];
  const Tensor added(numel * kernels.sum_item, 1);
  std::memset(added.data.get(), 0, static_cast<size_t>(added.size));
  bool valid = kernels.scatter_add(out.data.get(), indices.get(), outputs, added.data.get(), numel);
  for (int64_t i = 0; i < numel; ++i) valid &= get(added.data.get(), i, dtype == 1) == sums[i];
  indices[draw(0, outputs - 1)] = draw(0, 1) ? numel : -1;
  valid &= !kernels.scatter_add(out.data.get(), indices.get(), outputs, added.data.get(), numel);
  if (!valid) {
    std::printf("scatter_add, dtype %d, %s\n", dtype, describe().c_str());
    std::exit(1);
  }
  ++runs;
}

template <typename Of>
Weights weights_of(const cpu::Divisors& divisors, const Of& of) {
  Weights weights;
  for (int i = 0; i < kAxes; ++i) {
    for (const int64_t count : divisors.count[i]) weights[i].push_back(of(i, static_cast<double>(count)));
  }
  return weights;
}

void check_average(const cpu::WindowKernels& kernels) {
  const Values x = draw_values(w.planes * w.input_numel() * w.inner, -4, 4);
  const Values g = draw_values(w.planes * w.output_numel() * w.inner, -4, 4);
  const cpu::Divisors divisors = draw(0, 3) ? cpu::Divisors::of(w, draw(0, 1)) : cpu::Divisors::constant(w, 3);
  Values y(g.size()), gx(x.size());
  for_pairs([&](int64_t i, int64_t o, int64_t o0, int64_t o1, int64_t o2) {
    const auto divisor = static_cast<double>(divisors.of_window(o0, o1, o2));
    y[o] += x[i] / divisor;
    gx[i] += g[o] / divisor;
  });
  const Tensor in = tensor_of(x), grad = tensor_of(g), out = room(y.size()), result = room(x.size());
  cpu::run_pool(kernels, Pooling::kAverage, w, weights_of(divisors, [](int, double count) { return count; }), 0,
                in.data.get(), out.data.get());
  check("average", out, y, rounding());
  cpu::run_pool_backward(kernels, Pooling::kAverage, w,
                         weights_of(divisors, [](int, double count) { return 1 / count; }), 0, grad.data.get(), nullptr,
                         nullptr, result.data.get());
  check("average backward", result, gx, rounding());
}

void check_norm(const cpu::WindowKernels& kernels, bool is_signed, double p) {
  // Signed sums that cancel, and powers of negative numbers, have no digits to compare.
  const Values x = draw_values(w.planes * w.input_numel() * w.inner, is_signed ? 1 : -3, 3);
  const Values g = draw_values(w.planes * w.output_numel() * w.inner, -3, 3);
  Weights weights;
  if (is_signed) {
    weights = weights_of(cpu::Divisors::of(w, true),
                         [](int i, double count) { return static_cast<double>(w.axis[i].kernel) / count; });
  }
  const auto weight = [&](int64_t o0, int64_t o1, int64_t o2) {
    return is_signed ? weights[0][o0] * weights[1][o1] * weights[2][o2] : 1;
  };
  Values y(g.size()), gx(x.size());
  for_pairs([&](int64_t i, int64_t o, int64_t o0, int64_t o1, int64_t o2) {
    y[o] += std::pow(std::abs(x[i]), p) * weight(o0, o1, o2);
  });
  for (double& e : y) e = std::pow(e, 1 / p);
  const std::string name = std::string(is_signed ? "signed " : "") + "L^" + std::to_string(p);
  const Tensor in = tensor_of(x), grad = tensor_of(g), out = room(y.size()), result = room(x.size());
  const Pooling kind = is_signed ? Pooling::kSignedNorm : Pooling::kNorm;
  cpu::run_pool(kernels, kind, w, weights, p, in.data.get(), out.data.get());
  check(name, out, y, rounding());
  for (size_t o = 0; o < y.size(); ++o) y[o] = get(out.data.get(), static_cast<int64_t>(o), dtype);
  for_pairs([&](int64_t i, int64_t o, int64_t o0, int64_t o1, int64_t o2) {
    if (y[o] == 0 || x[i] == 0) return;
    gx[i] += g[o] * std::copysign(std::pow(std::abs(x[i]), p - 1), x[i]) * std::pow(y[o], 1 - p) * weight(o0, o1, o2);
  });
  cpu::run_pool_backward(kernels, kind, w, weights, p, grad.data.get(), in.data.get(), out.data.get(),
                         result.data.get());
  check(name + " backward", result, gx, 10 * rounding());
}

void check_lrn(const cpu::WindowKernels& kernels) {
  constexpr double kBetas[] = {0.75, 0.5, 1, 0.6};
  const int64_t channels = draw(1, 12), inner = draw(1, 100), planes = draw(1, 3), block = 64;
  const cpu::LrnPlan plan = {channels,           inner, draw(1, 7), 0.3,
                             kBetas[draw(0, 3)], 1.5,   block,      convarith::ceil_div(inner, block)};
  const Values x = draw_values(planes * channels * inner, -3, 3), g = draw_values(planes * channels * inner, -3, 3);
  Values s(x.size(), plan.k), y(x.size()), gx(x.size());
  const auto for_neighbours = [&](const auto& body) {
    for (int64_t e = 0; e < planes * channels * inner; ++e) {
      const int64_t c = e / inner % channels;
      for (int64_t j = c - plan.size / 2; j < c + (plan.size + 1) / 2; ++j) {
        if (j >= 0 && j < channels) body(e, e + (j - c) * inner);
      }
    }
  };
  for_neighbours([&](int64_t e, int64_t j) { s[e] += plan.alpha * x[j] * x[j]; });
  for (size_t e = 0; e < x.size(); ++e) {
    y[e] = x[e] * std::pow(s[e], -plan.beta);
    gx[e] = g[e] * std::pow(s[e], -plan.beta);
  }
  for_neighbours([&](int64_t e, int64_t j) {
    gx[j] -= 2 * plan.alpha * plan.beta * x[j] * g[e] * x[e] * std::pow(s[e], -plan.beta - 1);
  });
  const Tensor in = tensor_of(x), grad = tensor_of(g), out = room(x.size()), result = room(x.size());
  kernels.lrn(plan, in.data.get(), out.data.get(), 0, planes * plan.blocks);
  check("lrn", out, y, rounding());
  const Tensor scratch(2 * (plan.size + 1) * block, kernels.sum_item);
  kernels.lrn_backward(plan, grad.data.get(), in.data.get(), result.data.get(), scratch.data.get(), 0,
                       planes * plan.blocks);
  check("lrn backward", result, gx, rounding());
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t cases = count > 1 ? std::atoll(arguments[1]) : 300;
  generator.seed(count > 2 ? std::atoi(arguments[2]) : 0);
  int64_t short_rows = 0;
  for (int64_t done = 0; done < cases;) {
    if (!make_windows()) continue;
    ++done;
    dtype = static_cast<int>(draw(0, 3));
    const cpu::WindowKernels& kernels = cpu::active_window_kernels(dtype);
    short_rows += cpu::Planned::forward(w, kernels, {}).plan().picks != nullptr;
    check_maximum(kernels, draw(0, 1));
    check_average(kernels);
    for (const double p : {1.0, 2.0, 3.0, 2.5}) {
      check_norm(kernels, false, p);
      check_norm(kernels, true, p);
    }
    check_lrn(kernels);
  }
  std::printf("%lld geometries, %lld of short rows, %lld runs on %s\n", static_cast<long long>(cases),
              static_cast<long long>(short_rows), static_cast<long long>(runs), cpu::isa_name(cpu::active_isa()));
  return 0;
}
