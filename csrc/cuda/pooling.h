// Pooling and its adjoints: launch functions. x (planes, *input, inner), y (planes, *output, inner), as Windows say.
#pragma once

#include "../problem.h"
#include "runtime.h"

namespace convarith::cuda {

// Without indices, or taps, where they are null.
cudaError_t launch_max_pool(const Windows& w, DType dtype, bool minimum, const void* x, void* y, int64_t* indices,
                            uint8_t* taps, cudaStream_t stream);

// y[o] = x[index[o]]; x[i] = sum of y[o] where index[o] = i.
cudaError_t launch_pool_select(const Selection& s, DType dtype, const void* x, const int64_t* indices, void* y,
                               cudaStream_t stream);
cudaError_t launch_pool_scatter(const Selection& s, DType dtype, const void* y, const int64_t* indices, void* x,
                                void* scratch, cudaStream_t stream);
int64_t pool_scatter_scratch(const Selection& s);  // bytes

// The same with i the input that a window has at its tap: none on padding.
cudaError_t launch_tap_select(const Windows& w, DType dtype, const void* x, const uint8_t* taps, void* y,
                              cudaStream_t stream);
cudaError_t launch_tap_scatter(const Windows& w, DType dtype, const void* y, const uint8_t* taps, void* x,
                               cudaStream_t stream);

// The 0/1 matrix of all inputs that equal their window's y, with split each row divided by their number; its adjoint.
cudaError_t launch_pool_ties(const Windows& w, DType dtype, bool split, const void* v, const void* x, const void* y,
                             void* result, cudaStream_t stream);
cudaError_t launch_pool_ties_transpose(const Windows& w, DType dtype, bool split, const void* v, const void* x,
                                       const void* y, void* result, cudaStream_t stream);

// What a window's sum is divided by: `constant`, where it is not 0, or the window's count, with its padding or without.
struct Divisor {
  bool with_padding;
  int64_t constant;
};
cudaError_t launch_avg_pool(const Windows& w, DType dtype, Divisor divisor, const void* x, void* y,
                            cudaStream_t stream);
cudaError_t launch_avg_pool_transpose(const Windows& w, DType dtype, Divisor divisor, const void* y, void* x,
                                      cudaStream_t stream);

cudaError_t launch_lp_pool(const Windows& w, DType dtype, double p, bool is_signed, const void* x, void* y,
                           cudaStream_t stream);
cudaError_t launch_lp_pool_backward(const Windows& w, DType dtype, double p, bool is_signed, const void* g,
                                    const void* x, const void* y, void* result, cudaStream_t stream);

}  // namespace convarith::cuda
