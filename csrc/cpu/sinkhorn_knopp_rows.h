// Passes over pieces of logits in one instruction set; see sinkhorn_knopp.cpp.
namespace sslops {
namespace SSLOPS_SET {

static void column_max(const float* x, int64_t n, float scale, float* top) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    const vec z = load(x + j) * all(scale), best = load(top + j);
    store(top + j, z > best ? z : best);
  }
  for (; j < n; ++j) {
    const float z = x[j] * scale;
    top[j] = z > top[j] ? z : top[j];
  }
}

static void column_sum(const float* x, int64_t n, float scale, const float* top, float* sum) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes)
    store(sum + j, load(sum + j) + exp2_of(load(x + j) * all(scale) - load(top + j)));
  for (; j < n; ++j) sum[j] += first_of(exp2_of(all(x[j] * scale - top[j])));
}

static void lower_shift(const float* old, const float* top, int64_t n, float* sum) {
  for (int64_t j = 0; j < n; ++j) sum[j] *= first_of(exp2_of(all(old[j] - top[j])));
}

static float shifted_max(const float* x, const float* shift, int64_t n, float scale, float* y) {
  int64_t j = 0;
  vec tops = all(-__builtin_inff());
  for (; j + kLanes <= n; j += kLanes) {
    const vec z = load(x + j) * all(scale) - load(shift + j);
    store(y + j, z);
    tops = z > tops ? z : tops;
  }
  float top = largest_of(tops);
  for (; j < n; ++j) {
    y[j] = x[j] * scale - shift[j];
    top = y[j] > top ? y[j] : top;
  }
  return top;
}

static void multiply(float* y, int64_t n, float factor) {
  for (int64_t j = 0; j < n; ++j) y[j] *= factor;
}

static void add_scaled(const float* y, int64_t n, float factor, float* sum) {
  for (int64_t j = 0; j < n; ++j) sum[j] += factor * y[j];
}

static void multiply_both(float* y, const float* u, int64_t n, float factor) {
  for (int64_t j = 0; j < n; ++j) y[j] *= u[j] * factor;
}

static const SinkhornKernels kSinkhornKernels = {
    column_max, column_sum, lower_shift, shifted_max,   exponentials,
    multiply,   dot,        add_scaled,  multiply_both,
};

}  // namespace SSLOPS_SET
}  // namespace sslops
