// Random views on the CPU, a sample at a time: its planes stay in the cache while crop, colours,
// blur and normalisation pass over them, so that memory sees each image and each view once.
#include "cpu/augment.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "common.cuh"
#include "masking.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace sslops {

struct ViewKernels {
  void (*add_bytes)(const uint8_t* bytes, int64_t n, float weight, bool first, float* sum);
  void (*gather_taps)(const float* row, const int32_t* start, const float* weights, int64_t K,
                      int64_t n, float* out);
  void (*weighted_rows)(const float* const* rows, const float* taps, int64_t K, int64_t n,
                        float* out);
  void (*blend)(float* x, int64_t n, float factor, float base);
  void (*saturate)(float* r, float* g, float* b, int64_t n, float factor);
  void (*make_grey)(float* r, float* g, float* b, int64_t n);
  float (*plane_sum)(const float* x, int64_t n);
  void (*turn_hue)(float* r, float* g, float* b, int64_t n, float shift);
  void (*solarize)(float* x, int64_t n);
  void (*posterize)(float* x, int64_t n, float step);
  void (*normalize)(const float* x, int64_t n, float mean, float scale, float* out);
};

}  // namespace sslops

#define SSLOPS_KERNELS "cpu/augment_rows.h"
#include "cpu/instruction_sets.h"

namespace sslops::cpu {
namespace {

enum Operation { kBrightness, kContrast, kSaturation, kHue };
constexpr float kGrey[] = {0.2989f, 0.587f, 0.114f};
constexpr float kLeastTap = 1e-9f;  // of a blur: smaller ones change no digit

const ViewKernels& view_kernels() {
  static const ViewKernels* const sets[] = {SSLOPS_TABLES(kViewKernels)};
  return *sets[instruction_set()];
}

float filter(double x, bool cubic) {
  x = std::fabs(x);
  if (!cubic) return static_cast<float>(std::max(0.0, 1 - x));
  if (x < 1) return static_cast<float>((1.5 * x - 2.5) * x * x + 1);  // Keys's cubic, a = -1/2
  return static_cast<float>(x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0);
}

// The pixels of a line of `length`, and their weights, in each pixel of the line resized to S.
struct Taps {
  std::vector<int32_t> start;  // [S]
  std::vector<float> weights;  // [K, S], 0 beyond a pixel's own taps
  int64_t K;

  void fill(int64_t length, int64_t S, bool cubic, bool mirrored) {
    const double scale = static_cast<double>(length) / S, wide = std::max(scale, 1.0);
    const double reach = (cubic ? 2 : 1) * wide;
    K = static_cast<int64_t>(2 * reach) + 2;
    start.resize(S);
    weights.assign(K * S, 0.0f);
    for (int64_t i = 0; i < S; ++i) {
      const double centre = scale * (i + 0.5);
      const auto low = std::max<int64_t>(static_cast<int64_t>(std::floor(centre - reach + 0.5)), 0);
      const auto high = std::min<int64_t>(static_cast<int64_t>(centre + reach + 0.5), length);
      const int64_t x = mirrored ? S - 1 - i : i;
      double sum = 0;
      for (int64_t j = low; j < high; ++j)
        sum += weights[(j - low) * S + x] = filter((j - centre + 0.5) / wide, cubic);
      for (int64_t j = low; j < high; ++j)
        weights[(j - low) * S + x] = static_cast<float>(weights[(j - low) * S + x] / sum);
      start[x] = static_cast<int32_t>(low);
    }
    while (K > 1 && std::all_of(&weights[(K - 1) * S], &weights[(K - 1) * S] + S,
                                [](float w) { return w == 0.0f; }))
      --K;
  }
};

// One sample at a time: its planes and what the passes over them need besides.
class View {
 public:
  explicit View(const Augment& a)
      : a_(a), kernels_(view_kernels()), area_(a.S * a.S), planes_(a.C * area_), scratch_(area_) {}

  void make(int64_t b) {
    const float* row = a_.table + b * kViewColumns;
    crop(a_.images + b * a_.stride_b, row);
    affine(row + kAffine);
    if (row[kPosterize] < 8)
      kernels_.posterize(planes_.data(), a_.C * area_, std::exp2(8 - row[kPosterize]));
    const bool is_grey = row[kGrayscale] > 0 && a_.C == 3;
    if (is_grey && a_.grayscale_first) kernels_.make_grey(plane(0), plane(1), plane(2), area_);
    for (int turn = 0; turn < 4; ++turn) {
      const int operation = static_cast<int>(row[kOrder + turn]);
      jitter(operation, row[kFactors + operation]);
    }
    if (is_grey && !a_.grayscale_first) kernels_.make_grey(plane(0), plane(1), plane(2), area_);
    if (row[kBlurSigma] > 0) blur(row[kBlurSigma]);
    if (row[kSolarize] > 0) kernels_.solarize(planes_.data(), a_.C * area_);
    with_dtype(a_.dtype, [&](auto type) { write<decltype(type)>(b, row + kErase); });
  }

