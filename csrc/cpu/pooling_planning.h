// Windows -> PoolPlan: the tables that the kernels read, which a Planned keeps. Plain C++.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "../problem.h"
#include "window_plan.h"

namespace convarith::cpu {

// What each window's sum is divided by: the product of its axes' counts, or one number for all.
struct Divisors {
  std::array<std::vector<int64_t>, kAxes> count;  // [output]

  static Divisors of(const Windows& w, bool count_include_pad) {
    Divisors d;
    for (int i = 0; i < kAxes; ++i) {
      const Axis& a = w.axis[i];
      for (int64_t o = 0; o < w.output[i]; ++o) {
        const Range taps = taps_of_output(a, o);
        const int64_t past_padding = ceil_div(a.input + a.hi - input_index(a, o, 0), a.dilation);
        const int64_t padded = std::max<int64_t>(0, std::min(a.kernel, past_padding));
        d.count[i].push_back(std::max<int64_t>(1, count_include_pad ? padded : taps.end - taps.begin));
      }
    }
    return d;
  }

  static Divisors constant(const Windows& w, int64_t divisor) {
    Divisors d;
    for (int i = 0; i < kAxes; ++i) d.count[i].assign(w.output[i], i == 0 ? divisor : 1);
    return d;
  }

  int64_t of_window(int64_t o0, int64_t o1, int64_t o2) const { return count[0][o0] * count[1][o1] * count[2][o2]; }
};

using Weights = std::array<std::vector<double>, kAxes>;  // [output] of each axis; a window's is their product

class Planned {
 public:
  // Rows of y from lines of x.
  static Planned forward(const Windows& w, const WindowKernels& kernels, const Weights& weights, double exponent = 0) {
    Planned p(w, kernels, weights, exponent);
    for (int i = 0; i < 2; ++i) {
      const Axis& a = w.axis[i];
      for (int64_t o = 0; o < w.output[i]; ++o) {
        const Range taps = taps_of_output(a, o);
        p.first_[i].push_back(taps.begin < taps.end ? input_index(a, o, taps.begin) : 0);
        p.count_[i].push_back(taps.end - taps.begin);
        p.first_tap_[i].push_back(taps.begin);
      }
      p.plan_.lines[i].step = a.dilation;
      p.plan_.lines[i].tap_step = 1;
    }
    p.plan_.lines[1].pitch = w.axis[2].input * w.inner;
    p.plan_.lines[0].pitch = w.axis[1].input * p.plan_.lines[1].pitch;
    p.lay_out_forward(w.axis[2], kernels);
    if (p.has_short_rows(kernels)) p.lay_out_forward_picks(w.axis[2], kernels);
    p.lay_out_chunk(w.output[1], w.output[2], kernels);
    return p;
  }

  // Rows of x from lines of y; a row has one line of sums, or by taps one for each of the last axis.
  static Planned backward(const Windows& w, const WindowKernels& kernels, const Weights& weights, double exponent = 0,
                          bool by_taps = false) {
    Planned p(w, kernels, weights, exponent);
    for (int i = 0; i < 2; ++i) {
      const Axis& a = w.axis[i];
      p.first_[i].assign(a.input, 0);
      p.count_[i].assign(a.input, 0);
      p.first_tap_[i].assign(a.input, 0);
      for (int64_t o = 0; o < w.output[i]; ++o) {
        const Range taps = taps_of_output(a, o);
        for (int64_t t = taps.begin; t < taps.end; ++t) {
          const int64_t in = input_index(a, o, t);
          if (p.count_[i][in]++ > 0) continue;
          p.first_[i][in] = o;
          p.first_tap_[i][in] = t;
        }
      }
      const int64_t common = std::gcd(a.dilation, a.stride);
      p.plan_.lines[i].step = a.dilation / common;
      p.plan_.lines[i].tap_step = -(a.stride / common);
    }
    p.plan_.lines[1].pitch = w.output[2] * w.inner;
    p.plan_.lines[0].pitch = w.output[1] * p.plan_.lines[1].pitch;
    if (!by_taps && p.lay_out_flat(w, kernels)) return p;
    p.lay_out_backward(w.axis[2], by_taps ? w.axis[2].kernel : 1, kernels);
    if (by_taps) return p;
    if (p.has_short_rows(kernels)) {
      p.lay_out_backward_picks(w.axis[2], kernels);
    } else if (exponent == 0) {
      p.lay_out_ring(w, kernels);
    }
    if (exponent != 1 && exponent != 3) p.lay_out_chunk(w.axis[1].input, w.axis[2].input, kernels);
    return p;
  }

