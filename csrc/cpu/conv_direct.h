// The three bilinear operators straight from the pattern: for every dtype, stride of memory and geometry. Plain C++.
//
// T is the tensors' type, Acc the type products are summed in. Every output element is owned by one thread and summed
// in a fixed order, so results do not depend on the number of threads. The work is cut into rows along the last axis:
// one tap then meets a run of consecutive outputs, which is an axpy (or, for the weight, a dot product) on memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../problem.h"

namespace convarith::cpu {

// sum[o] += v * x[o * step] for a run of outputs.
template <typename T, typename Acc>
inline void axpy(int64_t n, Acc v, const T* x, int64_t step, Acc* sum) {
  if (step == 1) {
    for (int64_t i = 0; i < n; ++i) sum[i] += v * static_cast<Acc>(x[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) sum[i] += v * static_cast<Acc>(x[i * step]);
  }
}

// Rows of y, each (batch, out channel, o0, o1): y[o] = sum over channels and taps of w[t] * x[o * s + t * d - lo], and
// the channel's bias, which may be null.
template <typename T, typename Acc>
void conv_rows(const Problem& p, const T* x, const T* w, const T* bias, T* y, int64_t begin, int64_t end) {
  const auto& [a0, a1, a2] = p.axis;
  const int64_t outputs = p.output[2];
  std::vector<Acc> sum(outputs);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t o1 = row % p.output[1];
    const int64_t o0 = row / p.output[1] % p.output[0];
    const int64_t k = row / (p.output[1] * p.output[0]) % (p.groups * p.out_channels);
    const int64_t n = row / (p.output[1] * p.output[0] * p.groups * p.out_channels);
    const int64_t first_channel = k / p.out_channels * p.in_channels;
    std::fill(sum.begin(), sum.end(), Acc(0));
    for (int64_t c = 0; c < p.in_channels; ++c) {
      const T* plane = x + n * p.x.batch + (first_channel + c) * p.x.channel;
      const T* taps = w + k * p.w.batch + c * p.w.channel;
      for (int64_t t0 = 0; t0 < a0.kernel; ++t0) {
        const int64_t i0 = input_index(a0, o0, t0);
        if (i0 < 0 || i0 >= a0.input) continue;
        for (int64_t t1 = 0; t1 < a1.kernel; ++t1) {
          const int64_t i1 = input_index(a1, o1, t1);
          if (i1 < 0 || i1 >= a1.input) continue;
          const T* line = plane + i0 * p.x.axis[0] + i1 * p.x.axis[1];
          const T* line_taps = taps + t0 * p.w.axis[0] + t1 * p.w.axis[1];
          for (int64_t t2 = 0; t2 < a2.kernel; ++t2) {
            const Range run = outputs_of_tap(a2, outputs, t2);
            if (run.begin == run.end) continue;
            axpy(run.end - run.begin, static_cast<Acc>(line_taps[t2 * p.w.axis[2]]),
                 line + input_index(a2, run.begin, t2) * p.x.axis[2], a2.stride * p.x.axis[2], sum.data() + run.begin);
          }
        }
      }
    }
    T* out = y + n * p.y.batch + k * p.y.channel + o0 * p.y.axis[0] + o1 * p.y.axis[1];
    for (int64_t o = 0; o < outputs; ++o) {
      out[o * p.y.axis[2]] = static_cast<T>(bias ? sum[o] + static_cast<Acc>(bias[k]) : sum[o]);
    }
  }
}

// Rows of x, each (batch, in channel, i0, i1): x = C^T y. The zeros that the guide inserts are entries C^T lacks: a tap
// meets only the inputs of its own phase of the stride. With the channel's bias, which may be null.
template <typename T, typename Acc>
void conv_transpose_rows(const Problem& p, const T* y, const T* w, const T* bias, T* x, int64_t begin, int64_t end) {
  const auto& [a0, a1, a2] = p.axis;
  std::vector<Acc> sum(a2.input);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t i1 = row % a1.input;
    const int64_t i0 = row / a1.input % a0.input;
    const int64_t c = row / (a1.input * a0.input) % (p.groups * p.in_channels);
    const int64_t n = row / (a1.input * a0.input * p.groups * p.in_channels);
    const int64_t first_channel = c / p.in_channels * p.out_channels;
    std::fill(sum.begin(), sum.end(), Acc(0));
    for (int64_t k = first_channel; k < first_channel + p.out_channels; ++k) {
      const T* plane = y + n * p.y.batch + k * p.y.channel;
      const T* taps = w + k * p.w.batch + c % p.in_channels * p.w.channel;
      for (int64_t t0 = 0; t0 < a0.kernel; ++t0) {
        const int64_t o0 = output_index(a0, p.output[0], i0, t0);
        if (o0 < 0) continue;
        for (int64_t t1 = 0; t1 < a1.kernel; ++t1) {
          const int64_t o1 = output_index(a1, p.output[1], i1, t1);
          if (o1 < 0) continue;
          const T* line = plane + o0 * p.y.axis[0] + o1 * p.y.axis[1];
          const T* line_taps = taps + t0 * p.w.axis[0] + t1 * p.w.axis[1];
          for (int64_t t2 = 0; t2 < a2.kernel; ++t2) {
            const Range run = outputs_of_tap(a2, p.output[2], t2);
            const Acc v = static_cast<Acc>(line_taps[t2 * p.w.axis[2]]);
            for (int64_t o = run.begin; o < run.end; ++o) {
              sum[input_index(a2, o, t2)] += v * static_cast<Acc>(line[o * p.y.axis[2]]);
            }
          }
        }
      }
    }
    T* out = x + n * p.x.batch + c * p.x.channel + i0 * p.x.axis[0] + i1 * p.x.axis[1];
    for (int64_t i = 0; i < a2.input; ++i) {
      out[i * p.x.axis[2]] = static_cast<T>(bias ? sum[i] + static_cast<Acc>(bias[c]) : sum[i]);
    }
  }
}

