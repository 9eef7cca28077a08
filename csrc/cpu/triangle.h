// Walks over the triangle i <= j of a symmetric matrix of scores, each pair visited once.
#pragma once
#include <algorithm>

#include "cpu/two_sided.h"

namespace sslops {

// Calls body(I, J) once for each pair of blocks I < J, in rounds in which no block occurs twice (a
// round-robin tournament): body may add to what belongs to either block without a lock, and what a
// block receives comes in the same order on any number of threads.
template <typename Body>
void parallel_pairs(int64_t blocks, int threads, const Body& body) {
  const int64_t last = blocks + blocks % 2 - 1;  // sits still; a missing block is a pause
  for (int64_t round = 0; round < last; ++round)
    parallel_for((last + 1) / 2, 1, threads, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const int64_t a = p ? (round + p) % last : last, b = (round - p + last) % last;
        const int64_t I = a < b ? a : b, J = a < b ? b : a;
        if (J < blocks) body(I, J);
      }
    });
}

// Calls tile(i0, i1, j0, j1, rows_only) for tiles that cover the triangle of R x R scores.
template <typename Tile>
void over_triangle(int64_t R, int64_t block, int threads, const Tile& tile) {
  const int64_t blocks = (R + block - 1) / block;
  // Blocks on the diagonal: a triangle of tiles, each block by one thread.
  parallel_for(blocks, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t I = begin; I < end; ++I)
      for (int64_t i0 = I * block; i0 < std::min((I + 1) * block, R); i0 += kTileRows) {
        const int64_t i1 = std::min({i0 + kTileRows, (I + 1) * block, R});
        tile(i0, i1, i0, i1, true);
        in_tiles(i0, i1, i1, std::min((I + 1) * block, R),
                 [&](int64_t a, int64_t b, int64_t c, int64_t d) { tile(a, b, c, d, false); });
      }
  });
  parallel_pairs(blocks, threads, [&](int64_t I, int64_t J) {
    in_tiles(I * block, (I + 1) * block, J * block, std::min((J + 1) * block, R),
             [&](int64_t a, int64_t b, int64_t c, int64_t d) { tile(a, b, c, d, false); });
  });
}

}  // namespace sslops
