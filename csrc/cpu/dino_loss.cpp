// The DINO loss on the CPU, an image at a time: the teacher's probabilities of all views stay in the
// cache while every student row is read once, forward, and read and written once, backward.
//
//   loss_s = w_s sum_k Q_sk (lse_s - z_sk),   Q_s = sum_{t != s} P_t,   z = student / temperature
//   d loss_s / d z_sk = w_s (mass(Q_s) softmax(z_s)_k - Q_sk)
#include "cpu/dino_loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/parallel.h"

namespace sslops {

struct DinoKernels {
  // y = (x - center) * scale, center may be null; returns the largest y.
  float (*scaled_max)(const float* x, const float* center, int64_t n, float scale, float* y);
  // y = 2^(y - top); returns the sum.
  float (*exponentials)(float* y, int64_t n, float top);
  // Sums over the piece: of 2^(y - top), of target (top - y), of the target.
  void (*compare)(const float* y, const float* target, int64_t n, float top, float* sum,
                  float* apart, float* mass);
  // y = scale x, plus y unless it is the first.
  void (*add_scaled)(const float* x, int64_t n, float scale, bool first, float* y);
  // out = upstream (mass 2^(x scale - top - log_sum) - target)
  void (*gradient)(const float* x, const float* target, int64_t n, float scale, float top,
                   float log_sum, float mass, float upstream, float* out);
  // y = 2^((x - center) scale - top - log_sum)
  void (*probabilities)(const float* x, const float* center, int64_t n, float scale, float top,
                        float log_sum, float* y);
};

}  // namespace sslops

#define SSLOPS_KERNELS "cpu/dino_loss_rows.h"
#include "cpu/instruction_sets.h"

namespace sslops {
namespace {

constexpr float kLn2 = 0.693147180559945309417f;
// float32 sums of this many terms keep their digits; longer rows are summed in double.
constexpr int64_t kPiece = 2048;

const DinoKernels& dino_kernels() {
  static const DinoKernels* const sets[] = {SSLOPS_TABLES(kDinoKernels)};
  return *sets[instruction_set()];
}

template <typename Body>
void in_pieces(int64_t K, const Body& body) {
  for (int64_t k = 0; k < K; k += kPiece) body(k, std::min(kPiece, K - k));
}

// One image: the teacher's probabilities and their sums.
class Image {
 public:
  Image(const DinoLoss& d, const DinoKernels& kernels)
      : d_(d), kernels_(kernels), probabilities_(d.is_probability ? 0 : d.T * d.K), target_(d.K),
        logits_(d.K) {}

  void start(int64_t n) {
    n_ = n;
    target_of_ = -1;
  }

  bool is_selected() const {
    for (int64_t s = 0; s < d_.S; ++s)
      if (weight(s) != 0) return true;
    return false;
  }

  float weight(int64_t s) const { return d_.weights ? d_.weights[s * d_.N + n_] : 1.0f; }

  // Teacher rows to probabilities, which are left without their factor: it is in factor_.
  void forward_teacher() {
    factor_.assign(d_.T, 1.0f);
    for (int64_t t = 0; t < d_.T && !d_.is_probability; ++t) {
      float* y = probabilities_.data() + t * d_.K;
      const float top = largest(teacher(t), d_.center, d_.scales[1], y);
      double sum = 0;
      in_pieces(d_.K, [&](int64_t k, int64_t n) { sum += kernels_.exponentials(y + k, n, top); });
      teacher_stat(0, t) = top;
      teacher_stat(1, t) = static_cast<float>(std::log2(sum));
      factor_[t] = static_cast<float>(1 / sum);
    }
  }

  void recompute_teacher() {
    factor_.assign(d_.T, 1.0f);
    for (int64_t t = 0; t < d_.T && !d_.is_probability; ++t)
      kernels_.probabilities(teacher(t), d_.center, d_.K, d_.scales[1], teacher_stat(0, t),
                             teacher_stat(1, t), probabilities_.data() + t * d_.K);
  }

