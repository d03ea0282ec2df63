// The short way from torch_convarith.functional to an operator, for the plain case: dense tensors, no transform, and
// arguments that fit. In every other case these functions decline, by returning None, and Python goes its usual way,
// which knows transforms and error messages. A small convolution costs less than the Python frames it would pass
// through.
//
// Gradients are recorded here, by C++ autograd Functions. Their backward takes the short way too where nothing watches;
// else (double backward, batched or dual gradients) it calls the one rule that _ops has for all transforms.
#include "direct_call.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/grad_mode.h>
#include <torch/csrc/autograd/python_variable.h>

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "bias.h"
#include "checks.h"
#include "cpu/conv.h"

namespace convarith {
namespace {

using Ints = std::array<int64_t, kAxes>;

// A tensor that nothing but its own backend, and autograd, needs to see.
bool is_plain(const at::Tensor& t) {
  constexpr c10::DispatchKeySet kHarmless =
      c10::DispatchKeySet(
          {c10::DispatchKey::Dense, c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::AutogradFunctionality}) |
      c10::DispatchKeySet({c10::BackendComponent::CPUBit, c10::BackendComponent::CUDABit}) |
      c10::autocast_dispatch_keyset;  // which waits for nothing while is_quiet()
  return t.defined() && kHarmless.has_all(t.key_set()) && t.layout() == at::kStrided &&
         !t._fw_grad(/*level=*/0).defined();
}

const at::Tensor* plain(PyObject* object) {
  if (!THPVariable_CheckTypeExact(Py_TYPE(object))) return nullptr;
  const at::Tensor& t = THPVariable_Unpack(object);
  return is_plain(t) ? &t : nullptr;
}

// No transform, mode or autocast waits for the call.
bool is_quiet() {
  if (at::impl::torch_function_mode_enabled()) return false;
  const c10::impl::LocalDispatchKeySet keys = c10::impl::tls_local_dispatch_key_set();
  return c10::default_included_set.has_all(keys.included_) && keys.excluded_.has_all(c10::default_excluded_set);
}

bool as_int(PyObject* object, int64_t& value) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow = 0;
  value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow == 0 && -(int64_t{1} << 31) < value && value < (int64_t{1} << 31);
}

// An integer for all axes, or a tuple or list of one per axis.
bool as_ints(PyObject* object, size_t axes, Ints& values) {
  if (as_int(object, values[0])) {
    values.fill(values[0]);
    return true;
  }
  const bool is_tuple = PyTuple_CheckExact(object);
  if (!is_tuple && !PyList_CheckExact(object)) return false;
  const size_t size = is_tuple ? PyTuple_GET_SIZE(object) : PyList_GET_SIZE(object);
  if (size != axes) return false;
  for (size_t i = 0; i < axes; ++i) {
    PyObject* item = is_tuple ? PyTuple_GET_ITEM(object, i) : PyList_GET_ITEM(object, i);
    if (!as_int(item, values[i])) return false;
  }
  return true;
}

struct Call {
  size_t axes;
  at::Tensor input;  // batched
  const at::Tensor* weight;
  const at::Tensor* bias;  // may be null
  bool batched;
  int64_t groups;
};

// Tensors and what both directions have in common; `in` says which of the weight's channels are the input's.
bool read_tensors(PyObject* const* args, PyObject* groups, int in, Call& call) {
  int64_t axes = 0;
  if (!as_int(args[0], axes) || axes < 1 || axes > kAxes || !is_quiet()) return false;
  call.axes = axes;
  const at::Tensor* input = plain(args[1]);
  call.weight = plain(args[2]);
  call.bias = args[3] == Py_None ? nullptr : plain(args[3]);
  if (input == nullptr || call.weight == nullptr || (call.bias == nullptr && args[3] != Py_None)) return false;
  const at::Tensor& w = *call.weight;
  if (w.dim() != axes + 2 || (input->dim() != axes + 2 && input->dim() != axes + 1)) return false;
  if (!as_int(groups, call.groups) || call.groups < 1 || w.size(0) % call.groups != 0) return false;
  if (input->scalar_type() != w.scalar_type() || input->device() != w.device()) return false;
  call.batched = input->dim() == axes + 2;
  const int64_t channels[] = {w.size(0), w.size(1) * call.groups};
  if (input->size(-axes - 1) != channels[in]) return false;
  if (call.bias != nullptr) {
    const at::Tensor& b = *call.bias;
    if (b.dim() != 1 || b.size(0) != channels[1 - in] || b.scalar_type() != w.scalar_type() ||
        b.device() != w.device()) {
      return false;
    }
  }
  call.input = call.batched ? *input : input->unsqueeze(0);
  return true;
}

using ConvSignature = at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymIntArrayRef, c10::SymIntArrayRef,
                                 c10::SymIntArrayRef, c10::SymInt);
