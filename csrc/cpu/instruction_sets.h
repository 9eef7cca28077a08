// Compiles the file SSLOPS_KERNELS once per instruction set, in a namespace of its own each, with
//   SSLOPS_SET    the namespace,  SSLOPS_LANES  floats in a vector (1: plain C++, any compiler).
// The file defines a table of functions; SSLOPS_TABLES(name) lists the tables of that name in the order
// of instruction_set.h. GCC and clang spell "compile what follows for this target" differently; other
// compilers get plain C++.
#include <cstdint>
#include <cstring>

#include "cpu/instruction_set.h"

#if defined(__clang__)
#define SSLOPS_PRAGMA(text) _Pragma(#text)
#define SSLOPS_BEGIN_TARGET(set) \
  SSLOPS_PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define SSLOPS_END_TARGET SSLOPS_PRAGMA(clang attribute pop)
#elif defined(__GNUC__)
#define SSLOPS_PRAGMA(text) _Pragma(#text)
#define SSLOPS_BEGIN_TARGET(set) SSLOPS_PRAGMA(GCC push_options) SSLOPS_PRAGMA(GCC target(set))
#define SSLOPS_END_TARGET SSLOPS_PRAGMA(GCC pop_options)
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#define SSLOPS_SET avx512
#define SSLOPS_LANES 16
SSLOPS_BEGIN_TARGET("avx512f,avx512dq,avx512bw,avx512vl,fma")
#include "cpu/vectors.h"
#include SSLOPS_KERNELS
SSLOPS_END_TARGET
#undef SSLOPS_SET
#undef SSLOPS_LANES

#define SSLOPS_SET avx2
#define SSLOPS_LANES 8
SSLOPS_BEGIN_TARGET("avx2,fma")
#include "cpu/vectors.h"
#include SSLOPS_KERNELS
SSLOPS_END_TARGET
#undef SSLOPS_SET
#undef SSLOPS_LANES
#endif

#if defined(__GNUC__)
#define SSLOPS_SET vector4  // SSE2 on x86, NEON on ARM: part of the base instruction set
#define SSLOPS_LANES 4
#include "cpu/vectors.h"
#include SSLOPS_KERNELS
#undef SSLOPS_SET
#undef SSLOPS_LANES
#endif

#define SSLOPS_SET scalar
#define SSLOPS_LANES 1
#include "cpu/vectors.h"
#include SSLOPS_KERNELS

#if defined(__GNUC__) && defined(__x86_64__)
#define SSLOPS_TABLES(name) &avx512::name, &avx2::name, &vector4::name, &scalar::name
#elif defined(__GNUC__)
#define SSLOPS_TABLES(name) nullptr, nullptr, &vector4::name, &scalar::name
#else
#define SSLOPS_TABLES(name) nullptr, nullptr, nullptr, &scalar::name
#endif
