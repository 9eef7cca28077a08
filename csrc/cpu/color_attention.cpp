// Colour attention on the CPU; color_attention.h says what each function does.
#include "cpu/color_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/parallel.h"

namespace sslops {

constexpr int64_t kSkipped = 64;  // scores that the search for the largest looks at together

struct RowKernels {
  float (*row_max)(const float* s, int64_t n);
  // s = exp(s - top); returns the sum.
  float (*softmax)(float* s, int64_t n, float top);
  void (*softmax_backward)(float* s, float* dA, int64_t n, float top, float log_sum, float delta);
  void (*match)(const float* s, const int32_t* labels, int64_t n, int32_t label, float top,
                float* right, float* wrong);
  void (*match_backward)(float* s, const int32_t* labels, int64_t n, int32_t label, float top,
                         float log_sum, float right, float wrong);
  int64_t (*skip_small)(const float* s, int64_t j, int64_t n, float bound);
  float (*dot)(const float* a, const float* b, int64_t n);
  void (*add_scaled)(float* to, float scale, const float* from, int64_t n);
};

}  // namespace sslops

#define SSLOPS_KERNELS "cpu/color_attention_rows.h"
#include "cpu/instruction_sets.h"

namespace sslops {
namespace {

const RowKernels& row_kernels() {
  static const RowKernels* const sets[] = {SSLOPS_TABLES(kRowKernels)};
  return *sets[instruction_set()];
}

// Calls body(column, length, cell) for the runs of candidates of a row: columns of the strip, and the
// reference cell of the first of them.
template <typename Body>
void for_each_run(const Strip& strip, int64_t row, const Body& body) {
  if (strip.frames == 0) return body(0, strip.columns, 0);
  const int64_t H = strip.H, W = strip.W, cell = strip.first_cell + row;
  const int64_t y = cell / W, x = cell % W;
  int64_t column = 0;
  for (int64_t f = 0; f < strip.frames; ++f) {
    const auto [radius, first_row, last_row] = strip.bands[f];
    const int64_t left = std::max<int64_t>(0, x - radius), right = std::min(W, x + radius + 1);
    const int64_t top = std::max(first_row, y - radius);
    const int64_t bottom = std::min(last_row, y + radius + 1);
    const auto run = [&](int64_t from, int64_t length) {
      body(column + (from - first_row) * W + left, length, (f * H + from) * W + left);
    };
    if (right - left == W && bottom > top)
      run(top, (bottom - top) * W);
    else if (right > left)
      for (int64_t r = top; r < bottom; ++r) run(r, right - left);
    column += (last_row - first_row) * W;
  }
}

// A row's candidates side by side: in place without a window, else copied out and, with zeros between
// them, back.
class Candidates {
 public:
  Candidates(const Strip& strip, int64_t row, std::vector<float>& scratch)
      : strip_(strip), row_(row), scratch_(scratch) {}

  float* gather(float* row) {
    if (strip_.frames == 0) {
      size = strip_.columns;
      return row;
    }
    scratch_.resize(strip_.columns);
    size = 0;
    for_each_run(strip_, row_, [&](int64_t column, int64_t length, int64_t) {
      std::copy_n(row + column, length, scratch_.data() + size);
      size += length;
    });
    return scratch_.data();
  }

  void scatter(float* row) {
    if (strip_.frames == 0) return;
    std::fill_n(row, strip_.columns, 0.0f);
    const float* from = scratch_.data();
    for_each_run(strip_, row_, [&](int64_t column, int64_t length, int64_t) {
      std::copy_n(from, length, row + column);
      from += length;
    });
  }

  int64_t size = 0;

 private:
  const Strip& strip_;
  const int64_t row_;
  std::vector<float>& scratch_;
};

template <typename Body>
void for_each_row(const Strip& strip, const Body& body) {
  parallel_for(strip.rows, 8, strip.threads, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) body(row);
  });
}

// Orders scores as torch.sort does: nan above all, 0 and -0 equal.
int32_t sort_key(float score) {
  if (score != score) return INT32_MAX;
  if (score == 0) return 0;
  int32_t bits;
  memcpy(&bits, &score, sizeof bits);
  return bits < 0 ? bits ^ INT32_MAX : bits;
}