  // The summed target of a student view; the views beyond the teacher's share one.
  const float* target(int64_t s) {
    const int64_t left_out = d_.skip && s < d_.T ? s : d_.T;
    if (target_of_ == left_out) return target_.data();
    target_of_ = left_out;
    bool first = true;
    for (int64_t t = 0; t < d_.T; ++t)
      if (t != left_out) {
        const float* p = d_.is_probability ? teacher(t) : probabilities_.data() + t * d_.K;
        kernels_.add_scaled(p, d_.K, factor_[t], first, target_.data());
        first = false;
      }
    if (first) std::fill(target_.begin(), target_.end(), 0.0f);
    return target_.data();
  }

  float forward_row(int64_t s) {
    const float* Q = target(s);
    const float top = largest(student(s), nullptr, d_.scales[0], logits_.data());
    double sum = 0, apart = 0, mass = 0;
    in_pieces(d_.K, [&](int64_t k, int64_t n) {
      float part[3];
      kernels_.compare(logits_.data() + k, Q + k, n, top, part, part + 1, part + 2);
      sum += part[0], apart += part[1], mass += part[2];
    });
    const double log_sum = std::log2(sum);
    stat(0, s) = top;
    stat(1, s) = static_cast<float>(log_sum);
    stat(2, s) = static_cast<float>(mass);
    return static_cast<float>((mass * log_sum + apart) * kLn2);
  }

  void backward_row(int64_t s, float upstream, float* out) {
    kernels_.gradient(student(s), target(s), d_.K, d_.scales[0], stat(0, s), stat(1, s),
                      stat(2, s), upstream, out);
  }

 private:
  const float* teacher(int64_t t) const { return d_.teacher + (t * d_.N + n_) * d_.K; }
  const float* student(int64_t s) const { return d_.student + (s * d_.N + n_) * d_.K; }
  float& stat(int64_t i, int64_t s) { return d_.stats[(i * d_.S + s) * d_.N + n_]; }
  float& teacher_stat(int64_t i, int64_t t) {
    return d_.teacher_stats[(i * d_.T + t) * d_.N + n_];
  }

  float largest(const float* x, const float* center, float scale, float* y) const {
    return kernels_.scaled_max(x, center, d_.K, scale, y);
  }

  const DinoLoss& d_;
  const DinoKernels& kernels_;
  std::vector<float> probabilities_, target_, logits_, factor_;
  int64_t n_ = 0, target_of_ = -1;
};

template <typename Body>
void for_each_image(const DinoLoss& d, const Body& body) {
  const DinoKernels& kernels = dino_kernels();
  parallel_for(d.N, 1, static_cast<int>(d.threads), [&](int64_t begin, int64_t end) {
    Image image(d, kernels);
    for (int64_t n = begin; n < end; ++n) {
      image.start(n);
      body(image, n);
    }
  });
}

}  // namespace

void dino_loss_forward(const DinoLoss& d, float* loss) {
  for_each_image(d, [&](Image& image, int64_t n) {
    const bool is_selected = image.is_selected();
    if (is_selected) image.forward_teacher();
    for (int64_t s = 0; s < d.S; ++s) {
      const float w = image.weight(s);
      loss[s * d.N + n] = w != 0 ? w * image.forward_row(s) : 0.0f;
    }
  });
}

void dino_loss_backward(const DinoLoss& d, const float* upstream, float* gradient) {
  for_each_image(d, [&](Image& image, int64_t n) {
    if (image.is_selected()) image.recompute_teacher();
    for (int64_t s = 0; s < d.S; ++s) {
      const int64_t row = s * d.N + n;
      float* out = gradient + row * d.K;
      if (image.weight(s) != 0)
        image.backward_row(s, upstream[row] * image.weight(s), out);
      else
        std::fill_n(out, d.K, 0.0f);
    }
  });
}

}  // namespace sslops
