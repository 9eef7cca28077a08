// Sinkhorn-Knopp on the CPU: one read of the matrix per iteration, in which a row is scaled and, while
// it is still in the cache, added to the prototypes' masses for the iteration that follows.
//
//   a_k = log sum_b exp(z_bk),  P_b = softmax(z_b - a)    z = logits / temperature
//   then, again and again,  u = 1 / sum_b v_b P_b,  v_b = 1 / <P_b, u>;  the result is v_b P_bk u_k
//
// What is shared with other processes passes between the calls: a and the masses, K numbers each.
#include <algorithm>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/tiles.h"

namespace sslops {

// In units of log 2. top, sum, shift, u: one value per column.
struct SinkhornKernels {
  // top = max(top, x scale)
  void (*column_max)(const float* x, int64_t n, float scale, float* top);
  // sum += 2^(x scale - top)
  void (*column_sum)(const float* x, int64_t n, float scale, const float* top, float* sum);
  // sum *= 2^(old - top)
  void (*lower_shift)(const float* old, const float* top, int64_t n, float* sum);
  // y = x scale - shift; returns the largest y.
  float (*shifted_max)(const float* x, const float* shift, int64_t n, float scale, float* y);
  // y = 2^(y - top); returns the sum.
  float (*exponentials)(float* y, int64_t n, float top);
  // y *= factor
  void (*multiply)(float* y, int64_t n, float factor);
  float (*dot)(const float* y, const float* u, int64_t n);
  // sum += factor y
  void (*add_scaled)(const float* y, int64_t n, float factor, float* sum);
  // y *= u factor
  void (*multiply_both)(float* y, const float* u, int64_t n, float factor);
};

}  // namespace sslops

#define SSLOPS_KERNELS "cpu/sinkhorn_knopp_rows.h"
#include "cpu/instruction_sets.h"

namespace sslops {
namespace {

// float32 sums of this many terms keep their digits; longer rows are summed in double.
constexpr int64_t kPiece = 2048;
// A block of columns is read twice, for its maxima and its sums: 128 KiB stay in the cache.
constexpr int64_t kBlockRows = 64, kBlockColumns = 512;
// Masses of this many groups of rows are kept apart: the same sums on any number of threads. Groups
// are of 8 rows or more, so that their masses take an eighth of the logits' memory at most.
constexpr int64_t kMostGroups = 16, kLeastRows = 8;
// Below every logit, and finite: -inf minus -inf is no number.
constexpr float kBelowAll = -3e38f;

const SinkhornKernels& sinkhorn_kernels() {
  static const SinkhornKernels* const sets[] = {SSLOPS_TABLES(kSinkhornKernels)};
  return *sets[instruction_set()];
}

template <typename Part>
double sum_in_pieces(int64_t K, const Part& part) {
  double sum = 0;
  for (int64_t k = 0; k < K; k += kPiece) sum += part(k, std::min(kPiece, K - k));
  return sum;
}

// log2 of the sum over rows, for a block of columns.
void add_up_columns(const SinkhornKernels& kernels, const float* logits, int64_t B, int64_t K,
                    float scale, int64_t n, float* out) {
  float old[kBlockColumns], top[kBlockColumns], sum[kBlockColumns] = {};
  std::fill_n(top, n, kBelowAll);
  for (int64_t first = 0; first < B; first += kBlockRows) {
    const int64_t last = std::min(first + kBlockRows, B);
    std::copy_n(top, n, old);
    for (int64_t b = first; b < last; ++b) kernels.column_max(logits + b * K, n, scale, top);
    kernels.lower_shift(old, top, n, sum);
    for (int64_t b = first; b < last; ++b) kernels.column_sum(logits + b * K, n, scale, top, sum);
  }
  for (int64_t k = 0; k < n; ++k) out[k] = top[k] + std::log2(sum[k]);
}

// Calls row(b, mass) for every row; mass [K] collects what rows add, or is null where not wanted.
template <typename Row>
void over_rows(int64_t B, int64_t K, int threads, float* mass, const Row& row) {
  const int64_t rows = std::max(kLeastRows, (B + kMostGroups - 1) / kMostGroups);
  const int64_t groups = (B + rows - 1) / rows;
  Buffer masses(mass ? groups * K : 0);
  parallel_for(groups, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      float* of_group = mass ? masses.data() + g * K : nullptr;
      if (mass) std::fill_n(of_group, K, 0.0f);
      for (int64_t b = g * rows; b < std::min((g + 1) * rows, B); ++b) row(b, of_group);
    }
  });
  if (!mass) return;
  parallel_for(K, kPiece, threads, [&](int64_t begin, int64_t end) {
    std::fill(mass + begin, mass + end, 0.0f);
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t k = begin; k < end; ++k) mass[k] += masses[g * K + k];
  });
}

}  // namespace

void sinkhorn_columns(const float* logits, int64_t B, int64_t K, float scale, int threads,
                      float* log_sum) {
  const SinkhornKernels& kernels = sinkhorn_kernels();
  parallel_for((K + kBlockColumns - 1) / kBlockColumns, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin * kBlockColumns; k < std::min(end * kBlockColumns, K); k += kBlockColumns)
      add_up_columns(kernels, logits + k, B, K, scale, std::min(kBlockColumns, K - k), log_sum + k);
  });
}

void sinkhorn_softmax(const float* logits, const float* shift, int64_t B, int64_t K, float scale,
                      int threads, float* P, float* mass) {
  const SinkhornKernels& kernels = sinkhorn_kernels();
  cpu::ask_for_huge_pages(reinterpret_cast<char*>(P), B * K * sizeof(float));
  over_rows(B, K, threads, mass, [&](int64_t b, float* of_group) {
    float* y = P + b * K;
    const float top = kernels.shifted_max(logits + b * K, shift, K, scale, y);
    const double sum = sum_in_pieces(
        K, [&](int64_t k, int64_t n) -> double { return kernels.exponentials(y + k, n, top); });
    kernels.multiply(y, K, static_cast<float>(1 / sum));
    if (of_group) kernels.add_scaled(y, K, 1.0f, of_group);
  });
}

static float row_scaling(const SinkhornKernels& kernels, const float* y, const float* u, int64_t K) {
  return static_cast<float>(1 / sum_in_pieces(K, [&](int64_t k, int64_t n) -> double {
    return kernels.dot(y + k, u + k, n);
  }));
}

void sinkhorn_mass(const float* P, const float* u, int64_t B, int64_t K, int threads, float* mass) {
  const SinkhornKernels& kernels = sinkhorn_kernels();
  over_rows(B, K, threads, mass, [&](int64_t b, float* of_group) {
    const float* y = P + b * K;
    kernels.add_scaled(y, K, row_scaling(kernels, y, u, K), of_group);
  });
}

void sinkhorn_finish(float* P, const float* u, int64_t B, int64_t K, int threads) {
  const SinkhornKernels& kernels = sinkhorn_kernels();
  over_rows(B, K, threads, nullptr, [&](int64_t b, float*) {
    float* y = P + b * K;
    kernels.multiply_both(y, u, K, row_scaling(kernels, y, u, K));
  });
}

}  // namespace sslops