struct Candidate {
  int32_t key, cell;
  float score;
  // Whether this one is kept rather than the other.
  bool operator<(const Candidate& other) const {
    return key != other.key ? key > other.key : cell < other.cell;
  }
};

// The k best candidates seen so far; the worst of them is in front.
class Best {
 public:
  explicit Best(int64_t k) : k_(k) { heap_.reserve(k + 1); }

  void scan(const float* s, int64_t n, int64_t cell, const RowKernels& kernels) {
    for (int64_t j = 0; j < n;) {
      if (full()) j = kernels.skip_small(s, j, n, heap_.front().score);
      for (const int64_t end = std::min(n, j + kSkipped); j < end; ++j)
        offer({sort_key(s[j]), static_cast<int32_t>(cell + j), s[j]});
    }
  }

  void write(int32_t* index) {
    std::fill_n(index, k_, -1);
    for (size_t t = 0; t < heap_.size(); ++t) index[t] = heap_[t].cell;
    std::sort(index, index + heap_.size());
    heap_.clear();
  }

 private:
  bool full() const { return static_cast<int64_t>(heap_.size()) == k_; }

  void offer(const Candidate& candidate) {
    if (full()) {
      if (!(candidate < heap_.front())) return;
      std::pop_heap(heap_.begin(), heap_.end());
      heap_.pop_back();
    }
    heap_.push_back(candidate);
    std::push_heap(heap_.begin(), heap_.end());
  }

  int64_t k_;
  std::vector<Candidate> heap_;
};

}  // namespace

void color_softmax(const Strip& strip, float* top, float* sum) {
  const RowKernels& kernels = row_kernels();
  for_each_row(strip, [&](int64_t i) {
    thread_local std::vector<float> scratch;
    Candidates candidates(strip, i, scratch);
    float* row = strip.S + i * strip.columns;
    float* s = candidates.gather(row);
    const bool none = candidates.size == 0;
    top[i] = none ? 0.0f : kernels.row_max(s, candidates.size);
    sum[i] = none ? 1.0f : kernels.softmax(s, candidates.size, top[i]);
    candidates.scatter(row);
  });
}

void color_softmax_backward(const Strip& strip, float* dA, const float* top, const float* log_sum,
                            const float* delta) {
  const RowKernels& kernels = row_kernels();
  for_each_row(strip, [&](int64_t i) {
    thread_local std::vector<float> scratch, scratch_dA;
    Candidates candidates(strip, i, scratch), candidates_dA(strip, i, scratch_dA);
    float *row = strip.S + i * strip.columns, *row_dA = dA + i * strip.columns;
    float *s = candidates.gather(row), *a = candidates_dA.gather(row_dA);
    kernels.softmax_backward(s, a, candidates.size, top[i], log_sum[i], delta[i]);
    candidates.scatter(row);
    candidates_dA.scatter(row_dA);
  });
}

void color_top(const Strip& strip, int64_t k, int32_t* index) {
  const RowKernels& kernels = row_kernels();
  parallel_for(strip.rows, 8, strip.threads, [&](int64_t first, int64_t last) {
    Best best(k);
    for (int64_t i = first; i < last; ++i) {
      const float* row = strip.S + i * strip.columns;
      for_each_run(strip, i, [&](int64_t column, int64_t length, int64_t cell) {
        best.scan(row + column, length, cell, kernels);
      });
      best.write(index + i * k);
    }
  });
}

void color_match(const Strip& strip, const int32_t* row_labels, const int32_t* column_labels,
                 float* top, float* right_sum, float* wrong_sum) {
  const RowKernels& kernels = row_kernels();
  for_each_row(strip, [&](int64_t i) {
    const float* s = strip.S + i * strip.columns;
    top[i] = kernels.row_max(s, strip.columns);
    kernels.match(s, column_labels, strip.columns, row_labels[i], top[i], right_sum + i,
                  wrong_sum + i);
  });
}

