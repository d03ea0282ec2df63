#include "conv_gemm.cuh"

namespace convarith::cuda {

// A larger tile of doubles would not leave room for a second block.
const Products kDoubleProducts = {{nullptr, nullptr, launch_gather_product<DoubleMath, Tile::k64x64>},
                                  {nullptr, nullptr, launch_weight_product<DoubleMath, Tile::k64x64>}};

}  // namespace convarith::cuda
