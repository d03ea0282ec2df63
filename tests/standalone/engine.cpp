// The CPU engine without torch, against plain loops: for sanitizers and for other processors.
//
//   engine [CASES] [SEED]
//
// Random geometries, every algorithm forced in turn, all passes, float and half precisions, on the instruction set that
// TORCH_CONVARITH_ISA names. Tensors end where their memory ends, so that AddressSanitizer sees the first element that
// a kernel reads or writes too much. Small integers: every sum is exact in every dtype.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../../csrc/cpu/conv_engine.h"
#include "../../csrc/cpu/isa.h"
#include "tensors.h"

namespace {

using convarith::Axis;
using convarith::kAxes;
using convarith::Problem;
using convarith::Strides;
namespace cpu = convarith::cpu;

struct Case {
  Problem p;
  int64_t x_count, w_count, y_count;
};

// Strides of a tensor in order (batch, channel, axes), or with the channels last.
int64_t lay_out(Strides& s, int64_t batch, int64_t channels, const std::array<int64_t, kAxes>& size,
                bool channels_last) {
  int64_t step = channels_last ? channels : 1;
  for (int i = kAxes - 1; i >= 0; --i) {
    s.axis[i] = step;
    step *= size[i];
  }
  s.channel = channels_last ? 1 : step;
  s.batch = channels_last ? step : step * channels;
  return batch * s.batch;
}

bool make_case(Case& c) {
  Problem& p = c.p;
  p.batch = draw(1, 4);
  const bool depthwise = draw(0, 7) == 0;  // as networks have them, of many channels
  p.groups = depthwise ? draw(2, 100) : draw(0, 3) == 0 ? draw(2, 20) : 1;
  p.in_channels = depthwise || (p.groups > 1 && draw(0, 1)) ? 1 : draw(1, 20);
  p.out_channels = depthwise || (p.groups > 1 && draw(0, 1)) ? 1 : draw(1, 40);
  const int64_t axes = depthwise ? 2 : draw(1, 3);
  std::array<int64_t, kAxes> input, kernel;
  const bool winograd = draw(0, 2) == 0;
  for (int i = 0; i < kAxes; ++i) {
    p.axis[i] = convarith::kTrivialAxis;
    if (i >= kAxes - axes) {
      Axis& a = p.axis[i];
      a.input = draw(1, i < kAxes - 1 ? 12 : draw(0, 3) == 0 ? 150 : 40);
      a.kernel = depthwise ? 1 + 2 * draw(1, 3) : winograd ? draw(2, 5) : draw(1, 7);
      a.stride = depthwise || winograd ? draw(1, 2) : draw(1, 4);
      a.dilation = depthwise || (winograd && a.stride > 1) ? 1 : draw(1, 3);
      a.lo = draw(-1, 4);
      a.hi = draw(-1, 4);
      if (draw(0, 1)) a.hi = a.lo;
      if (!convarith::fits(a)) return false;
    }
    input[i] = p.axis[i].input;
    kernel[i] = p.axis[i].kernel;
    p.output[i] = convarith::output_size(p.axis[i]);
  }
  const bool channels_last = draw(0, depthwise ? 1 : 3) == 0;
  c.x_count = lay_out(p.x, p.batch, p.groups * p.in_channels, input, channels_last);
  c.w_count = lay_out(p.w, p.groups * p.out_channels, p.in_channels, kernel, channels_last);
  c.y_count = lay_out(p.y, p.batch, p.groups * p.out_channels, p.output, channels_last);
  const int64_t macs = c.y_count * p.in_channels * p.kernel_numel();
  return macs < 3'000'000;
}

// Calls body(x, w, y) with the indices of every product of phi(x, w, y).
template <typename Body>
void for_products(const Problem& p, const Body& body) {
  const auto& [a0, a1, a2] = p.axis;
  for (int64_t n = 0; n < p.batch; ++n) {
    for (int64_t k = 0; k < p.groups * p.out_channels; ++k) {
      for (int64_t c = 0; c < p.in_channels; ++c) {
        const int64_t channel = k / p.out_channels * p.in_channels + c;
        for (int64_t o0 = 0; o0 < p.output[0]; ++o0) {
          for (int64_t o1 = 0; o1 < p.output[1]; ++o1) {
            for (int64_t o2 = 0; o2 < p.output[2]; ++o2) {
              const int64_t y =
                  n * p.y.batch + k * p.y.channel + o0 * p.y.axis[0] + o1 * p.y.axis[1] + o2 * p.y.axis[2];
              for (int64_t t0 = 0; t0 < a0.kernel; ++t0) {
                const int64_t i0 = o0 * a0.stride + t0 * a0.dilation - a0.lo;
                if (i0 < 0 || i0 >= a0.input) continue;
                for (int64_t t1 = 0; t1 < a1.kernel; ++t1) {
                  const int64_t i1 = o1 * a1.stride + t1 * a1.dilation - a1.lo;
                  if (i1 < 0 || i1 >= a1.input) continue;
                  for (int64_t t2 = 0; t2 < a2.kernel; ++t2) {
                    const int64_t i2 = o2 * a2.stride + t2 * a2.dilation - a2.lo;
                    if (i2 < 0 || i2 >= a2.input) continue;
                    body(n * p.x.batch + channel * p.x.channel + i0 * p.x.axis[0] + i1 * p.x.axis[1] + i2 * p.x.axis[2],
                         k * p.w.batch + c * p.w.channel + t0 * p.w.axis[0] + t1 * p.w.axis[1] + t2 * p.w.axis[2], y);
                  }
                }
              }
            }
          }
        }
      }
    }
  }
}

std::string describe(const Problem& p) {
  std::string text = "n" + std::to_string(p.batch) + " g" + std::to_string(p.groups) + " c" +
                     std::to_string(p.in_channels) + " k" + std::to_string(p.out_channels);
  for (const Axis& a : p.axis) {
    text += " (i" + std::to_string(a.input) + " k" + std::to_string(a.kernel) + " s" + std::to_string(a.stride) + " p" +
            std::to_string(a.lo) + "," + std::to_string(a.hi) + " d" + std::to_string(a.dilation) + ")";
  }
  return text + (p.x.channel == 1 ? " channels_last" : "");
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t cases = count > 1 ? std::atoll(arguments[1]) : 300;
  generator.seed(count > 2 ? std::atoi(arguments[2]) : 0);
  int64_t runs = 0;
  for (int64_t done = 0; done < cases;) {
    Case c;
    if (!make_case(c)) continue;
    ++done;
    const int dtype = draw(0, 5) < 3 ? 0 : static_cast<int>(draw(1, 3));
    // Sums stay below 2^8, which bfloat16 can hold, by sparse operands of -1, 0 and 1.
    const auto value = [] { return draw(0, 7) ? 0 : static_cast<int>(draw(-1, 1)); };
    std::vector<int> x(c.x_count), w(c.w_count), y(c.y_count);
    for (auto* v : {&x, &w, &y}) {
      for (int& e : *v) e = value();
    }
    std::vector<int> out[3] = {std::vector<int>(y.size()), std::vector<int>(x.size()), std::vector<int>(w.size())};
    for_products(c.p, [&](int64_t i, int64_t j, int64_t k) {
      out[0][k] += x[i] * w[j];
      out[1][i] += w[j] * y[k];
      out[2][j] += x[i] * y[k];
    });
    const std::vector<int>* operands[3][2] = {{&x, &w}, {&y, &w}, {&x, &y}};
    for (int pass = 0; pass < 3; ++pass) {
      const int64_t before = draw(0, 1);  // numbers of a tensor that operands are a part of
      const auto fill = [&](const std::vector<int>& from) {
        Tensor t(before + static_cast<int64_t>(from.size()), kItem[dtype]);
        for (size_t i = 0; i < from.size(); ++i) put(t.data.get(), before + static_cast<int64_t>(i), dtype, from[i]);
        return t;
      };
      const auto first = [&](const Tensor& t) { return t.data.get() + before * kItem[dtype]; };
      const auto& [a, b] = operands[pass];
      const Tensor left = fill(*a), right = fill(*b);
      const int64_t channels = c.p.groups * (pass == 0 ? c.p.out_channels : c.p.in_channels);
      const Strides& strides = pass == 0 ? c.p.y : c.p.x;
      std::vector<int> biases(channels);
      for (int& v : biases) v = static_cast<int>(draw(-9, 9));
      const Tensor bias = fill(biases);
      const bool biased = pass < 2 && draw(0, 1);
      std::vector<std::string> algorithms = {"auto"};
      for (const char* name : cpu::kAlgorithmNames) algorithms.emplace_back(name);
      for (const std::string& name : algorithms) {
        cpu::force_algorithm(name);
        const Tensor result(before + static_cast<int64_t>(out[pass].size()), kItem[dtype]);
        std::memset(result.data.get(), 0xff, static_cast<size_t>(result.size));
        const cpu::Ran ran =
            cpu::run_fast(c.p, static_cast<cpu::Pass>(pass), dtype, first(left), static_cast<int64_t>(a->size()),
                          first(right), static_cast<int64_t>(b->size()), biased ? first(bias) : nullptr, first(result));
        if (ran == cpu::Ran::kNothing) continue;
        ++runs;
        for (size_t i = 0; i < out[pass].size(); ++i) {
          const double got = get(first(result), static_cast<int64_t>(i), dtype);
          int expected = out[pass][i];
          if (biased && ran == cpu::Ran::kAll) {
            expected += biases[static_cast<int64_t>(i) / strides.channel % channels];
          }
          // Winograd rounds.
          if (!(std::abs(got - expected) < 0.01)) {
            std::printf("%s by %s, pass %d, dtype %d: entry %zu is %g, not %d\n", describe(c.p).c_str(), name.c_str(),
                        pass, dtype, i, got, expected);
            return 1;
          }
        }
      }
    }
  }
  std::printf("%lld geometries, %lld runs on %s\n", static_cast<long long>(cases), static_cast<long long>(runs),
              cpu::isa_name(cpu::active_isa()));
  return 0;
}
