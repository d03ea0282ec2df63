#include "conv_gemm.cuh"

namespace convarith::cuda {

const Products kHalfProducts = products_of<HalfMath>();

}  // namespace convarith::cuda
