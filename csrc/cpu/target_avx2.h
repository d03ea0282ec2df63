// Included first: the kernels that follow are compiled for AVX2, FMA and F16C.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx2,fma,f16c")
#define CONVARITH_ISA avx2
#define CONVARITH_BYTES 32
#define CONVARITH_REGISTERS 16
#endif
