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

  // Windows of the pattern. The axes are the last dimensions, as many as kernel_size has entries; whatever stands in
  // front of them is a plane of its own. `minimum` turns max into min. Indices count within a plane, taps (uint8)
  // within a window.
  m.def(
      "max_pool(Tensor x, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool ceil_mode, "
      "bool minimum) -> Tensor");
  m.def(
      "max_pool_with_indices(Tensor x, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
      "bool ceil_mode, bool minimum) -> (Tensor y, Tensor indices)");
  m.def(
      "max_pool_with_taps(Tensor x, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
      "bool ceil_mode, bool minimum) -> (Tensor y, Tensor taps)");

  // The 0/1 matrix that picks what indices name, and its adjoint.
  m.def("pool_select(Tensor x, Tensor indices, int axes) -> Tensor");
  m.def("pool_scatter(Tensor y, SymInt[] input_size, Tensor indices, int axes) -> Tensor");

  // The 0/1 matrix that picks what each window has at its tap (on padding, nothing), and its adjoint.
  m.def(
      "tap_select(Tensor x, Tensor taps, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
      "bool ceil_mode) -> Tensor");
  m.def(
      "tap_scatter(Tensor y, SymInt[] input_size, Tensor taps, SymInt[] kernel_size, SymInt[] stride, "
      "SymInt[] padding, SymInt[] dilation, bool ceil_mode) -> Tensor");

  // The 0/1 matrix of all inputs that equal their window's y, with split each row divided by their number; its adjoint.
  m.def(
      "pool_ties(Tensor v, Tensor x, Tensor y, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, bool ceil_mode, bool split) -> Tensor");
  m.def(
      "pool_ties_transpose(Tensor v, SymInt[] input_size, Tensor x, Tensor y, SymInt[] kernel_size, SymInt[] stride, "
      "SymInt[] padding, SymInt[] dilation, bool ceil_mode, bool split) -> Tensor");

  // The mean of a window, or its sum over divisor_override; and the adjoint.
  m.def(
      "avg_pool(Tensor x, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool ceil_mode, "
      "bool count_include_pad, SymInt? divisor_override) -> Tensor");
  m.def(
      "avg_pool_transpose(Tensor y, SymInt[] input_size, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, bool ceil_mode, bool count_include_pad, SymInt? divisor_override) -> Tensor");

  // (sum |x|^p)^(1/p), or torch.nn.functional's reading of it; lp_pool_backward is its derivative, applied to g.
  m.def(
      "lp_pool(Tensor x, float p, bool signed, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, bool ceil_mode) -> Tensor");
  m.def(
      "lp_pool_backward(Tensor g, Tensor x, Tensor y, float p, bool signed, SymInt[] kernel_size, SymInt[] stride, "
      "SymInt[] padding, SymInt[] dilation, bool ceil_mode) -> Tensor");

  // The pattern itself, x (..., *input) -> y (..., taps, outputs), and its adjoint.
  m.def("unfold(Tensor x, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation) -> Tensor");
  m.def(
      "fold(Tensor y, SymInt[] input_size, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation) -> Tensor");

  // x / (k + alpha * sum of x^2 over `size` channels)^beta; and its derivative, applied to g.
  m.def("lrn(Tensor x, int channel_dim, int size, float alpha, float beta, float k) -> Tensor");
  m.def("lrn_backward(Tensor g, Tensor x, int channel_dim, int size, float alpha, float beta, float k) -> Tensor");
}
