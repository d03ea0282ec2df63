// conv_products.h for AVX-512.
#include "target_avx512.h"

#ifdef CONVARITH_ISA
#include "conv_products.h"
#endif
