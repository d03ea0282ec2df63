// Pooling: a window is reduced along axes 0 and 1 first, whole lines of inputs at a time, and along the last axis then.
// A policy says what is added, joined and finished. Both stages run over contiguous memory whatever the strides are,
// and every output has one owner and one order of summation, so results do not depend on the number of threads.
#pragma once

#include "pooling_short.h"
#include "simd_math.h"
#include "window_stream.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// Policies ------------------------------------------------------------------------------------------------------------

// The larger (kMinimum: the smaller) of two; a NaN is larger than anything, as in torch.
template <bool kMinimum, typename V>
inline auto is_better(V v, V than) {
  return kMinimum ? v < than : v > than;
}
template <bool kMinimum, typename V>
inline V better(V best, V v) {
  const V found = is_better<kMinimum>(v, best) ? v : best;
  return v != v ? v : found;
}

// The part of a window's weight that its row has, for the entries from e on of a row and, past its end, the next one.
template <typename V>
inline V line_weights(const PoolPlan& plan, Row row, int64_t e) {
  const auto of = [&] {
    return every<V>(static_cast<decltype(V{}[0])>(plan.weight[0][row.i0] * plan.weight[1][row.i1]));
  };
  const V weight = of();
  if (plan.picks == nullptr) return weight;
  row.advance();
  return first_or(weight, static_cast<int>(plan.output[2] - e), of()[0]);
}

template <bool kMinimum, typename T>
struct Maximum {
  typedef typename Lanes<T>::Sums Sums;
  static constexpr double kNeutral = kMinimum ? __builtin_inf() : -__builtin_inf();
  static constexpr bool kIsUsual = !kMinimum;  // worth kernels of its own for usual windows

  explicit Maximum(const PoolPlan&) {}
  static Sums add(Sums best, Sums v) { return better<kMinimum>(best, v); }
  static Sums join(Sums best, Sums v) { return better<kMinimum>(best, v); }
  static Sums finish(const Row&, const T*, Sums best, int64_t, int64_t) { return best; }
};

template <typename T>
struct Average {
  typedef typename Lanes<T>::Sums Sums;
  typedef typename Lanes<T>::Sum Sum;
  static constexpr double kNeutral = 0;
  static constexpr bool kIsUsual = true;

  explicit Average(const PoolPlan& p) : plan(p), divisor(static_cast<Sum>(p.scale)), inverse(1 / divisor) {}
  static Sums add(Sums sum, Sums v) { return sum + v; }
  static Sums join(Sums sum, Sums v) { return sum + v; }
  Sums finish(const Row& row, const T*, Sums sum, int64_t e, int64_t) const {
    if (plan.uniform) return quotient(sum, divisor, inverse);
    return sum / (line_weights<Sums>(plan, row, e) * load(static_cast<const Sum*>(plan.column) + e));
  }

  const PoolPlan& plan;
  Sum divisor, inverse;  // where the plan is uniform
};

// kPower is p where it is 1, 2 or 3, else 0; torch's reading is signed: it takes powers of x instead of |x|.
template <int kPower, typename V>
struct Powers {
  Powers(double p, bool s)
      : is_signed(s), itself(p, !s), inverse(1 / p, !s), less_one(p - 1, !s), one_less(1 - p, !s) {}

  V of(V v) const {  // |v|^p
    if constexpr (kPower == 0) return signed_power(v, itself);
    const V u = is_signed ? v : magnitude(v);
    if constexpr (kPower == 1) return u;
    if constexpr (kPower == 2) return u * u;
    if constexpr (kPower == 3) return u * u * u;
  }

  V root(V s) const {  // s^(1/p)
    if constexpr (kPower == 1) return s;
    if constexpr (kPower == 2) return square_root(s);
    return signed_power(s, inverse);
  }

  V slope(V v) const {  // |v|^(p-1) sign(v)
    const V one = every<V>(1), none = {};
    if constexpr (kPower == 1) {
      if (is_signed) return one;
      return v > 0 ? one : v < 0 ? -one : none;
    }
    if constexpr (kPower == 2) return v;
    if constexpr (kPower == 3) return v * (is_signed ? v : magnitude(v));
    const V u = signed_power(v, less_one);
    if (is_signed) return u;
    return v < 0 ? -u : u;
  }

  V inverse_slope(V y) const {  // y^(1-p); 0 where the sum is 0
    const V one = every<V>(1), none = {};
    if constexpr (kPower == 1) {
      if (!is_signed) return one;
      return y == 0 ? none : one;
    }
    if constexpr (kPower == 2) return y == 0 ? none : one / y;
    if constexpr (kPower == 3) return y == 0 ? none : one / (y * y);
    return y == 0 ? none : signed_power(y, one_less);
  }

