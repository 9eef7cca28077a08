// The kernels of tiles.h for one instruction set; see instruction_sets.h.
namespace sslops {
namespace SSLOPS_SET {

// Rows of a register block: that many x 2 vectors must fit the registers.
constexpr int64_t kBlockRows = kLanes == 16 ? 8 : 4;
constexpr int64_t kBlockColumns = 2 * kLanes;
static_assert(kPanel % kBlockColumns == 0 && kPanel % kBlockRows == 0, "blocks tile a panel");

// C [kBlockRows, kBlockColumns] (+)= sum_k A(k, m) B(k, n), A(k, m) at A[m * am + k * ak], B's rows
// a panel apart. The accumulators stay in registers.
template <int64_t am, int64_t ak, bool add>
static inline void block(int64_t K, const float* A, const float* B, float* C, int64_t c_stride) {
  vec sum[kBlockRows][2];
#pragma GCC unroll 16
  for (int64_t m = 0; m < kBlockRows; ++m) sum[m][0] = sum[m][1] = vec{};
  for (int64_t k = 0; k < K; ++k) {
    const vec b0 = load(B + k * kPanel), b1 = load(B + k * kPanel + kLanes);
#pragma GCC unroll 16
    for (int64_t m = 0; m < kBlockRows; ++m) {
      const vec a = all(A[m * am + k * ak]);
      sum[m][0] += a * b0;
      sum[m][1] += a * b1;
    }
  }
#pragma GCC unroll 16
  for (int64_t m = 0; m < kBlockRows; ++m) {
    float* c = C + m * c_stride;
    store(c, add ? load(c) + sum[m][0] : sum[m][0]);
    store(c + kLanes, add ? load(c + kLanes) + sum[m][1] : sum[m][1]);
  }
}

template <int64_t am, int64_t ak, bool add>
static inline void panel(int64_t K, const float* A, const float* B, float* C, int64_t c_stride) {
  for (int64_t n = 0; n < kPanel; n += kBlockColumns)
    block<am, ak, add>(K, A, B + n, C + n, c_stride);
}

static void scores(const float* a, const float* b, int64_t rows, int64_t columns, int64_t D,
                   float* S) {
  for (int64_t j = 0; j < columns; j += kPanel)
    for (int64_t i = 0; i < rows; i += kBlockRows)
      panel<1, kPanel, false>(D, a + i / kPanel * kPanel * D + i % kPanel, b + j * D,
                              S + i * kTileStride + j, kTileStride);
}

static void add_product(const float* G, int64_t rows, int64_t columns, int64_t D_panels,
                        const float* b, int64_t b_stride, float* c, int64_t c_stride) {
  for (int64_t d = 0; d < D_panels; ++d)
    for (int64_t i = 0; i < rows; i += kBlockRows)
      panel<kTileStride, 1, true>(columns, G + i * kTileStride, b + d * b_stride,
                                  c + d * c_stride + i * kPanel, kPanel);
}

static void add_transposed_product(const float* G, int64_t rows, int64_t columns, int64_t D_panels,
                                   const float* a, int64_t a_stride, float* c, int64_t c_stride) {
  for (int64_t d = 0; d < D_panels; ++d)
    for (int64_t j = 0; j < columns; j += kBlockRows)
      panel<1, kTileStride, true>(rows, G + j, a + d * a_stride, c + d * c_stride + j * kPanel,
                                  kPanel);
}

static void exp2(const float* x, int64_t count, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, exp2_of(load(x + i)));
  for (; i < count; ++i) {
    float lane[kLanes];
    store(lane, exp2_of(all(x[i])));
    y[i] = lane[0];
  }
}

static void count_larger(const float* S, int64_t rows, int64_t columns, const float* value,
                         float* count) {
  for (int64_t i = 0; i < rows; ++i, S += kTileStride) {
    vec larger = vec{};
    for (int64_t j = 0; j < columns; j += kLanes)
      larger += load(S + j) > all(value[i]) ? all(1.0f) : all(0.0f);
    count[i] += sum_of(larger);
  }
}

static void count_larger_columns(const float* S, int64_t rows, int64_t columns, const float* value,
                                 float* count) {
  for (int64_t i = 0; i < rows; ++i, S += kTileStride)
    for (int64_t j = 0; j < columns; j += kLanes)
      store(count + j, load(count + j) +
                           (load(S + j) > load(value + j) ? all(1.0f) : all(0.0f)));
}

static void row_max(const float* S, int64_t rows, int64_t columns, float* top) {
  for (int64_t i = 0; i < rows; ++i, S += kTileStride) {
    vec best = all(top[i]);
    for (int64_t j = 0; j < columns; j += kLanes) {
      const vec s = load(S + j);
      best = s > best ? s : best;
    }
    float lane[kLanes];
    store(lane, best);
    for (int64_t v = 0; v < kLanes; ++v) top[i] = lane[v] > top[i] ? lane[v] : top[i];
  }
}

static void column_max(const float* S, int64_t rows, int64_t columns, float* top) {
  for (int64_t i = 0; i < rows; ++i, S += kTileStride)
    for (int64_t j = 0; j < columns; j += kLanes) {
      const vec s = load(S + j), best = load(top + j);
      store(top + j, s > best ? s : best);
    }
}

static void exp_rows(float* S, int64_t rows, int64_t columns, float k, const float* shift,
                     const float* offset, float* sum) {
  for (int64_t i = 0; i < rows; ++i, S += kTileStride) {
    vec total = vec{};
    for (int64_t j = 0; j < columns; j += kLanes) {
      const vec e = exp2_of((load(S + j) - all(shift[i])) * all(k) - all(offset[i]));
      store(S + j, e);
      total += e;
    }
    sum[i] += sum_of(total);
  }
}

static void sum_both(const float* S, int64_t rows, int64_t columns, float k, float shift,
                     float* row_sum, float* column_sum) {
  for (int64_t i = 0; i < rows; ++i, S += kTileStride) {
    vec total = vec{};
    for (int64_t j = 0; j < columns; j += kLanes) {
      const vec e = exp2_of((load(S + j) - all(shift)) * all(k));
      store(column_sum + j, load(column_sum + j) + e);
      total += e;
    }
    row_sum[i] += sum_of(total);
  }
}

static void sum_both_shifted(const float* S, int64_t rows, int64_t columns, float k,
                             const float* row_shift, float* row_sum, const float* column_shift,
                             float* column_sum) {
  for (int64_t i = 0; i < rows; ++i, S += kTileStride) {
    vec total = vec{};
    for (int64_t j = 0; j < columns; j += kLanes) {
      const vec s = load(S + j);
      total += exp2_of((s - all(row_shift[i])) * all(k));
      const vec e = exp2_of((s - load(column_shift + j)) * all(k));
      store(column_sum + j, load(column_sum + j) + e);
    }
    row_sum[i] += sum_of(total);
  }
}

static void weigh_both(float* S, int64_t rows, int64_t columns, float k, float shift,
                       const float* row_weight, const float* column_weight) {
  for (int64_t i = 0; i < rows; ++i, S += kTileStride)
    for (int64_t j = 0; j < columns; j += kLanes) {
      const vec e = exp2_of((load(S + j) - all(shift)) * all(k));
      store(S + j, e * (all(row_weight[i]) + load(column_weight + j)));
    }
}

static void weigh_both_shifted(float* S, int64_t rows, int64_t columns, float k, Softmax row,
                               Softmax column) {
  for (int64_t i = 0; i < rows; ++i, S += kTileStride)
    for (int64_t j = 0; j < columns; j += kLanes) {
      const vec s = load(S + j);
      const vec p = exp2_of((s - all(row.shift[i])) * all(k) - all(row.offset[i]));
      const vec c = exp2_of((s - load(column.shift + j)) * all(k) - load(column.offset + j));
      store(S + j, all(row.weight[i]) * p + load(column.weight + j) * c);
    }
}

static const TileKernels kKernels = {
    scores,     add_product, add_transposed_product, exp2,
    count_larger, count_larger_columns, row_max, column_max,
    exp_rows,     sum_both,   sum_both_shifted, weigh_both, weigh_both_shifted,
};

}  // namespace SSLOPS_SET
}  // namespace sslops
