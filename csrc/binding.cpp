// The Python module sslops._C: one m.def per kernel, raw pointers in, no logic.
// Shapes, dtypes, devices and contiguity are checked in Python before a pointer is taken.
#include <pybind11/pybind11.h>

#include "cpu/color_attention.h"
#include "cpu/instruction_set.h"
#include "pass.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of sslops.";
  m.def("select_instruction_set", sslops::select_instruction_set);
  sslops::def(m, "color_softmax", sslops::color_softmax);
  sslops::def(m, "color_softmax_backward", sslops::color_softmax_backward);
  sslops::def(m, "color_top", sslops::color_top);
  sslops::def(m, "color_match", sslops::color_match);
  sslops::def(m, "color_match_backward", sslops::color_match_backward);
  sslops::def(m, "color_gather", sslops::color_gather);
  sslops::def(m, "color_gather_backward", sslops::color_gather_backward);
#ifdef SSLOPS_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
}
