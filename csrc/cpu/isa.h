// Which instruction set the kernels run with: the best that the CPU and the system have, at most what the environment
// variable TORCH_CONVARITH_ISA (baseline, avx2, avx512, avx512_bf16, avx512_amx) allows. Decided once.
#pragma once

#include "conv_plan.h"
#include "window_plan.h"

namespace convarith::cpu {

enum class Isa : int { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAvx512Amx };

const char* isa_name(Isa isa);
Isa best_isa();    // the fastest of this CPU
Isa active_isa();  // throws where the environment variable names none

// dtype: 0 float32, 1 float64, 2 bfloat16, 3 float16.
const ConvKernels& active_kernels(int dtype);
const WindowKernels& active_window_kernels(int dtype);

}  // namespace convarith::cpu
