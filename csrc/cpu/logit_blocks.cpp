// Blocks of logits on the CPU (sslops/ops/logit_blocks): every score of N queries against M keys serves
// the softmax of its row and that of its column. 2 NMD FLOP for statistics, 6 for gradients.
#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/two_sided.h"

namespace sslops {

// The shift of sums that have no term yet: far below every score, and finite, because -inf minus
// -inf, the score of a key that is no candidate, is no number.
constexpr float kBelowAll = -1e30f;

static TwoSided block_problem(const int64_t* excluded_at, float scale, bool with_rank) {
  TwoSided problem({{0, 0}, 0, false}, scale, false, with_rank);
  problem.excluded_at = excluded_at;
  return problem;
}

// Two pieces a thread on either side.
template <typename Tile>
static void over_block(int64_t N, int64_t M, int threads, const Tile& tile) {
  const int64_t pieces = 2 * threads;
  over_pieces(N, padded((N + pieces - 1) / pieces), M, padded((M + pieces - 1) / pieces), threads,
              tile);
}

static Side empty_sums(const float* x, int64_t R, int64_t D, bool with_rank, int threads) {
  Side side;
  side.rows = pack(x, nullptr, R, D, false, threads);
  side.shift = Buffer(side.rows.R_pad, kBelowAll), side.sum = Buffer(side.rows.R_pad, 0.0f);
  side.positive = Buffer(with_rank ? side.rows.R_pad : 0, INFINITY);
  side.larger = Buffer(with_rank ? side.rows.R_pad : 0, 0.0f);
  return side;
}

// The largest similarity whose logit does not exceed `logit`: scores above it, and they alone, have
// larger logits.
static float last_not_above(float logit, float scale) {
  float u = logit / scale;
  while (u * scale > logit) u = std::nextafter(u, -INFINITY);
  while (std::nextafter(u, INFINITY) * scale <= logit) u = std::nextafter(u, INFINITY);
  return u;
}

static void write_sums(const Side& side, float scale, float* out) {
  for (int64_t i = 0; i < side.rows.R; ++i) {
    out[2 * i] = side.shift[i] == kBelowAll ? -INFINITY : side.shift[i] * scale;
    out[2 * i + 1] = side.sum[i];
  }
}

void logit_block_statistics(const float* q, const float* k, const float* positive_key, int64_t B,
                            int64_t N, int64_t M, int64_t D, const int64_t* excluded_at, float scale,
                            int threads, float* positive, float* rows, float* columns,
                            int64_t* rank) {
  over_batches(B, threads, [&](int64_t b, int inner) {
    const TwoSided problem = block_problem(excluded_at, scale, rank != nullptr);
    const float* q_ND = q + b * N * D;
    float* z_N = positive + b * N;
    if (positive_key) {
      paired_scores(problem.kernels, q_ND, positive_key + b * N * D, N, D, inner, z_N);
      for (int64_t i = 0; i < N; ++i) z_N[i] *= scale;
    }
    Side queries = empty_sums(q_ND, N, D, rank, inner), keys = empty_sums(k + b * M * D, M, D, rank, inner);
    for (int64_t i = 0; rank && i < N; ++i) queries.positive[i] = last_not_above(z_N[i], scale);
    over_block(N, M, inner, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
      problem.forward_tile(queries, keys, i0, i1, j0, j1, false);
    });
    write_sums(queries, scale, rows + b * 2 * N);
    write_sums(keys, scale, columns + b * 2 * M);
    for (int64_t i = 0; rank && i < N; ++i) rank[b * N + i] = static_cast<int64_t>(queries.larger[i]);
  });
}

// A side whose softmax has these statistics [R, 3]; none is given, or none exists: it weighs nothing.
static Side weighted(const float* x, int64_t R, int64_t D, const float* statistics, float scale,
                     int threads) {
  Side side;
  side.rows = pack(x, nullptr, R, D, true, threads);
  const int64_t R_pad = side.rows.R_pad;
  side.shift = Buffer(R_pad, -kBelowAll);
  side.offset = Buffer(R_pad, 0.0f), side.weight = Buffer(R_pad, 0.0f);
  side.gradient = Buffer(R_pad * side.rows.D_panels * kPanel, 0.0f);
  for (int64_t i = 0; statistics && i < R; ++i) {
    const float top = statistics[3 * i];
    if (top == -INFINITY) continue;
    side.shift[i] = top / scale;
    side.offset[i] = std::log2(statistics[3 * i + 1]);
    side.weight[i] = statistics[3 * i + 2];
  }
  return side;
}

void logit_block_gradients(const float* q, const float* k, int64_t B, int64_t N, int64_t M,
                           int64_t D, const int64_t* positive_at, const int64_t* excluded_at,
                           float scale, int threads, const float* rows, const float* columns,
                           float* dq, float* dk) {
  over_batches(B, threads, [&](int64_t b, int inner) {
    TwoSided problem = block_problem(excluded_at, scale, false);
    problem.minus_one_at = positive_at;
    Side queries = weighted(q + b * N * D, N, D, rows ? rows + b * 3 * N : nullptr, scale, inner);
    Side keys = weighted(k + b * M * D, M, D, columns ? columns + b * 3 * M : nullptr, scale, inner);
    over_block(N, M, inner, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
      problem.backward_tile(queries, keys, i0, i1, j0, j1, dk == nullptr);
    });
    unpack(queries.gradient.data(), queries.rows.along_stride(), N, D, scale, dq + b * N * D, inner);
    if (dk) unpack(keys.gradient.data(), keys.rows.along_stride(), M, D, scale, dk + b * M * D, inner);
  });
}

}  // namespace sslops
