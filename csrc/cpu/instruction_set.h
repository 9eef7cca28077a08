// Which vector instructions kernels use: the widest of this machine, or a narrower one for tests.
#pragma once

namespace sslops {

enum InstructionSet { kAvx512, kAvx2, kVector4, kScalar };

InstructionSet instruction_set();
// Takes the set of that name ("avx512", "avx2", "vector4" or "scalar") if this machine has it, and
// returns the name of the set in use; "" asks only.
const char* select_instruction_set(const char* name);

}  // namespace sslops
