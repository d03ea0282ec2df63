// The pybind11 module: loading it registers the operators. It offers Python what the build knows of itself, and
// geometry.h's functions for the tests; operators are reached through torch.ops.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <algorithm>

#include "checks.h"
#include "cpu/ceilings.h"
#include "cpu/conv_engine.h"
#include "cuda/conv_plan.h"
#include "direct_call.h"
#include "gather.h"
#include "geometry.h"

namespace py = pybind11;
using namespace convarith;

namespace {

// Of a plain tensor, or of one in channels_last.
Strides strides_of(const std::vector<int64_t>& sizes, bool channels_last) {
  Strides s = {0, 0, {0, 0, 0}};
  int64_t step = channels_last ? sizes[1] : 1;
  for (size_t i = 0; i + 2 < sizes.size(); ++i) {
    s.axis[kAxes - 1 - i] = step;
    step *= sizes[sizes.size() - 1 - i];
  }
  s.channel = channels_last ? 1 : step;
  s.batch = channels_last ? step : step * sizes[1];
  return s;
}

// The problem of tensors of these sizes.
Problem problem_of(const std::vector<int64_t>& x, const std::vector<int64_t>& w, const std::vector<int64_t>& stride,
                   const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                   bool channels_last) {
  if (x.size() != w.size() || x.size() < 3 || x.size() > 5) {
    throw py::value_error("sizes of 3 to 5 dimensions are needed");
  }
  Sizes sizes = {x, w, {}};
  Problem p = make_problem(sizes, stride, padding, dilation, groups);
  p.x = strides_of(sizes.x, channels_last);
  p.w = strides_of(sizes.w, channels_last);
  p.y = strides_of(sizes.y, channels_last);
  return p;
}

// What the CPU engine would run. dtype as in ConvKernels, or -1.
py::dict explain_cpu_kernel(int pass, int dtype, const std::vector<int64_t>& x, const std::vector<int64_t>& w,
                            const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                            const std::vector<int64_t>& dilation, int64_t groups, bool channels_last) {
  if (pass < 0 || pass > 2 || dtype < -1 || dtype > 3) {
    throw py::value_error("a pass from 0 to 2 and a dtype from -1 to 3 are needed");
  }
  const Problem p = problem_of(x, w, stride, padding, dilation, groups, channels_last);
  const cpu::Explanation e = cpu::explain(p, static_cast<cpu::Pass>(pass), dtype);
  py::dict result;
  result["algorithm"] = cpu::algorithm_name(e.algorithm);
  result["scratch_bytes"] = e.scratch;
  result["phases"] = e.phases;
  result["multiplications"] = e.multiplications;
  return result;
}

// What a GPU of so many multiprocessors would run. dtype as in cuda::DType.
py::dict explain_cuda_kernel(int pass, int dtype, const std::vector<int64_t>& x, const std::vector<int64_t>& w,
                             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                             const std::vector<int64_t>& dilation, int64_t groups, bool channels_last,
                             int multiprocessors) {
  if (pass < 0 || pass > 2 || dtype < 0 || dtype > static_cast<int>(cuda::DType::kComplexDouble)) {
    throw py::value_error("a pass from 0 to 2 and a dtype of cuda::DType are needed");
  }
  const Problem p = problem_of(x, w, stride, padding, dilation, groups, channels_last);
  const bool allow_tf32 = at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
  const cuda::Kernel k = cuda::choose_kernel(p, static_cast<cuda::Pass>(pass), static_cast<cuda::DType>(dtype),
                                             allow_tf32, cuda::kAligned, {multiprocessors});
  const bool is_product = k.algorithm == cuda::Algorithm::kMultiplyAdd || k.algorithm == cuda::Algorithm::kTensorCore;
  py::dict result;
  result["algorithm"] = cuda::algorithm_name(k.algorithm);
  if (is_product) result["tile"] = cuda::tile_name(k.tile);
  result["splits"] = std::max(k.plan.splits, 1);
  result["scratch_bytes"] = k.scratch_bytes();
  result["phases"] = k.plan.phases;
  result["multiplications"] = k.multiplications;
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ operators of torch_convarith";

  m.def("build_info", [] {
    py::dict info;
    info["torch"] = TORCH_VERSION;
    info["compiler"] = __VERSION__;
    info["cpp"] = static_cast<int64_t>(__cplusplus);
#ifdef CONVARITH_WITH_CUDA
    info["cuda"] = true;
#else
    info["cuda"] = false;
#endif
#ifdef _OPENMP
    info["openmp"] = true;
#else
    info["openmp"] = false;
#endif
    info["isa"] = cpu::isa_name(cpu::active_isa());
    info["parallel"] = at::get_parallel_info();
    return info;
  });

  // Without pybind11's argument conversion, which costs as much as a small convolution.
  static PyMethodDef direct[] = {
      {"conv", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_conv)), METH_FASTCALL,
       "conv(axes, input, weight, bias, stride, padding, dilation, groups), or None where Python must see to it"},
      {"conv_transpose", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_conv_transpose)),
       METH_FASTCALL,
       "conv_transpose(axes, input, weight, bias, stride, padding, output_padding, groups, dilation), or None "
       "likewise"},
      {"avg_pool", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_avg_pool)), METH_FASTCALL,
       "avg_pool(axes, input, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, "
       "divisor_override), or None likewise"},
      {"is_plain", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_is_plain)), METH_FASTCALL,
       "is_plain(*arguments): whether no tensor among them is watched, by autograd, a transform or a mode"},
      {nullptr, nullptr, 0, nullptr}};
  PyModule_AddFunctions(m.ptr(), direct);
  m.def("set_winograd", &cpu::set_winograd);
  m.def("winograd_enabled", &cpu::winograd_enabled);
  m.def("explain_cpu_kernel", &explain_cpu_kernel);
  m.def("explain_cuda_kernel", &explain_cuda_kernel);
  m.def("run_multiply_adds", &cpu::run_multiply_adds, py::call_guard<py::gil_scoped_release>());
  m.def("handoff_seconds", &cpu::handoff_seconds, py::call_guard<py::gil_scoped_release>());
  m.def("_force_algorithm", &cpu::force_algorithm);  // for tests
  m.attr("_ALGORITHMS") = std::vector<std::string>(std::begin(cpu::kAlgorithmNames), std::end(cpu::kAlgorithmNames));
  m.def("_force_cuda_kernel", &cuda::force_kernel);

  py::enum_<PaddingMode>(m, "PaddingMode")
      .value("zeros", PaddingMode::kZeros)
      .value("reflect", PaddingMode::kReflect)
      .value("replicate", PaddingMode::kReplicate)
      .value("circular", PaddingMode::kCircular);

  py::class_<Axis>(m, "Axis").def(
      py::init([](int64_t input, int64_t kernel, int64_t stride, int64_t lo, int64_t hi, int64_t dilation) {
        if (input < 0 || kernel < 1 || stride < 1 || dilation < 1) throw py::value_error("sizes must be positive");
        return Axis{input, kernel, stride, lo, hi, dilation};
      }),
      py::arg("input"), py::arg("kernel"), py::arg("stride"), py::arg("lo"), py::arg("hi"), py::arg("dilation"));
  m.def("effective_kernel", &effective_kernel);
  m.def("fits", &fits);
  m.def("output_size", &output_size);
  m.def("unused", &unused);
  m.def("input_index", &input_index);
  m.def("output_index", &output_index);
  m.def("outputs_of_tap", [](const Axis& a, int64_t outputs, int64_t tap) {
    const Range r = outputs_of_tap(a, outputs, tap);
    return py::make_tuple(r.begin, r.end);
  });
  // (grid, stride, source, taps, shift, shift_step, first_tap, tap_step, first_place, place_step, pads) of each gather
  m.def("gathers", [](const Axis& a, int64_t outputs, bool transposed) {
    std::vector<py::tuple> result;
    for (int64_t phase = 0; phase < (transposed ? phase_count(a) : 1); ++phase) {
      const GatherAxis g = trimmed(transposed ? phase_axis(a, outputs, phase) : forward_axis(a, outputs));
      result.push_back(py::make_tuple(g.grid, g.stride, g.source, g.taps, g.shift, g.shift_step, g.first_tap,
                                      g.tap_step, g.first_place, g.place_step, pads(g)));
    }
    return result;
  });
  m.def("quotient", [](int64_t n, int64_t d) { return fast_divisor(d).quotient(static_cast<int32_t>(n)); });
  m.def("source_index", [](int64_t index, int64_t input, PaddingMode mode) {
    if (input < 1) throw py::value_error("input must be positive");
    return source_index(index, input, mode);
  });
}