void color_match_backward(const Strip& strip, const int32_t* row_labels,
                          const int32_t* column_labels, const float* top, const float* log_sum,
                          const float* right_weight, const float* wrong_weight) {
  const RowKernels& kernels = row_kernels();
  for_each_row(strip, [&](int64_t i) {
    kernels.match_backward(strip.S + i * strip.columns, column_labels, strip.columns,
                           row_labels[i], top[i], log_sum[i], right_weight[i], wrong_weight[i]);
  });
}

void color_gather(const Gather& g, float* weights, float* out) {
  const RowKernels& kernels = row_kernels();
  parallel_for(g.B * g.Nt, 16, g.threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const float* reference = g.reference + i / g.Nt * g.Nr * g.D;
      const float* values = g.values + i / g.Nt * g.Nr * g.C;
      const int32_t* index = g.index + i * g.k;
      float *w = weights + i * g.k, *to = out + i * g.C;
      int64_t count = 0;
      for (; count < g.k && index[count] >= 0; ++count)
        w[count] = kernels.dot(g.target + i * g.D, reference + index[count] * g.D, g.D);
      std::fill(w + count, w + g.k, 0.0f);
      std::fill_n(to, g.C, 0.0f);
      if (count == 0) continue;
      const float sum = kernels.softmax(w, count, kernels.row_max(w, count));
      for (int64_t t = 0; t < count; ++t) {
        w[t] /= sum;
        kernels.add_scaled(to, w[t], values + index[t] * g.C, g.C);
      }
    }
  });
}

// scratch = dS, by_target: row i reads and writes only what belongs to target cell i.
static void gather_backward_targets(const Gather& g, const float* grad, const float* weights,
                                    const float* out, float* scratch, float* by_target) {
  const RowKernels& kernels = row_kernels();
  parallel_for(g.B * g.Nt, 16, g.threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const float* reference = g.reference + i / g.Nt * g.Nr * g.D;
      const float* values = g.values + i / g.Nt * g.Nr * g.C;
      const int32_t* index = g.index + i * g.k;
      const float delta = kernels.dot(grad + i * g.C, out + i * g.C, g.C);
      float *dS = scratch + i * g.k, *to = by_target + i * g.D;
      std::fill_n(to, g.D, 0.0f);
      for (int64_t t = 0; t < g.k && index[t] >= 0; ++t) {
        const float dA = kernels.dot(grad + i * g.C, values + index[t] * g.C, g.C);
        dS[t] = weights[i * g.k + t] * (dA - delta);
        kernels.add_scaled(to, dS[t], reference + index[t] * g.D, g.D);
      }
    }
  });
}

void color_gather_backward(const Gather& g, const float* grad, const float* weights,
                           const float* out, float* scratch, float* by_target,
                           float* by_reference, float* by_values) {
  gather_backward_targets(g, grad, weights, out, scratch, by_target);
  const RowKernels& kernels = row_kernels();
  // A piece owns some reference cells and adds what all target cells send there, in their order: the
  // same sum whatever the number of threads.
  const int64_t pieces = 4, cells = (g.Nr + pieces - 1) / pieces;
  parallel_for(g.B * pieces, 1, g.threads, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t b = piece / pieces, first = piece % pieces * cells;
      const int64_t last = std::min(g.Nr, first + cells);
      if (first >= last) continue;
      float *to_reference = by_reference + b * g.Nr * g.D, *to_values = by_values + b * g.Nr * g.C;
      std::fill(to_reference + first * g.D, to_reference + last * g.D, 0.0f);
      std::fill(to_values + first * g.C, to_values + last * g.C, 0.0f);
      for (int64_t i = b * g.Nt; i < (b + 1) * g.Nt; ++i)
        for (int64_t t = 0; t < g.k; ++t) {
          const int64_t n = i * g.k + t, cell = g.index[n];
          if (cell < first || cell >= last) continue;
          kernels.add_scaled(to_reference + cell * g.D, scratch[n], g.target + i * g.D, g.D);
          kernels.add_scaled(to_values + cell * g.C, weights[n], grad + i * g.C, g.C);
        }
    }
  });
}

}  // namespace sslops
