// Local response normalisation and its derivative, in one pass each over blocks of neighbours: all channels of a block,
// whose window is still in cache.
#pragma once

#include "simd_math.h"
#include "window_plan.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

enum class Exponent { kThreeQuarters, kHalf, kOne, kAny };

template <Exponent kExponent, typename T>
struct Normalisation {
  typedef typename Lanes<T>::Sum Sum;
  typedef typename Lanes<T>::Sums Sums;
  static constexpr int kLanes = Lanes<T>::kLanes;

  const LrnPlan& plan;
  const PowerOf power = PowerOf(-plan.beta);

  // s of `count` neighbours in channel c; x is their place in channel 0.
  Sums sum(const T* x, int64_t c, int64_t count) const {
    const int64_t begin = most<int64_t>(0, c - plan.size / 2);
    const int64_t end = least(plan.channels, c + (plan.size + 1) / 2);
    Sums total = {};
    for (int64_t j = begin; j < end; ++j) {
      const Sums v = load_up_to(x + j * plan.inner, count);
      total += v * v;
    }
    return total * static_cast<Sum>(plan.alpha) + static_cast<Sum>(plan.k);
  }

  Sums scale(Sums s) const {  // s^-beta
    if constexpr (kExponent == Exponent::kAny) return signed_power(s, power);
    if constexpr (kExponent == Exponent::kOne) return Sum(1) / s;
    const Sums root = square_root(s);
    return kExponent == Exponent::kHalf ? Sum(1) / root : Sum(1) / (root * square_root(root));
  }

  void forward(const T* x, T* y, int64_t begin, int64_t end) const {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = first_of(b), n = size_of(b);
      for (int64_t c = 0; c < plan.channels; ++c) {
        for (int64_t e = 0; e < n; e += kLanes) {
          const int64_t at = first + c * plan.inner + e;
          prefetch_ahead(x + at, (plan.size / 2 + 1) * plan.inner);  // what the next channel's window has first
          store_up_to(y + at, load_up_to(x + at, n - e) * scale(sum(x + first + e, c, n - e)), n - e);
        }
      }
    }
  }

  // gx = g s^-beta - 2 alpha beta x * (sum of g x s^(-beta - 1) over the channels whose sum has this one).
  void backward(const T* g, const T* x, T* gx, Sum* scratch, int64_t begin, int64_t end) const {
    const int64_t kept = plan.size + 1;  // of each channel's terms, until the last channel that needs them is done
    const Sum factor = static_cast<Sum>(2 * plan.alpha * plan.beta);
    Sum* direct = scratch;                     // [kept][block]: g s^-beta
    Sum* shared = direct + kept * plan.block;  // [kept][block]: g x s^(-beta - 1)
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = first_of(b), n = size_of(b);
      int64_t done = 0;
      for (int64_t c = 0; c < plan.channels; ++c) {
        const int64_t seen_from = most<int64_t>(0, c - (plan.size - 1) / 2);
        const int64_t seen_to = least(plan.channels, c + plan.size / 2 + 1);
        for (; done < seen_to; ++done) {
          for (int64_t e = 0; e < n; e += kLanes) {
            const int64_t at = first + done * plan.inner + e, slot = done % kept * plan.block + e;
            prefetch_ahead(x + at, (plan.size / 2 + 1) * plan.inner);
            prefetch_ahead(g + at, plan.inner);
            const Sums s = sum(x + first + e, done, n - e), d = load_up_to(g + at, n - e) * scale(s);
            store(direct + slot, d);
            store(shared + slot, d * load_up_to(x + at, n - e) / s);
          }
        }
        const int64_t oldest = seen_from % kept;
        for (int64_t e = 0; e < n; e += kLanes) {
          Sums total = {};
          for (int64_t j = seen_from, slot = oldest; j < seen_to; ++j) {
            total += load(shared + slot * plan.block + e);
            slot = slot + 1 == kept ? 0 : slot + 1;
          }
          const int64_t at = first + c * plan.inner + e;
          const Sums d = load(direct + c % kept * plan.block + e);
          store_up_to(gx + at, d - factor * load_up_to(x + at, n - e) * total, n - e);
        }
      }
    }
  }

  int64_t first_of(int64_t b) const {
    return b / plan.blocks * plan.channels * plan.inner + b % plan.blocks * plan.block;
  }
  int64_t size_of(int64_t b) const { return least(plan.block, plan.inner - b % plan.blocks * plan.block); }
};

// Calls body with the Normalisation that the exponent asks for.
template <typename T, typename Body>
inline void with_exponent(const LrnPlan& plan, const Body& body) {
  if (plan.beta == 0.75) return body(Normalisation<Exponent::kThreeQuarters, T>{plan});
  if (plan.beta == 0.5) return body(Normalisation<Exponent::kHalf, T>{plan});
  if (plan.beta == 1) return body(Normalisation<Exponent::kOne, T>{plan});
  body(Normalisation<Exponent::kAny, T>{plan});
}

template <typename T>
void lrn(const LrnPlan& plan, const void* x, void* y, int64_t begin, int64_t end) {
  with_exponent<T>(plan, [&](const auto& by) { by.forward(static_cast<const T*>(x), static_cast<T*>(y), begin, end); });
}

template <typename T>
void lrn_backward(const LrnPlan& plan, const void* g, const void* x, void* gx, char* scratch, int64_t begin,
                  int64_t end) {
  with_exponent<T>(plan, [&](const auto& by) {
    by.backward(static_cast<const T*>(g), static_cast<const T*>(x), static_cast<T*>(gx),
                reinterpret_cast<typename Lanes<T>::Sum*>(scratch), begin, end);
  });
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
