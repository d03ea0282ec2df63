// Functions of the Python module that call an operator without Python between: see direct_call.cpp.
#pragma once

#include <Python.h>

namespace convarith {

// conv(axes, input, weight, bias, stride, padding, dilation, groups) -> Tensor, or None
PyObject* call_conv(PyObject*, PyObject* const* args, Py_ssize_t count);

// conv_transpose(axes, input, weight, bias, stride, padding, output_padding, groups, dilation) -> Tensor, or None
PyObject* call_conv_transpose(PyObject*, PyObject* const* args, Py_ssize_t count);

// avg_pool(axes, input, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override)
// -> Tensor, or None
PyObject* call_avg_pool(PyObject*, PyObject* const* args, Py_ssize_t count);

// is_plain(*arguments) -> bool: whether an operator may be called below autograd, for nothing watches its tensors.
PyObject* call_is_plain(PyObject*, PyObject* const* args, Py_ssize_t count);

}  // namespace convarith
