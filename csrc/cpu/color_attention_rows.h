// Passes over one row of scores in one instruction set; see color_attention.h and instruction_sets.h.
namespace sslops {
namespace SSLOPS_SET {

constexpr float kLog2E = 1.44269504088896340736f;

static float row_max(const float* s, int64_t n) {
  float best = s[0];
  int64_t j = 0;
  if (n >= kLanes) {
    vec top = load(s);
    for (j = kLanes; j + kLanes <= n; j += kLanes) {
      const vec x = load(s + j);
      top = x > top ? x : top;
    }
    float lane[kLanes];
    store(lane, top);
    for (int64_t v = 0; v < kLanes; ++v) best = lane[v] > best ? lane[v] : best;
  }
  for (; j < n; ++j) best = s[j] > best ? s[j] : best;
  return best;
}

static float softmax(float* s, int64_t n, float top) {
  vec sums = vec{};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    const vec e = exp2_of((load(s + j) - all(top)) * all(kLog2E));
    store(s + j, e);
    sums += e;
  }
  float sum = sum_of(sums);
  for (; j < n; ++j) sum += s[j] = first_of(exp2_of(all((s[j] - top) * kLog2E)));
  return sum;
}

static void softmax_backward(float* s, float* dA, int64_t n, float top, float log_sum,
                             float delta) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    const vec a = exp2_of((load(s + j) - all(top)) * all(kLog2E) - all(log_sum));
    store(s + j, a * (load(dA + j) - all(delta)));
    store(dA + j, a);
  }
  for (; j < n; ++j) {
    const float a = first_of(exp2_of(all((s[j] - top) * kLog2E - log_sum)));
    s[j] = a * (dA[j] - delta);
    dA[j] = a;
  }
}

static void match(const float* s, const int32_t* labels, int64_t n, int32_t label, float top,
                  float* right, float* wrong) {
  vec rights = vec{}, wrongs = vec{};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    const vec e = exp2_of((load(s + j) - all(top)) * all(kLog2E));
    const auto same = load(labels + j) == all(label);
    rights += same ? e : vec{};
    wrongs += same ? vec{} : e;
  }
  *right = sum_of(rights);
  *wrong = sum_of(wrongs);
  for (; j < n; ++j) {
    const float e = first_of(exp2_of(all((s[j] - top) * kLog2E)));
    *(labels[j] == label ? right : wrong) += e;
  }
}

static void match_backward(float* s, const int32_t* labels, int64_t n, int32_t label, float top,
                           float log_sum, float right, float wrong) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    const vec a = exp2_of((load(s + j) - all(top)) * all(kLog2E) - all(log_sum));
    store(s + j, a * (load(labels + j) == all(label) ? all(right) : all(wrong)));
  }
  for (; j < n; ++j) {
    const float a = first_of(exp2_of(all((s[j] - top) * kLog2E - log_sum)));
    s[j] = a * (labels[j] == label ? right : wrong);
  }
}

// The first position from j on that starts a block of scores of which one is not at most `bound` (a
// nan counts), or the last few.
static int64_t skip_small(const float* s, int64_t j, int64_t n, float bound) {
  for (; j + kSkipped <= n; j += kSkipped) {
    vec larger = vec{};
    for (int64_t v = 0; v < kSkipped; v += kLanes)
      larger += load(s + j + v) <= all(bound) ? vec{} : all(1.0f);
    if (sum_of(larger) > 0) break;
  }
  return j;
}

static void add_scaled(float* to, float scale, const float* from, int64_t n) {
  int64_t d = 0;
  for (; d + kLanes <= n; d += kLanes) store(to + d, load(to + d) + all(scale) * load(from + d));
  for (; d < n; ++d) to[d] += scale * from[d];
}

static const RowKernels kRowKernels = {row_max, softmax, softmax_backward, match, match_backward,
                                       skip_small, dot, add_scaled};

}  // namespace SSLOPS_SET
}  // namespace sslops