  bool is_signed;
  PowerOf itself, inverse, less_one, one_less;  // p, 1 / p, p - 1, 1 - p
};

// Calls body with kPower of an exponent, as a Constant.
template <typename Body>
inline void with_power(double p, const Body& body) {
  if (p == 1) return body(Constant<1>{});
  if (p == 2) return body(Constant<2>{});
  if (p == 3) return body(Constant<3>{});
  body(Constant<0>{});
}

// A window's sum times its weight.
template <typename V>
inline V weighted(const PoolPlan& plan, const Row& row, V sum, int64_t e) {
  typedef decltype(+sum[0]) Sum;
  if (plan.uniform) return plan.scale == 1 ? sum : sum * static_cast<Sum>(plan.scale);
  return sum * line_weights<V>(plan, row, e) * load(static_cast<const Sum*>(plan.column) + e);
}

template <int kPower, typename T>
struct Norm {
  typedef typename Lanes<T>::Sums Sums;
  typedef typename Lanes<T>::Sum Sum;
  static constexpr double kNeutral = 0;
  static constexpr bool kIsUsual = kPower == 2;  // torch's default
  static constexpr int kLanes = Lanes<T>::kLanes;
  static constexpr Sum kLeast = sizeof(Sum) == 4 ? __FLT_MIN__ * 1024 : __DBL_MIN__ * 1024;
  static constexpr Sum kMost = sizeof(Sum) == 4 ? __FLT_MAX__ : __DBL_MAX__;

  Norm(const PoolPlan& p, bool is_signed) : plan(p), powers(p.exponent, is_signed) {}
  Sums add(Sums sum, Sums v) const { return sum + powers.of(v); }
  static Sums join(Sums sum, Sums v) { return sum + v; }

  Sums finish(const Row& row, const T* x, Sums sum, int64_t e, int64_t count) const {
    const Sums scaled = powers.is_signed ? weighted(plan, row, sum, e) : sum;
    Sums y = powers.root(scaled);
    if (needs_rescaling(scaled, count)) rescale(row, x, scaled, e, count, &y);
    return y;
  }

  bool needs_rescaling(Sums sum, int64_t count) const {
    if (kPower == 1 || powers.is_signed) return false;
    return any(is_doubtful(count < kLanes ? first_or(sum, static_cast<int>(count), 1) : sum));
  }

  // Sums that have left the range of their type, or all but a few digits.
  static auto is_doubtful(Sums sum) { return (sum > kMost) | (sum < kLeast); }

  // Replaces the roots y of sums that are doubtful.
  CONVARITH_ONCE void rescale(Row row, const T* x, const Sums& sum, int64_t e, int64_t count, Sums* y) const {
    const int64_t size = plan.output[2] * plan.inner;
    for (int64_t i = 0; i < count && i < kLanes; ++i, ++e) {
      if (e >= size) {
        row.advance();
        e -= size;
      }
      if (is_doubtful(sum)[i]) (*y)[i] = rescaled(row, x, e);
    }
  }

  // Entry e of a row, from its window divided by the largest element.
  Sum rescaled(const Row& row, const T* x, int64_t e) const {
    const Lines lines(plan.lines, row.i0, row.i1);
    const T* plane = x + row.plane * plan.input[0] * plan.input[1] * plan.input[2] * plan.inner + lines.start;
    const int64_t first = e / plan.inner * plan.stride - (plan.at_input - plan.at_window) / plan.inner;
    const auto each = [&](auto body) {
      for (int64_t l0 = 0; l0 < lines.count0; ++l0) {
        for (int64_t l1 = 0; l1 < lines.count1; ++l1) {
          for (int64_t t = 0; t < plan.kernel[2]; ++t) {
            const int64_t at = first + t * plan.dilation;
            if (at < 0 || at >= plan.input[2]) continue;
            const Sum v = widen(plane[l0 * lines.step0 + l1 * lines.step1 + at * plan.inner + e % plan.inner]);
            body(v < 0 ? -v : v);
          }
        }
      }
    };
    Sum largest = 0, total = 0;
    each([&](Sum v) { largest = v > largest ? v : largest; });
    if (largest == 0 || largest > kMost) return largest;
    each([&](Sum v) { total += powers.of(every<Sums>(v / largest))[0]; });
    return largest * powers.root(every<Sums>(total))[0];
  }

  const PoolPlan& plan;
  Powers<kPower, Sums> powers;
};

// Stage 1 -----------------------------------------------------------------------------------------------------------

