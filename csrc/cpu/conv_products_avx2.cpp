// conv_products.h for AVX2, FMA and F16C.
#include "target_avx2.h"

#ifdef CONVARITH_ISA
#include "conv_products.h"
#endif
