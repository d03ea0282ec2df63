// The launches of the convolution kernels: plain pointers, plans, and a stream. Nothing here knows torch.
#pragma once

#include "conv_plan.h"
#include "runtime.h"

namespace convarith::cuda {

// conv_gemm.cuh, by Tile; null where an arithmetic has no such tile.
struct Products {
  using Gather = cudaError_t (*)(const ConvPlan&, const void* in, const void* w, const void* plain_w, void* out,
                                 void* partial, cudaStream_t);
  using Weight = cudaError_t (*)(const ConvPlan&, const void* in, const void* out, void* w, void* partial,
                                 cudaStream_t);
  Gather gather[3];
  Weight weight[3];
};
extern const Products kBFloat16Products, kHalfProducts, kTf32Products, kFloatProducts, kDoubleProducts;

// conv_direct.cu: for few channels per group.
cudaError_t gather_direct(const ConvPlan&, DType, const void* in, const void* w, void* out, cudaStream_t);
cudaError_t weight_direct(const ConvPlan&, DType, const void* in, const void* out, void* w, void* partial,
                          cudaStream_t);

// conv_reference.cu: one thread for one element, of any dtype, size and stride.
cudaError_t reference(const Problem&, Pass, DType, const void* in, const void* other, void* result, cudaStream_t);

// Runs a pass: `in` is x, or y for Pass::kInput; `other` is w, or y for Pass::kWeight. `scratch` has
// kernel.scratch_bytes() bytes, aligned to 256. Asynchronous; deterministic.
cudaError_t run(const Kernel&, const Problem&, Pass, DType, const void* in, const void* other, void* result,
                void* scratch, cudaStream_t);

}  // namespace convarith::cuda