// So many vectors of a line are combined at once: memory is read in the order of its addresses, in runs as long as
// registers allow. Several lines in turn, a vector of each, come from memory at half that speed.
constexpr int kRun = 8;
constexpr int kPixelRun = 4;  // likewise of pixels that stand channel behind channel

// Calls body(Constant<vectors>, e, count) for runs of a line of n elements, `count` of them from e on; all vectors but
// a run's last are whole.
template <typename Sums, int kMost, int kVectors = kMost, typename Body>
inline void for_each_run(int64_t e, int64_t n, const Body& body) {
  constexpr int64_t kLanes = sizeof(Sums) / sizeof(Sums{}[0]), kAll = kMost * kLanes;
  if constexpr (kVectors == kMost) {
    for (; e + kAll < n; e += kAll) body(Constant<kMost>{}, e, kAll);
  }
  if (n - e > (kVectors - 1) * kLanes) return body(Constant<kVectors>{}, e, n - e);
  if constexpr (kVectors > 1) for_each_run<Sums, kMost, kVectors - 1>(e, n, body);
}

template <typename Policy, typename T, typename Sum>
CONVARITH_ONCE void reduce_lines(const Policy& policy, const Lines& lines, const T* from, int64_t n, Sum* to) {
  typedef typename Lanes<T>::Sums Sums;
  constexpr int kLanes = Lanes<T>::kLanes;
  for_each_run<Sums, kRun>(0, n, [&](auto vectors, int64_t e, int64_t count) {
    constexpr int kVectors = decltype(vectors)::value, kWhole = (kVectors - 1) * kLanes;
    Sums sums[kVectors];
    CONVARITH_UNROLL for (int v = 0; v < kVectors; ++v) sums[v] = every<Sums>(static_cast<Sum>(Policy::kNeutral));
    for (int64_t l0 = 0; l0 < lines.count0; ++l0) {
      const T* p = from + l0 * lines.step0 + e;
      for (int64_t l1 = 0; l1 < lines.count1; ++l1, p += lines.step1) {
        CONVARITH_UNROLL for (int v = 0; v < kVectors - 1; ++v) sums[v] =
            policy.add(sums[v], load_sums(p + v * kLanes));
        sums[kVectors - 1] = policy.add(sums[kVectors - 1], load_up_to(p + kWhole, count - kWhole));
      }
    }
    CONVARITH_UNROLL for (int v = 0; v < kVectors - 1; ++v) store(to + e + v * kLanes, sums[v]);
    store_up_to(to + e + kWhole, sums[kVectors - 1], count - kWhole);
  });
}

// Stage 2 -----------------------------------------------------------------------------------------------------------

// The outputs of a vector from their first taps on. kKernel 0: any kernel and dilation.
template <int kKernel, int kStride, typename Policy, typename Sum>
inline typename Simd<Sum>::Vec reduce_taps(const Policy& policy, const PoolPlan& plan, const Sum* in) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  if constexpr (kStride == 2 && kKernel > 0) {
    const auto a = load(in), b = load(in + kLanes);
    auto sum = policy.join(evens<Sum>(a, b), odds<Sum>(a, b));
    if constexpr (kKernel == 3) sum = policy.join(sum, evens<Sum>(load(in + 2), load(in + kLanes + 2)));
    return sum;
  }
  auto sum = load_strided<kStride>(in, plan.stride);
  const int64_t kernel = kKernel > 0 ? kKernel : plan.kernel[2], dilation = kKernel > 0 ? 1 : plan.dilation;
  for (int64_t t = 1; t < kernel; ++t) {
    sum = policy.join(sum, load_strided<kStride>(in + t * dilation, plan.stride));
  }
  return sum;
}

template <int kKernel, int kStride, typename Policy, typename T, typename Sum>
inline void pool_row_by(const Policy& policy, const PoolPlan& plan, const Row& row, const T* x, const Sum* window,
                        T* y) {
  constexpr int kLanes = Lanes<T>::kLanes;
  const int64_t outputs = plan.output[2], stride = kStride > 0 ? kStride : plan.stride;
  int64_t o = 0;
  for (; o + kLanes <= outputs; o += kLanes) {
    const auto sum = reduce_taps<kKernel, kStride>(policy, plan, window + o * stride);
    store_sums(y + o, policy.finish(row, x, sum, o, kLanes));
  }
  if (o == outputs) return;
  const auto sum = reduce_taps<kKernel, kStride>(policy, plan, window + o * stride);
  store_first(y + o, policy.finish(row, x, sum, o, outputs - o), static_cast<int>(outputs - o));
}

