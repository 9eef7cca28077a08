// The DINO loss on the CPU: cross-entropy of student rows against sums of teacher probabilities.
#pragma once
#include <cstdint>

namespace sslops {

// Arrays are float32, row-major and contiguous. Logits are used in units of log 2: scale is
// log2(e) / temperature.
struct DinoLoss {
  const float* student;  // [S, N, K] logits
  const float* teacher;  // [T, N, K] logits, or probabilities where is_probability
  const float* center;   // [K] or null
  const float* weights;  // [S, N] or null; a row of weight 0 is not read
  int64_t S, T, N, K;
  int64_t skip;            // student view s does not look at teacher view s
  int64_t is_probability;  // of the teacher
  const float* scales;     // [2]: student's, teacher's
  int64_t threads;
  float* stats;          // [3, S, N]: largest logit, log of the sum relative to it, target's mass
  float* teacher_stats;  // [2, T, N]: the first two of the teacher
};
void dino_loss_forward(const DinoLoss& d, float* loss);
// upstream [S, N] -> gradient [S, N, K], from what the forward pass left in stats.
void dino_loss_backward(const DinoLoss& d, const float* upstream, float* gradient);

}  // namespace sslops
