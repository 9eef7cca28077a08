// The Python module sslops._C: one m.def per kernel, raw pointers in, no logic.
// Shapes, dtypes, devices and contiguity are checked in Python before a pointer is taken.
#include <pybind11/pybind11.h>

#include "binding.h"
#include "cpu/kernels.h"
#include "cpu/tiles.h"
#include "key_queue.h"
#include "masking.h"

namespace py = pybind11;
using namespace sslops;

// A pointer comes from Python as the integer of tensor.data_ptr(); None is 0.
template <typename T>
struct Argument {
  using type = T;
  static T value(T x) { return x; }
};
template <typename T>
struct Argument<T*> {
  using type = std::uintptr_t;
  static T* value(std::uintptr_t address) { return reinterpret_cast<T*>(address); }
};

template <typename... A>
auto from_python(void (*kernel)(A...)) {
  return [kernel](typename Argument<A>::type... arguments) {
    py::gil_scoped_release release;
    kernel(Argument<A>::value(arguments)...);
  };
}

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
  m.def("select_tile_kernels", &sslops::select_tile_kernels);
  m.def("exp2", [](std::uintptr_t x, int64_t count, std::uintptr_t y) {
    sslops::tile_kernels().exp2(reinterpret_cast<float*>(x), count, reinterpret_cast<float*>(y));
  });
  m.def("nt_xent_forward", from_python(sslops::nt_xent_forward));
  m.def("nt_xent_backward", from_python(sslops::nt_xent_backward));
  m.def("info_nce_forward", from_python(sslops::info_nce_forward));
  m.def("info_nce_backward_keys", from_python(sslops::info_nce_backward_keys));
  m.def("info_nce_symmetric_forward", from_python(sslops::info_nce_symmetric_forward));
  m.def("info_nce_symmetric_backward", from_python(sslops::info_nce_symmetric_backward));
}
