// C in compressed sparse rows, and products with it: launch functions.
#pragma once

#include <vector>

#include "../matrix_plan.h"
#include "runtime.h"

namespace convarith::cuda {

// The axes' tables in one run of 32-bit words, to be copied to the device.
struct PackedTables {
  std::vector<int32_t> words;
  // Where in words each axis's begin[], column[], tap_begin[] and tap[] start; and meets[], which holds for every
  // output and tap the row and the entry, within the row, that they meet at, or -1 twice.
  struct Offsets {
    int64_t begin, column, tap_begin, tap, meets;
  };
  std::array<Offsets, kAxes> axis;
  bool one_to_one = true;  // every entry has one tap, tap[e]
};

// With `meets`, what csr_weight needs beside the rows' begins; without, what csr needs.
PackedTables pack_tables(const CsrPlan& plan, bool meets);

// Copies words to the device as arguments of kernels: no pinned memory, no synchronisation, and it can be captured in a
// graph.
cudaError_t upload(const std::vector<int32_t>& words, int32_t* to, cudaStream_t stream);

// `tables` are packed's words on the device. Without w and values, the structure only.
cudaError_t launch_csr(const CsrPlan& plan, const PackedTables& packed, const int32_t* tables, DType dtype,
                       bool wide_indices, const void* w, void* crow, void* col, void* values, cudaStream_t stream);

// Each weight gets the sum of its entries' values; the plan belongs to a contiguous weight.
cudaError_t launch_csr_weight(const CsrPlan& plan, const PackedTables& packed, const int32_t* tables, DType dtype,
                              const void* values, void* w, cudaStream_t stream);

// y = C x for row-major x (columns, width) and y (rows, width).
cudaError_t launch_csr_multiply(int64_t rows, int64_t width, DType dtype, bool wide_indices, const void* crow,
                                const void* col, const void* values, const void* x, void* y, cudaStream_t stream);

// values[e] = <y[row], x[column]> for every entry e.
cudaError_t launch_csr_sample(int64_t rows, int64_t width, DType dtype, bool wide_indices, const void* crow,
                              const void* col, const void* y, const void* x, void* values, cudaStream_t stream);

}  // namespace convarith::cuda