 private:
  float* plane(int64_t c) { return planes_.data() + c * area_; }

  // Rows first, since a sum of rows needs no index, then columns; black beyond the image.
  void crop(const uint8_t* image, const float* row) {
    const auto top = static_cast<int64_t>(row[0]), left = static_cast<int64_t>(row[1]);
    const auto h = static_cast<int64_t>(row[2]), w = static_cast<int64_t>(row[3]);
    rows_.fill(h, a_.S, a_.cubic, false);
    columns_.fill(w, a_.S, a_.cubic, row[kFlip] > 0);
    const int64_t begin = std::max<int64_t>(left, 0), end = std::min(left + w, a_.W);
    for (int64_t c = 0; c < a_.C; ++c) {
      line_.assign(w + columns_.K, 0.0f);
      for (int64_t y = 0; y < a_.S; ++y) {
        if (begin < end) {
          add_rows(image + c * a_.stride_c + begin, top, y, begin - left, end - begin);
        }
        kernels_.gather_taps(line_.data(), columns_.start.data(), columns_.weights.data(),
                             columns_.K, a_.S, plane(c) + y * a_.S);
      }
    }
  }

  void add_rows(const uint8_t* pixels, int64_t top, int64_t y, int64_t at, int64_t n) {
    bool first = true;
    for (int64_t k = 0; k < rows_.K; ++k) {
      const int64_t from = top + rows_.start[y] + k;
      const float weight = rows_.weights[k * a_.S + y] * (1.0f / 255.0f);
      if (from < 0 || from >= a_.H || weight == 0.0f) continue;
      kernels_.add_bytes(pixels + from * a_.stride_h, n, weight, first, line_.data() + at);
      first = false;
    }
    if (first) std::fill_n(line_.data() + at, n, 0.0f);
  }

  void affine(const float* m) {
    if (m[0] == 1 && m[1] == 0 && m[2] == 0 && m[3] == 0 && m[4] == 1 && m[5] == 0) return;
    const float S = static_cast<float>(a_.S), middle = (S - 1) / 2;
    for (int64_t c = 0; c < a_.C; ++c) {
      for (int64_t y = 0; y < a_.S; ++y) {
        for (int64_t x = 0; x < a_.S; ++x) {
          const float u = x - middle, v = y - middle;
          const float sx = m[0] * u + m[1] * v + m[2] * S / 2 + middle;
          const float sy = m[3] * u + m[4] * v + m[5] * S / 2 + middle;
          scratch_[y * a_.S + x] = between(plane(c), sx, sy);
        }
      }
      std::copy_n(scratch_.data(), area_, plane(c));
    }
  }

  // Bilinear, with 0 beyond the border.
  float between(const float* plane, float x, float y) const {
    const float S = static_cast<float>(a_.S);
    if (!(x > -1 && x < S && y > -1 && y < S)) return 0.0f;
    const float left = std::floor(x), top = std::floor(y), fx = x - left, fy = y - top;
    const auto at = [&](int64_t row, int64_t column) {
      const bool inside = row >= 0 && row < a_.S && column >= 0 && column < a_.S;
      return inside ? plane[row * a_.S + column] : 0.0f;
    };
    const auto i = static_cast<int64_t>(top), j = static_cast<int64_t>(left);
    return (1 - fy) * ((1 - fx) * at(i, j) + fx * at(i, j + 1)) +
           fy * ((1 - fx) * at(i + 1, j) + fx * at(i + 1, j + 1));
  }

  void jitter(int operation, float factor) {
    if (factor == (operation == kHue ? 0.0f : 1.0f)) return;
    if (operation == kBrightness) return kernels_.blend(planes_.data(), a_.C * area_, factor, 0);
    if (operation == kContrast)
      return kernels_.blend(planes_.data(), a_.C * area_, factor, (1 - factor) * mean_grey());
    if (a_.C == 1) {
      if (operation == kSaturation) kernels_.blend(plane(0), area_, 1, 0);
    } else if (operation == kSaturation) {
      kernels_.saturate(plane(0), plane(1), plane(2), area_, factor);
    } else {
      kernels_.turn_hue(plane(0), plane(1), plane(2), area_, factor);
    }
  }

