// The masking kernels on the GPU; csrc/masking.h says what each of them does.
//
// Every sum has a fixed order and nothing in global memory is updated atomically: results are the
// same from run to run. Rows are moved 16 bytes at a time where they are aligned, else by element.
#include "masking.h"

#include "common.cuh"

namespace sslops::cuda {
namespace {

// One warp copies a row; four loads are under way before the first store.
template <typename Word>
__device__ __forceinline__ void copy_row(char* out, const char* source, int64_t bytes) {
  auto* to = reinterpret_cast<Word*>(out);
  const auto* from = reinterpret_cast<const Word*>(source);
  const auto words = static_cast<int32_t>(bytes / sizeof(Word));
  for (int32_t first = lane(); first < words; first += 128) {
    Word held[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (first + 32 * j < words) held[j] = from[first + 32 * j];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (first + 32 * j < words) to[first + 32 * j] = held[j];
  }
}

template <typename Word>
__device__ __forceinline__ void fill_row(char* out, int64_t bytes, Word value) {
  auto* to = reinterpret_cast<Word*>(out);
  const auto words = static_cast<int32_t>(bytes / sizeof(Word));
  for (int32_t i = lane(); i < words; i += 32) to[i] = value;
}

// ---------------------------------------------------------------- random_masking

// The sort keys of one sample; `count` is L rounded up to a power of two.
__device__ __forceinline__ void fill_keys(const RandomMasking& a, int64_t b, uint64_t* keys,
                                          uint32_t count) {
  const auto L = static_cast<uint32_t>(a.L);
  if (a.noise) {
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x)
      keys[i] = i < L ? pack_key(a.noise[b * a.L + i], i) : kLastKey;
    return;
  }
  const Counter counter{static_cast<uint64_t>(a.seed),
                        static_cast<uint32_t>(a.device_step ? *a.device_step : a.step),
                        static_cast<uint32_t>(a.first_sample)};
  for (uint32_t block = threadIdx.x; 4 * block < count; block += blockDim.x) {
    const Words w = noise_words(counter, static_cast<uint32_t>(b), block);
    const uint32_t words[4] = {w.w0, w.w1, w.w2, w.w3};
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      const uint32_t i = 4 * block + j;
      if (i < count) keys[i] = i < L ? pack_key(uniform(words[j]), i) : kLastKey;
    }
  }
}

// Block (b, y): all blocks of a sample sort alike and share the rows; the first one writes the ids.
template <typename Word>
__global__ void __launch_bounds__(kThreads)
    random_masking_kernel(const __grid_constant__ RandomMasking a) {
  extern __shared__ uint64_t keys[];
  const int64_t b = blockIdx.x, rows = a.P + a.n_keep;
  const uint32_t count = next_power_of_two(static_cast<uint32_t>(a.L));
  fill_keys(a, b, keys, count);
  block_sort(keys, count);

  if (blockIdx.y == 0)
    for (int64_t rank = threadIdx.x; rank < a.L; rank += blockDim.x) {
      const int64_t token = key_index(keys[rank]);
      a.ids_restore[b * a.L + token] = rank;
      a.mask[b * a.L + token] = rank < a.n_keep ? 0.0f : 1.0f;
      if (a.ids_keep && rank < a.n_keep) a.ids_keep[b * a.n_keep + rank] = token;
    }
  if (!a.x) return;
  for (int64_t row = blockIdx.y * kWarps + warp_of_block(); row < rows; row += gridDim.y * kWarps) {
    const int64_t from = row < a.P ? row : a.P + key_index(keys[row - a.P]);
    copy_row<Word>(a.x_kept + (b * rows + row) * a.row_bytes,
                   a.x + b * a.batch_stride + from * a.row_stride, a.row_bytes);
  }
}

// ---------------------------------------------------------------- rows by index and its inverse

template <typename Word>
__global__ void __launch_bounds__(kThreads)
    select_rows_kernel(const __grid_constant__ SelectRows a) {
  const int64_t rows = a.P + a.n_out, warps = int64_t{gridDim.x} * kWarps;
  for (int64_t i = int64_t{blockIdx.x} * kWarps + warp_of_block(); i < a.B * rows; i += warps) {
    const int64_t b = i / rows, row = i % rows;
    const int64_t from = source_row(row, a.P, a.ids + b * a.n_out, a.n_source);
    char* out = a.out + i * a.row_bytes;
    if (from >= 0) {
      copy_row<Word>(out, a.source + b * a.batch_stride + from * a.row_stride, a.row_bytes);
    } else {
      fill_row<Word>(out, a.row_bytes, a.strict ? all_ones<Word>() : Word{});
    }
  }
}

template <typename From, typename To, int N>
__global__ void __launch_bounds__(kThreads)
    scatter_rows_kernel(const __grid_constant__ ScatterRows a) {
  extern __shared__ int32_t position[];
  const int64_t b = blockIdx.x, rows = a.P + a.n_out;
  const auto packs = static_cast<int32_t>(a.D / N);
  block_inverse(a.ids + b * a.n_source, static_cast<int32_t>(a.n_source), position,
                static_cast<int32_t>(a.n_out));
  const auto* source =
      reinterpret_cast<const Pack<From, N>*>(a.source) + b * (a.P + a.n_source) * packs;
  auto* out = reinterpret_cast<Pack<To, N>*>(a.out) + b * rows * packs;
  for (int64_t row = blockIdx.y * kWarps + warp_of_block(); row < rows; row += gridDim.y * kWarps) {
    const int64_t from = source_row(row, a.P, position, a.n_source);
    for (int32_t i = lane(); i < packs; i += 32) {
      Pack<To, N> result = {};
      if (from >= 0) {
        const Pack<From, N> value = source[from * packs + i];
#pragma unroll
        for (int j = 0; j < N; ++j) result.at[j] = convert<To>(value.at[j]);
      } else if (from == kRepeated) {
        result = all_ones<Pack<To, N>>();
      }
      out[row * packs + i] = result;
    }
  }
}

// ---------------------------------------------------------------- restore_tokens

template <typename In, typename Out, int N>
__global__ void __launch_bounds__(kThreads)
    restore_kernel(const __grid_constant__ RestoreTokens a) {
  const int64_t rows = a.P + a.L, warps = int64_t{gridDim.x} * kWarps;
  const auto packs = static_cast<int32_t>(a.D / N);
  const auto* token = reinterpret_cast<const Pack<Out, N>*>(a.mask_token);
  for (int64_t r = int64_t{blockIdx.x} * kWarps + warp_of_block(); r < a.B * rows; r += warps) {
    const int64_t b = r / rows, row = r % rows;
    const int64_t* ids = a.ids + b * a.L;
    const bool valid = row < a.P || in_range(ids[row - a.P], a.L);
    const int64_t from = source_row(row, a.P, ids, a.n_keep);
    const auto* x = reinterpret_cast<const Pack<In, N>*>(a.x_kept + b * a.batch_stride +
                                                         (from < 0 ? 0 : from) * a.row_stride);
    const auto* position = reinterpret_cast<const Pack<Out, N>*>(a.position) +
                           (a.position_per_sample ? r : row) * packs;
    auto* out = reinterpret_cast<Pack<Out, N>*>(a.out) + r * packs;
    for (int32_t i = lane(); i < packs; i += 32) {
      Pack<Out, N> result;
      if (from >= 0) {
        const Pack<In, N> value = x[i];
#pragma unroll
        for (int j = 0; j < N; ++j) result.at[j] = convert<Out>(value.at[j]);
      } else {
        result = valid ? token[i] : all_ones<Pack<Out, N>>();
      }
      if (a.position && valid) {
        const Pack<Out, N> offset = position[i];
#pragma unroll
        for (int j = 0; j < N; ++j)
          result.at[j] = from_float<Out>(to_float(result.at[j]) + to_float(offset.at[j]));
      }
      out[i] = result;
    }
  }
}

// Block (row, s) owns one row of chunk s; its threads own packs of the width.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    restore_gradients_kernel(const __grid_constant__ RestoreGradients a) {
  constexpr int kAtOnce = 4;
  const int64_t rows = a.P + a.L, row = blockIdx.x, s = blockIdx.y;
  const auto packs = static_cast<int32_t>(a.D / N);
  const int64_t begin = a.B * s / a.S, end = a.B * (s + 1) / a.S;
  const auto* gradient = reinterpret_cast<const Pack<T, N>*>(a.gradient) + row * packs;
  for (int32_t i = threadIdx.x; i < packs; i += blockDim.x) {
    Pack<float, N> masked_sum = {}, sum = {};
    for (int64_t first = begin; first < end; first += kAtOnce) {
      Pack<T, N> value[kAtOnce] = {};
      bool masked[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int64_t b = first + k;
        masked[k] = b < end && source_row(row, a.P, a.ids + b * a.L, a.n_keep) < 0;
        if (b < end && (masked[k] || a.position)) value[k] = gradient[b * rows * packs + i];
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const float g = to_float(value[k].at[j]);
          sum.at[j] += g;
          masked_sum.at[j] += masked[k] ? g : 0.0f;
        }
    }
    const int64_t out = (s * rows + row) * packs + i;
    if (a.token) reinterpret_cast<Pack<float, N>*>(a.token)[out] = masked_sum;
    if (a.position) reinterpret_cast<Pack<float, N>*>(a.position)[out] = sum;
  }
}

