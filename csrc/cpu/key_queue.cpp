// The queue on the CPU; csrc/key_queue.h says what the kernel does.
#include "key_queue.h"

#include <cmath>

#include "common.cuh"
#include "parallel.h"
#include "rows.h"

namespace sslops::cpu {
namespace {

constexpr int kSums = 16;  // partial sums, so that the loop can be vectorised

template <typename T>
float row_norm(const T* row, int64_t D) {
  float sums[kSums] = {};
  int64_t d = 0;
  for (; d + kSums <= D; d += kSums)
    for (int j = 0; j < kSums; ++j) {
      const float value = to_float(row[d + j]);
      sums[j] += value * value;
    }
  for (; d < D; ++d) sums[d % kSums] += to_float(row[d]) * to_float(row[d]);
  float total = 0;
  for (float sum : sums) total += sum;
  return std::sqrt(total);
}

template <typename In, typename Out>
void write_row(const In* key, Out* out, int64_t D, bool normalize) {
  const float norm = normalize ? row_norm(key, D) : 1.0f;
  for (int64_t d = 0; d < D; ++d) out[d] = scaled_key<Out>(key[d], norm);
}

template <typename In, typename Out>
void enqueue_typed(const Enqueue& a, int64_t pointer, int threads) {
  const int64_t first = a.count > a.size ? a.count - a.size : 0;
  const int64_t first_slot = ring_slot(pointer, first, a.size);
  parallel_for(a.count - first, at_once(2 * a.D), threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t slot = next_slot(first_slot, i, a.size) - a.first_slot;
      if (!in_range(slot, a.slots)) continue;
      write_row(reinterpret_cast<const In*>(a.keys + (first + i) * a.row_stride),
                reinterpret_cast<Out*>(a.stored) + slot * a.D, a.D, a.normalize != 0);
    }
  });
}

}  // namespace

int64_t enqueue(const Enqueue& a, int threads) {
  const int64_t pointer = *a.pointer;
  with_dtype(a.keys_dtype, [&](auto in) {
    with_dtype(a.stored_dtype, [&](auto out) {
      enqueue_typed<decltype(in), decltype(out)>(a, pointer, threads);
    });
  });
  *a.pointer = ring_slot(pointer, a.count, a.size);
  return -1;
}

}  // namespace sslops::cpu
