// The operators' schemas, and nothing else. Kernels register themselves beside their code, in cpu/ and cuda/.
//
// phi(x, w, y) = <y, C(w) x> is linear in each argument; conv, conv_transpose and conv_weight are its derivatives in y,
// x and w. They are closed under differentiation, so nothing here needs a backward operator of its own.
// x (N, C, *input), w (K, C / groups, *kernel), y (N, K, *output); padding holds lo and hi of each axis in turn.
#include <torch/library.h>

TORCH_LIBRARY(torch_convarith, m) {
  m.def("conv(Tensor x, Tensor w, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups) -> Tensor");
  m.def(
      "conv_transpose(Tensor y, Tensor w, SymInt[] input_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
      "SymInt groups) -> Tensor");
  m.def(
      "conv_weight(Tensor x, Tensor y, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
      "SymInt groups) -> Tensor");

  // The same three through the explicit matrix: C is assembled in CSR and multiplied.
  m.def("conv_csr(Tensor x, Tensor w, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups) -> Tensor");
  m.def(
      "conv_transpose_csr(Tensor y, Tensor w, SymInt[] input_size, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups) -> Tensor");
  m.def(
      "conv_weight_csr(Tensor x, Tensor y, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups) -> Tensor");

  // C itself. With transposed, C^T. The values are linear in w; csr_weight is the adjoint of that map.
  m.def(
      "csr(Tensor w, SymInt[] input_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, "
      "str padding_mode, bool transposed) -> (Tensor crow, Tensor col, Tensor values)");
  m.def(
      "csr_weight(Tensor values, SymInt[] weight_size, SymInt[] input_size, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups, str padding_mode, bool transposed) -> Tensor");

  // The guide's stretched, padded input: stride - 1 zeros between units, then padding. zero_remove is its adjoint.
  m.def("zero_insert(Tensor x, SymInt[] stride, SymInt[] padding) -> Tensor");
  m.def("zero_remove(Tensor x, SymInt[] size, SymInt[] stride, SymInt[] padding) -> Tensor");
}
