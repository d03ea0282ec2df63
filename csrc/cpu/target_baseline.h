// Included first: the kernels that follow are for the compiler's own target: SSE2 on x86-64, NEON on AArch64.
#pragma once

#define CONVARITH_ISA baseline
#define CONVARITH_BYTES 16
#if defined(__aarch64__)
#define CONVARITH_REGISTERS 32
#else
#define CONVARITH_REGISTERS 16
#endif
