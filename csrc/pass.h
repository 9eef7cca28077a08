// How Python calls a kernel: an address for a pointer, a tuple of integers for a struct whose fields
// have 8 bytes each, a number for a number. The kernel runs without the interpreter's lock.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>

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
  static Fields read(const pybind11::tuple& values) {
    static_assert(sizeof(Fields) % 8 == 0 && sizeof(void*) == 8, "every field has 8 bytes");
    constexpr size_t kCount = sizeof(Fields) / 8;
    if (values.size() != kCount) throw pybind11::value_error("wrong number of fields");
    int64_t words[kCount];
    for (size_t i = 0; i < kCount; ++i) words[i] = values[i].cast<int64_t>();
    Fields fields;
    memcpy(&fields, words, sizeof fields);
    return fields;
  }
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
