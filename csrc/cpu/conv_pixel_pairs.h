// Depthwise convolutions of bfloat16 where the processor multiplies pairs, two vectors of channels at once: pixels that
// are neighbours are interleaved, and a product is of two taps of a row.
#pragma once

#include "conv_factor.h"
#include "conv_pixels.h"
#include "conv_plan.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// What there is for pixels of T.
template <typename T>
struct PixelPairs {
  static constexpr bool kExist = false;
};

#if CONVARITH_BF16
constexpr int kPairPixels = 7;                          // outputs of a block
constexpr int kPairChannels = 2 * Simd<float>::kLanes;  // two vectors
constexpr int64_t pairs_of(int64_t taps) {              // the last is of one tap
  return (taps + 1) / 2;
}

// Two vectors of numbers of channels to those two that interleaving makes: every second four channels, and the others.
struct Interleaved {
  Floats low, high;

  Interleaved(Floats first, Floats second) : low(fours<0x88>(first, second)), high(fours<0xdd>(first, second)) {}

 private:
  template <int kWhich>
  static Floats fours(Floats first, Floats second) {
    return reinterpret_cast<Floats>(
        _mm512_maskz_shuffle_f32x4(0xffff, reinterpret_cast<__m512>(first), reinterpret_cast<__m512>(second), kWhich));
  }
};

// And back, narrowed.
inline void store_interleaved(Brain16* to, Floats low, Floats high) {
  const __m512i fours = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
  _mm512_storeu_si512(to, _mm512_maskz_permutexvar_epi64(0xff, fours, round_sums(low, high)));
}

// sums[o] += sum over the taps t of a row of w[t] * input o * kStep + t, counted from `column`, of which those that are
// not there are zeros. Weights are [pair][low, high].
template <int kTaps, int kStep, bool kAllThere>
inline __attribute__((always_inline)) void add_pairs(const Brain16* in, int64_t column, const PixelRow& row,
                                                     const uint32_t* w, Floats (&sums)[kPairPixels][2]) {
  static_assert(kTaps % 2 == 1, "the last tap is alone");
  constexpr int kPairs = pairs_of(kTaps), kLanes = Simd<float>::kLanes;
  Words v[kPairs][2];
  CONVARITH_UNROLL for (int i = 0; i < 2 * kPairs; ++i) {
    v[i / 2][i % 2] = load(w + i * kLanes);
    keep(v[i / 2][i % 2]);
  }
  const auto pixel = [&](int q) __attribute__((always_inline)) {
    if (!kAllThere && static_cast<uint64_t>(column + q) >= static_cast<uint64_t>(row.size)) return __m512i{};
    return _mm512_loadu_si512(in + (column + q) * row.pixel);
  };
  constexpr int kInputs = (kPairPixels - 1) * kStep + kTaps;
  __m512i next = pixel(0);
  CONVARITH_UNROLL for (int q = 0; q < kInputs; q += kStep) {
    const __m512i here = kStep == 1 ? next : pixel(q);
    next = q + 1 < kInputs ? pixel(q + 1) : __m512i{};
    Words low = reinterpret_cast<Words>(_mm512_unpacklo_epi16(here, next));
    Words high = reinterpret_cast<Words>(_mm512_unpackhi_epi16(here, next));
    CONVARITH_UNROLL for (int j = 0; j < kPairs - 1; ++j) {
      const int o = (q - 2 * j) / kStep;
      if (q < 2 * j || o >= kPairPixels) continue;
      sums[o][0] = multiply_add(sums[o][0], v[j][0], low);
      sums[o][1] = multiply_add(sums[o][1], v[j][1], high);
    }
    if (q < kTaps - 1) continue;
    const int o = (q - (kTaps - 1)) / kStep;
    sums[o][0] = multiply_add(sums[o][0], v[kPairs - 1][0], low & 0xffffu);
    sums[o][1] = multiply_add(sums[o][1], v[kPairs - 1][1], high & 0xffffu);
  }
}

// kPairPixels outputs of the channels from `channel` on. As pixel_block(), but for weights, which are [row of
// taps][pair][low, high].
template <int kTaps, int kStep>
void pair_block(const PixelLine<Brain16>* line, int64_t lines, int64_t column, const PixelRow& row, int64_t channel,
                const uint32_t* weights, const PixelOut<Brain16>& out) {
  constexpr int kLanes = Simd<float>::kLanes;
  Floats sums[kPairPixels][2] = {};
  const bool all_there = column >= 0 && column + (kPairPixels - 1) * kStep + kTaps <= row.size;
  for (const PixelLine<Brain16>* end = line + lines; line < end; ++line) {
    const Brain16* in = line->in + channel;
    const uint32_t* w = weights + line->w / (kTaps * kLanes) * (pairs_of(kTaps) * kPairChannels);
    if (all_there) {
      add_pairs<kTaps, kStep, true>(in, column, row, w, sums);
    } else {
      add_pairs<kTaps, kStep, false>(in, column, row, w, sums);
    }
  }
  const Interleaved bias(load(out.bias), load(out.bias + kLanes));
  const int64_t pixel = out.pixel;
  Brain16* to = out.to;
  CONVARITH_UNROLL for (int o = 0; o < kPairPixels; ++o, to = next_place(to, pixel)) {
    store_interleaved(to, sums[o][0] + bias.low, sums[o][1] + bias.high);
  }
}