  float mean_grey() {
    double sum = 0;
    for (int64_t c = 0; c < a_.C; ++c) {
      const double weight = a_.C == 1 ? 1.0 : kGrey[c];
      for (int64_t y = 0; y < a_.S; ++y) {
        sum += weight * kernels_.plane_sum(plane(c) + y * a_.S, a_.S);
      }
    }
    return static_cast<float>(sum / area_);
  }

  int64_t reflected(int64_t i) const {
    i = std::abs(i);
    return i < a_.S ? i : 2 * (a_.S - 1) - i;
  }

  // exp(-d^2 / 2 sigma^2) for d = -radius to radius, sum 1, without taps that are next to nothing.
  int64_t gaussian(float sigma) {
    int64_t radius = a_.blur_kernel / 2;
    std::vector<double> half(radius + 1);
    double sum = 0;
    for (int64_t d = 0; d <= radius; ++d) {
      const double ratio = d / static_cast<double>(sigma);
      half[d] = std::exp(-0.5 * ratio * ratio);
      sum += (d ? 2 : 1) * half[d];
    }
    while (radius > 0 && half[radius] < kLeastTap) --radius;
    gaussian_.resize(2 * radius + 1);
    for (int64_t d = -radius; d <= radius; ++d)
      gaussian_[d + radius] = static_cast<float>(half[std::abs(d)] / sum);
    return radius;
  }

  void blur(float sigma) {
    const int64_t radius = gaussian(sigma), K = 2 * radius + 1, S = a_.S;
    std::vector<const float*> rows(K);
    line_.resize(std::max<int64_t>(line_.size(), S + 2 * radius));
    for (int64_t c = 0; c < a_.C; ++c) {
      for (int64_t y = 0; y < S; ++y) {
        for (int64_t k = 0; k < K; ++k) rows[k] = plane(c) + reflected(y + k - radius) * S;
        float* line = line_.data() + radius;
        kernels_.weighted_rows(rows.data(), gaussian_.data(), K, S, line);
        for (int64_t x = 1; x <= radius; ++x) {
          line[-x] = line[reflected(-x)];
          line[S - 1 + x] = line[reflected(S - 1 + x)];
        }
        for (int64_t k = 0; k < K; ++k) rows[k] = line_.data() + k;
        kernels_.weighted_rows(rows.data(), gaussian_.data(), K, S, scratch_.data() + y * S);
      }
      std::copy_n(scratch_.data(), area_, plane(c));
    }
  }

  template <typename Out>
  void write(int64_t b, const float* box) {
    for (int64_t c = 0; c < a_.C; ++c) {
      Out* out = reinterpret_cast<Out*>(a_.out) + (b * a_.C + c) * area_;
      float* normalised = scratch_.data();
      if constexpr (std::is_same_v<Out, float>) normalised = out;
      kernels_.normalize(plane(c), area_, a_.statistics[c], a_.statistics[a_.C + c], normalised);
      erase(normalised, box);
      if constexpr (!std::is_same_v<Out, float>)
        for (int64_t i = 0; i < area_; ++i) out[i] = from_float<Out>(normalised[i]);
    }
  }

  void erase(float* out, const float* box) const {
    const auto inside = [&](float x) {
      return static_cast<int64_t>(std::clamp(x, 0.0f, float(a_.S)));
    };
    const int64_t begin = inside(box[1]), end = inside(box[1] + box[3]);
    for (int64_t y = inside(box[0]); y < inside(box[0] + box[2]); ++y)
      if (begin < end) std::fill(out + y * a_.S + begin, out + y * a_.S + end, 0.0f);
  }

  const Augment& a_;
  const ViewKernels& kernels_;
  const int64_t area_;
  std::vector<float> planes_, scratch_, line_, gaussian_;
  Taps rows_, columns_;
};

}  // namespace

int64_t augment(const Augment& a, int threads) {
  const int64_t bytes = a.B * a.C * a.S * a.S * (a.dtype == kFloat32 ? 4 : 2);
  ask_for_huge_pages(a.out, bytes);
  parallel_for(a.B, at_once(16 * a.C * a.S * a.S), threads, [&](int64_t begin, int64_t end) {
    View view(a);
    for (int64_t b = begin; b < end; ++b) view.make(b);
  });
  return -1;
}

}  // namespace sslops::cpu
