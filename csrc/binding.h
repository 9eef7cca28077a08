// How a kernel that takes one struct of 8-byte fields becomes a Python function of one tuple.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>

namespace sslops {

// The struct whose fields, in order, are these integers; a pointer is an address.
template <typename Fields>
Fields from_tuple(const pybind11::tuple& values) {
  static_assert(sizeof(void*) == 8, "a pointer fills a field of 8 bytes");
  constexpr size_t kCount = sizeof(Fields) / 8;
  if (values.size() != kCount) throw pybind11::value_error("wrong number of fields");
  int64_t words[kCount];
  for (size_t i = 0; i < kCount; ++i) words[i] = values[i].cast<int64_t>();
  Fields fields;
  memcpy(&fields, words, sizeof(Fields));
  return fields;
}

// name(fields, threads) -> position of the first index out of range, or -1
template <typename Fields>
void def_cpu(pybind11::module_& m, const char* name, int64_t (*kernel)(const Fields&, int)) {
  m.def(name, [kernel](const pybind11::tuple& values, int threads) {
    const auto fields = from_tuple<Fields>(values);
    pybind11::gil_scoped_release release;
    return kernel(fields, threads);
  });
}

// name(fields, device, stream)
template <typename Fields>
void def_cuda(pybind11::module_& m, const char* name, void (*kernel)(const Fields&, int, void*)) {
  m.def(name, [kernel](const pybind11::tuple& values, int device, uintptr_t stream) {
    kernel(from_tuple<Fields>(values), device, reinterpret_cast<void*>(stream));
  });
}

}  // namespace sslops