// ---------------------------------------------------------------- launches

// Calls body with the word in which rows are copied.
template <typename Body>
void with_word(bool vectors, int64_t element_bytes, const Body& body) {
  if (vectors) return body(uint4{});
  if (element_bytes == 2) return body(uint16_t{});
  body(uint32_t{});
}

// Calls body with the source and the result type, which differ only where the result is float.
template <typename Body>
void with_types(int64_t from, int64_t to, const Body& body) {
  if (from == kFloat16 && to == kFloat16) return body(Half{}, Half{});
  if (from == kBFloat16 && to == kBFloat16) return body(BFloat16{}, BFloat16{});
  if (from == kFloat16) return body(Half{}, float{});
  if (from == kBFloat16) return body(BFloat16{}, float{});
  body(float{}, float{});
}

}  // namespace

void random_masking(const RandomMasking& a, int device, void* stream) {
  if (a.B == 0) return;
  check(cudaSetDevice(device));
  const size_t shared = next_power_of_two(static_cast<uint32_t>(a.L)) * sizeof(uint64_t);
  const bool vectors = aligned16(a.x, a.x_kept, a.batch_stride, a.row_stride, a.row_bytes);
  const unsigned per_sample = a.x ? blocks_per_sample(a.B, a.P + a.n_keep, device) : 1;
  const dim3 grid(static_cast<unsigned>(a.B), per_sample);
  with_word(vectors, a.element_bytes, [&](auto word) {
    const auto kernel = random_masking_kernel<decltype(word)>;
    allow_shared_memory(kernel, shared);
    kernel<<<grid, kThreads, shared, static_cast<cudaStream_t>(stream)>>>(a);
  });
  check(cudaGetLastError());
}

