// What convolutions with lanes along the channels read and write: rows of pixels.
#pragma once

#include "simd.h"

namespace convarith::cpu::CONVARITH_ISA {
namespace {

// A row of the input and the weights by which a row of outputs sees it.
template <typename In>
struct PixelLine {
  const In* in;
  int64_t w;
};

// Columns of the input that a row of outputs sees: neighbours are `pixel` elements apart, and others' than the first
// `size` are not there.
struct PixelRow {
  int64_t pixel, step, size;
};

// Where a run of outputs goes, and what is added to it.
template <typename To>
struct PixelOut {
  To* to;
  int64_t pixel;  // from one to the next, in elements
  int64_t skip;   // first lanes, which are others' outputs
  const typename SumOf<To>::type* bias;
};

}  // namespace
}  // namespace convarith::cpu::CONVARITH_ISA