using SizedSignature = at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymIntArrayRef, c10::SymIntArrayRef,
                                  c10::SymIntArrayRef, c10::SymIntArrayRef, c10::SymInt);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// The geometry of a call, as the operators take it; also what a backward remembers.
struct Geometry {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;

  template <typename Signature, typename... Sizes>
  at::Tensor call(const c10::TypedOperatorHandle<Signature>& op, const at::Tensor& a, const at::Tensor& b,
                  const Sizes&... size) const {
    return op.call(a, b, symbols(size)..., symbols(stride), symbols(padding), symbols(dilation), groups);
  }

  static c10::SymIntArrayRef symbols(at::IntArrayRef values) { return c10::fromIntArrayRefKnownNonNegative(values); }
};

// What gives y takes (x, w), what gives x takes (y, w): TAKES of _ops/conv.py, of which w is no case here.
enum class Gives { kY, kX };

at::Tensor contract(Gives gives, const at::Tensor& a, const at::Tensor& b, at::IntArrayRef input_size,
                    const Geometry& g) {
  static const auto conv = find<ConvSignature>("torch_convarith::conv");
  static const auto conv_transpose = find<SizedSignature>("torch_convarith::conv_transpose");
  return gives == Gives::kY ? g.call(conv, a, b) : g.call(conv_transpose, a, b, input_size);
}

// On the CPU a bias is added where the results are stored, in the sums' precision.
at::Tensor contract_and_add(Gives gives, const at::Tensor& a, const at::Tensor& b,
                            const std::optional<at::Tensor>& bias, at::IntArrayRef input_size, const Geometry& g) {
  if (!bias.has_value()) return contract(gives, a, b, input_size, g);
  if (a.is_cpu()) {
    const bool forward = gives == Gives::kY;
    RECORD_FUNCTION(forward ? "torch_convarith::conv" : "torch_convarith::conv_transpose",
                    std::vector<c10::IValue>({a, b, bias}));
    const at::Tensor values = bias->contiguous();
    return forward ? cpu::conv(a, b, values, g.stride, g.padding, g.dilation, g.groups)
                   : cpu::conv_transpose(a, b, values, input_size, g.stride, g.padding, g.dilation, g.groups);
  }
  at::Tensor result = contract(gives, a, b, input_size, g);
  add_bias(result, *bias);
  return result;
}

