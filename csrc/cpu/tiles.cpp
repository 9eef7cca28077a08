// Packing, and the choice of an instruction set at run time.
#include "cpu/tiles.h"

#include "cpu/parallel.h"

#define SSLOPS_KERNELS "cpu/tile_kernels.h"
#include "cpu/instruction_sets.h"

namespace sslops {

const TileKernels& tile_kernels() {
  static const TileKernels* const sets[] = {SSLOPS_TABLES(kKernels)};
  return *sets[instruction_set()];
}

void pack_panels(const float* x, const float* norm, const float* factor, int64_t R, int64_t D,
                 int64_t first, int64_t last, float* across, float* along, int64_t along_stride) {
  for (int64_t row = first * kPanel; row < last * kPanel; ++row) {
    const int64_t r = row % kPanel, from_first = row - first * kPanel;
    for (int64_t d0 = 0; d0 < D; d0 += kPanel) {
      float piece[kPanel] = {};
      const int64_t width = row >= R ? 0 : D - d0 < kPanel ? D - d0 : kPanel;
      if (width) memcpy(piece, x + row * D + d0, sizeof(float) * width);
      if (norm && width)
        for (float& value : piece) value /= norm[row];
      if (factor && width)
        for (float& value : piece) value *= factor[row];
      if (along)
        memcpy(along + d0 / kPanel * along_stride + from_first * kPanel, piece, sizeof piece);
      if (!across) continue;
      float* column = across + (from_first - r) * D + d0 * kPanel + r;
      for (int64_t d = 0; d < kPanel && d < D - d0; ++d) column[d * kPanel] = piece[d];
    }
  }
}

Rows pack(const float* x, const float* norm, int64_t R, int64_t D, bool with_along, int threads) {
  Rows rows;
  rows.R = R, rows.D = D, rows.R_pad = padded(R), rows.D_panels = padded(D) / kPanel;
  rows.across = Buffer(rows.R_pad * D);
  if (with_along) rows.along = Buffer(rows.R_pad * padded(D));
  parallel_for(rows.R_pad / kPanel, 8, threads, [&](int64_t first, int64_t last) {
    pack_panels(x, norm, nullptr, R, D, first, last, rows.across.data() + first * kPanel * D,
                with_along ? rows.along.data() + first * kPanel * kPanel : nullptr,
                rows.along_stride());
  });
  return rows;
}

void unpack(const float* along, int64_t along_stride, int64_t R, int64_t D, float scale, float* out,
            int threads) {
  parallel_for(R, 256, threads, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r)
      for (int64_t d0 = 0; d0 < D; d0 += kPanel) {
        const float* piece = along + d0 / kPanel * along_stride + r * kPanel;
        for (int64_t d = d0; d < D && d < d0 + kPanel; ++d) out[r * D + d] = scale * piece[d - d0];
      }
  });
}

void paired_scores(const TileKernels& kernels, const float* a, const float* b, int64_t R, int64_t D,
                   int threads, float* out) {
  // The diagonals of small tiles: 32 times the work of a dot product, which no one will notice.
  parallel_for((R + kPanel - 1) / kPanel, 4, threads, [&](int64_t first, int64_t last) {
    Buffer a_across(kPanel * D), b_across(kPanel * D);
    alignas(64) float S[kPanel * kTileStride];
    for (int64_t panel = first; panel < last; ++panel) {
      pack_panels(a, nullptr, nullptr, R, D, panel, panel + 1, a_across.data(), nullptr, 0);
      pack_panels(b, nullptr, nullptr, R, D, panel, panel + 1, b_across.data(), nullptr, 0);
      kernels.scores(a_across.data(), b_across.data(), kPanel, kPanel, D, S);
      for (int64_t r = 0; r < kPanel && panel * kPanel + r < R; ++r)
        out[panel * kPanel + r] = S[r * kTileStride + r];
    }
  });
}

}  // namespace sslops
