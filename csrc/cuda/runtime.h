// What the declarations of launch functions need: CUDA's stream and error, and dtypes, without torch.
#pragma once

#include "dtype.h"

#ifdef CONVARITH_EMULATE
#include "emulation.h"
#else
#include <cuda_runtime_api.h>
#endif
