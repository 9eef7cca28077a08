// InfoNCE on the CPU: batches, and what surrounds the passes of info_nce_strip.h and two_sided.h.
#include "cpu/info_nce_strip.h"
#include "cpu/kernels.h"

namespace sslops {

static OneSided one_sided(const float* q, int64_t N, int64_t M, int64_t D, int64_t positive_offset,
                          int64_t exclude_offset, float scale, bool bounded, int threads) {
  OneSided p;
  p.N = N, p.M = M, p.D = D;
  p.positive_offset = positive_offset, p.exclude_offset = exclude_offset;
  p.scale = scale, p.k = static_cast<float>(scale * kLog2E);
  p.bounded = bounded, p.threads = threads;
  p.queries = pack(q, nullptr, N, D, false, threads);
  return p;
}

// dk [M, D] = scale (along [D_panels, M_pad, 32], and factor_i q_i at the positive of row i)
static void finish_dk(const OneSided& p, const float* q, const Buffer& along,
                      const std::vector<float>& factor, float* dk) {
  unpack(along.data(), padded(p.M) * kPanel, p.M, p.D, p.scale, dk, p.threads);
  on_diagonal(0, p.N, 0, p.M, p.positive_offset, [&](int64_t i, int64_t j) {
    for (int64_t d = 0; d < p.D; ++d) dk[j * p.D + d] += p.scale * factor[i] * q[i * p.D + d];
  });
}

void info_nce_forward(const float* q, const float* positive_key, const float* key,
                      const float* key_norm, int64_t B, int64_t N, int64_t M, int64_t D,
                      int64_t positive_offset, int64_t exclude_offset, float scale, bool bounded,
                      int64_t height, int threads, float* loss, float* positive,
                      float* normaliser, int64_t* rank, float* dq, float* dk) {
  over_batches(B, threads, [&](int64_t b, int inner) {
    const float *q_ND = q + b * N * D, *key_MD = key + b * M * D;
    const float* positive_ND =
        positive_key ? positive_key + b * N * D : key_MD + positive_offset * D;
    const float* norm_M = key_norm ? key_norm + b * M : nullptr;
    float *loss_N = loss + b * N, *u_N = positive + b * N;
    OneSided p =
        one_sided(q_ND, N, M, D, positive_offset, exclude_offset, scale, bounded, inner);
    paired_scores(p.kernels, q_ND, positive_ND, N, D, inner, u_N);
    // Keys that every strip reads again are packed once; a single strip packs them as it goes.
    if (dk || N > height) p.keys = pack(key_MD, norm_M, M, D, true, inner);
    Strip strip(p, key_MD, norm_M, std::min(height, padded(N)), rank, dq, dk);
    Buffer along(dk ? padded(M) * padded(D) : 0, 0.0f);
    for (int64_t i = 0; i < N; i += height) {
      strip.forward(i, std::min(height, N - i), u_N, positive_ND, loss_N, normaliser + b * 2 * N,
                    rank ? rank + b * N : nullptr, dq ? dq + b * N * D : nullptr);
      if (dk) strip.add_dk(q_ND, along.data());
    }
    if (!dk) return;
    std::vector<float> factor(N);
    for (int64_t i = 0; i < N; ++i) factor[i] = std::expm1(-loss_N[i]);
    finish_dk(p, q_ND, along, factor, dk + b * M * D);
  });
}

void info_nce_backward_keys(const float* q, const float* key, int64_t B, int64_t N, int64_t M,
                            int64_t D, int64_t positive_offset, int64_t exclude_offset, float scale,
                            int threads, const float* loss, const float* normaliser,
                            const float* upstream, float* dk) {
  over_batches(B, threads, [&](int64_t b, int inner) {
    const float *q_ND = q + b * N * D, *key_MD = key + b * M * D, *top_N = normaliser + b * 2 * N;
    const float *loss_N = loss + b * N, *g_N = upstream + b * N;
    OneSided p = one_sided(q_ND, N, M, D, positive_offset, exclude_offset, scale, true, inner);
    std::vector<float> offset(N), factor(N);
    for (int64_t i = 0; i < N; ++i) {
      offset[i] = static_cast<float>(top_N[N + i] * kLog2E);
      factor[i] = g_N[i] * std::expm1(-loss_N[i]);
    }
    Buffer weighted_q(padded(N) * padded(D)), along(padded(M) * padded(D), 0.0f);
    pack_panels(q_ND, nullptr, g_N, N, D, 0, padded(N) / kPanel, nullptr, weighted_q.data(),
                padded(N) * kPanel);
    parallel_for(p.chunks(), 1, inner, [&](int64_t begin, int64_t end) {
      alignas(64) float P[kTileSize];
      float ignored[kTileRows] = {};
      Buffer across(kTileColumns * D);
      for (int64_t c = begin; c < end; ++c) {
        const int64_t columns = p.columns_of(c), j0 = c * kTileColumns;
        pack_panels(key_MD + j0 * D, nullptr, nullptr, columns, D, 0, padded(columns) / kPanel,
                    across.data(), nullptr, 0);
        for (int64_t i = 0; i < N; i += kTileRows) {
          const int64_t rows = std::min(kTileRows, N - i);
          p.make_scores(i, rows, across.data(), c, P);
          p.kernels.exp_rows(P, rows, padded(columns), p.k, top_N + i, &offset[i], ignored);
          p.kernels.add_transposed_product(P, rows, padded(columns), p.queries.D_panels,
                                           &weighted_q[i * kPanel], padded(N) * kPanel,
                                           &along[j0 * kPanel], padded(M) * kPanel);
        }
      }
    });
    finish_dk(p, q_ND, along, factor, dk + b * M * D);
  });
}

void info_nce_symmetric_forward(const float* q, const float* key, int64_t B, int64_t N, int64_t D,
                                float scale, bool bounded, int64_t block, int threads,
                                float* row_loss, float* column_loss, float* positive,
                                float* row_normaliser, float* column_normaliser,
                                int64_t* rank) {
  over_batches(B, threads, [&](int64_t b, int inner) {
    const float *q_ND = q + b * N * D, *key_ND = key + b * N * D;
    float* u_N = positive + b * N;
    TwoSided problem({{0, 0}, 1, false}, scale, bounded, rank != nullptr);
    paired_scores(problem.kernels, q_ND, key_ND, N, D, inner, u_N);
    problem.choose_shift(u_N, N);
    Side queries, keys;
    queries.rows = pack(q_ND, nullptr, N, D, false, inner);
    keys.rows = pack(key_ND, nullptr, N, D, false, inner);
    problem.start_forward(queries, u_N);
    problem.start_forward(keys, u_N);
    over_pieces(N, block, N, block, inner, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
      problem.forward_tile(queries, keys, i0, i1, j0, j1, false);
    });
    problem.finish_forward(queries, row_loss + b * N, row_normaliser + b * 2 * N,
                           rank ? rank + b * N : nullptr);
    problem.finish_forward(keys, column_loss + b * N, column_normaliser + b * 2 * N, nullptr);
  });
}