void select_rows(const SelectRows& a, int device, void* stream) {
  if (a.B * (a.P + a.n_out) == 0) return;
  check(cudaSetDevice(device));
  const bool vectors = aligned16(a.source, a.out, a.batch_stride, a.row_stride, a.row_bytes);
  const unsigned grid = blocks_of_warps(a.B * (a.P + a.n_out));
  with_word(vectors, a.element_bytes, [&](auto word) {
    select_rows_kernel<decltype(word)><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
  check(cudaGetLastError());
}

void scatter_rows(const ScatterRows& a, int device, void* stream) {
  if (a.B == 0) return;
  check(cudaSetDevice(device));
  const dim3 grid(static_cast<unsigned>(a.B), blocks_per_sample(a.B, a.P + a.n_out, device));
  with_types(a.out_dtype, a.source_dtype, [&](auto to, auto from) {
    using To = decltype(to);
    using From = decltype(from);
    constexpr int N = 16 / sizeof(To);
    const bool vectors = aligned16(a.source, a.out) && a.D % N == 0;
    const auto kernel =
        vectors ? scatter_rows_kernel<From, To, N> : scatter_rows_kernel<From, To, 1>;
    kernel<<<grid, kThreads, a.n_out * sizeof(int32_t), static_cast<cudaStream_t>(stream)>>>(a);
  });
  check(cudaGetLastError());
}

void restore_tokens(const RestoreTokens& a, int device, void* stream) {
  if (a.B * (a.P + a.L) == 0) return;
  check(cudaSetDevice(device));
  const unsigned grid = blocks_of_warps(a.B * (a.P + a.L));
  with_types(a.x_dtype, a.out_dtype, [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    constexpr int N = 16 / sizeof(In);
    const bool vectors = a.D % N == 0 && aligned16(a.x_kept, a.batch_stride, a.row_stride,
                                                   a.mask_token, a.position, a.out);
    const auto kernel = vectors ? restore_kernel<In, Out, N> : restore_kernel<In, Out, 1>;
    kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
  check(cudaGetLastError());
}

void restore_gradients(const RestoreGradients& a, int device, void* stream) {
  if (a.P + a.L == 0 || a.S == 0) return;
  check(cudaSetDevice(device));
  const dim3 grid(static_cast<unsigned>(a.P + a.L), static_cast<unsigned>(a.S));
  with_types(a.dtype, a.dtype, [&](auto type, auto) {
    using T = decltype(type);
    constexpr int N = 16 / sizeof(T);
    const bool vectors = a.D % N == 0 && aligned16(a.gradient, a.token, a.position);
    const unsigned threads = threads_for(vectors ? a.D / N : a.D);
    const auto kernel = vectors ? restore_gradients_kernel<T, N> : restore_gradients_kernel<T, 1>;
    kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
  check(cudaGetLastError());
}

bool runs_on(int device) {
  cudaFuncAttributes attributes;
  const bool runs = cudaSetDevice(device) == cudaSuccess &&
                    cudaFuncGetAttributes(&attributes, random_masking_kernel<uint4>) == cudaSuccess;
  if (!runs) cudaGetLastError();  // an error that is not fetched would be blamed on the next launch
  return runs;
}

}  // namespace sslops::cuda
