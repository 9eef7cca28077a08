// NT-Xent on the CPU: the triangle i <= j of the 2N x 2N scores, each used for both of its rows.
//
//   loss_i = log sum_{j != i} exp(s_ij) - s_ip,   s_ij = <z_i, z_j> / T,  p = (i + N) mod 2N
//   dz_i = 1/T sum_j G_ij z_j,   G_ij = g_i P_ij + g_j P_ji - [j = p] (g_i + g_j)
//
// Scores and exponentials of half the matrix, twice: 4 (2N)^2 D FLOP in all, against 6 (2N)^2 D of
// three products.
#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/two_sided.h"

namespace sslops {

// Calls body(I, J) once for each pair of blocks I < J, in rounds in which no block occurs twice (a
// round-robin tournament): body may add to what belongs to either block without a lock, and what a
// block receives comes in the same order on any number of threads.
template <typename Body>
static void parallel_pairs(int64_t blocks, int threads, const Body& body) {
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
static void over_triangle(int64_t R, int64_t block, int threads, const Tile& tile) {
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

static Diagonals nt_xent_diagonals(int64_t R) { return {{R / 2, -R / 2}, 2, true}; }

void nt_xent_forward(const float* z, int64_t R, int64_t D, float scale, bool bounded, int64_t block,
                     int threads, float* loss, float* positive, float* normaliser, int64_t* rank) {
  TwoSided problem(nt_xent_diagonals(R), scale, bounded, rank != nullptr);
  const int64_t N = R / 2;
  paired_scores(problem.kernels, z, z + N * D, N, D, threads, positive);
  memcpy(positive + N, positive, sizeof(float) * N);
  problem.choose_shift(positive, R);

  Side side;
  side.rows = pack(z, nullptr, R, D, false, threads);
  problem.start_forward(side, positive);
  over_triangle(R, block, threads, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1, bool one) {
    problem.forward_tile(side, side, i0, i1, j0, j1, one);
  });
  problem.finish_forward(side, loss, normaliser, rank);
}

void nt_xent_backward(const float* z, int64_t R, int64_t D, float scale, bool bounded,
                      int64_t block, int threads, const float* loss, const float* normaliser,
                      const float* upstream, float* dz) {
  TwoSided problem(nt_xent_diagonals(R), scale, bounded, false);
  Side side;
  side.rows = pack(z, nullptr, R, D, true, threads);
  problem.start_backward(side, loss, normaliser, upstream);
  over_triangle(R, block, threads, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1, bool one) {
    problem.backward_tile(side, side, i0, i1, j0, j1, one);
  });
  unpack(side.gradient.data(), side.rows.along_stride(), R, D, scale, dz, threads);
}

}  // namespace sslops
