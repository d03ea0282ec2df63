// Small planes: rows too short for vectors. Some planes are transposed to pixels with a lane for each plane, which the
// kernels take for channels behind the last axis, and what comes out is transposed back.
#pragma once

#include "pooling_powers.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

inline int64_t plane_size(const int64_t (&size)[3]) {
  return size[0] * size[1] * size[2];
}

// `count` planes from `first` on; lanes without a plane get ones, which are harmless in every kind of pooling.
template <typename T>
inline void planes_to_lanes(const T* planes, int64_t first, int64_t count, int64_t size, T* pixels) {
  constexpr int kLanes = Lanes<T>::kLanes;
  for (int64_t i = 0; count < kLanes && i < size * kLanes; i += kLanes)
    store(pixels + i, every<typename Lanes<T>::Sums>(1));
  transpose(planes + first * size, size, count, size, pixels, kLanes);
}

// Groups [begin, end) of a vector's planes; the plan's are groups with `inner` lanes.
template <typename T>
void pool_planes(Pooling kind, const PoolPlan& plan, int64_t planes, const void* x, void* y, char* scratch,
                 int64_t begin, int64_t end) {
  constexpr int kLanes = Lanes<T>::kLanes;
  if constexpr (sizeof(T) == sizeof(typename Lanes<T>::Sum)) {
    const int64_t inputs = plane_size(plan.input), outputs = plane_size(plan.output);
    T* in = reinterpret_cast<T*>(scratch + plan.at_planes);
    T* out = in + inputs * kLanes;
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * kLanes, count = least<int64_t>(kLanes, planes - first);
      planes_to_lanes(static_cast<const T*>(x), first, count, inputs, in);
      pool<T>(kind, plan, in, out, scratch, 0, plan.output[0] * plan.output[1]);
      transpose(out, kLanes, outputs, count, static_cast<T*>(y) + first * outputs, outputs);
    }
  }
}

// Calls body with the powers of a kind of L^p pooling.
template <typename Sums, typename Body>
inline void with_powers(Pooling kind, double p, const Body& body) {
  with_power(p, [&](auto power) {
    constexpr int kPower = decltype(power)::value;
    kind == Pooling::kNorm ? body(Powers<kPower, false, Sums>(p)) : body(Powers<kPower, true, Sums>(p));
  });
}

// L^p's adjoint is the average's between two multiplications, of elements where they stand.
template <typename T>
void pool_backward_planes(Pooling kind, const PoolPlan& plan, int64_t planes, const void* g_data, const void* x_data,
                          const void* y_data, void* result_data, char* scratch, int64_t begin, int64_t end) {
  typedef typename Lanes<T>::Sums Sums;
  constexpr int kLanes = Lanes<T>::kLanes;
  if constexpr (sizeof(T) == sizeof(typename Lanes<T>::Sum)) {
    const int64_t inputs = plane_size(plan.input), outputs = plane_size(plan.output);
    T* grad = reinterpret_cast<T*>(scratch + plan.at_planes);
    T* shares = grad + outputs * kLanes;
    T* sums = shares + outputs * kLanes;
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * kLanes, count = least<int64_t>(kLanes, planes - first);
      const T* g = static_cast<const T*>(g_data) + first * outputs;
      T* result = static_cast<T*>(result_data) + first * inputs;
      if (kind != Pooling::kAverage) {
        const T* y = static_cast<const T*>(y_data) + first * outputs;
        with_powers<Sums>(kind, plan.exponent, [&](const auto& powers) {
          for (int64_t e = 0, size = count * outputs; e < size; e += kLanes) {
            prefetch_ahead(g + e, size);  // the next group
            prefetch_ahead(y + e, size);
            store_up_to(shares + e, load_up_to(g + e, size - e) * powers.inverse_slope(load_up_to(y + e, size - e)),
                        size - e);
          }
        });
        g = shares;
      }
      planes_to_lanes(g, 0, count, outputs, grad);
      pool_backward<T>(Pooling::kAverage, plan, grad, nullptr, nullptr, sums, scratch, 0,
                       plan.input[0] * plan.input[1]);
      transpose(sums, kLanes, inputs, count, result, inputs);
      if (kind == Pooling::kAverage) continue;
      const T* x = static_cast<const T*>(x_data) + first * inputs;
      with_powers<Sums>(kind, plan.exponent, [&](const auto& powers) {
        for (int64_t e = 0, size = count * inputs; e < size; e += kLanes) {
          prefetch_ahead(x + e, size);  // the next group
          store_up_to(result + e, load_up_to(result + e, size - e) * powers.slope(load_up_to(x + e, size - e)),
                      size - e);
        }
      });
    }
  }
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