  static Planned backward_by_taps(const Windows& w, const WindowKernels& kernels) {
    Planned p(w, kernels, {}, 0);
    if (p.lay_out_scatter(w, kernels)) return p;
    return backward(w, kernels, {}, 0, true);
  }

  // Valid as long as this is.
  const PoolPlan& plan() {
    for (int i = 0; i < 2; ++i) {
      plan_.lines[i].first = first_[i].data();
      plan_.lines[i].count = count_[i].data();
      plan_.lines[i].first_tap = first_tap_[i].data();
      plan_.weight[i] = weights_[i].data();
    }
    plan_.column = column_.data();
    plan_.picks = picks_.empty() ? nullptr : picks_.data();
    plan_.offsets = offsets_.data();
    plan_.offsets_begin = offsets_begin_.data();
    plan_.flat_first = flat_first_.empty() ? nullptr : flat_first_.data();
    plan_.flat_picks = flat_picks_.data();
    plan_.flat_weight = flat_weight_.data();
    plan_.places = places_.empty() ? nullptr : places_.data();
    plan_.seen_taps = seen_taps_.data();
    plan_.tap_offset = tap_offset_.data();
    return plan_;
  }

 private:
  Planned(const Windows& w, const WindowKernels& kernels, const Weights& weights, double exponent) : weights_(weights) {
    plan_.planes = w.planes;
    plan_.inner = w.inner;
    for (int i = 0; i < kAxes; ++i) {
      plan_.input[i] = w.axis[i].input;
      plan_.output[i] = w.output[i];
      plan_.kernel[i] = w.axis[i].kernel;
    }
    plan_.stride = w.axis[2].stride;
    plan_.dilation = w.axis[2].dilation;
    plan_.exponent = exponent;
    plan_.uniform = true;
    plan_.scale = 1;
    for (const std::vector<double>& axis : weights) {
      if (axis.empty()) continue;
      plan_.uniform &= std::all_of(axis.begin(), axis.end(), [&](double v) { return v == axis.front(); });
      plan_.scale *= axis.front();
    }
    if (!plan_.uniform) fill_column(kernels);
  }

  void fill_column(const WindowKernels& kernels) {
    const int64_t n = plan_.output[2] * plan_.inner, rows = has_short_rows(kernels) ? 2 : 1;
    std::vector<double> column(rows * n + kernels.lanes, 1);
    for (int64_t e = 0; e < rows * n; ++e) column[e] = weights_[2][e % n / plan_.inner];
    column_ = numbers<float>(column, kernels);
  }

  struct alignas(64) Line {
    char bytes[64];
  };
  typedef std::vector<Line> Table;  // no vector of it is in two lines

  // As numbers of the sums' size.
  template <typename Narrow, typename Wide>
  static Table numbers(const std::vector<Wide>& values, const WindowKernels& kernels) {
    if (kernels.sum_item == sizeof(Wide)) return bytes_of(values);
    return bytes_of(std::vector<Narrow>(values.begin(), values.end()));
  }

  template <typename V>
  static Table bytes_of(const std::vector<V>& values) {
    const size_t bytes = values.size() * sizeof(V);
    Table table((bytes + sizeof(Line) - 1) / sizeof(Line));
    if (bytes > 0) std::memcpy(table.data(), values.data(), bytes);
    return table;
  }

  bool has_short_rows(const WindowKernels& kernels) const {
    return plan_.inner == 1 && plan_.input[2] < 2 * kernels.lanes && plan_.output[2] < 2 * kernels.lanes;
  }

  using Picks = std::vector<std::vector<int64_t>>;  // [step][entry of a row]: of the other side; -1 where nothing

  void lay_out_forward_picks(const Axis& a, const WindowKernels& kernels) {
    Picks picks(a.kernel);
    for (int64_t t = 0; t < a.kernel; ++t) {
      for (int64_t o = 0; o < plan_.output[2]; ++o) {
        const int64_t i = input_index(a, o, t);
        picks[t].push_back(i < a.input ? i : -1);
      }
    }
    lay_out_picks(picks, a.input, kernels);
  }

  // As many steps as an input gets outputs.
  void lay_out_backward_picks(const Axis& a, const WindowKernels& kernels) {
    Picks picks(1, std::vector<int64_t>(a.input, -1));
    for (int64_t i = 0; i < a.input; ++i) {
      size_t step = 0;
      for (int64_t t = a.kernel - 1; t >= 0; --t) {
        const int64_t o = output_index(a, plan_.output[2], i, t);
        if (o < 0) continue;
        if (step == picks.size()) picks.emplace_back(a.input, -1);
        picks[step++][i] = o;
      }
    }
    lay_out_picks(picks, plan_.output[2], kernels);
  }