struct Direct : torch::autograd::Function<Direct> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& a, const at::Tensor& b,
                            const std::optional<at::Tensor>& bias, Gives gives, at::IntArrayRef input_size,
                            const Geometry& g) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({a, b});
    auto& data = ctx->saved_data;
    data["gives"] = static_cast<int64_t>(gives);
    data["bias"] = bias.has_value();
    data["stride"] = g.stride;
    data["padding"] = g.padding;
    data["dilation"] = g.dilation;
    data["groups"] = g.groups;
    return contract_and_add(gives, a, b, bias, input_size, g);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &a = saved[0], &b = saved[1];
    auto& data = ctx->saved_data;
    const auto gives = static_cast<Gives>(data["gives"].toInt());
    const Geometry g = {data["stride"].toIntVector(), data["padding"].toIntVector(), data["dilation"].toIntVector(),
                        data["groups"].toInt()};
    at::Tensor grad = grads[0], grad_bias;
    if (data["bias"].toBool() && ctx->needs_input_grad(2)) {
      std::vector<int64_t> others(grad.dim() - 1);
      for (size_t i = 0; i < others.size(); ++i) others[i] = static_cast<int64_t>(i == 0 ? 0 : i + 1);
      grad_bias = grad.sum(others);
    }
    const bool needs_a = ctx->needs_input_grad(0), needs_b = ctx->needs_input_grad(1);
    if (c10::GradMode::is_enabled() || !is_plain(grad) || !is_quiet()) {
      const auto [grad_a, grad_b] = in_python(gives, a, b, grad, needs_a, needs_b, g);
      return {grad_a, grad_b, grad_bias, {}, {}, {}};
    }
    at::AutoDispatchBelowADInplaceOrView below;
    // In the operands' format, as torch's gradients are, whatever the strides of what came from behind.
    const auto format = output_format(a, b);
    if (format != at::MemoryFormat::Contiguous) grad = grad.contiguous(format);
    static const auto conv_weight = find<SizedSignature>("torch_convarith::conv_weight");
    const at::Tensor &x = gives == Gives::kY ? a : grad, &y = gives == Gives::kY ? grad : a;
    const Gives of_a = gives == Gives::kY ? Gives::kX : Gives::kY;
    return {needs_a ? contract(of_a, grad, b.conj(), a.sizes().slice(2), g) : at::Tensor(),
            needs_b ? g.call(conv_weight, gives == Gives::kY ? x.conj() : x, gives == Gives::kY ? y : y.conj(),
                             b.sizes().slice(2))
                    : at::Tensor(),
            grad_bias,
            {},
            {},
            {}};
  }

  // The rule of _ops/conv.py, which is differentiable and known to every transform.
  static std::pair<at::Tensor, at::Tensor> in_python(Gives gives, const at::Tensor& a, const at::Tensor& b,
                                                     const at::Tensor& grad, bool needs_a, bool needs_b,
                                                     const Geometry& g) {
    namespace py = pybind11;
    py::gil_scoped_acquire acquire;
    const auto wrap = [](const at::Tensor& t) { return py::reinterpret_steal<py::object>(THPVariable_Wrap(t)); };
    const auto unwrap = [](const py::handle& t) { return t.is_none() ? at::Tensor() : THPVariable_Unpack(t.ptr()); };
    const py::tuple found =
        py::module_::import("torch_convarith._ops.conv")
            .attr("derivatives")(gives == Gives::kY ? "y" : "x", "pattern", py::make_tuple(wrap(a), wrap(b)),
                                 wrap(grad), py::make_tuple(needs_a, needs_b),
                                 py::make_tuple(g.stride, g.padding, g.dilation, g.groups));
    return {unwrap(found[0]), unwrap(found[1])};
  }
};

// What functional/conv.py's _finish() verifies: the operator gave what the guide's formula says.
void check_output(Gives gives, const at::Tensor& result, at::IntArrayRef expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    TORCH_CHECK(result.size(2 + i) == expected[i], "relationship ", gives == Gives::kY ? 15 : 14, " gives along ",
                axis_name(i, expected.size()), " an output of ", expected[i], ", but the operator gave ",
                result.size(2 + i));
  }
}

// `expected` is the spatial size of the result.
PyObject* run(Gives gives, const Call& call, at::IntArrayRef expected, const Geometry& g) {
  at::Tensor result;
  const std::optional<at::Tensor> bias = call.bias == nullptr ? std::nullopt : std::optional(*call.bias);
  {
    pybind11::gil_scoped_release release;
    const bool records = c10::GradMode::is_enabled() && (call.input.requires_grad() || call.weight->requires_grad() ||
                                                         (bias.has_value() && bias->requires_grad()));
    if (records) {
      result = Direct::apply(call.input, *call.weight, bias, gives, expected, g);
    } else {
      at::AutoDispatchBelowADInplaceOrView below;
      result = contract_and_add(gives, call.input, *call.weight, bias, expected, g);
    }
    check_output(gives, result, expected);
    if (!call.batched) result = result.squeeze(0);
  }
  return THPVariable_Wrap(std::move(result));
}

// Average pooling: windows, and what their sums are divided by.
struct Mean {
  std::vector<int64_t> kernel, stride, padding, dilation;
  bool ceil_mode, count_include_pad;
  std::optional<int64_t> divisor;

  at::Tensor of(const at::Tensor& x) const {
    using Signature = at::Tensor(const at::Tensor&, c10::SymIntArrayRef, c10::SymIntArrayRef, c10::SymIntArrayRef,
                                 c10::SymIntArrayRef, bool, bool, std::optional<c10::SymInt>);
    static const auto avg_pool = find<Signature>("torch_convarith::avg_pool");
    return avg_pool.call(x, Geometry::symbols(kernel), Geometry::symbols(stride), Geometry::symbols(padding),
                         Geometry::symbols(dilation), ceil_mode, count_include_pad, divisor);
  }

