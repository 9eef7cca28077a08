// Losses in which every score serves two softmaxes, that of its row and that of its column: NT-Xent
// (rows and columns are the same views) and the symmetric InfoNCE (queries and keys).
//
//   s_ij = <x_i, y_j> / T,  k = log2(e) / T,  u_i = <x_i, positive of x_i>
//   row i:     loss_i = log(1 + sum_j exp(s_ij - u_i / T))  over the negatives j of i
//              = log_sum_i + (top_i - u_i) / T,  P_ij = exp(s_ij - top_i / T - log_sum_i)
//   gradient:  G_ij = g_i P_ij + h_j Q_ij  (P, Q: softmax of the row and of the column)
//              dx_i += G_ij y_j / T,  dy_j += G_ij x_i / T
//
// Unit rows with 2 / T below kLargestSpread share one shift c for all scores, so that one exponential
// E_ij = 2^((s_ij - c) k) serves both softmaxes; else each side keeps its running maximum.
#pragma once
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/tiles.h"

namespace sslops {

constexpr double kLog2E = 1.4426950408889634;

// log(1 + sum), where `sum` was taken relative to a shift that lies `above` (natural units) the
// positive's logit. log1p keeps the digits of a small loss; a large loss cannot overflow.
inline double loss_from_sum(double sum, double above) {
  return above < 600 ? std::log1p(sum * std::exp(above)) : std::log(sum) + above;
}

// What the backward pass needs to know of a softmax: [2, R], top_i then log_sum_i. Apart, because at
// low temperatures their sum has lost the digits of log_sum_i.
inline void set_normaliser(float* normaliser, int64_t R, int64_t i, double top, double log_sum) {
  normaliser[i] = static_cast<float>(top);
  normaliser[R + i] = static_cast<float>(log_sum);
}

// One side of the matrix of scores. Everything [R_pad]; padding is 0.
struct Side {
  Rows rows;
  Buffer positive;          // u_i, not divided by the temperature
  Buffer shift, sum;        // forward: sum_i = sum_j 2^((s_ij - shift_i) k)
  Buffer larger;            // forward, if ranks are wanted: #{j: s_ij > u_i}
  Buffer offset, weight;    // backward: P_ij = 2^((s_ij - shift_i) k - offset_i), times weight_i
  Buffer shared_weight;     // backward: weight_i P_ij = shared_weight_i 2^((s_ij - c) k)
  Buffer at_positive;       // backward: weight_i (P_i,positive - 1)
  Buffer gradient;          // backward: along, [D_panels, R_pad, 32]
};

// Calls tile(i0, i1, j0, j1) for the tiles of rows [first_i, last_i) and columns [first_j, last_j);
// one stretch of columns stays in cache for all rows.
template <typename Tile>
void in_tiles(int64_t first_i, int64_t last_i, int64_t first_j, int64_t last_j, const Tile& tile) {
  for (int64_t j = first_j; j < last_j; j += kTileColumns)
    for (int64_t i = first_i; i < last_i; i += kTileRows)
      tile(i, i + kTileRows < last_i ? i + kTileRows : last_i,
           j, j + kTileColumns < last_j ? j + kTileColumns : last_j);
}

// Calls tile(i0, i1, j0, j1) for tiles that cover rows x columns, in rounds in which no piece of rows
// and no piece of columns occurs twice: a tile may add to what belongs to either without a lock.
template <typename Tile>
void over_pieces(int64_t rows, int64_t rows_of_piece, int64_t columns, int64_t columns_of_piece,
                 int threads, const Tile& tile) {
  const int64_t row_pieces = (rows + rows_of_piece - 1) / rows_of_piece;
  const int64_t column_pieces = (columns + columns_of_piece - 1) / columns_of_piece;
  const int64_t rounds = row_pieces > column_pieces ? row_pieces : column_pieces;
  const auto last = [](int64_t piece, int64_t size, int64_t count) {
    return (piece + 1) * size < count ? (piece + 1) * size : count;
  };
  for (int64_t round = 0; round < rounds; ++round)
    parallel_for(row_pieces, 1, threads, [&](int64_t begin, int64_t end) {
      for (int64_t I = begin; I < end; ++I) {
        const int64_t J = (I + round) % rounds;
        if (J < column_pieces)
          in_tiles(I * rows_of_piece, last(I, rows_of_piece, rows), J * columns_of_piece,
                   last(J, columns_of_piece, columns), tile);
      }
    });
}

// Where rows meet their positives and themselves: column = row + offset.
struct Diagonals {
  int64_t positive[2];
  int count_positive;
  bool self;
};

struct TwoSided {
  const TileKernels& kernels = tile_kernels();
  Diagonals diagonals;
  float scale, k;  // 1 / T, log2(e) / T
  bool bounded;    // scores share the shift c
  bool with_rank;
  float c = 0;
  const int64_t* excluded_at = nullptr;  // [rows] or null: the column that is no candidate
  const int64_t* minus_one_at = nullptr;  // [rows] or null, backward: where G_ij takes - g_i - h_j

