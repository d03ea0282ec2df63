// window_kernels.h for AVX2, FMA and F16C.
#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx2,fma,f16c")
#include <cstdint>

#include "window_plan.h"

#define CONVARITH_ISA avx2
#define CONVARITH_BYTES 32
#define CONVARITH_REGISTERS 16
#include "window_kernels.h"
#endif
