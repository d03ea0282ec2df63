#include "conv_gemm.cuh"

namespace convarith::cuda {

const Products kTf32Products = products_of<Tf32Math>();

}  // namespace convarith::cuda
