// What the masking kernels need besides: large outputs, bad indices, element types.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "common.cuh"

namespace sslops::cpu {

// Large outputs come as fresh pages from the system. Taken one by one (4 KiB) they cost more time
// than the copy, so Linux is asked for huge ones before the first write.
inline void ask_for_huge_pages(char* out, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr int64_t kHugePage = int64_t{2} << 20;
  if (bytes < 4 * kHugePage) return;
  const auto begin = (reinterpret_cast<uintptr_t>(out) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(out) + bytes) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: it may be ignored
#else
  (void)out, (void)bytes;
#endif
}

// How many items a thread takes at a time, if an item costs about as much as copying `elements`:
// below some ten microseconds of work waking a second thread costs more than it saves.
inline int64_t at_once(int64_t elements) {
  constexpr int64_t kElements = int64_t{1} << 16;
  return elements < kElements ? kElements / std::max<int64_t>(elements, 1) : 1;
}

// The smallest position that any thread reports, or -1: the same for every number of threads.
class FirstBad {
 public:
  void report(int64_t position) {
    int64_t seen = first_.load();
    while ((seen < 0 || position < seen) && !first_.compare_exchange_weak(seen, position)) {
    }
  }
  int64_t get() const { return first_.load(); }

 private:
  std::atomic<int64_t> first_{-1};
};

// position[row]: the index that names the row. Reports an index that names a row again.
inline void invert(const int64_t* ids, int64_t count, int64_t first,
                   std::vector<int32_t>& position, FirstBad& bad) {
  std::fill(position.begin(), position.end(), kAbsent);
  const int64_t rows = position.size();
  for (int64_t i = 0; i < count; ++i) {
    if (!in_range(ids[i], rows)) continue;
    if (position[ids[i]] != kAbsent) bad.report(first + i);
    position[ids[i]] = static_cast<int32_t>(i);
  }
}

// Calls body with a value of the element type.
template <typename Body>
void with_dtype(int64_t dtype, const Body& body) {
  if (dtype == 0) return body(float{});
  if (dtype == 1) return body(Half{});
  body(BFloat16{});
}

}  // namespace sslops::cpu