// Weights, each (out channel, in channel of its group): w[t] = sum over the pattern of y[o] * x[o * s + t * d - lo].
template <typename T, typename Acc>
void conv_weight_pairs(const Problem& p, const T* x, const T* y, T* w, int64_t begin, int64_t end) {
  const auto& [a0, a1, a2] = p.axis;
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t c = pair % p.in_channels;
    const int64_t k = pair / p.in_channels;
    const T* planes = x + (k / p.out_channels * p.in_channels + c) * p.x.channel;
    for (int64_t t0 = 0; t0 < a0.kernel; ++t0) {
      const Range run0 = outputs_of_tap(a0, p.output[0], t0);
      for (int64_t t1 = 0; t1 < a1.kernel; ++t1) {
        const Range run1 = outputs_of_tap(a1, p.output[1], t1);
        for (int64_t t2 = 0; t2 < a2.kernel; ++t2) {
          const Range run2 = outputs_of_tap(a2, p.output[2], t2);
          const int64_t step = a2.stride * p.x.axis[2];
          Acc sum(0);
          for (int64_t n = 0; n < p.batch; ++n) {
            for (int64_t o0 = run0.begin; o0 < run0.end; ++o0) {
              for (int64_t o1 = run1.begin; o1 < run1.end; ++o1) {
                if (run2.begin == run2.end) continue;
                const T* in = planes + n * p.x.batch + input_index(a0, o0, t0) * p.x.axis[0] +
                              input_index(a1, o1, t1) * p.x.axis[1] + input_index(a2, run2.begin, t2) * p.x.axis[2];
                const T* out = y + n * p.y.batch + k * p.y.channel + o0 * p.y.axis[0] + o1 * p.y.axis[1] +
                               run2.begin * p.y.axis[2];
                Acc line(0);  // a line's sum first: fewer additions to one large number
                for (int64_t o = 0; o < run2.end - run2.begin; ++o) {
                  line += static_cast<Acc>(out[o * p.y.axis[2]]) * static_cast<Acc>(in[o * step]);
                }
                sum += line;
              }
            }
          }
          w[k * p.w.batch + c * p.w.channel + t0 * p.w.axis[0] + t1 * p.w.axis[1] + t2 * p.w.axis[2]] =
              static_cast<T>(sum);
        }
      }
    }
  }
}

}  // namespace convarith::cpu
