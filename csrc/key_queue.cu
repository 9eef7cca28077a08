// The queue on the GPU; csrc/key_queue.h says what the kernel does.
#include "key_queue.h"

#include "common.cuh"

namespace sslops::cuda {
namespace {

template <typename T, int N>
__device__ __forceinline__ float row_norm(const Pack<T, N>* row, int32_t packs) {
  float sum = 0.0f;
  for (int32_t i = lane(); i < packs; i += 32) {
    const Pack<T, N> value = row[i];
#pragma unroll
    for (int j = 0; j < N; ++j) sum += to_float(value.at[j]) * to_float(value.at[j]);
  }
  return sqrtf(warp_sum(sum));
}

// The pointer moves on once every block has read it: the last block to get here moves it. Grids are
// ordered within a stream, so the next launch, or the next replay of a graph, sees the new value.
__device__ __forceinline__ void advance_pointer(const Enqueue& a, int64_t pointer) {
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  // atomicInc wraps to 0 at the last block, which leaves the counter ready for the next launch.
  if (atomicInc(a.blocks_done, gridDim.x - 1) != gridDim.x - 1) return;
  __threadfence();
  *a.pointer = ring_slot(pointer, a.count, a.size);
}

// One warp per key.
template <typename In, typename Out, int N>
__global__ void __launch_bounds__(kThreads, 4)
    enqueue_kernel(const __grid_constant__ Enqueue a) {
  const int64_t pointer = *a.pointer;
  const auto packs = static_cast<int32_t>(a.D / N);
  const int64_t first = a.count > a.size ? a.count - a.size : 0;
  const int64_t first_slot = ring_slot(pointer, first, a.size);
  const int64_t warps = int64_t{gridDim.x} * kWarps;
  const int64_t start = int64_t{blockIdx.x} * kWarps + warp_of_block();
  for (int64_t i = start; i < a.count - first; i += warps) {
    const int64_t slot = next_slot(first_slot, i, a.size) - a.first_slot;
    if (!in_range(slot, a.slots)) continue;
    const auto* key =
        reinterpret_cast<const Pack<In, N>*>(a.keys + (first + i) * a.row_stride);
    auto* out = reinterpret_cast<Pack<Out, N>*>(a.stored) + slot * packs;
    const float norm = a.normalize ? row_norm(key, packs) : 1.0f;
    for (int32_t v = lane(); v < packs; v += 32) {
      const Pack<In, N> value = key[v];
      Pack<Out, N> result;
#pragma unroll
      for (int j = 0; j < N; ++j) result.at[j] = scaled_key<Out>(value.at[j], norm);
      out[v] = result;
    }
  }
  advance_pointer(a, pointer);
}

template <typename Body>
void with_dtype(int64_t dtype, const Body& body) {
  if (dtype == kFloat32) return body(float{});
  if (dtype == kFloat16) return body(Half{});
  body(BFloat16{});
}

}  // namespace

void enqueue(const Enqueue& a, int device, void* stream) {
  if (a.count == 0) return;
  check(cudaSetDevice(device));
  const unsigned grid = blocks_of_warps(a.count < a.size ? a.count : a.size);
  with_dtype(a.keys_dtype, [&](auto in) {
    with_dtype(a.stored_dtype, [&](auto out) {
      using In = decltype(in);
      using Out = decltype(out);
      constexpr int N = 16 / sizeof(In);
      const bool vectors = aligned16(a.keys, a.row_stride, a.stored) && a.D % 8 == 0;
      const auto kernel = vectors ? enqueue_kernel<In, Out, N> : enqueue_kernel<In, Out, 1>;
      kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
    });
  });
  check(cudaGetLastError());
}

}  // namespace sslops::cuda
