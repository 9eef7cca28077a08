// The queue's kernel, for the CPU and the GPU; conventions as in masking.h.
#pragma once
#include <cstdint>

#include "masking.h"

namespace sslops {

// Key i goes to slot (pointer + i) mod size of a ring of `size` rows; of more than `size` keys the
// last ones stay. Then pointer = (pointer + count) mod size. Here lie the slots from `first_slot`
// on; keys of other slots are skipped. Rows are scaled to unit length, in float32, if `normalize`.
struct Enqueue {
  const char* keys;  // [count, D], rows row_stride bytes apart
  int64_t keys_dtype, row_stride, count, D;
  char* stored;  // [slots, D]
  int64_t stored_dtype, slots;
  int64_t* pointer;       // [1]
  uint32_t* blocks_done;  // [1], 0 before and after: counts the blocks on the GPU
  int64_t size, first_slot, normalize;
};

namespace cpu {
int64_t enqueue(const Enqueue& a, int threads);
}
namespace cuda {
void enqueue(const Enqueue& a, int device, void* stream);
}

}  // namespace sslops
