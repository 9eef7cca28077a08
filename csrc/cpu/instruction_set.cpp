#include "cpu/instruction_set.h"

#include <atomic>
#include <cstring>

namespace sslops {

static const char* const kNames[] = {"avx512", "avx2", "vector4", "scalar"};

static bool has(InstructionSet set) {
#if defined(__GNUC__)
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (set == kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (set == kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  if (set == kVector4) return true;
#endif
  return set == kScalar;
}

static InstructionSet widest() {
  for (int set = kAvx512; set < kScalar; ++set)
    if (has(static_cast<InstructionSet>(set))) return static_cast<InstructionSet>(set);
  return kScalar;
}

static std::atomic<InstructionSet>& chosen() {
  static std::atomic<InstructionSet> set{widest()};
  return set;
}

InstructionSet instruction_set() { return chosen(); }

const char* select_instruction_set(const char* name) {
  for (int set = kAvx512; set <= kScalar; ++set)
    if (!strcmp(kNames[set], name) && has(static_cast<InstructionSet>(set)))
      chosen() = static_cast<InstructionSet>(set);
  return kNames[chosen()];
}

}  // namespace sslops
