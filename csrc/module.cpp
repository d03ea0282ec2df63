// The pybind11 module: loading it registers the operators. It offers Python what the build knows of itself, and
// geometry.h's functions for the tests; operators are reached through torch.ops.
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include "checks.h"
#include "cpu/conv_engine.h"
#include "direct_call.h"
#include "geometry.h"

namespace py = pybind11;
using namespace convarith;

namespace {

Strides contiguous(const std::vector<int64_t>& sizes) {
  Strides s = {0, 0, {0, 0, 0}};
  int64_t step = 1;
  for (size_t i = 0; i + 2 < sizes.size(); ++i) {
    s.axis[kAxes - 1 - i] = step;
    step *= sizes[sizes.size() - 1 - i];
  }
  s.channel = step;
  s.batch = step * sizes[1];
  return s;
}

// What the CPU engine would run on plain (contiguous) tensors of these sizes. dtype as in ConvKernels, or -1.
py::dict explain_kernel(int pass, int dtype, const std::vector<int64_t>& x, const std::vector<int64_t>& w,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, int64_t groups) {
  if (x.size() != w.size() || x.size() < 3 || x.size() > 5 || pass < 0 || pass > 2 || dtype < -1 || dtype > 3) {
    throw py::value_error("sizes of 3 to 5 dimensions are needed, a pass from 0 to 2 and a dtype from -1 to 3");
  }
  Sizes sizes = {x, w, {}};
  Problem p = make_problem(sizes, stride, padding, dilation, groups);
  p.x = contiguous(sizes.x);
  p.w = contiguous(sizes.w);
  p.y = contiguous(sizes.y);
  const cpu::Explanation e = cpu::explain(p, static_cast<cpu::Pass>(pass), dtype);
  py::dict result;
  result["algorithm"] = cpu::algorithm_name(e.algorithm);
  result["scratch_bytes"] = e.scratch;
  result["phases"] = e.phases;
  result["multiplications"] = e.multiplications;
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
      {"is_plain", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_is_plain)), METH_FASTCALL,
       "is_plain(*arguments): whether no tensor among them is watched, by autograd, a transform or a mode"},
      {nullptr, nullptr, 0, nullptr}};
  PyModule_AddFunctions(m.ptr(), direct);
  m.def("set_winograd", &cpu::set_winograd);
  m.def("winograd_enabled", &cpu::winograd_enabled);
  m.def("explain_kernel", &explain_kernel);
  m.def("_force_algorithm", &cpu::force_algorithm);  // for tests

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
  m.def("source_index", [](int64_t index, int64_t input, PaddingMode mode) {
    if (input < 1) throw py::value_error("input must be positive");
    return source_index(index, input, mode);
  });
}
