// Included first, by units that have named their instruction set CONVARITH_ISA: AVX-512 with AVX512_BF16, whose
// products are of pairs of bfloat16.
#pragma once

#pragma GCC target("avx512bf16,avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")
#define CONVARITH_BYTES 64
#define CONVARITH_REGISTERS 32
#define CONVARITH_BF16 1
