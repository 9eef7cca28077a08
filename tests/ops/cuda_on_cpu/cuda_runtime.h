// Enough of CUDA to run csrc/*.cu on a CPU: test_cuda_on_cpu.py puts this folder before the toolkit's.
//
// The threads of a block are fibers of one thread. They run in an order that changes, each as far as
// its next barrier, so a kernel that needs a barrier it does not have computes something else.
// Blocks run one after the other, in an order that changes. Shared memory begins as garbage.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint4 {
  unsigned x, y, z, w;
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaDevAttrMultiProcessorCount };
struct cudaFuncAttributes {};
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = 3;  // few multiprocessors, so that small grids are cut into blocks of every size
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace on_cpu {

constexpr size_t kSharedBytes = 64 << 10, kStackBytes = 64 << 10;
alignas(16) inline char shared_memory[kSharedBytes];

enum class State { kRunnable, kAtWarpBarrier, kAtBlockBarrier, kDone };
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state = State::kRunnable;
};
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline uint32_t exchanged[1024];
inline std::mt19937 random_order(1);
inline void (*body)(const void*);
inline const void* arguments;

inline void wait(State at) {
  Fiber& self = fibers[threadIdx.x];
  self.state = at;
  swapcontext(&self.context, &scheduler);
}

inline void run_thread() {
  body(arguments);
  fibers[threadIdx.x].state = State::kDone;
}

// Lets threads [begin, end) go on if all of them that are not done wait at the same barrier.
inline bool release(size_t begin, size_t end, State barrier) {
  bool any = false;
  for (size_t i = begin; i < end; ++i) {
    if (fibers[i].state == State::kDone) continue;
    if (fibers[i].state != barrier) return false;
    any = true;
  }
  for (size_t i = begin; any && i < end; ++i)
    if (fibers[i].state == barrier) fibers[i].state = State::kRunnable;
  return any;
}

inline bool release_any() {
  for (size_t warp = 0; warp < fibers.size(); warp += 32)
    if (release(warp, std::min(warp + 32, fibers.size()), State::kAtWarpBarrier)) return true;
  return release(0, fibers.size(), State::kAtBlockBarrier);
}

// One warp is chosen and runs until all of its threads wait; then the next.
inline void run_block() {
  memset(shared_memory, 0xA5, sizeof(shared_memory));
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &scheduler;
    fiber.state = State::kRunnable;
    makecontext(&fiber.context, run_thread, 0);
  }
  for (;;) {
    std::vector<unsigned> runnable;
    for (unsigned i = 0; i < fibers.size(); ++i)
      if (fibers[i].state == State::kRunnable) runnable.push_back(i);
    if (runnable.empty()) {
      if (release_any()) continue;
      break;
    }
    const unsigned warp = runnable[random_order() % runnable.size()] / 32;
    std::shuffle(runnable.begin(), runnable.end(), random_order);
    for (unsigned i : runnable) {
      if (i / 32 != warp) continue;
      threadIdx.x = i;
      swapcontext(&scheduler, &fibers[i].context);
    }
  }
  for (const Fiber& fiber : fibers)
    if (fiber.state != State::kDone) throw std::runtime_error("threads wait for each other");
}

template <typename Arguments>
void launch(void (*kernel)(Arguments), dim3 grid, unsigned threads, size_t shared, cudaStream_t,
            const Arguments& a) {
  if (grid.x == 0 || grid.y == 0 || grid.y > 65535 || threads == 0 || threads > 1024 ||
      shared > kSharedBytes)
    throw std::runtime_error("a launch that CUDA refuses");
  static void (*current)(Arguments);
  current = kernel;
  body = [](const void* a) { current(*static_cast<const Arguments*>(a)); };
  arguments = &a;
  if (fibers.size() != threads) fibers = std::vector<Fiber>(threads);
  gridDim = grid;
  blockDim = dim3(threads);
  std::vector<unsigned> blocks(size_t{grid.x} * grid.y);
  for (unsigned i = 0; i < blocks.size(); ++i) blocks[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), random_order);
  for (unsigned block : blocks) {
    blockIdx = dim3(block % grid.x, block / grid.x);
    run_block();
  }
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::wait(on_cpu::State::kAtBlockBarrier); }
inline void __syncwarp() { on_cpu::wait(on_cpu::State::kAtWarpBarrier); }
inline void __threadfence() {}

inline float __shfl_xor_sync(unsigned, float value, int distance) {
  memcpy(&on_cpu::exchanged[threadIdx.x], &value, sizeof(value));
  __syncwarp();
  memcpy(&value, &on_cpu::exchanged[threadIdx.x ^ distance], sizeof(value));
  __syncwarp();
  return value;
}

template <typename T>
T atomicCAS(T* address, T expected, T value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}
template <typename T>
T atomicExch(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}
inline unsigned atomicInc(unsigned* address, unsigned largest) {
  const unsigned old = *address;
  *address = old >= largest ? 0 : old + 1;
  return old;
}