  // `size` entries to pick from. Two rows of one vector each are picked from together.
  void lay_out_picks(const Picks& steps, int64_t size, const WindowKernels& kernels) {
    const int64_t n = static_cast<int64_t>(steps.front().size()), spare = size < kernels.lanes ? 1 : 2;
    const int64_t count = spare == 2 ? n : 2 * n;
    plan_.pick_steps = static_cast<int64_t>(steps.size());
    std::vector<int64_t> lanes;
    for (int64_t begin = 0; begin < count; begin += kernels.lanes) {
      for (const auto& step : steps) {
        for (int64_t e = begin; e < begin + kernels.lanes; ++e) {
          const int64_t lane = e < count ? step[e % n] : -1;
          lanes.push_back(lane < 0 ? spare * kernels.lanes - 1 : e < n ? lane : kernels.lanes + lane);
        }
      }
    }
    picks_ = numbers<int32_t>(lanes, kernels);
  }

  // Small planes, and so many that they are worth the tables; false where there are none.
  bool lay_out_flat(const Windows& w, const WindowKernels& kernels) {
    constexpr int64_t kFewest = 32, kMostSteps = 4, kMostEntries = 4096;  // tables in the caches, read in turn
    const int64_t inputs = w.input_numel(), outputs = w.output_numel();
    if (w.inner != 1 || w.planes < kFewest || inputs > kMostEntries) return false;
    std::array<int64_t, kAxes> steps;  // outputs that see an input of the axis, at most
    for (int i = 0; i < kAxes; ++i) {
      steps[i] = ceil_div(w.axis[i].kernel, w.axis[i].stride / std::gcd(w.axis[i].stride, w.axis[i].dilation));
    }
    const int64_t lanes = kernels.lanes, vectors = ceil_div(inputs, lanes);
    plan_.flat_steps = steps[0] * steps[1] * steps[2];
    if (plan_.flat_steps > kMostSteps || vectors * plan_.flat_steps * lanes > kMostEntries) return false;
    std::array<std::vector<int64_t>, kAxes> seen;  // [input * steps + step]: the output that an input gets, or -1
    for (int i = 0; i < kAxes; ++i) {
      const Axis& a = w.axis[i];
      for (int64_t in = 0; in < a.input; ++in) {
        for (int64_t t = a.kernel - 1; t >= 0; --t) {
          if ((in + a.lo - t * a.dilation) % a.stride == 0) seen[i].push_back(output_index(a, w.output[i], in, t));
        }
        seen[i].resize((in + 1) * steps[i], -1);
      }
    }
    std::vector<int64_t> picks(vectors * plan_.flat_steps * lanes, -1);
    const int64_t width = w.axis[2].input, height = w.axis[1].input;
    for (int64_t begin = 0, pick = 0; begin < inputs; begin += lanes) {
      const int64_t count = std::min(lanes, inputs - begin);
      for (int64_t step = 0; step < plan_.flat_steps; ++step, pick += lanes) {
        int64_t first = outputs, last = 0;
        for (int64_t lane = 0; lane < count;) {  // by rows of x
          const int64_t row = (begin + lane) / width, column = (begin + lane) % width;
          const int64_t s0 = seen[0][row / height * steps[0] + step / steps[2] / steps[1]];
          const int64_t s1 = seen[1][row % height * steps[1] + step / steps[2] % steps[1]];
          const int64_t* s2 = &seen[2][column * steps[2] + step % steps[2]];
          const int64_t output = (s0 * w.output[1] + s1) * w.output[2];
          for (const int64_t end = std::min(count, lane + width - column); lane < end; ++lane, s2 += steps[2]) {
            if ((s0 | s1 | *s2) < 0) continue;
            picks[pick + lane] = output + *s2;
            first = std::min(first, output + *s2);
            last = std::max(last, output + *s2);
          }
        }
        if (last - first >= lanes) return flat_first_.clear(), false;
        for (int64_t lane = 0; lane < count; ++lane) picks[pick + lane] -= picks[pick + lane] < 0 ? 0 : first;
        flat_first_.push_back(first);
      }
    }
    flat_picks_ = numbers<int32_t>(picks, kernels);
    std::vector<double> weight(whole_vectors(outputs, kernels), plan_.scale);
    for (int64_t o = 0; o < outputs && !plan_.uniform; ++o) {
      weight[o] = weights_[0][o / w.output[2] / w.output[1]] * weights_[1][o / w.output[2] % w.output[1]] *
                  weights_[2][o % w.output[2]];
    }
    flat_weight_ = numbers<float>(weight, kernels);
    plan_.scratch = 4 * (outputs + lanes) * kernels.sum_item;
    return true;
  }

