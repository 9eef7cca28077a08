// The Python module sslops._C: one m.def per kernel, raw pointers in, no logic.
// Shapes, dtypes, devices and contiguity are checked in Python before a pointer is taken.
#include <pybind11/pybind11.h>

#include "binding.h"
#include "cpu/augment.h"
#include "cpu/color_attention.h"
#include "cpu/dino_loss.h"
#include "cpu/instruction_set.h"
#include "cpu/kernels.h"
#include "cpu/tiles.h"
#include "key_queue.h"
#include "masking.h"

namespace py = pybind11;
using namespace sslops;

// A pointer comes from Python as the integer of tensor.data_ptr(); None is 0. A struct comes as the
// tuple of its fields.
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

template <typename Fields>
struct Argument<const Fields&> {
  using type = const py::tuple&;
  static Fields value(const py::tuple& values) { return sslops::from_tuple<Fields>(values); }
};

template <typename... A>
void call_unlocked(void (*kernel)(A...), std::decay_t<A>... arguments) {
  py::gil_scoped_release release;
  kernel(arguments...);
}

template <typename... A>
auto from_python(void (*kernel)(A...)) {
  return [kernel](typename Argument<A>::type... arguments) {
    call_unlocked<A...>(kernel, Argument<A>::value(arguments)...);
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
  def_cpu(m, "cpu_augment", cpu::augment);
  m.def("select_instruction_set", sslops::select_instruction_set);
  m.def("color_softmax", from_python(sslops::color_softmax));
  m.def("color_softmax_backward", from_python(sslops::color_softmax_backward));
  m.def("color_top", from_python(sslops::color_top));
  m.def("color_match", from_python(sslops::color_match));
  m.def("color_match_backward", from_python(sslops::color_match_backward));
  m.def("color_gather", from_python(sslops::color_gather));
  m.def("color_gather_backward", from_python(sslops::color_gather_backward));
  m.def("dino_loss_forward", from_python(sslops::dino_loss_forward));
  m.def("dino_loss_backward", from_python(sslops::dino_loss_backward));
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
  m.def("exp2", [](std::uintptr_t x, int64_t count, std::uintptr_t y) {
    sslops::tile_kernels().exp2(reinterpret_cast<float*>(x), count, reinterpret_cast<float*>(y));
  });
  m.def("nt_xent_forward", from_python(sslops::nt_xent_forward));
  m.def("nt_xent_backward", from_python(sslops::nt_xent_backward));
  m.def("info_nce_forward", from_python(sslops::info_nce_forward));
  m.def("info_nce_backward_keys", from_python(sslops::info_nce_backward_keys));
  m.def("info_nce_symmetric_forward", from_python(sslops::info_nce_symmetric_forward));
  m.def("info_nce_symmetric_backward", from_python(sslops::info_nce_symmetric_backward));
  m.def("logit_block_statistics", from_python(sslops::logit_block_statistics));
  m.def("logit_block_gradients", from_python(sslops::logit_block_gradients));
  m.def("koleo_nearest", from_python(sslops::koleo_nearest));
  m.def("sinkhorn_columns", from_python(sslops::sinkhorn_columns));
  m.def("sinkhorn_softmax", from_python(sslops::sinkhorn_softmax));
  m.def("sinkhorn_mass", from_python(sslops::sinkhorn_mass));
  m.def("sinkhorn_finish", from_python(sslops::sinkhorn_finish));
}
