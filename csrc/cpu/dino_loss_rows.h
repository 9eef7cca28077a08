// Passes over a piece of a row of logits in one instruction set; see dino_loss.cpp.
namespace sslops {
namespace SSLOPS_SET {

static float scaled_max(const float* x, const float* center, int64_t n, float scale, float* y) {
  int64_t j = 0;
  vec tops = all(-__builtin_inff());
  for (; j + kLanes <= n; j += kLanes) {
    vec v = load(x + j);
    if (center) v -= load(center + j);
    v *= all(scale);
    store(y + j, v);
    tops = v > tops ? v : tops;
  }
  float top = largest_of(tops);
  for (; j < n; ++j) {
    y[j] = (x[j] - (center ? center[j] : 0.0f)) * scale;
    top = y[j] > top ? y[j] : top;
  }
  return top;
}

static void compare(const float* y, const float* target, int64_t n, float top, float* sum,
                    float* apart, float* mass) {
  vec sums = vec{}, aparts = vec{}, masses = vec{};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    const vec below = load(y + j) - all(top), q = load(target + j);
    sums += exp2_of(below);
    aparts -= q * below;
    masses += q;
  }
  *sum = sum_of(sums), *apart = sum_of(aparts), *mass = sum_of(masses);
  for (; j < n; ++j) {
    const float below = y[j] - top;
    *sum += first_of(exp2_of(all(below)));
    *apart -= target[j] * below;
    *mass += target[j];
  }
}

static void add_scaled(const float* x, int64_t n, float scale, bool first, float* y) {
  for (int64_t j = 0; j < n; ++j) y[j] = scale * x[j] + (first ? 0.0f : y[j]);
}

static void gradient(const float* x, const float* target, int64_t n, float scale, float top,
                     float log_sum, float mass, float upstream, float* out) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    const vec p = exp2_of(load(x + j) * all(scale) - all(top) - all(log_sum));
    store(out + j, all(upstream) * (all(mass) * p - load(target + j)));
  }
  for (; j < n; ++j) {
    const float p = first_of(exp2_of(all(x[j] * scale - top - log_sum)));
    out[j] = upstream * (mass * p - target[j]);
  }
}

static void probabilities(const float* x, const float* center, int64_t n, float scale, float top,
                          float log_sum, float* y) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    vec v = load(x + j);
    if (center) v -= load(center + j);
    store(y + j, exp2_of(v * all(scale) - all(top) - all(log_sum)));
  }
  for (; j < n; ++j) {
    const float v = (x[j] - (center ? center[j] : 0.0f)) * scale - top - log_sum;
    y[j] = first_of(exp2_of(all(v)));
  }
}

static const DinoKernels kDinoKernels = {scaled_max, exponentials, compare,
                                         add_scaled, gradient,     probabilities};

}  // namespace SSLOPS_SET
}  // namespace sslops
