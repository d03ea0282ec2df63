// Included first: the kernels that follow are compiled for AVX-512 (F, DQ, BW, VL).
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")
#define CONVARITH_ISA avx512
#define CONVARITH_BYTES 64
#define CONVARITH_REGISTERS 32
#endif