using PairBlock = void (*)(const PixelLine<Brain16>*, int64_t, int64_t, const PixelRow&, int64_t, const uint32_t*,
                           const PixelOut<Brain16>&);

inline PairBlock pair_block_for(int64_t taps, int64_t step) {
  if (taps == 3) return step == 1 ? pair_block<3, 1> : pair_block<3, 2>;
  if (taps == 5) return step == 1 ? pair_block<5, 1> : pair_block<5, 2>;
  return step == 1 ? pair_block<7, 1> : pair_block<7, 2>;
}

// The weights of two vectors of channels, [tap] each, of `rows` rows; tap t of a row is the one that stands at[t] from
// the row's first.
inline void pair_weights(const float* first, const float* second, int64_t rows, int64_t taps, const int64_t* at,
                         uint32_t* pairs) {
  constexpr int kLanes = Simd<float>::kLanes;
  for (int64_t row = 0; row < rows; ++row, first += taps * kLanes, second += taps * kLanes) {
    for (int64_t t = 0; t < taps; t += 2, pairs += kPairChannels) {
      const Interleaved w(load(first + at[t]), load(second + at[t]));
      Words low = reinterpret_cast<Words>(w.low) >> 16, high = reinterpret_cast<Words>(w.high) >> 16;
      if (t + 1 < taps) {
        const Interleaved other(load(first + at[t + 1]), load(second + at[t + 1]));
        low = pair_words(w.low, other.low);
        high = pair_words(w.high, other.high);
      }
      store(pairs, low);
      store(pairs + kLanes, high);
    }
  }
}

// The weight's gradient -----------------------------------------------------------------------------------------------

// A row of taps that meets the input: the row of the input, and the sums of its weights, [tap]: those of the second
// vector stand `apart` from those of the first, and are of the high lanes while those of the first are of the low.
struct PairLine {
  const Brain16* in;
  float* sums;
};

// sums[line][tap] += sum over outputs j of y[j] * input j * kStep + tap of the line, counted from `column`, two outputs
// at a time. What a tap of the next two sees as well stays in registers where these are enough: of three taps, without
// a step.
template <int kTaps, int kStep, int kLines>
void weigh_pairs(const PairLine* lines, int64_t apart, int64_t column, const PixelRow& row, const Brain16* y,
                 int64_t y_pixel, int64_t count) {
  constexpr int kLanes = Simd<float>::kLanes, kKept = kTaps == 3 && kStep == 1 ? 1 : 0;
  Floats sums[kLines][kTaps][2];
  Words seen[kLines][kTaps][2];  // by a tap of both outputs
  const int64_t pixel = row.pixel;
  const Brain16* in[kLines];
  CONVARITH_UNROLL for (int l = 0; l < kLines; ++l) {
    in[l] = lines[l].in;
    CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) {
      sums[l][t][0] = load(lines[l].sums + t * kLanes);
      sums[l][t][1] = load(lines[l].sums + apart + t * kLanes);
    }
  }
  // What the taps from kFirst to kLast - 1 of a line see, of outputs whose first input is at `at`.
  const auto see = [&](int l, int64_t at, auto first, auto last, auto all_there) __attribute__((always_inline)) {
    constexpr int kFirst = decltype(first)::value, kLast = decltype(last)::value;
    __m512i pixels[kTaps + kStep];
    if constexpr (decltype(all_there)::value) {
      const Brain16* from = in[l] + (at + kFirst) * pixel;
      CONVARITH_UNROLL for (int q = kFirst; q < kLast + kStep; ++q, from += pixel) pixels[q] = _mm512_loadu_si512(from);
    } else {
      CONVARITH_UNROLL for (int q = kFirst; q < kLast + kStep; ++q) {
        const bool there = static_cast<uint64_t>(at + q) < static_cast<uint64_t>(row.size);
        pixels[q] = there ? _mm512_loadu_si512(in[l] + (at + q) * pixel) : __m512i{};
      }
    }
    CONVARITH_UNROLL for (int t = kFirst; t < kLast; ++t) {
      seen[l][t][0] = reinterpret_cast<Words>(_mm512_unpacklo_epi16(pixels[t], pixels[t + kStep]));
      seen[l][t][1] = reinterpret_cast<Words>(_mm512_unpackhi_epi16(pixels[t], pixels[t + kStep]));
    }
  };
  const auto add = [&](int64_t j, __m512i next, auto all_there) __attribute__((always_inline)) {
    const __m512i here = _mm512_loadu_si512(y + j * y_pixel);
    const Words low = reinterpret_cast<Words>(_mm512_unpacklo_epi16(here, next));
    const Words high = reinterpret_cast<Words>(_mm512_unpackhi_epi16(here, next));
    CONVARITH_UNROLL for (int l = 0; l < kLines; ++l) {
      see(l, column + j * kStep, Constant<kKept>{}, Constant<kTaps>{}, all_there);
      CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) {
        sums[l][t][0] = multiply_add(sums[l][t][0], low, seen[l][t][0]);
        sums[l][t][1] = multiply_add(sums[l][t][1], high, seen[l][t][1]);
      }
      CONVARITH_UNROLL for (int t = 0; t < kKept; ++t) {
        seen[l][t][0] = seen[l][t + 2 * kStep][0];
        seen[l][t][1] = seen[l][t + 2 * kStep][1];
      }
    }
  };
  CONVARITH_UNROLL for (int l = 0; l < kLines; ++l) see(l, column, Constant<0>{}, Constant<kKept>{}, Constant<0>{});
  int64_t j = 0;
  for (; j + 2 <= count; j += 2) {
    const int64_t at = column + j * kStep;
    const __m512i next = _mm512_loadu_si512(y + (j + 1) * y_pixel);
    if (at >= 0 && at + kStep + kTaps <= row.size) {
      add(j, next, Constant<1>{});
    } else {
      add(j, next, Constant<0>{});
    }
  }
  if (j < count) add(j, __m512i{}, Constant<0>{});
  CONVARITH_UNROLL for (int l = 0; l < kLines; ++l) {
    CONVARITH_UNROLL for (int t = 0; t < kTaps; ++t) {
      store(lines[l].sums + t * kLanes, sums[l][t][0]);
      store(lines[l].sums + apart + t * kLanes, sums[l][t][1]);
    }
  }
}