void info_nce_symmetric_backward(const float* q, const float* key, int64_t B, int64_t N, int64_t D,
                                 float scale, bool bounded, int64_t block, int threads,
                                 const float* row_loss, const float* column_loss,
                                 const float* row_normaliser, const float* column_normaliser,
                                 const float* row_upstream, const float* column_upstream,
                                 float* dq, float* dk) {
  over_batches(B, threads, [&](int64_t b, int inner) {
    TwoSided problem({{0, 0}, 1, false}, scale, bounded, false);
    Side queries, keys;
    queries.rows = pack(q + b * N * D, nullptr, N, D, true, inner);
    keys.rows = pack(key + b * N * D, nullptr, N, D, true, inner);
    problem.start_backward(queries, row_loss + b * N, row_normaliser + b * 2 * N,
                           row_upstream + b * N);
    problem.start_backward(keys, column_loss + b * N, column_normaliser + b * 2 * N,
                           column_upstream + b * N);
    over_pieces(N, block, N, block, inner, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
      problem.backward_tile(queries, keys, i0, i1, j0, j1, false);
    });
    unpack(queries.gradient.data(), queries.rows.along_stride(), N, D, scale, dq + b * N * D,
           inner);
    unpack(keys.gradient.data(), keys.rows.along_stride(), N, D, scale, dk + b * N * D, inner);
  });
}

}  // namespace sslops
