// conv_products.h for the compiler's own target.
#include "target_baseline.h"

#ifdef CONVARITH_ISA  // always
#include "conv_products.h"
#endif
