// What the kernels share, on the GPU and on the CPU.
//
// Whatever decides a result (random numbers, sort keys, which row goes where, rounding) is a
// function that both compilers see: the tests of the CPU backend run the very lines of the GPU.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#define SSLOPS_BOTH __host__ __device__ __forceinline__
#else
#define SSLOPS_BOTH inline
#endif

namespace sslops {

template <typename To, typename From>
SSLOPS_BOTH To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

// ---------------------------------------------------------------- element types

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

SSLOPS_BOTH float to_float(float value) { return value; }
SSLOPS_BOTH float to_float(BFloat16 value) {
  return bits_as<float>(static_cast<uint32_t>(value.bits) << 16);
}
SSLOPS_BOTH float to_float(Half value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t magnitude = value.bits & 0x7FFFu, sign = (value.bits & 0x8000u) << 16;
  // Shifted into place the exponent is 112 too small; the product also makes subnormals normal.
  const float scaled = bits_as<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7C00u ? 0x7F800000u : 0u;  // infinity and NaN
  return bits_as<float>(bits_as<uint32_t>(scaled) | special | sign);
#endif
}

// Round to nearest, ties to even, as torch does.
template <typename T>
SSLOPS_BOTH T from_float(float value);
template <>
SSLOPS_BOTH float from_float<float>(float value) {
  return value;
}
template <>
SSLOPS_BOTH BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(value != value ? 0x7FC0u : rounded)};
}
template <>
SSLOPS_BOTH Half from_float<Half>(float value) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  // Normal halves: re-bias the exponent and round away 13 bits in integers.
  const uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal halves: adding 0.5 lets the float adder round at 2^-24.
  const uint32_t small = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3F000000u;
  uint32_t half = magnitude < 0x38800000u ? small : normal;
  if (magnitude >= 0x477FF000u) half = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  return {static_cast<uint16_t>(half | sign)};
#endif
}

// Exact where the types are the same, bits of a NaN included.
template <typename To, typename From>
SSLOPS_BOTH To convert(From value) {
  return from_float<To>(to_float(value));
}
template <>
SSLOPS_BOTH Half convert<Half, Half>(Half value) {
  return value;
}
template <>
SSLOPS_BOTH BFloat16 convert<BFloat16, BFloat16>(BFloat16 value) {
  return value;
}

// All bits set is a NaN in every floating type: what a row gets whose index is out of range.
template <typename T>
SSLOPS_BOTH T all_ones() {
  T value;
  memset(&value, 0xFF, sizeof(T));
  return value;
}

// N neighbouring elements that are read and written by one instruction of up to 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T at[N];
};

// ---------------------------------------------------------------- random numbers

