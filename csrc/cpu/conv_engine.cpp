#include "conv_engine.h"

#include <atomic>
#include <stdexcept>

#include "conv_planning.h"

namespace convarith::cpu {
namespace {

std::atomic<int> forced{-1};
std::atomic<bool> winograd{true};

// Whether axes of these sizes follow each other in memory, last axis fastest, and channels follow them.
bool contiguous_axes(const Strides& s, const std::array<int64_t, kAxes>& size) {
  int64_t step = 1;
  for (int i = kAxes - 1; i >= 0; --i) {
    if (size[i] > 1 && s.axis[i] != step) return false;
    step *= size[i];
  }
  return s.channel == step;
}

// The same sums as a smaller problem: a kernel that covers its whole input is a product of matrices, and where a
// kernel of 1 moves over all of its input the axes are one.
Problem simplify(Problem p) {
  const int64_t taps = p.kernel_numel();
  bool covers = true, pointwise = true;
  for (int i = 0; i < kAxes; ++i) {
    const Axis& a = p.axis[i];
    covers = covers && p.output[i] == 1 && a.lo == 0 && a.dilation == 1 && a.input == a.kernel;
    pointwise = pointwise && a.kernel == 1 && a.stride == 1 && a.lo == 0 && a.hi == 0;
  }
  const std::array<int64_t, kAxes> input = {p.axis[0].input, p.axis[1].input, p.axis[2].input};
  if (covers && taps > 1 && contiguous_axes(p.w, input) && contiguous_axes(p.x, input)) {
    p.in_channels *= taps;
    p.x.channel = p.w.channel = 1;
    p.axis = {kTrivialAxis, kTrivialAxis, kTrivialAxis};
    p.x.axis = p.y.axis = p.w.axis = {0, 0, 1};
    pointwise = true;
  }
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

// The cost model's choice among the families; null where only conv_direct.h serves.
PlanPtr choose(const Problem& problem, Pass pass, const ConvKernels& k) {
  const Problem p = simplify(problem);
  if (PlanPtr plan = plan_winograd(p, pass, k)) return plan;
  return pass == Pass::kWeight ? plan_weight(p, k) : plan_gathers(gathers_of(p, pass, k), k);
}

}  // namespace

std::optional<Algorithm> wanted_algorithm() {
  const int value = forced.load(std::memory_order_relaxed);
  return value < 0 ? std::nullopt : std::optional<Algorithm>(static_cast<Algorithm>(value));
}

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
  const int64_t multiplications = problem.batch * problem.groups * problem.out_channels * problem.in_channels *
                                  problem.output_numel() * problem.kernel_numel();
  if (dtype >= 0 && multiplications > 0 && !wants_reference(problem)) {
    if (const PlanPtr plan = choose(problem, pass, active_kernels(dtype))) return plan->explain();
  }
  return {Algorithm::kReference, 0, 0, multiplications};
}

bool run_fast(const Problem& problem, Pass pass, int dtype, const void* input, int64_t input_count, const void* other,
              int64_t other_count, void* output) {
  if (wants_reference(problem)) return false;
  const ConvKernels& k = active_kernels(dtype);
  // Padding is multiplied here, by weights or by y; 0 * Inf would be NaN where C has no entry at all.
  if (pads(problem) && !all_finite(k, other, other_count)) return false;
  const PlanPtr plan = choose(problem, pass, k);
  if (!plan) return false;
  plan->run(input, input_count, other, other_count, output);
  return true;
}

}  // namespace convarith::cpu
