// One-directional InfoNCE, a strip of query rows at a time against all keys.
//
//   s_ij = <q_i, k_j> / T,  u_i = <q_i, positive of q_i>,  k = log2(e) / T,  j over the negatives
//   loss_i = log(1 + sum_j exp(s_ij - u_i / T)),   P_ij = exp(s_ij - lse_i)
//   dL_i/dq_i = 1/T (sum_j P_ij k_j - (1 - P_i+) positive_i),   dk_j = 1/T sum_i g_i P_ij q_i
//
// The keys are split over the threads. Each split sums the exponentials and the keys weighted by them
// relative to a shift of its own (flash attention with V = K); the splits are combined in order. So
// the forward pass alone gives dq. It gives dk as well, for g = 1, if the exponentials of one strip
// are kept until its sums are known.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/two_sided.h"

namespace sslops {

struct OneSided {
  const TileKernels& kernels = tile_kernels();
  int64_t N, M, D;                          // queries, keys, width
  int64_t positive_offset, exclude_offset;  // key i + offset is no negative of row i
  float scale, k;                           // 1 / T, log2(e) / T
  bool bounded;                             // unit rows: no running maximum is needed
  int threads;
  Rows queries;  // [N, D], packed across
  Rows keys;     // [M, D]; empty if a split packs its keys itself

  int64_t chunks() const { return (M + kTileColumns - 1) / kTileColumns; }
  int64_t columns_of(int64_t chunk) const {
    return std::min(kTileColumns, M - chunk * kTileColumns);
  }

  // S [rows, kTileStride] of query rows from i0 and the packed keys of a chunk; -inf, which
  // exponentiates to 0, where a key is no negative.
  void make_scores(int64_t i0, int64_t rows, const float* across, int64_t chunk, float* S) const {
    const int64_t j0 = chunk * kTileColumns, columns = columns_of(chunk);
    kernels.scores(queries.across_from(i0), across, padded(rows), padded(columns), D, S);
    const auto exclude = [&](int64_t i, int64_t j) {
      S[(i - i0) * kTileStride + j - j0] = -INFINITY;
    };
    on_diagonal(i0, i0 + rows, j0, j0 + columns, positive_offset, exclude);
    on_diagonal(i0, i0 + rows, j0, j0 + columns, exclude_offset, exclude);
    for (int64_t i = i0; i < i0 + rows; ++i)
      for (int64_t j = j0 + columns; j < j0 + padded(columns); ++j) exclude(i, j);
  }
};

// What a split of the keys has summed for the rows of a strip, relative to its own shift.
struct Split {
  Buffer shift, sum, larger;  // [height]
  Buffer weighted_keys;       // along, [D_panels, height, 32]: sum_j 2^((s_ij - shift_i) k) k_j

  // What its sums count in units of row r's whole softmax.
  double share(int64_t r, float positive, double loss, float scale) const {
    return std::exp((static_cast<double>(shift[r]) - positive) * scale - loss);
  }
};

class Strip {
 public:
  // key [M, D] and its norms [M] (or null) are read only where problem.keys is empty.
  Strip(const OneSided& problem, const float* key, const float* key_norm, int64_t height,
        bool want_rank, bool want_dq, bool want_dk)
      : p_(problem), key_(key), key_norm_(key_norm), height_(height), want_rank_(want_rank),
        want_dq_(want_dq), want_dk_(want_dk), zeros_(height, 0.0f), loss_(height) {
    splits_.resize(std::min<int64_t>(p_.chunks(), p_.threads > 1 ? 4 * p_.threads : 1));
    for (Split& split : splits_) {
      split.shift = Buffer(height), split.sum = Buffer(height), split.larger = Buffer(height);
      if (want_dq) split.weighted_keys = Buffer(padded(p_.D) * height);
    }
    if (!want_dk) return;
    exponentials_ = Buffer(p_.chunks() * height * kTileStride);
    chunk_shift_ = Buffer(p_.chunks() * height);
  }