  // Outputs are added one by one, at places from tables; false where those were too large, or where rows of x gather
  // long rows of y sooner: a comparison for each vector of outputs and tap, and some time for each row. Constants are
  // measured.
  bool lay_out_scatter(const Windows& w, const WindowKernels& kernels) {
    constexpr int64_t kMostTaps = 32, kMostOutputs = 1 << 16;
    const auto& [a0, a1, a2] = w.axis;
    const int64_t taps = w.kernel_numel(), line = a2.input, plane = a1.input * line;
    if (w.inner != 1 || taps > kMostTaps || w.output_numel() > kMostOutputs || w.input_numel() > INT32_MAX ||
        w.output[2] * kernels.lanes >= 32 * (12 + taps)) {
      return false;
    }
    const auto seen_taps = [](const Axis& a, int64_t o, int64_t step) {  // a bit for each, `step` apart
      const Range taps = taps_of_output(a, o);
      uint32_t seen = 0;
      for (int64_t t = taps.begin; t < taps.end; ++t) seen |= uint32_t{1} << t * step;
      return seen;
    };
    for (int64_t o0 = 0; o0 < w.output[0]; ++o0) {
      for (int64_t o1 = 0; o1 < w.output[1]; ++o1) {
        const int64_t first = input_index(a0, o0, 0) * plane + input_index(a1, o1, 0) * line;
        const uint32_t seen = seen_taps(a0, o0, a1.kernel * a2.kernel) * seen_taps(a1, o1, a2.kernel);
        for (int64_t o2 = 0; o2 < w.output[2]; ++o2) {
          places_.push_back(static_cast<int32_t>(first + input_index(a2, o2, 0)));
          seen_taps_.push_back(seen * seen_taps(a2, o2, 1));  // a bit for each pair of factors' bits
        }
      }
    }
    for (int64_t t = 0; t < kMostTaps; ++t) {
      const int64_t t0 = t / a2.kernel / a1.kernel, t1 = t / a2.kernel % a1.kernel, t2 = t % a2.kernel;
      tap_offset_.push_back(
          static_cast<int32_t>(t0 * a0.dilation * plane + t1 * a1.dilation * line + t2 * a2.dilation));
    }
    constexpr int64_t kVector = 16;
    places_.resize(ceil_div(w.output_numel(), kVector) * kVector);
    seen_taps_.resize(places_.size(), UINT32_MAX);
    plan_.scratch = kernels.item < kernels.sum_item ? w.input_numel() * kernels.sum_item : 0;
    return true;
  }

  static int64_t whole_vectors(int64_t count, const WindowKernels& kernels) {
    return ceil_div(count, kernels.lanes) * kernels.lanes;
  }

  void set_rows_at_once(const WindowKernels& kernels) {
    constexpr int64_t kMost = 16, kBytes = 12288;  // a part of the first cache
    plan_.rows_at_once = std::clamp<int64_t>(kBytes / (plan_.line_size * kernels.sum_item), 1, kMost);
  }

  void lay_out_forward(const Axis& a, const WindowKernels& kernels) {
    const int64_t input = std::max<int64_t>(0, a.lo), window = std::max<int64_t>(0, -a.lo);
    const int64_t outputs = plan_.inner == 1 ? whole_vectors(plan_.output[2], kernels) : plan_.output[2];
    const int64_t seen = window + outputs * a.stride + effective_kernel(a);
    plan_.at_input = input * plan_.inner;
    plan_.at_window = window * plan_.inner;
    plan_.line_size = std::max(seen, input + a.input) * plan_.inner + 2 * kernels.lanes;
    set_rows_at_once(kernels);
    // Lines of values and, for max_pool_with_indices, of places; and its columns.
    plan_.scratch = (2 * plan_.rows_at_once + 1) * plan_.line_size * kernels.sum_item;
  }

