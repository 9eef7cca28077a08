// parallel_for: split a range over the threads torch already has.
//
// torch brings its own OpenMP runtime. A second runtime linked into this extension would leave its
// threads spinning beside torch's, which on small machines makes two threads slower than one. So the
// entry point of the runtime that is already loaded is looked up at run time, and where there is none
// (a torch built without OpenMP) the range runs on the calling thread.
#pragma once
#include <atomic>
#include <cstdint>
#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace sslops {

using parallel_entry = void (*)(void (*)(void*), void*, unsigned, unsigned);

inline parallel_entry find_parallel_entry() {
#if defined(__unix__) || defined(__APPLE__)
  return reinterpret_cast<parallel_entry>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
  return nullptr;
#endif
}

// Calls body(begin, end) for consecutive pieces of [0, count), each `grain` long, on up to `threads`
// threads. Pieces are handed out in order of arrival, so body must not depend on which thread runs it.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
  static const parallel_entry entry = find_parallel_entry();
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  const int64_t pieces = (count + grain - 1) / grain;
  if (threads <= 1 || pieces == 1 || entry == nullptr) {
    body(int64_t{0}, count);
    return;
  }
  struct Shared {
    const Body& body;
    std::atomic<int64_t> next;
    int64_t count, grain;
  } shared{body, {0}, count, grain};
  auto work = [](void* argument) {
    auto& s = *static_cast<Shared*>(argument);
    for (int64_t begin; (begin = s.next.fetch_add(s.grain)) < s.count;)
      s.body(begin, begin + s.grain < s.count ? begin + s.grain : s.count);
  };
  const unsigned wanted = pieces < threads ? static_cast<unsigned>(pieces) : static_cast<unsigned>(threads);
  entry(work, &shared, wanted, 0);
}

// Calls problem(b, threads) for every batch: side by side where there are many, else one after
// another with all threads inside.
template <typename Problem>
void over_batches(int64_t batches, int threads, const Problem& problem) {
  const bool side_by_side = batches >= threads;
  parallel_for(batches, side_by_side ? 1 : batches, threads, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) problem(b, side_by_side ? 1 : threads);
  });
}

}  // namespace sslops
