// The fast engine: which algorithm a problem gets (the cost model), its plan, and the threads that run it.
#pragma once

#include <cstdint>
#include <string>

#include "../problem.h"
#include "isa.h"

namespace convarith::cpu {

enum class Pass : int { kOutput, kInput, kWeight };  // conv, conv_transpose, conv_weight

enum class Algorithm : int {
  kReference,  // conv_direct.h: every dtype, every stride of memory; no zero of the padding is multiplied
  kOffset,     // lanes along the outputs; the tile is multiplied where it stands, through a table of offsets
  kOuter,      // lanes along the out channels, of all passes
  kDot,        // weight gradient, lanes along the outputs
  kWinograd,
  kDepthwise,  // few channels per group: outputs stay in registers until all taps are added
  kImages,     // lanes along the images
  kAmx,        // bfloat16 in the processor's own tiles
};

constexpr const char* kAlgorithmNames[] = {"reference", "offset",    "outer",  "dot",
                                           "winograd",  "depthwise", "images", "amx"};

inline const char* algorithm_name(Algorithm algorithm) {
  return kAlgorithmNames[static_cast<int>(algorithm)];
}

struct Explanation {
  Algorithm algorithm;
  int64_t scratch;  // bytes, of all threads together
  int64_t phases;   // gathers
  int64_t multiplications;
};

// What would be run, without running it.
Explanation explain(const Problem& problem, Pass pass, int dtype);

// What run_fast() has done: nothing where only conv_direct.h can.
enum class Ran : int { kNothing, kWithoutBias, kAll };

// Run the pass. Sizes must not be 0. `input` is x, or y for kInput; `other` is w, or y for kWeight; counts are the
// elements that the pointers may reach. `bias` is added to every channel of the result; it may be null.
Ran run_fast(const Problem& problem, Pass pass, int dtype, const void* input, int64_t input_count, const void* other,
             int64_t other_count, const void* bias, void* output);

// For tests: an algorithm's name, or "auto". Unknown names throw; where an algorithm cannot do a problem, the
// cost model's choice is taken.
void force_algorithm(const std::string& name);

void set_winograd(bool enabled);
bool winograd_enabled();

}  // namespace convarith::cpu