struct Words {
  uint32_t w0, w1, w2, w3;
};

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).
SSLOPS_BOTH Words philox(uint64_t seed, Words counter) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  Words c = counter;
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c.w0, b = uint64_t{0xCD9E8D57u} * c.w2;
    c = {static_cast<uint32_t>(b >> 32) ^ c.w1 ^ key0, static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c.w3 ^ key1, static_cast<uint32_t>(a)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// Which numbers a call draws: sslops.CounterGenerator. Stream 0 is the noise of a token.
struct Counter {
  uint64_t seed;
  uint32_t step;
  uint32_t first_sample;
};

// The words of tokens 4 * block ... 4 * block + 3 of one sample.
SSLOPS_BOTH Words noise_words(Counter counter, uint32_t sample, uint32_t block) {
  return philox(counter.seed, {block, counter.first_sample + sample, counter.step, 0u});
}

// Uniform in [0, 1), a multiple of 2^-24, so the conversion is exact.
SSLOPS_BOTH float uniform(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

// ---------------------------------------------------------------- sort keys

// Bits whose unsigned order is torch.sort's order of floats: -0 equals 0, every NaN is last.
// Integers throughout: flushing of subnormals, where it is switched on, changes nothing.
SSLOPS_BOTH uint32_t order_bits(float value) {
  uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0xFFFFFFFFu;
  if (magnitude == 0) bits = 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Unique keys make any sort a stable one: equal noise falls back to the smaller index.
SSLOPS_BOTH uint64_t pack_key(float noise, uint32_t index) {
  return static_cast<uint64_t>(order_bits(noise)) << 32 | index;
}
SSLOPS_BOTH uint32_t key_index(uint64_t key) { return static_cast<uint32_t>(key); }

constexpr uint64_t kLastKey = ~uint64_t{0};  // pads the keys; no index is 2^32 - 1

// Pair `pair` of one step of the bitonic network: blocks of `size` keys, partners `stride` apart.
SSLOPS_BOTH void bitonic_exchange(uint64_t* keys, uint32_t pair, uint32_t size, uint32_t stride) {
  const uint32_t low = (2 * (pair & ~(stride - 1))) | (pair & (stride - 1)), high = low + stride;
  const uint64_t a = keys[low], b = keys[high];
  const bool ascending = (low & size) == 0;
  if ((a > b) == ascending) {
    keys[low] = b;
    keys[high] = a;
  }
}

// Whether the step after this one reads only what the same warp wrote. The 32 lanes of a warp hold
// neighbouring pairs, so with strides up to 32 they stay within their own 64 keys.
SSLOPS_BOTH bool next_exchange_stays_in_warp(uint32_t size, uint32_t stride) {
  const uint32_t next_stride = stride > 1 ? stride / 2 : size;
  return stride <= 32 && next_stride <= 32;
}

SSLOPS_BOTH uint32_t next_power_of_two(uint32_t count) {
  uint32_t power = 1;
  while (power < count) power *= 2;
  return power;
}

// ---------------------------------------------------------------- index rules

SSLOPS_BOTH bool in_range(int64_t index, int64_t count) { return index >= 0 && index < count; }

// The slot `offset` keys after the pointer, in bounds whatever the pointer.
SSLOPS_BOTH int64_t ring_slot(int64_t pointer, int64_t offset, int64_t size) {
  const int64_t start = pointer % size;
  return ((start < 0 ? start + size : start) + offset) % size;
}
// The same for offset <= size from a slot of the ring: without a division.
SSLOPS_BOTH int64_t next_slot(int64_t slot, int64_t offset, int64_t size) {
  return slot + offset < size ? slot + offset : slot + offset - size;
}

// An element of a key on its way into the queue; a row up to this norm counts as zero
// (sslops.unit_rows).
constexpr float kSmallestNorm = 1e-12f;
template <typename To, typename From>
SSLOPS_BOTH To scaled_key(From value, float norm) {
  return norm <= kSmallestNorm ? from_float<To>(0.0f) : from_float<To>(to_float(value) / norm);
}

// Where an element of a patch lies; elements run over rows, columns, channels (mae's patchify).
struct PatchElement {
  int32_t row, column, channel;
};
SSLOPS_BOTH PatchElement patch_element(int32_t index, int32_t patch, int32_t channels) {
  const int32_t pixel = index / channels;
  return {pixel / patch, pixel % patch, index % channels};
}
SSLOPS_BOTH PatchElement next_element(PatchElement e, int32_t patch, int32_t channels) {
  if (++e.channel < channels) return e;
  if (++e.column < patch) return {e.row, e.column, 0};
  return {e.row + 1, 0, 0};
}

// What stands where an index would: no such row, or several rows where there must be one.
constexpr int32_t kAbsent = -1;
constexpr int32_t kRepeated = -2;

// The source row of out row `row`: the first `prefix` rows are themselves, the others go by index.
template <typename Index>
SSLOPS_BOTH int64_t source_row(int64_t row, int64_t prefix, const Index* indices, int64_t count) {
  if (row < prefix) return row;
  const int64_t index = indices[row - prefix];
  if (index == kRepeated) return kRepeated;
  return in_range(index, count) ? prefix + index : kAbsent;
}

// ---------------------------------------------------------------- GPU only

#ifdef __CUDACC__
inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

__device__ __forceinline__ int warp_of_block() { return threadIdx.x / 32; }
__device__ __forceinline__ int lane() { return threadIdx.x % 32; }

// Blocks of kWarps warps for one row per warp; kernels loop beyond the limit of a grid.
inline unsigned blocks_of_warps(int64_t rows) {
  const int64_t blocks = (rows + kWarps - 1) / kWarps;
  return static_cast<unsigned>(blocks < (1 << 30) ? blocks : 1 << 30);
}

// Threads of a block for `count` items: whole warps, at most kThreads.
inline unsigned threads_for(int64_t count) {
  const int64_t threads = (count + 31) / 32 * 32;
  return static_cast<unsigned>(threads < 32 ? 32 : threads < kThreads ? threads : kThreads);
}

// Whether all pointers and strides are multiples of 16 bytes.
template <typename... Values>
bool aligned16(Values... values) {
  return (((uintptr_t)values % 16 == 0) && ...);
}

// More than 48 KiB of dynamic shared memory must be asked for, once per kernel and device.
template <typename Kernel>
void allow_shared_memory(Kernel kernel, size_t bytes) {
  if (bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
}

inline int multiprocessors(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Blocks that share a sample of `rows` rows: enough to fill the GPU four times over.
inline unsigned blocks_per_sample(int64_t samples, int64_t rows, int device) {
  const int64_t wanted = 4 * int64_t{multiprocessors(device)} / samples;
  const int64_t blocks = wanted < blocks_of_warps(rows) ? wanted : blocks_of_warps(rows);
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < 65535 ? blocks : 65535);
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
  return value;
}

// Ascending sort of `count` keys (a power of two) in shared memory by the whole block.
__device__ __forceinline__ void block_sort(uint64_t* keys, uint32_t count) {
  __syncthreads();
  for (uint32_t size = 2; size <= count; size *= 2)
    for (uint32_t stride = size / 2; stride > 0; stride /= 2) {
      for (uint32_t pair = threadIdx.x; pair < count / 2; pair += blockDim.x)
        bitonic_exchange(keys, pair, size, stride);
      if (next_exchange_stays_in_warp(size, stride)) {
        __syncwarp();
      } else {
        __syncthreads();
      }
    }
  __syncthreads();
}

// The inverse of `indices` [count] in shared memory [rows]: the position that names a row, kAbsent
// or kRepeated, whatever the order of the threads. Indices out of range are skipped.
__device__ __forceinline__ void block_inverse(const int64_t* indices, int32_t count,
                                              int32_t* inverse, int32_t rows) {
  for (int32_t row = threadIdx.x; row < rows; row += blockDim.x) inverse[row] = kAbsent;
  __syncthreads();
  for (int32_t i = threadIdx.x; i < count; i += blockDim.x)
    if (in_range(indices[i], rows) && atomicCAS(&inverse[indices[i]], kAbsent, i) != kAbsent)
      atomicExch(&inverse[indices[i]], kRepeated);
  __syncthreads();
}
#endif

}  // namespace sslops
