#include "conv_engine.h"

#include <atomic>
#include <cmath>
#include <iterator>
#include <stdexcept>

#include "../simplify.h"
#include "conv_planning.h"

namespace convarith::cpu {
namespace {

std::atomic<int> forced{-1};
std::atomic<bool> winograd{true};

// The same sums as a smaller problem: see as_product(), and where a kernel of 1 moves over all of its input the axes
// are one.
Problem simplify(const Problem& problem) {
  Problem p = as_product(problem);
  if (is_pointwise(p) && p.input_numel() == 1) {  // one pixel: the batch is the axis
    p.axis[2].input = p.output[2] = p.batch;
    p.x.axis[2] = p.x.batch;
    p.y.axis[2] = p.y.batch;
    p.batch = 1;
    return p;
  }
  for (int i = 1; i >= 0 && is_pointwise(p.axis[2]); --i) {
    const auto follows = [&](const Strides& s) { return s.axis[i] == p.axis[2].input * s.axis[2]; };
    if (!is_pointwise(p.axis[i])) break;
    if (p.axis[i].input > 1 && !(follows(p.x) && follows(p.y))) break;
    p.axis[2].input = p.output[2] = p.axis[2].input * p.axis[i].input;
    p.axis[i] = kTrivialAxis;
    p.output[i] = 1;
  }
  return p;
}

// Whether a zero beside the input, or beside the output where C^T multiplies that, is ever multiplied.
bool pads(const Problem& p, Pass pass) {
  for (int i = 0; i < kAxes; ++i) {
    const Axis& a = p.axis[i];
    if (pass == Pass::kInput) {
      if (a.lo < (a.kernel - 1) * a.dilation || a.input - 1 + a.lo >= p.output[i] * a.stride) return true;
    } else if (input_index(a, 0, 0) < 0 || input_index(a, p.output[i] - 1, a.kernel - 1) >= a.input) {
      return true;
    }
  }
  return false;
}

int64_t result_numel(const Problem& p, Pass pass) {
  if (pass == Pass::kOutput) return p.batch * p.groups * p.out_channels * p.output_numel();
  if (pass == Pass::kInput) return p.batch * p.groups * p.in_channels * p.input_numel();
  return p.groups * p.out_channels * p.in_channels * p.kernel_numel();
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

int64_t all_macs(const Problem& p) {
  return p.batch * p.groups * p.out_channels * p.in_channels * p.output_numel() * p.kernel_numel();
}

bool wants_reference(const Problem& p) {
  const auto wanted = wanted_algorithm();
  if (wanted) return *wanted == Algorithm::kReference;
  return all_macs(p) < kFewMacs;
}

// The choice among the families; null where only conv_direct.h serves.
PlanPtr choose(const Problem& p, Pass pass, const ConvKernels& k) {
  if (PlanPtr plan = plan_depthwise(p, pass, k)) return plan;
  Cheapest cheapest = {p, pass, k};
  PlanPtr best;
  for (const auto& plan_family : {plan_scatter, plan_images, plan_amx, plan_amx_weight, plan_winograd}) {
    PlanPtr plan = plan_family(p, pass, k, cheapest);
    if (!plan) continue;
    cheapest.cycles = plan->cycles();
    best = std::move(plan);
  }
  if (best) return best;
  return pass == Pass::kWeight ? plan_weight(p, k) : plan_gathers(gathers_of(p, pass, k), k);
}

}  // namespace

std::optional<Algorithm> wanted_algorithm() {
  const int value = forced.load(std::memory_order_relaxed);
  return value < 0 ? std::nullopt : std::optional<Algorithm>(static_cast<Algorithm>(value));
}

void force_algorithm(const std::string& name) {
  if (name == "auto") {
    forced.store(-1);
    return;
  }
  for (size_t a = 0; a < std::size(kAlgorithmNames); ++a) {
    if (name == kAlgorithmNames[a]) {
      forced.store(static_cast<int>(a));
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
  const int64_t multiplications = all_macs(problem);
  if (dtype >= 0 && multiplications > 0 && !wants_reference(problem)) {
    if (const PlanPtr plan = choose(simplify(problem), pass, active_kernels(dtype))) return plan->explain();
  }
  return {Algorithm::kReference, 0, 0, multiplications};
}

Ran run_fast(const Problem& problem, Pass pass, int dtype, const void* input, int64_t input_count, const void* other,
             int64_t other_count, const void* bias, void* output) {
  if (wants_reference(problem)) return Ran::kNothing;
  const ConvKernels& k = active_kernels(dtype);
  // A simpler problem may have other channels; half precisions must add the bias before they round.
  const bool as_it_is = bias != nullptr && pass == Pass::kInput && k.item != k.sum_item;
  const Problem simple = as_it_is ? problem : simplify(problem);
  const PlanPtr plan = choose(simple, pass, k);
  if (!plan) return Ran::kNothing;
  // Padding is multiplied here, by weights or by y, and 0 * Inf would be NaN where C has no entry at all. A plan may
  // look at the weights while it has them. Otherwise, a result being finite only where all that was multiplied was, the
  // smaller of the result and the weights, or x and y, is looked at first.
  const bool gradient = pass == Pass::kWeight, padded = pads(problem, pass);
  const bool checks = gradient ? plan->multiplies_zeros(padded) : padded;
  const bool sees_weights = plan->finite_weights().has_value();
  const int64_t results = result_numel(problem, pass);
  const bool before = !sees_weights && other_count + (gradient ? input_count : 0) <= results;
  const auto finite_operands = [&] {
    return all_finite(k, other, other_count) && (!gradient || all_finite(k, input, input_count));
  };
  if (checks && before && !finite_operands()) return Ran::kNothing;
  const bool same_channels = pass == Pass::kOutput || simple.in_channels == problem.in_channels;
  const bool biased = bias == nullptr || (same_channels && plan->add_bias(bias));
  plan->run(input, input_count, other, other_count, output);
  const auto spoiled = [&] {
    if (sees_weights) return !*plan->finite_weights();
    return !before && !all_finite(k, output, results) && (gradient || !finite_operands());
  };
  if (checks && spoiled()) return Ran::kNothing;
  return biased ? Ran::kAll : Ran::kWithoutBias;
}

}  // namespace convarith::cpu
