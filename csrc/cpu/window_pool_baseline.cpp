// window_pool.h for the compiler's own target.
#include "target_baseline.h"

#ifdef CONVARITH_ISA  // always
#include "window_pool.h"
#endif
