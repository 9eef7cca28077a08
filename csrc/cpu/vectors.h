// Vectors of floats in one instruction set: included by kernels that instruction_sets.h compiles once
// for each of them. Nothing here may call a template of the standard library: its code could be shared
// with, and run on, a machine without these instructions.
namespace sslops {
namespace SSLOPS_SET {

constexpr int64_t kLanes = SSLOPS_LANES;

#if SSLOPS_LANES > 1
typedef float vec __attribute__((vector_size(4 * SSLOPS_LANES)));
typedef float memory_vec __attribute__((vector_size(4 * SSLOPS_LANES), aligned(4), may_alias));
typedef uint32_t bits_vec __attribute__((vector_size(4 * SSLOPS_LANES)));
typedef int32_t whole_vec __attribute__((vector_size(4 * SSLOPS_LANES)));
typedef int32_t memory_whole_vec
    __attribute__((vector_size(4 * SSLOPS_LANES), aligned(4), may_alias));
#else
using vec = float;
using memory_vec = float;
using bits_vec = uint32_t;
using whole_vec = int32_t;
using memory_whole_vec = int32_t;
#endif

static inline vec load(const float* p) { return *reinterpret_cast<const memory_vec*>(p); }
static inline whole_vec load(const int32_t* p) {
  return *reinterpret_cast<const memory_whole_vec*>(p);
}
static inline void store(float* p, vec x) { *reinterpret_cast<memory_vec*>(p) = x; }
static inline vec all(float x) { return x - vec{}; }
static inline whole_vec all(int32_t x) { return x - whole_vec{}; }

static inline float sum_of(vec x) {
  float lane[kLanes], sum = 0;
  store(lane, x);
  for (int64_t v = 0; v < kLanes; ++v) sum += lane[v];
  return sum;
}

static inline float largest_of(vec x) {
  float lane[kLanes];
  store(lane, x);
  float top = lane[0];
  for (int64_t v = 1; v < kLanes; ++v) top = lane[v] > top ? lane[v] : top;
  return top;
}

static inline float first_of(vec x) {
  float lane[kLanes];
  store(lane, x);
  return lane[0];
}

// 2^x: x = n + f with n whole and |f| <= 1/2; 2^f = 1 + f q(f), q the minimax polynomial of degree 5
// (relative error 2e-9); n is added to the exponent bits. Exactly 1 at 0 and 0 below -127; nan
// stays nan. The caller keeps x below 128.
static inline vec exp2_of(vec x) {
  const vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const vec t = x + magic;
  const vec f = x - (t - magic);
  vec q = all(1.53533620e-4f);
  q = q * f + all(1.33988739e-3f);
  q = q * f + all(9.61843692e-3f);
  q = q * f + all(5.55033237e-2f);
  q = q * f + all(2.40226477e-1f);
  q = q * f + all(6.93147182e-1f);
  const vec p = q * f + all(1.0f);
  bits_vec t_bits, p_bits;
  memcpy(&t_bits, &t, sizeof t);
  memcpy(&p_bits, &p, sizeof p);
  p_bits += t_bits << 23;
  vec y;
  memcpy(&y, &p_bits, sizeof y);
  const vec beyond = all(0.0f) > x ? all(0.0f) : x;  // 0 below the range, nan for nan
  return x > all(-127.0f) ? y : beyond;
}

// Passes over n numbers that several kernels take.

static inline float dot(const float* a, const float* b, int64_t n) {
  vec sums = vec{};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) sums += load(a + j) * load(b + j);
  float sum = sum_of(sums);
  for (; j < n; ++j) sum += a[j] * b[j];
  return sum;
}

// y = 2^(y - top); returns the sum.
static inline float exponentials(float* y, int64_t n, float top) {
  vec sums = vec{};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    const vec e = exp2_of(load(y + j) - all(top));
    store(y + j, e);
    sums += e;
  }
  float sum = sum_of(sums);
  for (; j < n; ++j) sum += y[j] = first_of(exp2_of(all(y[j] - top)));
  return sum;
}

}  // namespace SSLOPS_SET
}  // namespace sslops
