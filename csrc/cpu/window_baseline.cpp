// window_kernels.h for the compiler's own target: SSE2 on x86-64, NEON on AArch64.
#include <cstdint>

#include "window_plan.h"

#define CONVARITH_ISA baseline
#define CONVARITH_BYTES 16
#if defined(__aarch64__)
#define CONVARITH_REGISTERS 32
#else
#define CONVARITH_REGISTERS 16
#endif
#include "window_kernels.h"