  // Rows [i0, i0 + rows): positive [N] -> loss [N], normaliser [2, N], rank [N] or null, dq [N, D] or
  // null, for which positive_key [N, D] is read.
  void forward(int64_t i0, int64_t rows, const float* positive, const float* positive_key,
               float* loss, float* normaliser, int64_t* rank, float* dq) {
    i0_ = i0, rows_ = rows, positive_ = positive + i0;
    const int64_t splits = static_cast<int64_t>(splits_.size());
    parallel_for(splits, 1, p_.threads, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s)
        sum_chunks(splits_[s], s * p_.chunks() / splits, (s + 1) * p_.chunks() / splits);
    });
    parallel_for(rows, 16, p_.threads, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const double above = (combined_top(r) - positive_[r]) * p_.scale;
        loss_[r] = loss_from_sum(combined_sum(r), above);
        loss[i0 + r] = static_cast<float>(loss_[r]);
        set_normaliser(normaliser, p_.N, i0 + r, combined_top(r), loss_[r] - above);
        if (rank) rank[i0 + r] = combined_rank(r);
        if (dq) combine_dq(r, positive_key + (i0 + r) * p_.D, dq + (i0 + r) * p_.D);
      }
    });
  }

  // Adds sum_i P_ij q_i over the rows of the last forward to dk, along [D_panels, M_pad, 32].
  void add_dk(const float* q, float* dk) const {
    parallel_for(p_.chunks(), 1, p_.threads, [&](int64_t begin, int64_t end) {
      const int64_t stride = padded(rows_) * kPanel;
      Buffer weight(rows_), weighted_q(padded(p_.D) * padded(rows_));
      for (int64_t c = begin; c < end; ++c) {
        for (int64_t r = 0; r < rows_; ++r) {
          const double above = static_cast<double>(chunk_shift_[c * height_ + r]) - positive_[r];
          weight[r] = static_cast<float>(std::exp(above * p_.scale - loss_[r]));
        }
        pack_panels(q + i0_ * p_.D, nullptr, weight.data(), rows_, p_.D, 0, padded(rows_) / kPanel,
                    nullptr, weighted_q.data(), stride);
        for (int64_t r = 0; r < rows_; r += kTileRows)
          p_.kernels.add_transposed_product(
              &exponentials_[(c * height_ + r) * kTileStride], std::min(kTileRows, rows_ - r),
              padded(p_.columns_of(c)), p_.queries.D_panels, weighted_q.data() + r * kPanel, stride,
              dk + c * kTileColumns * kPanel, p_.keys.along_stride());
      }
    });
  }

 private:
  // Sums chunks [first, last) of the keys for all rows of the strip.
  void sum_chunks(Split& split, int64_t first, int64_t last) {
    std::copy_n(positive_, rows_, split.shift.data());
    std::fill_n(split.sum.data(), rows_, 0.0f);
    std::fill_n(split.larger.data(), rows_, 0.0f);
    if (want_dq_) std::fill_n(split.weighted_keys.data(), padded(p_.D) * height_, 0.0f);
    const bool packed = p_.keys.across.size() > 0;
    Buffer own_across(packed ? 0 : kTileColumns * p_.D);
    Buffer own_along(packed ? 0 : kTileColumns * padded(p_.D));
    for (int64_t c = first; c < last; ++c) {
      if (packed) {
        sum_chunk(split, c, p_.keys.across_from(c * kTileColumns),
                  p_.keys.along_from(c * kTileColumns), p_.keys.along_stride());
      } else {
        pack_chunk(c, own_across.data(), own_along.data());
        sum_chunk(split, c, own_across.data(), own_along.data(), kTileColumns * kPanel);
      }
    }
  }

  void pack_chunk(int64_t c, float* across, float* along) const {
    const int64_t columns = p_.columns_of(c), panels = padded(columns) / kPanel;
    const float* key = key_ + c * kTileColumns * p_.D;
    const float* norm = key_norm_ ? key_norm_ + c * kTileColumns : nullptr;
    pack_panels(key, norm, nullptr, columns, p_.D, 0, panels, across, want_dq_ ? along : nullptr,
                kTileColumns * kPanel);
  }

  void sum_chunk(Split& split, int64_t c, const float* across, const float* along,
                 int64_t along_stride) {
    alignas(64) float scratch[kTileSize];
    const int64_t columns = padded(p_.columns_of(c));
    for (int64_t r = 0; r < rows_; r += kTileRows) {
      const int64_t rows = std::min(kTileRows, rows_ - r);
      float* S = want_dk_ ? &exponentials_[(c * height_ + r) * kTileStride] : scratch;
      p_.make_scores(i0_ + r, rows, across, c, S);
      if (want_rank_) p_.kernels.count_larger(S, rows, columns, positive_ + r, &split.larger[r]);
      if (!p_.bounded) raise_shift(split, r, rows, S, columns);
      if (want_dk_) std::copy_n(&split.shift[r], rows, &chunk_shift_[c * height_ + r]);
      p_.kernels.exp_rows(S, rows, columns, p_.k, &split.shift[r], zeros_.data(), &split.sum[r]);
      if (want_dq_)
        p_.kernels.add_product(S, padded(rows), columns, p_.queries.D_panels, along, along_stride,
                               &split.weighted_keys[r * kPanel], height_ * kPanel);
    }
  }

  // Raises the shifts of rows [r0, r0 + rows) to the tile's maxima and rescales what was summed
  // relative to the old ones.
  void raise_shift(Split& split, int64_t r0, int64_t rows, const float* S, int64_t columns) const {
    float old[kTileRows];
    std::copy_n(&split.shift[r0], rows, old);
    p_.kernels.row_max(S, rows, columns, &split.shift[r0]);
    for (int64_t r = r0; r < r0 + rows; ++r) {
      if (!(split.shift[r] > old[r - r0])) continue;
      const float factor = std::exp2((old[r - r0] - split.shift[r]) * p_.k);
      split.sum[r] *= factor;
      for (int64_t d = 0; want_dq_ && d < padded(p_.D); ++d)
        split.weighted_keys[(d / kPanel * height_ + r) * kPanel + d % kPanel] *= factor;
    }
  }

  double combined_top(int64_t r) const {
    double top = positive_[r];
    for (const Split& split : splits_) top = std::max<double>(top, split.shift[r]);
    return top;
  }

  double combined_sum(int64_t r) const {
    double sum = 0;
    const double top = combined_top(r);
    for (const Split& split : splits_)
      sum += split.sum[r] * std::exp((split.shift[r] - top) * p_.scale);
    return sum;
  }

  int64_t combined_rank(int64_t r) const {
    float rank = 0;
    for (const Split& split : splits_) rank += split.larger[r];
    return static_cast<int64_t>(rank);
  }

  void combine_dq(int64_t r, const float* positive_key, float* dq) const {
    const float at_positive = static_cast<float>(std::expm1(-loss_[r])) * p_.scale;
    for (int64_t d = 0; d < p_.D; ++d) dq[d] = at_positive * positive_key[d];
    for (const Split& split : splits_) {
      const float share =
          static_cast<float>(split.share(r, positive_[r], loss_[r], p_.scale)) * p_.scale;
      for (int64_t d = 0; d < p_.D; ++d)
        dq[d] += share * split.weighted_keys[(d / kPanel * height_ + r) * kPanel + d % kPanel];
    }
  }

  const OneSided& p_;
  const float *key_, *key_norm_;
  int64_t height_, i0_ = 0, rows_ = 0;
  const float* positive_ = nullptr;  // [rows] of this strip
  bool want_rank_, want_dq_, want_dk_;
  std::vector<Split> splits_;
  Buffer zeros_;
  std::vector<double> loss_;  // [height]
  Buffer exponentials_;       // [chunks, height, kTileStride], if dk is wanted
  Buffer chunk_shift_;        // [chunks, height]: what they are relative to
};

}  // namespace sslops
