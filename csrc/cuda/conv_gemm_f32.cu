#include "conv_gemm.cuh"

namespace convarith::cuda {

const Products kFloatProducts = products_of<FloatMath>();

}  // namespace convarith::cuda
