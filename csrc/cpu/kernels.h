// The CPU kernels that csrc/binding.cpp exports. Arrays are float32, row-major and contiguous; scale
// is 1 / temperature; bounded promises unit rows and a temperature at which exp(2 / T) is harmless.
#pragma once
#include <cstdint>

namespace sslops {

// NT-Xent. z [R, D], R = 2N -> loss [R], positive [R] (<z_i, z_p>, not divided by T), normaliser
// [2, R] of the softmax for the backward pass, rank [R] or null. block: rows of a block of the triangle, the piece of a thread; a multiple of 32.
void nt_xent_forward(const float* z, int64_t R, int64_t D, float scale, bool bounded, int64_t block,
                     int threads, float* loss, float* positive, float* normaliser, int64_t* rank);
// What the forward pass took and returned, upstream [R] = dL/dloss -> dz [R, D].
void nt_xent_backward(const float* z, int64_t R, int64_t D, float scale, bool bounded,
                      int64_t block, int threads, const float* loss, const float* normaliser,
                      const float* upstream, float* dz);

// One-directional InfoNCE. q [B, N, D], key [B, M, D]; key i + positive_offset is the positive of
// row i, or positive_key [B, N, D] is given and the offset meets no key; key i + exclude_offset is no
// candidate. key_norm [B, M] or null divides the keys. -> loss [B, N], positive [B, N] (<q_i, k_+>),
// normaliser [B, 2, N], rank [B, N] or null, and with upstream gradient 1: dq [B, N, D] or null, dk [B, M, D] or null.
// height: rows of a strip, a multiple of 32.
void info_nce_forward(const float* q, const float* positive_key, const float* key,
                      const float* key_norm, int64_t B, int64_t N, int64_t M, int64_t D,
                      int64_t positive_offset, int64_t exclude_offset, float scale, bool bounded,
                      int64_t height, int threads, float* loss, float* positive,
                      float* normaliser, int64_t* rank, float* dq, float* dk);
// dk [B, M, D] for any upstream [B, N].
void info_nce_backward_keys(const float* q, const float* key, int64_t B, int64_t N, int64_t M,
                            int64_t D, int64_t positive_offset, int64_t exclude_offset, float scale,
                            int threads, const float* loss, const float* normaliser,
                            const float* upstream, float* dk);

// Symmetric InfoNCE. q, key [B, N, D], key i is the positive of row i -> row_loss and column_loss
// [B, N] (their mean is the loss), positive [B, N], the normalisers [B, 2, N] of both, rank [B, N] of
// the rows or null.
void info_nce_symmetric_forward(const float* q, const float* key, int64_t B, int64_t N, int64_t D,
                                float scale, bool bounded, int64_t block, int threads,
                                float* row_loss, float* column_loss, float* positive,
                                float* row_normaliser, float* column_normaliser,
                                int64_t* rank);
// What the forward pass took and returned, row_upstream and column_upstream [B, N] = dL/d of both
// losses -> dq, dk [B, N, D].
void info_nce_symmetric_backward(const float* q, const float* key, int64_t B, int64_t N, int64_t D,
                                 float scale, bool bounded, int64_t block, int threads,
                                 const float* row_loss, const float* column_loss,
                                 const float* row_normaliser, const float* column_normaliser,
                                 const float* row_upstream, const float* column_upstream,
                                 float* dq, float* dk);

// A block of logits, q [B, N, D] against k [B, M, D]; excluded_at [N] or null: which key is no
// candidate of the row. positive_key [B, N, D], or null where positive [B, N] holds the positives'
// logits already -> positive, rows [B, N, 2] and columns [B, M, 2] (largest logit, sum of exponentials
// relative to it), rank [B, N] or null.
void logit_block_statistics(const float* q, const float* k, const float* positive_key, int64_t B,
                            int64_t N, int64_t M, int64_t D, const int64_t* excluded_at, float scale,
                            int threads, float* positive, float* rows, float* columns,
                            int64_t* rank);
// rows [B, N, 3], columns [B, M, 3] (of each softmax, the largest logit, the sum relative to it and the
// upstream gradient) or null, positive_at [N] or null -> dq [B, N, D], and dk [B, M, D] or null.
void logit_block_gradients(const float* q, const float* k, int64_t B, int64_t N, int64_t M,
                           int64_t D, const int64_t* positive_at, const int64_t* excluded_at,
                           float scale, int threads, const float* rows, const float* columns,
                           float* dq, float* dk);

// KoLeo. x [B, N, D] and y [B, M, D], whose rows are divided by x_norm [B, N] and y_norm [B, M]; row i is
// its own candidate i + offset. y null: the candidates are x, each pair is multiplied once, and block is
// that of nt_xent_forward. -> index [B, N] of the largest product, the lowest one of equals.
void koleo_nearest(const float* x, const float* x_norm, const float* y, const float* y_norm,
                   int64_t B, int64_t N, int64_t M, int64_t D, int64_t offset, int64_t block,
                   int threads, int64_t* index);

// Sinkhorn-Knopp. scale is log2(e) / temperature. logits [B, K] -> log_sum [K]: log2 of the sum over rows.
void sinkhorn_columns(const float* logits, int64_t B, int64_t K, float scale, int threads,
                      float* log_sum);
// shift [K], log_sum of all processes -> P [B, K], the softmax of a row, and mass [K], its sum over
// rows, or null.
void sinkhorn_softmax(const float* logits, const float* shift, int64_t B, int64_t K, float scale,
                      int threads, float* P, float* mass);
// u [K] -> mass [K] = sum_b P_b / <P_b, u>
void sinkhorn_mass(const float* P, const float* u, int64_t B, int64_t K, int threads, float* mass);
// P_bk *= u_k / <P_b, u>
void sinkhorn_finish(float* P, const float* u, int64_t B, int64_t K, int threads);

}  // namespace sslops
