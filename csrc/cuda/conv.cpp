// conv, conv_transpose and conv_weight on CUDA: tensors in, tensors out.
#include <ATen/Context.h>
#include <ATen/ops/empty.h>

#include "../checks.h"
#include "conv_kernels.h"
#include "glue.h"

namespace convarith::cuda {
namespace {

// The largest power of two, up to 16, that divides the address.
int alignment_of(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data) | 16;
  return static_cast<int>(address & -address);
}

DeviceLimits current_device() {
#ifdef CONVARITH_EMULATE
  return {4};  // few, so that small problems make full use of it
#else
  int device = 0, multiprocessors = 0;
  check_launch(cudaGetDevice(&device), "cudaGetDevice");
  check_launch(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
               "cudaDeviceGetAttribute");
  return {multiprocessors};
#endif
}

void run_pass(const Problem& p, Pass pass, DType dtype, const OnDeviceOf& device, const at::Tensor& in,
              const at::Tensor& other, const at::Tensor& result, const char* name) {
  if (result.numel() == 0) return;
  Kernel kernel = {};  // a sum of nothing is left to the reference
  if (in.numel() > 0 && other.numel() > 0) {
    // torch's own convolutions ask the same question.
    const bool allow_tf32 = dtype == DType::kFloat && at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
    kernel = choose_kernel(p, pass, dtype, allow_tf32,
                           {alignment_of(in.const_data_ptr()), alignment_of(other.const_data_ptr())}, current_device());
  }
  const at::Tensor scratch = at::empty({kernel.scratch_bytes()}, in.options().dtype(at::kByte));
  check_launch(run(kernel, p, pass, dtype, in.const_data_ptr(), other.const_data_ptr(), result.mutable_data_ptr(),
                   scratch.mutable_data_ptr(), device.stream()),
               name);
}

at::Tensor conv(const at::Tensor& x, const at::Tensor& w, at::IntArrayRef stride, at::IntArrayRef padding,
                at::IntArrayRef dilation, int64_t groups) {
  constexpr const char* kName = "torch_convarith::conv";
  check_tensors(x, "x", w, "w");
  Sizes sizes = {x.sizes().vec(), w.sizes().vec(), {}};
  Problem p = make_problem(sizes, stride, padding, dilation, groups);
  const DType dtype = dtype_of(x, DTypes::kNumber, kName);
  const OnDeviceOf device(x);
  at::Tensor y = at::empty(sizes.y, x.options(), output_format(x, w));
  set_strides(p, x, w, y);
  run_pass(p, Pass::kOutput, dtype, device, x, w, y, kName);
  return y;
}

at::Tensor conv_transpose(const at::Tensor& y, const at::Tensor& w, at::IntArrayRef input_size, at::IntArrayRef stride,
                          at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  constexpr const char* kName = "torch_convarith::conv_transpose";
  check_tensors(y, "y", w, "w");
  Sizes sizes = {input_shape(y, w, input_size, groups), w.sizes().vec(), y.sizes().vec()};
  Problem p = make_problem(sizes, stride, padding, dilation, groups);
  const DType dtype = dtype_of(y, DTypes::kNumber, kName);
  const OnDeviceOf device(y);
  at::Tensor x = at::empty(sizes.x, y.options(), output_format(y, w));
  set_strides(p, x, w, y);
  run_pass(p, Pass::kInput, dtype, device, y, w, x, kName);
  return x;
}

at::Tensor conv_weight(const at::Tensor& x, const at::Tensor& y, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  constexpr const char* kName = "torch_convarith::conv_weight";
  check_tensors(x, "x", y, "y");
  Sizes sizes = {x.sizes().vec(), weight_shape(x, y, kernel_size, groups), y.sizes().vec()};
  Problem p = make_problem(sizes, stride, padding, dilation, groups);
  const DType dtype = dtype_of(x, DTypes::kNumber, kName);
  const OnDeviceOf device(x);
  at::Tensor w = at::empty(sizes.w, x.options(), output_format(x, y));
  set_strides(p, x, w, y);
  run_pass(p, Pass::kWeight, dtype, device, x, y, w, kName);
  return w;
}

}  // namespace

CONVARITH_CUDA_IMPL(m) {
  m.impl("conv", conv);
  m.impl("conv_transpose", conv_transpose);
  m.impl("conv_weight", conv_weight);
}

}  // namespace convarith::cuda

#ifdef CONVARITH_EMULATE
// The emulated library has a cost model of its own; for tests, which call this through ctypes.
extern "C" void emulated_force_kernel(const char* name, int splits, int64_t packed_bytes) {
  convarith::cuda::force_kernel(name, splits, packed_bytes);
}
#endif