constexpr int pair_lines_at_once(int64_t taps) {
  return taps == 3 ? 3 : taps == 5 ? 2 : 1;  // as many as there are registers for
}

using WeighPairs = void (*)(const PairLine*, int64_t, int64_t, const PixelRow&, const Brain16*, int64_t, int64_t);

// For so many lines, of pair_lines_at_once() at most.
template <int kTaps, int kLines = pair_lines_at_once(kTaps)>
WeighPairs weigh_pairs_of(int64_t step, int64_t lines) {
  if constexpr (kLines > 1) {
    if (lines < kLines) return weigh_pairs_of<kTaps, kLines - 1>(step, lines);
  }
  return step == 1 ? weigh_pairs<kTaps, 1, kLines> : weigh_pairs<kTaps, 2, kLines>;
}

inline WeighPairs weigh_pairs_for(int64_t taps, int64_t step, int64_t lines) {
  return taps == 3   ? weigh_pairs_of<3>(step, lines)
         : taps == 5 ? weigh_pairs_of<5>(step, lines)
                     : weigh_pairs_of<7>(step, lines);
}

template <>
struct PixelPairs<Brain16> {
  static constexpr bool kExist = true;
  static constexpr int kPixels = kPairPixels;

  // The words of two vectors' weights.
  static int64_t words(const ChannelwisePlan& p) { return p.kernel[0] * pairs_of(p.pair_taps) * kPairChannels; }
  static void pack(const ChannelwisePlan& p, const float* first, const float* second, uint32_t* pairs) {
    pair_weights(first, second, p.kernel[0], p.pair_taps, p.pair_weight, pairs);
  }
  static PairBlock block(const ChannelwisePlan& p) { return pair_block_for(p.pair_taps, p.in_step[1]); }

  // All taps of two vectors of channels, by a row of outputs; sums are [vector][tap].
  static void weigh_row(const ChannelwisePlan& p, int64_t output, const Brain16* x, int64_t x_row, int64_t x_pixel,
                        const Brain16* y, int64_t y_pixel, float* sums) {
    constexpr int kLanes = Simd<float>::kLanes;
    const int64_t taps = p.kernel[1], at_once = pair_lines_at_once(taps);
    const PixelRow row = {x_pixel, p.in_step[1], p.source[1]};
    for (int64_t t = 0; t < p.kernel[0];) {
      PairLine lines[pair_lines_at_once(3)];
      int64_t count = 0;
      for (; t < p.kernel[0] && count < at_once; ++t) {
        const int64_t at = output * p.in_step[0] + p.row_tap[t].input;
        if (at < 0 || at >= p.source[0]) continue;
        lines[count++] = {x + at * x_row, sums + p.row_tap[t].weight * taps * kLanes};
      }
      if (count == 0) continue;
      weigh_pairs_for(taps, row.step, count)(lines, p.kernel[0] * taps * kLanes, p.low[1], row, y, y_pixel, p.grid[1]);
    }
  }

  // Sums of low and of high lanes to those of the first and of the second vector.
  static void separate(float* low, float* high, int64_t count) {
    typedef decltype(Floats{} < Floats{}) Index;
    constexpr int kLanes = Simd<float>::kLanes, kFour = 4;
    Index first, second;
    for (int i = 0; i < kLanes; ++i) {
      first[i] = i / (2 * kFour) * kFour + i % kFour + i / kFour % 2 * kLanes;
      second[i] = first[i] + kLanes / 2;
    }
    for (int64_t i = 0; i < count; ++i, low += kLanes, high += kLanes) {
      const Floats a = load(low), b = load(high);
      store(low, __builtin_shuffle(a, b, first));
      store(high, __builtin_shuffle(a, b, second));
    }
  }
};
#endif

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