// With few channels behind the last axis, a tap is a distance of whole pixels; with stride 1 all pixels are one run.
template <typename Policy, typename T, typename Sum>
inline void pool_row_of_pixels(const Policy& policy, const PoolPlan& plan, const Row& row, const T* x,
                               const Sum* window, T* y) {
  constexpr int kLanes = Lanes<T>::kLanes;
  const int64_t runs = plan.stride == 1 ? 1 : plan.output[2];
  const int64_t run = plan.stride == 1 ? plan.output[2] * plan.inner : plan.inner;
  for (int64_t r = 0; r < runs; ++r) {
    for (int64_t c = 0; c < run; c += kLanes) {
      const Sum* in = window + r * plan.stride * plan.inner + c;
      auto sum = load(in);
      for (int64_t t = 1; t < plan.kernel[2]; ++t) sum = policy.join(sum, load(in + t * plan.dilation * plan.inner));
      const int64_t e = r * plan.inner + c;
      store_up_to(y + e, policy.finish(row, x, sum, e, run - c), run - c);
    }
  }
}

template <typename Policy, typename T, typename Sum>
CONVARITH_ONCE void pool_row(const Policy& policy, const PoolPlan& plan, const Row& row, const T* x, const Sum* window,
                             T* y) {
  const int64_t k = plan.dilation == 1 ? plan.kernel[2] : 0, s = plan.stride;
  if (plan.inner != 1) return pool_row_of_pixels(policy, plan, row, x, window, y);
  if constexpr (Policy::kIsUsual) {
    if (k == 2 && s == 2) return pool_row_by<2, 2>(policy, plan, row, x, window, y);
    if (k == 3 && s == 2) return pool_row_by<3, 2>(policy, plan, row, x, window, y);
    if (k == 3 && s == 1) return pool_row_by<3, 1>(policy, plan, row, x, window, y);
  }
  if (s == 1) return pool_row_by<0, 1>(policy, plan, row, x, window, y);
  if (s == 2) return pool_row_by<0, 2>(policy, plan, row, x, window, y);
  pool_row_by<0, 0>(policy, plan, row, x, window, y);
}

// With many, pixels are reduced as they stand, from the lines that begin at `from`; finish() is told of x.
template <typename Policy, typename T, typename From>
inline void pool_pixels(const Policy& policy, const PoolPlan& plan, const Row& row, const T* x, const Lines& lines,
                        const From* from, Stream<T>& out) {
  typedef typename Lanes<T>::Sums Sums;
  typedef typename Lanes<T>::Sum Sum;
  constexpr int kLanes = Lanes<T>::kLanes;
  const int64_t inner = plan.inner, step = plan.dilation * inner, width = plan.input[2] * inner;
  for (int64_t o = 0; o < plan.output[2]; ++o) {
    int64_t first = o * plan.stride * inner + plan.at_window - plan.at_input, end = first + plan.kernel[2] * step;
    while (first < 0) first += step;
    end = least(end, width);
    for_each_run<Sums, kPixelRun>(0, inner, [&](auto vectors, int64_t e, int64_t count) {
      constexpr int kVectors = decltype(vectors)::value, kWhole = (kVectors - 1) * kLanes;
      Sums sums[kVectors];
      for (Sums& sum : sums) sum = every<Sums>(static_cast<Sum>(Policy::kNeutral));
      for (int64_t l0 = 0; l0 < lines.count0; ++l0) {
        const From* line = from + l0 * lines.step0 + e;
        for (int64_t l1 = 0; l1 < lines.count1; ++l1, line += lines.step1) {
          for (int64_t at = first; at < end; at += step) {
            CONVARITH_UNROLL for (int v = 0; v < kVectors - 1; ++v) sums[v] =
                policy.add(sums[v], load_sums(line + at + v * kLanes));
            sums[kVectors - 1] = policy.add(sums[kVectors - 1], load_up_to(line + at + kWhole, count - kWhole));
          }
        }
      }
      T* to = out.next(count);
      CONVARITH_UNROLL for (int v = 0; v < kVectors; ++v) {
        const int64_t at = e + v * kLanes;
        store_sums(to + v * kLanes, policy.finish(row, x, sums[v], o * inner + at, inner - at));
      }
    });
  }
}

// Lines of neutral elements, for stage 1 to fill in their middle. Stage 2 may read up to their end.
template <typename T>
inline typename Lanes<T>::Sum* neutral_lines(const PoolPlan& plan, double neutral, char* scratch) {
  typedef typename Lanes<T>::Sum Sum;
  Sum* lines = reinterpret_cast<Sum*>(scratch);
  for (int64_t e = 0; e < plan.rows_at_once * plan.line_size; ++e) lines[e] = static_cast<Sum>(neutral);
  return lines;
}

