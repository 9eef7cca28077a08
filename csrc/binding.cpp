// The Python module sslops._C: one m.def per kernel, raw pointers in, no logic.
// Shapes, dtypes, devices and contiguity are checked in Python before a pointer is taken.
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of sslops.";
#ifdef SSLOPS_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
}
