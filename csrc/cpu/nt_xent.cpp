// NT-Xent on the CPU: the triangle i <= j of the 2N x 2N scores, each used for both of its rows.
//
//   loss_i = log sum_{j != i} exp(s_ij) - s_ip,   s_ij = <z_i, z_j> / T,  p = (i + N) mod 2N
//   dz_i = 1/T sum_j G_ij z_j,   G_ij = g_i P_ij + g_j P_ji - [j = p] (g_i + g_j)
//
// Scores and exponentials of half the matrix, twice: 4 (2N)^2 D FLOP in all, against 6 (2N)^2 D of
// three products.
#include "cpu/kernels.h"
#include "cpu/triangle.h"

namespace sslops {

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