  at::Tensor transpose(const at::Tensor& y, at::IntArrayRef input_size) const {
    using Signature = at::Tensor(const at::Tensor&, c10::SymIntArrayRef, c10::SymIntArrayRef, c10::SymIntArrayRef,
                                 c10::SymIntArrayRef, c10::SymIntArrayRef, bool, bool, std::optional<c10::SymInt>);
    static const auto avg_pool_transpose = find<Signature>("torch_convarith::avg_pool_transpose");
    return avg_pool_transpose.call(y, Geometry::symbols(input_size), Geometry::symbols(kernel),
                                   Geometry::symbols(stride), Geometry::symbols(padding), Geometry::symbols(dilation),
                                   ceil_mode, count_include_pad, divisor);
  }
};

struct DirectMean : torch::autograd::Function<DirectMean> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const Mean& mean) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto& data = ctx->saved_data;
    data["input_size"] = x.sizes().slice(x.dim() - static_cast<int64_t>(mean.kernel.size()));
    data["kernel"] = mean.kernel;
    data["stride"] = mean.stride;
    data["padding"] = mean.padding;
    data["dilation"] = mean.dilation;
    data["ceil_mode"] = mean.ceil_mode;
    data["count_include_pad"] = mean.count_include_pad;
    data["divisor"] = mean.divisor;
    return mean.of(x);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    auto& data = ctx->saved_data;
    const at::Tensor& grad = grads[0];
    const std::vector<int64_t> input_size = data["input_size"].toIntVector();
    const Mean mean = {data["kernel"].toIntVector(),         data["stride"].toIntVector(),
                       data["padding"].toIntVector(),        data["dilation"].toIntVector(),
                       data["ceil_mode"].toBool(),           data["count_include_pad"].toBool(),
                       data["divisor"].toOptional<int64_t>()};
    if (c10::GradMode::is_enabled() || !is_plain(grad) || !is_quiet()) return {in_python(grad, input_size, mean), {}};
    at::AutoDispatchBelowADInplaceOrView below;
    return {mean.transpose(grad, input_size), {}};
  }

  // _ops/pooling.py's, which is differentiable and known to every transform.
  static at::Tensor in_python(const at::Tensor& grad, const std::vector<int64_t>& input_size, const Mean& mean) {
    namespace py = pybind11;
    py::gil_scoped_acquire acquire;
    const py::object x =
        py::module_::import("torch_convarith._ops.pooling")
            .attr("avg_pool_transpose")(py::reinterpret_steal<py::object>(THPVariable_Wrap(grad)), input_size,
                                        mean.kernel, mean.stride, mean.padding, mean.dilation, mean.ceil_mode,
                                        mean.count_include_pad, mean.divisor);
    return THPVariable_Unpack(x.ptr());
  }
};

bool as_bool(PyObject* object, bool& value) {
  value = object == Py_True;
  return PyBool_Check(object);
}

// The windows of a tensor, if they are as functional/pooling.py allows them.
bool read_mean(PyObject* const* args, int64_t axes, const at::Tensor& x, Mean& mean) {
  Ints kernel, stride, padding, dilation;
  int64_t divisor = 0;
  if (!as_ints(args[2], axes, kernel) || !as_ints(args[4], axes, padding) || !as_ints(args[5], axes, dilation) ||
      !as_bool(args[6], mean.ceil_mode) || !as_bool(args[7], mean.count_include_pad)) {
    return false;
  }
  if (args[3] == Py_None) {
    stride = kernel;
  } else if (!as_ints(args[3], axes, stride)) {
    return false;
  }
  if (args[8] != Py_None) {
    if (!as_int(args[8], divisor) || divisor == 0) return false;
    mean.divisor = divisor;
  }
  for (int64_t i = 0; i < axes; ++i) {
    const int64_t p = padding[i], input = x.size(x.dim() - axes + i);
    if (input < 1 || kernel[i] < 1 || stride[i] < 1 || dilation[i] < 1 || p < 0 || 2 * p > kernel[i]) return false;
    if (!fits({input, kernel[i], stride[i], p, p + (mean.ceil_mode ? stride[i] - 1 : 0), dilation[i]})) return false;
    mean.padding.insert(mean.padding.end(), {p, p});
  }
  mean.kernel.assign(kernel.begin(), kernel.begin() + axes);
  mean.stride.assign(stride.begin(), stride.begin() + axes);
  mean.dilation.assign(dilation.begin(), dilation.begin() + axes);
  return true;
}

}  // namespace