template <typename Policy, typename T>
void pool_lines(const Policy& policy, const PoolPlan& plan, const T* x, T* y, char* scratch, int64_t begin,
                int64_t end) {
  auto* kept = neutral_lines<T>(plan, Policy::kNeutral, scratch);
  const int64_t plane_size = plan.input[0] * plan.input[1] * plan.input[2] * plan.inner;
  const int64_t inputs = plan.input[2] * plan.inner, outputs = plan.output[2] * plan.inner;
  const Ahead later(plan, sizeof(T));
  Row ahead(begin, plan.output), row = ahead;
  for (int64_t first = begin; first < end; first += plan.rows_at_once) {
    const int64_t count = least(plan.rows_at_once, end - first);
    for (int64_t j = 0; j < count; ++j, ahead.advance()) {
      const Lines lines(plan.lines, ahead.i0, ahead.i1);
      const T* from = x + ahead.plane * plane_size + lines.start;
      later.prefetch(ahead, x);
      reduce_lines(policy, lines, from, inputs, kept + j * plan.line_size + plan.at_input);
    }
    for (int64_t j = 0; j < count; ++j, row.advance()) {
      const auto* window = kept + j * plan.line_size + plan.at_window;
      pool_row(policy, plan, row, x, window, y + (first + j) * outputs);
    }
  }
}

// A row's lines of a plane, combined from their neutral elements.
template <typename Policy, typename T, typename Sums, int kVectors>
inline void reduce_short_lines(const Policy& policy, const Lines& lines, const T* from, bool whole, int64_t width,
                               Sums (&line)[kVectors]) {
  constexpr int kLanes = Lanes<T>::kLanes;
  typedef typename Lanes<T>::Sum Sum;
  for (Sums& sums : line) sums = every<Sums>(static_cast<Sum>(Policy::kNeutral));
  for (int64_t l0 = 0; l0 < lines.count0; ++l0) {
    const T* p = from + lines.start + l0 * lines.step0;
    for (int64_t l1 = 0; l1 < lines.count1; ++l1, p += lines.step1) {
      CONVARITH_UNROLL for (int v = 0; v < kVectors; ++v) {
        line[v] = policy.add(line[v], load_up_to(p + v * kLanes, whole ? kLanes : width - v * kLanes));
      }
    }
  }
}

template <typename Policy, typename T>
void pool_short_rows(const Policy& policy, const PoolPlan& plan, const T* x, T* y, int64_t begin, int64_t end) {
  typedef typename Lanes<T>::Sum Sum;
  typedef typename Lanes<T>::Sums Sums;
  const int64_t width = plan.input[2], plane_size = plan.input[0] * plan.input[1] * width;
  const int64_t whole_planes = planes_of_whole_vectors(plan, plan.input);
  const Ahead later(plan, sizeof(T));
  with_short_lines<Sum>(width, [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    const auto combine = [&](const Row& row, Sums(&line)[2 / kRows]) {
      later.prefetch(row, x);
      reduce_short_lines(policy, Lines(plan.lines, row.i0, row.i1), x + row.plane * plane_size,
                         row.plane < whole_planes, width, line);
    };
    const auto join = [&](Sums a, Sums b) { return policy.join(a, b); };
    const auto finish = [&](const Row& row, Sums sum, int64_t e, int64_t left) {
      return policy.finish(row, x, sum, e, least(kRows * plan.output[2] - e, left));
    };
    short_rows<kRows>(plan, plan.output, width, static_cast<Sum>(Policy::kNeutral), combine, join, finish,
                      y + begin * plan.output[2], begin, end);
  });
}

template <typename T, typename Policy>
void pool_rows(const Policy& policy, const PoolPlan& plan, const void* x_data, void* y_data, char* scratch,
               int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(x_data);
  T* y = static_cast<T*>(y_data);
  if (plan.picks != nullptr) return pool_short_rows(policy, plan, x, y, begin, end);
  if (plan.inner >= Lanes<T>::kLanes) {
    const int64_t n = plan.output[2] * plan.inner,
                  plane_size = plan.input[0] * plan.input[1] * plan.input[2] * plan.inner;
    Stream<T> out(y + begin * n, (end - begin) * n);
    for (Row row(begin, plan.output); begin < end; ++begin, row.advance()) {
      const Lines lines(plan.lines, row.i0, row.i1);
      pool_pixels(policy, plan, row, x, lines, x + row.plane * plane_size + lines.start, out);
    }
    return;
  }
  pool_lines(policy, plan, x, y, scratch, begin, end);
}

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
