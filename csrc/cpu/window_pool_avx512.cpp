// window_pool.h for AVX-512.
#include "target_avx512.h"

#ifdef CONVARITH_ISA
#include "window_pool.h"
#endif
