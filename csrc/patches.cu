// Patches of images on the GPU, by index and back; csrc/masking.h says what each kernel does.
#include "common.cuh"
#include "masking.h"

namespace sslops::cuda {
namespace {

// One block per patch and step; a thread collects N elements, which lie in C planes of the image.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    gather_patches_kernel(const __grid_constant__ GatherPatches a) {
  const auto patch = static_cast<int32_t>(a.patch), C = static_cast<int32_t>(a.C);
  const int64_t across = a.W / a.patch, patches = a.H / a.patch * across;
  const int32_t E = patch * patch * C;
  for (int64_t i = blockIdx.x; i < a.B * a.n_keep; i += gridDim.x) {
    const int64_t id = a.ids[i];
    const bool valid = in_range(id, patches);
    const T* corner = reinterpret_cast<const T*>(a.images) + i / a.n_keep * a.stride_b;
    if (valid)
      corner += id / across * a.patch * a.stride_h + id % across * a.patch * a.stride_w;
    auto* out = reinterpret_cast<Pack<T, N>*>(reinterpret_cast<T*>(a.out) + i * E);
    for (int32_t v = threadIdx.x; v < E / N; v += blockDim.x) {
      Pack<T, N> result = all_ones<Pack<T, N>>();
      PatchElement e = patch_element(v * N, patch, C);
#pragma unroll
      for (int j = 0; j < N; ++j, e = next_element(e, patch, C))
        if (valid)
          result.at[j] =
              corner[e.row * a.stride_h + e.column * a.stride_w + e.channel * a.stride_c];
      out[v] = result;
    }
  }
}

// Block (b, y) shares the pixels of sample b; a thread writes N neighbours of one row of one patch.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    scatter_patches_kernel(const __grid_constant__ ScatterPatches a) {
  extern __shared__ int32_t position[];
  const int64_t b = blockIdx.x;
  const auto C = static_cast<uint32_t>(a.C), H = static_cast<uint32_t>(a.H),
             W = static_cast<uint32_t>(a.W), patch = static_cast<uint32_t>(a.patch);
  block_inverse(a.ids + b * a.n_keep, static_cast<int32_t>(a.n_keep), position,
                static_cast<int32_t>(H / patch * (W / patch)));
  auto* image = reinterpret_cast<Pack<T, N>*>(a.images) + b * (C * H * W / N);
  const T* gradients = reinterpret_cast<const T*>(a.gradient) + b * a.n_keep * patch * patch * C;
  for (uint32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < C * H * W / N;
       i += gridDim.y * blockDim.x) {
    const uint32_t x = i * N % W, y = i * N / W % H, channel = i * N / (W * H);
    const int32_t kept = position[y / patch * (W / patch) + x / patch];
    const uint32_t first = (y % patch * patch + x % patch) * C + channel;
    Pack<T, N> result = {};
    if (kept == kRepeated) result = all_ones<Pack<T, N>>();
#pragma unroll
    for (int j = 0; j < N; ++j)
      if (kept >= 0) result.at[j] = gradients[int64_t{kept} * (patch * patch * C) + first + j * C];
    image[i] = result;
  }
}

// Calls body with the unsigned integer as wide as the element.
template <typename Body>
void with_element(int64_t element_bytes, const Body& body) {
  if (element_bytes == 2) return body(uint16_t{});
  body(uint32_t{});
}

}  // namespace

void gather_patches(const GatherPatches& a, int device, void* stream) {
  if (a.B * a.n_keep == 0) return;
  check(cudaSetDevice(device));
  const unsigned grid = blocks_of_warps(a.B * a.n_keep * kWarps);  // a block, not a warp, per patch
  with_element(a.element_bytes, [&](auto element) {
    using T = decltype(element);
    constexpr int N = 16 / sizeof(T);
    const int64_t E = a.patch * a.patch * a.C;
    const bool vectors = aligned16(a.out) && E % N == 0;
    const unsigned threads = threads_for(vectors ? E / N : E);
    const auto kernel = vectors ? gather_patches_kernel<T, N> : gather_patches_kernel<T, 1>;
    kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
  check(cudaGetLastError());
}

void scatter_patches(const ScatterPatches& a, int device, void* stream) {
  if (a.B * a.C * a.H * a.W == 0) return;
  check(cudaSetDevice(device));
  const int64_t patches = a.H / a.patch * (a.W / a.patch);
  with_element(a.element_bytes, [&](auto element) {
    using T = decltype(element);
    constexpr int N = 16 / sizeof(T);
    const bool vectors = aligned16(a.images) && a.patch % N == 0;
    const dim3 grid(static_cast<unsigned>(a.B), blocks_per_sample(a.B, a.C * a.H, device));
    const auto kernel = vectors ? scatter_patches_kernel<T, N> : scatter_patches_kernel<T, 1>;
    kernel<<<grid, kThreads, patches * sizeof(int32_t), static_cast<cudaStream_t>(stream)>>>(a);
  });
  check(cudaGetLastError());
}

}  // namespace sslops::cuda
