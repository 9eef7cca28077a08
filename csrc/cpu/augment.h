// Random views on the CPU: uint8 images and a row of parameters each in, normalised views out.
#pragma once
#include <cstdint>

namespace sslops {

// Columns of the table; sslops/ops/augment/parameters.py says what they mean.
enum ViewColumn {
  kCrop = 0,
  kFlip = 4,
  kAffine = 5,
  kPosterize = 11,
  kFactors = 12,
  kOrder = 16,
  kGrayscale = 20,
  kBlurSigma = 21,
  kSolarize = 22,
  kErase = 23,
  kViewColumns = 27
};

struct Augment {
  const uint8_t* images;  // [B, C, H, W], pixels of a row contiguous
  int64_t stride_b, stride_c, stride_h;
  const float* table;       // [B, kViewColumns], values in range
  const float* statistics;  // [2, C]: mean, 1 / standard deviation
  char* out;                // [B, C, S, S]
  int64_t B, C, H, W, S;
  int64_t cubic, grayscale_first, blur_kernel;
  int64_t dtype;  // of out: Dtype of masking.h
};

namespace cpu {
int64_t augment(const Augment& a, int threads);
}

}  // namespace sslops
