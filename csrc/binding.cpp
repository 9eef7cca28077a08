// The Python module sslops._C: one m.def per kernel, raw pointers in, no logic.
// Shapes, dtypes, devices and contiguity are checked in Python before a pointer is taken.
#include <pybind11/pybind11.h>

#include "binding.h"
#include "key_queue.h"
#include "masking.h"

namespace py = pybind11;
using namespace sslops;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of sslops.";
  def_cpu(m, "cpu_random_masking", cpu::random_masking);
  def_cpu(m, "cpu_select_rows", cpu::select_rows);
  def_cpu(m, "cpu_scatter_rows", cpu::scatter_rows);
  def_cpu(m, "cpu_restore_tokens", cpu::restore_tokens);
  def_cpu(m, "cpu_restore_gradients", cpu::restore_gradients);
  def_cpu(m, "cpu_gather_patches", cpu::gather_patches);
  def_cpu(m, "cpu_scatter_patches", cpu::scatter_patches);
  def_cpu(m, "cpu_enqueue", cpu::enqueue);
#ifdef SSLOPS_CUDA
  m.attr("has_cuda") = true;
  m.def("cuda_runs_on", cuda::runs_on);
  def_cuda(m, "cuda_random_masking", cuda::random_masking);
  def_cuda(m, "cuda_select_rows", cuda::select_rows);
  def_cuda(m, "cuda_scatter_rows", cuda::scatter_rows);
  def_cuda(m, "cuda_restore_tokens", cuda::restore_tokens);
  def_cuda(m, "cuda_restore_gradients", cuda::restore_gradients);
  def_cuda(m, "cuda_gather_patches", cuda::gather_patches);
  def_cuda(m, "cuda_scatter_patches", cuda::scatter_patches);
  def_cuda(m, "cuda_enqueue", cuda::enqueue);
#else
  m.attr("has_cuda") = false;
#endif
}
