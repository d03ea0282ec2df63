// window_kernels.h for AVX2 and FMA.
#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx2,fma")
#include <cstdint>

#include "window_plan.h"

#define CONVARITH_ISA avx2
#define CONVARITH_BYTES 32
#define CONVARITH_REGISTERS 16
#include "window_kernels.h"
#endif