  void lay_out_backward(const Axis& a, int64_t lines_of_row, const WindowKernels& kernels) {
    int64_t least = 0, most = 0;
    std::vector<int64_t> taps;  // of the offsets
    for (int64_t r = 0; r < a.stride; ++r) {
      offsets_begin_.push_back(static_cast<int64_t>(offsets_.size()));
      for (int64_t t = a.kernel - 1; t >= 0; --t) {
        const int64_t distance = a.lo + r - t * a.dilation;
        if (distance - floor_div(distance, a.stride) * a.stride != 0) continue;
        offsets_.push_back(floor_div(distance, a.stride));
        taps.push_back(t);
        least = std::min(least, offsets_.back());
        most = std::max(most, offsets_.back());
      }
    }
    offsets_begin_.push_back(static_cast<int64_t>(offsets_.size()));
    const int64_t columns = ceil_div(a.input, a.stride);
    plan_.phase_columns = whole_vectors(columns, kernels);
    plan_.at_output = -least * plan_.inner;
    const int64_t line = (std::max(plan_.output[2], columns + most) - least) * plan_.inner + 2 * kernels.lanes;
    plan_.tap_line = lines_of_row == 1 ? 0 : line;
    for (size_t j = 0; j < offsets_.size(); ++j) offsets_[j] = offsets_[j] * plan_.inner + taps[j] * plan_.tap_line;
    plan_.line_size = lines_of_row * line;
    set_rows_at_once(kernels);
    plan_.scratch = (plan_.rows_at_once * plan_.line_size + plan_.phase_columns * a.stride) * kernels.sum_item;
  }

  // Rows follow each other, and so do the lines that they see, some by several rows.
  void lay_out_ring(const Windows& w, const WindowKernels& kernels) {
    const bool alone = w.inner == 1 && w.axis[0].input == 1 && w.output[0] == 1 && w.axis[1].dilation == 1;
    if (!alone || count_[0][0] != 1 || w.axis[1].stride == 1) return;
    const int64_t lines = *std::max_element(count_[1].begin(), count_[1].end()) + kRingAhead;
    for (plan_.ring = 1; plan_.ring < lines;) plan_.ring *= 2;
    plan_.ring_line = whole_vectors(w.axis[2].input, kernels);
    plan_.scratch += plan_.ring * plan_.ring_line * kernels.sum_item;
  }

  // Rows of a plane of `rows` x `columns`, and the lines that they see: those of the first one, and as many more for
  // each further row as the end of what it sees may be ahead.
  void lay_out_chunk(int64_t rows, int64_t columns, const WindowKernels& kernels) {
    constexpr int64_t kBytes = 1 << 16;  // a small part of the second cache
    if (plan_.exponent == 0 || plan_.exponent == 2) return;
    const int64_t indices = *std::max_element(count_[0].begin(), count_[0].end());
    // Where dilated taps are cut off, a row may begin before the one ahead of it, or end before it.
    std::vector<int64_t> least(rows);  // of this row and those behind it
    int64_t lines = 0, ahead = 1, last = 0;
    for (int64_t i = rows - 1, first = INT64_MAX; i >= 0; --i) {
      least[i] = first = count_[1][i] == 0 ? first : std::min(first, first_[1][i]);
    }
    for (int64_t i = 0; i < rows; ++i) {
      if (count_[1][i] == 0) continue;
      const int64_t end = std::max(last, first_[1][i] + (count_[1][i] - 1) * plan_.lines[1].step + 1);
      if (lines > 0) ahead = std::max(ahead, end - last);
      lines = std::max(lines, end - least[i]);
      last = end;
    }
    const int64_t line = indices * plan_.lines[1].pitch;
    const int64_t most_lines = kBytes / std::max<int64_t>(1, line * kernels.sum_item);
    plan_.chunk_rows = std::clamp<int64_t>(1 + (most_lines - lines) / ahead, 1, rows);
    plan_.chunk_size = ceil_div((lines + (plan_.chunk_rows - 1) * ahead) * line, kernels.lanes) * kernels.lanes;
    plan_.at_chunk = ceil_div(plan_.scratch, 64) * 64;
    const int64_t numel = plan_.chunk_size + plan_.chunk_rows * columns * plan_.inner;
    plan_.scratch = plan_.at_chunk + (numel + 2 * kernels.lanes) * kernels.sum_item;  // short rows read behind lines
  }

  PoolPlan plan_ = {};
  std::vector<int64_t> first_[2], count_[2], first_tap_[2], offsets_, offsets_begin_;
  Weights weights_;
  Table column_, picks_, flat_picks_, flat_weight_;
  std::vector<int64_t> flat_first_;
  std::vector<int32_t> places_, tap_offset_;
  std::vector<uint32_t> seen_taps_;
};

}  // namespace convarith::cpu
