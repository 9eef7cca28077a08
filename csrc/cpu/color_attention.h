// Colour attention on the CPU: what happens to a strip of scores between torch's matrix products.
//
// A strip holds all candidates of a few consecutive target cells: S [rows, columns], row-major, already
// divided by the temperature. Without a window its columns are the reference cells. With one they are
// the grid rows that any of its target cells may look at: of frame f the rows bands[f].first_row to
// bands[f].last_row, frame after frame; what of these a target cell does not see is skipped, and set
// to zero where the strip is written.
#pragma once
#include <cstdint>

namespace sslops {

struct Band {
  int64_t radius, first_row, last_row;
};

struct Strip {
  float* S;
  int64_t rows, columns;
  int64_t first_cell;  // the target cell of the first row
  int64_t H, W, frames;
  const Band* bands;  // [frames]; frames = 0: no window
  int64_t threads;
};

// S_ij = exp(S_ij - top_i), top_i the row's maximum, sum_i the row's sum (1 for a row of no candidate).
void color_softmax(const Strip& strip, float* top, float* sum);

// From the scores again: A_ij = exp(S_ij - top_i) / 2^log_sum_i, S_ij = A_ij (dA_ij - delta_i), dA = A.
void color_softmax_backward(const Strip& strip, float* dA, const float* top, const float* log_sum,
                            const float* delta);

// index [rows, k]: the k candidates of the largest scores, lower indices first among equals, in
// ascending order; -1 where a row has fewer.
void color_top(const Strip& strip, int64_t k, int32_t* index);

// The softmax over each row's matching and other cells: sums of exp(S_ij - top_i) apart.
void color_match(const Strip& strip, const int32_t* row_labels, const int32_t* column_labels,
                 float* top, float* right_sum, float* wrong_sum);

// S_ij = A_ij times right_weight_i where the labels agree and wrong_weight_i where they do not.
void color_match_backward(const Strip& strip, const int32_t* row_labels,
                          const int32_t* column_labels, const float* top, const float* log_sum,
                          const float* right_weight, const float* wrong_weight);

// Attention over the k cells of index [B, Nt, k] (-1: none): out_i = sum_t A_it v_index(i, t).
struct Gather {
  const float *target, *reference, *values;  // [B, Nt, D], [B, Nr, D], [B, Nr, C]
  const int32_t* index;
  int64_t B, Nt, Nr, D, C, k;
  int64_t threads;
};
// weights [B, Nt, k] = A, out [B, Nt, C].
void color_gather(const Gather& g, float* weights, float* out);
// grad [B, Nt, C] -> by_target, by_reference, by_values; scratch [B, Nt, k].
void color_gather_backward(const Gather& g, const float* grad, const float* weights,
                           const float* out, float* scratch, float* by_target,
                           float* by_reference, float* by_values);

}  // namespace sslops
