// conv_kernels.h for AVX-512.
#include "target_avx512.h"

#ifdef CONVARITH_ISA
#include "conv_kernels.h"
#endif