PyObject* call_avg_pool(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  int64_t axes = 0;
  if (count != 9 || !as_int(args[0], axes) || axes < 1 || axes > kAxes || !is_quiet()) Py_RETURN_NONE;
  const at::Tensor* x = plain(args[1]);
  Mean mean;
  if (x == nullptr || (x->dim() != axes + 1 && x->dim() != axes + 2) || !read_mean(args, axes, *x, mean)) {
    Py_RETURN_NONE;
  }
  at::Tensor y;
  {
    pybind11::gil_scoped_release release;
    if (x->requires_grad() && c10::GradMode::is_enabled()) {
      y = DirectMean::apply(*x, mean);
    } else {
      at::AutoDispatchBelowADInplaceOrView below;
      y = mean.of(*x);
    }
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

PyObject* call_conv(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Call call;
  Ints stride, padding, dilation;
  if (count != 8 || !read_tensors(args, args[7], /*in=*/1, call)) Py_RETURN_NONE;
  const size_t axes = call.axes;
  if (!as_ints(args[4], axes, stride) || !as_ints(args[5], axes, padding) || !as_ints(args[6], axes, dilation)) {
    Py_RETURN_NONE;
  }
  Geometry g = {{stride.begin(), stride.begin() + axes}, {}, {dilation.begin(), dilation.begin() + axes}, call.groups};
  std::vector<int64_t> expected;
  for (size_t i = 0; i < axes; ++i) {
    const int64_t p = padding[i];
    const Axis axis = {call.input.size(2 + i), call.weight->size(2 + i), stride[i], p, p, dilation[i]};
    if (axis.kernel < 1 || axis.stride < 1 || axis.dilation < 1 || p < 0 || !fits(axis)) Py_RETURN_NONE;
    expected.push_back(output_size(axis));  // relationship 15
    g.padding.insert(g.padding.end(), {p, p});
  }
  return run(Gives::kY, call, expected, g);
  END_HANDLE_TH_ERRORS
}

PyObject* call_conv_transpose(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Call call;
  Ints stride, padding, output_padding, dilation;
  if (count != 9 || !read_tensors(args, args[7], /*in=*/0, call)) Py_RETURN_NONE;
  const size_t axes = call.axes;
  if (!as_ints(args[4], axes, stride) || !as_ints(args[5], axes, padding) || !as_ints(args[6], axes, output_padding) ||
      !as_ints(args[8], axes, dilation)) {
    Py_RETURN_NONE;
  }
  Geometry g = {{stride.begin(), stride.begin() + axes}, {}, {dilation.begin(), dilation.begin() + axes}, call.groups};
  std::vector<int64_t> expected;
  for (size_t i = 0; i < axes; ++i) {
    const int64_t outputs = call.input.size(2 + i), p = padding[i], a = output_padding[i];
    const Axis axis = {0, call.weight->size(2 + i), stride[i], p, p, dilation[i]};
    if (outputs < 1 || axis.kernel < 1 || axis.stride < 1 || axis.dilation < 1 || p < 0) Py_RETURN_NONE;
    if (a < 0 || a >= axis.stride) Py_RETURN_NONE;
    expected.push_back(axis.stride * (outputs - 1) + a + effective_kernel(axis) - 2 * p);  // relationship 14
    if (expected.back() < 1) Py_RETURN_NONE;
    g.padding.insert(g.padding.end(), {p, p});
  }
  return run(Gives::kX, call, expected, g);
  END_HANDLE_TH_ERRORS
}

PyObject* call_is_plain(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (!is_quiet()) Py_RETURN_FALSE;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!THPVariable_Check(args[i])) continue;
    const at::Tensor* t = plain(args[i]);
    if (t == nullptr || (t->requires_grad() && c10::GradMode::is_enabled())) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
  END_HANDLE_TH_ERRORS
}

}  // namespace convarith
