// KoLeo's search on the CPU: the nearest neighbour of every row from tiles of products.
//
// Where the candidates are the rows themselves, the triangle i <= j of the products serves both sides
// of a pair: N^2 D FLOP instead of 2 N^2 D. Tiles come in an order of their own, so a candidate replaces
// an equal one if its index is lower: the answer is that of a search from left to right.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/triangle.h"

namespace sslops {
namespace {

// The best product of every row so far, and its column.
struct Nearest {
  explicit Nearest(int64_t R) : product(R, -INFINITY), index(R, 0) {}

  bool wants(int64_t row, float value, int64_t first) const {
    return value > product[row] || (value == product[row] && first < index[row]);
  }

  void take(int64_t row, float value, int64_t column) {
    if (!wants(row, value, column)) return;
    product[row] = value;
    index[row] = column;
  }

  std::vector<float> product;
  std::vector<int64_t> index;
};

struct Search {
  const TileKernels& kernels;
  const Rows &x, &y;
  int64_t offset;  // row i is candidate i + offset

  // Products of a tile, -inf where a row meets itself and in the padding.
  void make_products(int64_t i0, int64_t i1, int64_t j0, int64_t j1, float* S) const {
    kernels.scores(x.across_from(i0), y.across_from(j0), padded(i1 - i0), padded(j1 - j0), x.D, S);
    on_diagonal(i0, i1, j0, j1, offset, [&](int64_t i, int64_t j) {
      S[(i - i0) * kTileStride + j - j0] = -INFINITY;
    });
    for (int64_t i = 0; i < i1 - i0; ++i)
      for (int64_t j = j1 - j0; j < padded(j1 - j0); ++j) S[i * kTileStride + j] = -INFINITY;
  }

  // The maxima of a tile come from vectors; only where one is a new best its place is looked for.
  void take_rows(const float* S, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                 Nearest& of_rows) const {
    float top[kTileRows];
    std::fill_n(top, kTileRows, -INFINITY);
    kernels.row_max(S, i1 - i0, padded(j1 - j0), top);
    for (int64_t i = i0; i < i1; ++i, S += kTileStride) {
      const float value = top[i - i0];
      if (!of_rows.wants(i, value, j0)) continue;
      int64_t j = 0;
      while (j < j1 - j0 && S[j] != value) ++j;
      if (j < j1 - j0) of_rows.take(i, value, j0 + j);
    }
  }

  void take_columns(const float* S, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                    Nearest& of_columns) const {
    alignas(64) float top[kTileColumns];
    std::fill_n(top, kTileColumns, -INFINITY);
    kernels.column_max(S, i1 - i0, padded(j1 - j0), top);
    for (int64_t j = j0; j < j1; ++j) {
      const float value = top[j - j0];
      if (!of_columns.wants(j, value, i0)) continue;
      int64_t i = 0;
      while (i < i1 - i0 && S[i * kTileStride + j - j0] != value) ++i;
      if (i < i1 - i0) of_columns.take(j, value, i0 + i);
    }
  }
};

// All pairs of one set of rows.
Nearest among(const Rows& x, int64_t block, int threads) {
  const Search search{tile_kernels(), x, x, 0};
  Nearest nearest(x.R);
  over_triangle(x.R, block, threads, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1, bool one) {
    alignas(64) float S[kTileSize];
    search.make_products(i0, i1, j0, j1, S);
    search.take_rows(S, i0, i1, j0, j1, nearest);
    if (!one) search.take_columns(S, i0, i1, j0, j1, nearest);
  });
  return nearest;
}

// Rows against candidates that are more than themselves.
Nearest between(const Rows& x, const Rows& y, int64_t offset, int64_t block, int threads) {
  const Search search{tile_kernels(), x, y, offset};
  Nearest nearest(x.R);
  parallel_for((x.R + block - 1) / block, 1, threads, [&](int64_t first, int64_t last) {
    in_tiles(first * block, std::min(last * block, x.R), 0, y.R,
             [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
               alignas(64) float S[kTileSize];
               search.make_products(i0, i1, j0, j1, S);
               search.take_rows(S, i0, i1, j0, j1, nearest);
             });
  });
  return nearest;
}

}  // namespace

void koleo_nearest(const float* x, const float* x_norm, const float* y, const float* y_norm,
                   int64_t B, int64_t N, int64_t M, int64_t D, int64_t offset, int64_t block,
                   int threads, int64_t* index) {
  over_batches(B, threads, [&](int64_t b, int inner) {
    const Rows rows = pack(x + b * N * D, x_norm + b * N, N, D, false, inner);
    const Rows others = y ? pack(y + b * M * D, y_norm + b * M, M, D, false, inner) : Rows();
    const Nearest nearest =
        y ? between(rows, others, offset, block, inner) : among(rows, block, inner);
    std::copy_n(nearest.index.data(), N, index + b * N);
  });
}

}  // namespace sslops
