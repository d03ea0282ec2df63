// window_pool.h for AVX2, FMA and F16C.
#include "target_avx2.h"

#ifdef CONVARITH_ISA
#include "window_pool.h"
#endif
