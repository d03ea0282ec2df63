#include "conv_gemm.cuh"

namespace convarith::cuda {

const Products kBFloat16Products = products_of<BFloat16Math>();

}  // namespace convarith::cuda
