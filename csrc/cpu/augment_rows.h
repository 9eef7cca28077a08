// Passes over rows and planes of a view in one instruction set; see augment.cpp.
namespace sslops {
namespace SSLOPS_SET {

// sum (+)= weight bytes
static void add_bytes(const uint8_t* __restrict__ bytes, int64_t n, float weight, bool first,
                      float* __restrict__ sum) {
  if (first) {
    for (int64_t i = 0; i < n; ++i) sum[i] = weight * bytes[i];
  } else {
    for (int64_t i = 0; i < n; ++i) sum[i] += weight * bytes[i];
  }
}

// out_x = sum_k weights_kx row[start_x + k], within 0 to 1; weights [K, n]
static void gather_taps(const float* __restrict__ row, const int32_t* __restrict__ start,
                        const float* __restrict__ weights, int64_t K, int64_t n,
                        float* __restrict__ out) {
  for (int64_t x = 0; x < n; ++x) out[x] = weights[x] * row[start[x]];
  for (int64_t k = 1; k < K; ++k)
    for (int64_t x = 0; x < n; ++x) out[x] += weights[k * n + x] * row[start[x] + k];
  for (int64_t x = 0; x < n; ++x) {
    const float above = out[x] > 0.0f ? out[x] : 0.0f;
    out[x] = above < 1.0f ? above : 1.0f;
  }
}

// out = sum_k taps_k rows_k
static void weighted_rows(const float* const* rows, const float* taps, int64_t K, int64_t n,
                          float* out) {
  int64_t x = 0;
  for (; x + 2 * kLanes <= n; x += 2 * kLanes) {
    vec a = vec{}, b = vec{};
    for (int64_t k = 0; k < K; ++k) {
      const vec tap = all(taps[k]);
      a += tap * load(rows[k] + x);
      b += tap * load(rows[k] + x + kLanes);
    }
    store(out + x, a);
    store(out + x + kLanes, b);
  }
  for (; x < n; ++x) {
    float sum = 0.0f;
    for (int64_t k = 0; k < K; ++k) sum += taps[k] * rows[k][x];
    out[x] = sum;
  }
}

static inline float clamped(float x) {
  const float above = x > 0.0f ? x : 0.0f;
  return above < 1.0f ? above : 1.0f;
}

// x = clamp(factor x + base)
static void blend(float* __restrict__ x, int64_t n, float factor, float base) {
  for (int64_t i = 0; i < n; ++i) x[i] = clamped(factor * x[i] + base);
}

static inline float luminance(float r, float g, float b) {
  return 0.2989f * r + 0.587f * g + 0.114f * b;
}

// channel = clamp(factor channel + (1 - factor) grey)
static void saturate(float* __restrict__ r, float* __restrict__ g, float* __restrict__ b,
                     int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) {
    const float base = (1.0f - factor) * luminance(r[i], g[i], b[i]);
    r[i] = clamped(factor * r[i] + base);
    g[i] = clamped(factor * g[i] + base);
    b[i] = clamped(factor * b[i] + base);
  }
}

static void make_grey(float* __restrict__ r, float* __restrict__ g, float* __restrict__ b,
                      int64_t n) {
  for (int64_t i = 0; i < n; ++i) r[i] = g[i] = b[i] = luminance(r[i], g[i], b[i]);
}

static float plane_sum(const float* x, int64_t n) {
  vec sums = vec{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sums += load(x + i);
  float sum = sum_of(sums);
  for (; i < n; ++i) sum += x[i];
  return sum;
}

// value - chroma max(0, min(k, 4 - k, 1)), k modulo 6
static inline float hue_channel(float value, float chroma, float k) {
  const float turns = k * (1.0f / 6.0f);
  const float cut = static_cast<float>(static_cast<int32_t>(turns));
  k -= 6.0f * (cut > turns ? cut - 1.0f : cut);
  const float other = 4.0f - k;
  const float least = k < other ? k : other;
  return value - chroma * clamped(least);
}

static void turn_hue(float* __restrict__ r, float* __restrict__ g, float* __restrict__ b,
                     int64_t n, float shift) {
  for (int64_t i = 0; i < n; ++i) {
    const float red = r[i], green = g[i], blue = b[i];
    const float rg_top = red > green ? red : green, rg_low = red < green ? red : green;
    const float value = rg_top > blue ? rg_top : blue, low = rg_low < blue ? rg_low : blue;
    const float chroma = value - low, scale = 1.0f / (chroma == 0.0f ? 1.0f : chroma);
    const float at_red = (green - blue) * scale, at_green = (blue - red) * scale + 2.0f;
    const float at_blue = (red - green) * scale + 4.0f;
    const float other = value == green ? at_green : at_blue;
    const float hue = (value == red ? at_red : other) + 6.0f * shift;
    r[i] = hue_channel(value, chroma, hue + 5.0f);
    g[i] = hue_channel(value, chroma, hue + 3.0f);
    b[i] = hue_channel(value, chroma, hue + 1.0f);
  }
}

static void solarize(float* __restrict__ x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] >= 128.0f / 255.0f ? 1.0f - x[i] : x[i];
}

// Keeps the first bits of each grey level; step = 2^(8 - bits).
static void posterize(float* __restrict__ x, int64_t n, float step) {
  const float magic = 12582912.0f;  // adding it rounds to a whole number
  for (int64_t i = 0; i < n; ++i) {
    const float level = (x[i] * 255.0f + magic) - magic;
    x[i] = static_cast<float>(static_cast<int32_t>(level / step)) * step * (1.0f / 255.0f);
  }
}

// out = (x - mean) scale
static void normalize(const float* __restrict__ x, int64_t n, float mean, float scale,
                      float* __restrict__ out) {
  for (int64_t i = 0; i < n; ++i) out[i] = (x[i] - mean) * scale;
}

static const ViewKernels kViewKernels = {add_bytes, gather_taps, weighted_rows, blend,    saturate,
                                         make_grey, plane_sum,   turn_hue,      solarize, posterize,
                                         normalize};

}  // namespace SSLOPS_SET
}  // namespace sslops
