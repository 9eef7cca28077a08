// Packing, and the choice of an instruction set at run time.
#include "cpu/tiles.h"

#include <atomic>

#include "cpu/parallel.h"

// The same kernels, once per instruction set. GCC and clang spell "compile what follows for this
// target" differently; other compilers get plain C++.
#if defined(__clang__)
#define SSLOPS_PRAGMA(text) _Pragma(#text)
#define SSLOPS_BEGIN_TARGET(set) \
  SSLOPS_PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define SSLOPS_END_TARGET SSLOPS_PRAGMA(clang attribute pop)
#elif defined(__GNUC__)
#define SSLOPS_PRAGMA(text) _Pragma(#text)
#define SSLOPS_BEGIN_TARGET(set) SSLOPS_PRAGMA(GCC push_options) SSLOPS_PRAGMA(GCC target(set))
#define SSLOPS_END_TARGET SSLOPS_PRAGMA(GCC pop_options)
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#define SSLOPS_X86 1

#define SSLOPS_SET avx512
#define SSLOPS_NAME "avx512"
#define SSLOPS_LANES 16
#define SSLOPS_ROWS 8
SSLOPS_BEGIN_TARGET("avx512f,avx512dq,avx512bw,avx512vl,fma")
#include "cpu/tile_kernels.h"
SSLOPS_END_TARGET
#undef SSLOPS_SET
#undef SSLOPS_NAME
#undef SSLOPS_LANES
#undef SSLOPS_ROWS

#define SSLOPS_SET avx2
#define SSLOPS_NAME "avx2"
#define SSLOPS_LANES 8
#define SSLOPS_ROWS 4
SSLOPS_BEGIN_TARGET("avx2,fma")
#include "cpu/tile_kernels.h"
SSLOPS_END_TARGET
#undef SSLOPS_SET
#undef SSLOPS_NAME
#undef SSLOPS_LANES
#undef SSLOPS_ROWS
#endif

#if defined(__GNUC__)
#define SSLOPS_SET vector4  // SSE2 on x86, NEON on ARM: part of the base instruction set
#define SSLOPS_NAME "vector4"
#define SSLOPS_LANES 4
#define SSLOPS_ROWS 4
#include "cpu/tile_kernels.h"
#undef SSLOPS_SET
#undef SSLOPS_NAME
#undef SSLOPS_LANES
#undef SSLOPS_ROWS
#endif

#define SSLOPS_SET scalar
#define SSLOPS_NAME "scalar"
#define SSLOPS_LANES 1
#define SSLOPS_ROWS 4
#include "cpu/tile_kernels.h"

namespace sslops {

// This machine's kernels of that name (the best for ""), or null.
static const TileKernels* find_kernels(const char* name) {
  const TileKernels* found[4];
  int count = 0;
#ifdef SSLOPS_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    found[count++] = &avx512::kKernels;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found[count++] = &avx2::kKernels;
#endif
#if defined(__GNUC__)
  found[count++] = &vector4::kKernels;
#endif
  found[count++] = &scalar::kKernels;
  for (int i = 0; i < count; ++i)
    if (!*name || !strcmp(found[i]->name, name)) return found[i];
  return nullptr;
}

static std::atomic<const TileKernels*>& chosen() {
  static std::atomic<const TileKernels*> kernels{find_kernels("")};
  return kernels;
}

const TileKernels& tile_kernels() { return *chosen().load(); }

const char* select_tile_kernels(const char* name) {
  if (const TileKernels* kernels = *name ? find_kernels(name) : nullptr) chosen() = kernels;
  return tile_kernels().name;
}

void pack_across(const float* x, const float* norm, int64_t R, int64_t D, int64_t first,
                 int64_t last, float* across) {
  for (int64_t p = first; p < last; ++p, across += D * kPanel)
    for (int64_t r = 0; r < kPanel; ++r) {
      const int64_t row = p * kPanel + r;
      const float divisor = norm && row < R ? norm[row] : 1.0f;
      for (int64_t d = 0; d < D; ++d)
        across[d * kPanel + r] = row < R ? x[row * D + d] / divisor : 0.0f;
    }
}

void pack_along(const float* x, const float* norm, const float* factor, int64_t R, int64_t D,
                int64_t first, int64_t last, float* along, int64_t along_stride) {
  for (int64_t row = first * kPanel; row < last * kPanel; ++row) {
    const float divisor = norm && row < R ? norm[row] : 1.0f;
    const float multiplier = factor && row < R ? factor[row] : 1.0f;
    float* to = along + (row - first * kPanel) * kPanel;
    for (int64_t d = 0; d < padded(D); ++d)
      to[d / kPanel * along_stride + d % kPanel] =
          row < R && d < D ? x[row * D + d] / divisor * multiplier : 0.0f;
  }
}

Rows pack(const float* x, const float* norm, int64_t R, int64_t D, bool with_along, int threads) {
  Rows rows;
  rows.R = R, rows.D = D, rows.R_pad = padded(R), rows.D_panels = padded(D) / kPanel;
  rows.across = Buffer(rows.R_pad * D);
  if (with_along) rows.along = Buffer(rows.R_pad * padded(D));
  parallel_for(rows.R_pad / kPanel, 8, threads, [&](int64_t first, int64_t last) {
    pack_across(x, norm, R, D, first, last, rows.across.data() + first * kPanel * D);
    if (with_along)
      pack_along(x, norm, nullptr, R, D, first, last, rows.along.data() + first * kPanel * kPanel,
                 rows.along_stride());
  });
  return rows;
}

void unpack(const float* along, int64_t along_stride, int64_t R, int64_t D, float scale, float* out,
            int threads) {
  parallel_for(R, 256, threads, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r)
      for (int64_t d = 0; d < D; ++d)
        out[r * D + d] = scale * along[d / kPanel * along_stride + r * kPanel + d % kPanel];
  });
}

}  // namespace sslops
