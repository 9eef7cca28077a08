// How Python calls a kernel: an address for a pointer, a tuple of integers for a struct whose fields
// have 8 bytes each, a number for a number. The kernel runs without the interpreter's lock.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

#include "binding.h"

namespace sslops {

template <typename A>
struct Passed {
  using type = A;
  static A read(A value) { return value; }
};

template <typename T>
struct Passed<T*> {
  using type = uintptr_t;
  static T* read(uintptr_t address) { return reinterpret_cast<T*>(address); }
};

template <typename Fields>
struct Passed<const Fields&> {
  using type = const pybind11::tuple&;
  static Fields read(const pybind11::tuple& values) { return from_tuple<Fields>(values); }
};

template <typename Result, typename... A>
Result call_unlocked(Result (*kernel)(A...), A... arguments) {
  pybind11::gil_scoped_release unlocked;
  return kernel(arguments...);
}

template <typename Result, typename... A>
void def(pybind11::module_& m, const char* name, Result (*kernel)(A...)) {
  m.def(name, [kernel](typename Passed<A>::type... values) {
    return call_unlocked<Result, A...>(kernel, Passed<A>::read(values)...);
  });
}

}  // namespace sslops