  TwoSided(Diagonals where, float scale, bool bounded, bool with_rank)
      : diagonals(where), scale(scale), k(static_cast<float>(scale * kLog2E)), bounded(bounded),
        with_rank(with_rank) {}

  // c: the largest positive similarity. Any value within the spread would do; this one makes equal
  // scores exponentiate to exactly 1.
  void choose_shift(const float* positive, int64_t R) {
    c = R ? positive[0] : 0.0f;
    for (int64_t i = 0; i < R; ++i) c = !(c > positive[i]) && positive[i] == positive[i]
                                            ? positive[i] : c;
  }

  // positive [R]: the similarity of each row of the side to its positive.
  void start_forward(Side& side, const float* positive) const {
    side.positive = Buffer(side.rows.R_pad, 0.0f);
    memcpy(side.positive.data(), positive, sizeof(float) * side.rows.R);
    side.shift = Buffer(side.rows.R_pad, c);
    if (!bounded) memcpy(side.shift.data(), side.positive.data(), sizeof(float) * side.rows.R_pad);
    side.sum = Buffer(side.rows.R_pad, 0.0f);
    if (with_rank) side.larger = Buffer(side.rows.R_pad, 0.0f);
  }

  // Adds the tile of rows [i0, i1) and columns [j0, j1) to the sums of its rows and its columns.
  // On the diagonal of NT-Xent a tile holds each pair twice: then the columns are left alone.
  void forward_tile(Side& x, Side& y, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                    bool rows_only) const {
    alignas(64) float S[kTileSize];
    alignas(64) float ignored[3][kTileColumns] = {};
    const int64_t rows = i1 - i0, columns = padded(j1 - j0);
    make_scores(x, y, i0, i1, j0, j1, S);
    mask(S, i0, i1, j0, j1);
    float* column_shift = rows_only ? ignored[0] : y.shift.data() + j0;
    float* column_sum = rows_only ? ignored[1] : y.sum.data() + j0;
    if (with_rank) {
      kernels.count_larger(S, rows, columns, &x.positive[i0], &x.larger[i0]);
      if (!rows_only)
        kernels.count_larger_columns(S, rows, columns, &y.positive[j0], &y.larger[j0]);
    }
    if (bounded) {
      kernels.sum_both(S, rows, columns, k, c, &x.sum[i0], column_sum);
      return;
    }
    raise_shift(kernels.row_max, S, rows, columns, rows, &x.shift[i0], &x.sum[i0]);
    raise_shift(kernels.column_max, S, rows, columns, columns, column_shift, column_sum);
    kernels.sum_both_shifted(S, rows, columns, k, &x.shift[i0], &x.sum[i0], column_shift,
                             column_sum);
  }

  // loss [R], normaliser [2, R] and, if wanted, rank [R] of one side.
  void finish_forward(const Side& side, float* loss, float* normaliser, int64_t* rank) const {
    for (int64_t i = 0; i < side.rows.R; ++i) {
      const double above = (static_cast<double>(side.shift[i]) - side.positive[i]) * scale;
      const double exact = loss_from_sum(side.sum[i], above);
      loss[i] = static_cast<float>(exact);
      set_normaliser(normaliser, side.rows.R, i, side.shift[i], exact - above);
      if (rank) rank[i] = static_cast<int64_t>(side.larger[i]);
    }
  }

  // loss [R] and normaliser [2, R] of the side's softmax, upstream [R] the gradient of its loss.
  void start_backward(Side& side, const float* loss, const float* normaliser,
                      const float* upstream) {
    const int64_t R = side.rows.R, R_pad = side.rows.R_pad;
    side.shift = Buffer(R_pad, 0.0f);
    memcpy(side.shift.data(), normaliser, sizeof(float) * R);
    if (R) c = side.shift[0];  // the same everywhere if bounded
    side.offset = Buffer(R_pad, 0.0f), side.weight = Buffer(R_pad, 0.0f);
    side.shared_weight = Buffer(R_pad, 0.0f), side.at_positive = Buffer(R_pad, 0.0f);
    side.gradient = Buffer(R_pad * side.rows.D_panels * kPanel, 0.0f);
    for (int64_t i = 0; i < R; ++i) {
      const double g = upstream[i], log_sum = normaliser[R + i];
      side.weight[i] = upstream[i];
      side.offset[i] = static_cast<float>(log_sum * kLog2E);
      if (bounded) side.shared_weight[i] = static_cast<float>(g * std::exp(-log_sum));
      side.at_positive[i] = static_cast<float>(g * std::expm1(-static_cast<double>(loss[i])));
    }
  }

  // Adds the tile's G y to the gradients of its rows and, unless rows_only, G^T x to its columns'.
  void backward_tile(Side& x, Side& y, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                     bool rows_only) const {
    alignas(64) float G[kTileSize];
    const int64_t rows = i1 - i0, columns = padded(j1 - j0);
    make_scores(x, y, i0, i1, j0, j1, G);
    mask(G, i0, i1, j0, j1);
    if (bounded)
      kernels.weigh_both(G, rows, columns, k, c, &x.shared_weight[i0], &y.shared_weight[j0]);
    else
      kernels.weigh_both_shifted(G, rows, columns, k, softmax(x, i0), softmax(y, j0));
    for (int p = 0; p < diagonals.count_positive; ++p)
      on_diagonal(i0, i1, j0, j1, diagonals.positive[p], [&](int64_t i, int64_t j) {
        G[(i - i0) * kTileStride + j - j0] = x.at_positive[i] + y.at_positive[j];
      });
    if (minus_one_at)
      for (int64_t i = i0; i < i1; ++i)
        if (minus_one_at[i] >= j0 && minus_one_at[i] < j1)
          G[(i - i0) * kTileStride + minus_one_at[i] - j0] -= x.weight[i] + y.weight[minus_one_at[i]];
    kernels.add_product(G, padded(rows), columns, x.rows.D_panels, y.rows.along_from(j0),
                        y.rows.along_stride(), &x.gradient[i0 * kPanel], x.rows.along_stride());
    if (!rows_only)
      kernels.add_transposed_product(G, rows, columns, x.rows.D_panels, x.rows.along_from(i0),
                                     x.rows.along_stride(), &y.gradient[j0 * kPanel],
                                     y.rows.along_stride());
  }

 private:
  static Softmax softmax(const Side& side, int64_t first) {
    return {&side.shift[first], &side.offset[first], &side.weight[first]};
  }

  void make_scores(const Side& x, const Side& y, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                   float* S) const {
    kernels.scores(x.rows.across_from(i0), y.rows.across_from(j0), padded(i1 - i0), padded(j1 - j0),
                   x.rows.D, S);
  }

  // -inf, which exponentiates to 0, where a score is no negative: itself, the positive, padding.
  void mask(float* S, int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    const auto exclude = [&](int64_t i, int64_t j) {
      S[(i - i0) * kTileStride + j - j0] = -INFINITY;
    };
    for (int p = 0; p < diagonals.count_positive; ++p)
      on_diagonal(i0, i1, j0, j1, diagonals.positive[p], exclude);
    if (diagonals.self) on_diagonal(i0, i1, j0, j1, 0, exclude);
    if (excluded_at)
      for (int64_t i = i0; i < i1; ++i)
        if (excluded_at[i] >= j0 && excluded_at[i] < j1) exclude(i, excluded_at[i]);
    for (int64_t i = i0; i < i1; ++i)
      for (int64_t j = j1; j < j0 + padded(j1 - j0); ++j) exclude(i, j);
  }

  // Raises the shifts to the maxima of the tile and rescales the sums that were relative to the old.
  void raise_shift(void (*maximum)(const float*, int64_t, int64_t, float*), const float* S,
                   int64_t rows, int64_t columns, int64_t count, float* shift, float* sum) const {
    float old[kTileColumns];
    memcpy(old, shift, sizeof(float) * count);
    maximum(S, rows, columns, shift);
    for (int64_t i = 0; i < count; ++i)
      if (shift[i] > old[i]) sum[i] *= std::exp2((old[i] - shift[i]) * k);
  }
};

}  // namespace sslops
