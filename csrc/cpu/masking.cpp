// The masking kernels on the CPU; csrc/masking.h says what each of them does.
#include "masking.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "common.cuh"
#include "parallel.h"
#include "rows.h"

namespace sslops::cpu {
namespace {

constexpr int64_t kSortCost = 16;  // of a token, in elements copied

// Sort keys of the tokens of sample b: its noise, made unique by the index.
void fill_keys(const RandomMasking& a, int64_t b, uint64_t* keys) {
  if (a.noise) {
    for (int64_t i = 0; i < a.L; ++i) keys[i] = pack_key(a.noise[b * a.L + i], i);
    return;
  }
  const Counter counter{static_cast<uint64_t>(a.seed),
                        static_cast<uint32_t>(a.device_step ? *a.device_step : a.step),
                        static_cast<uint32_t>(a.first_sample)};
  for (int64_t i = 0; i < a.L; i += 4) {
    const Words w = noise_words(counter, b, i / 4);
    const uint32_t words[4] = {w.w0, w.w1, w.w2, w.w3};
    for (int64_t j = i; j < std::min(i + 4, a.L); ++j) keys[j] = pack_key(uniform(words[j - i]), j);
  }
}

void write_ids(const RandomMasking& a, int64_t b, const uint64_t* keys) {
  for (int64_t rank = 0; rank < a.L; ++rank) {
    const int64_t token = key_index(keys[rank]);
    a.ids_restore[b * a.L + token] = rank;
    a.mask[b * a.L + token] = rank < a.n_keep ? 0.0f : 1.0f;
    if (a.ids_keep && rank < a.n_keep) a.ids_keep[b * a.n_keep + rank] = token;
  }
}

void gather_kept(const RandomMasking& a, int64_t b, const uint64_t* keys) {
  const int64_t rows = a.P + a.n_keep;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t from = row < a.P ? row : a.P + key_index(keys[row - a.P]);
    memcpy(a.x_kept + (b * rows + row) * a.row_bytes,
           a.x + b * a.batch_stride + from * a.row_stride, a.row_bytes);
  }
}

template <typename From, typename To>
void move_row(To* out, const From* source, int64_t D) {
  if constexpr (std::is_same_v<From, To>) {
    memcpy(out, source, D * sizeof(To));
  } else {
    for (int64_t d = 0; d < D; ++d) out[d] = convert<To>(source[d]);
  }
}

template <typename From, typename To>
int64_t scatter_typed(const ScatterRows& a, int threads) {
  FirstBad bad;
  ask_for_huge_pages(a.out, a.B * (a.P + a.n_out) * a.D * sizeof(To));
  const int64_t cost = (a.P + a.n_out) * a.D;
  parallel_for(a.B, at_once(cost), threads, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> position(a.n_out);
    for (int64_t b = begin; b < end; ++b) {
      const From* source = reinterpret_cast<const From*>(a.source) + b * (a.P + a.n_source) * a.D;
      To* out = reinterpret_cast<To*>(a.out) + b * (a.P + a.n_out) * a.D;
      invert(a.ids + b * a.n_source, a.n_source, b * a.n_source, position, bad);
      for (int64_t row = 0; row < a.P + a.n_out; ++row, out += a.D) {
        const int64_t from = source_row(row, a.P, position.data(), a.n_source);
        if (from >= 0) {
          move_row(out, source + from * a.D, a.D);
        } else {
          memset(out, 0, a.D * sizeof(To));
        }
      }
    }
  });
  return bad.get();
}

template <typename In, typename Out>
void restore_row(const In* x, const Out* position, Out* out, int64_t D) {
  if (position) {
    for (int64_t d = 0; d < D; ++d)
      out[d] = from_float<Out>(to_float(x[d]) + to_float(position[d]));
  } else {
    move_row(out, x, D);
  }
}

template <typename In, typename Out>
int64_t restore_typed(const RestoreTokens& a, int threads) {
  FirstBad bad;
  const int64_t rows = a.P + a.L;
  const auto* all_positions = reinterpret_cast<const Out*>(a.position);
  const auto* mask_token = reinterpret_cast<const Out*>(a.mask_token);
  ask_for_huge_pages(a.out, a.B * rows * a.D * sizeof(Out));
  parallel_for(a.B * rows, at_once(a.D), threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / rows, row = i % rows, *ids = a.ids + b * a.L;
      if (row >= a.P && !in_range(ids[row - a.P], a.L)) bad.report(b * a.L + row - a.P);
      const Out* position = all_positions;
      if (position) position += (a.position_per_sample ? i : row) * a.D;
      Out* out = reinterpret_cast<Out*>(a.out) + i * a.D;
      const int64_t from = source_row(row, a.P, ids, a.n_keep);
      const char* x = a.x_kept + b * a.batch_stride + from * a.row_stride;
      if (from >= 0) {
        restore_row(reinterpret_cast<const In*>(x), position, out, a.D);
      } else {
        restore_row(mask_token, position, out, a.D);
      }
    }
  });
  return bad.get();
}

template <typename T>
void add_row(float* __restrict__ sum, const T* __restrict__ row, int64_t D) {
  for (int64_t d = 0; d < D; ++d) sum[d] += to_float(row[d]);
}

template <typename T>
void sum_over_batch(const RestoreGradients& a, int64_t s, int64_t row) {
  const int64_t rows = a.P + a.L, out = (s * rows + row) * a.D;
  if (a.token) std::fill_n(a.token + out, a.D, 0.0f);
  if (a.position) std::fill_n(a.position + out, a.D, 0.0f);
  for (int64_t b = a.B * s / a.S; b < a.B * (s + 1) / a.S; ++b) {
    const T* gradient = reinterpret_cast<const T*>(a.gradient) + (b * rows + row) * a.D;
    const bool masked = source_row(row, a.P, a.ids + b * a.L, a.n_keep) < 0;
    if (a.token && masked) add_row(a.token + out, gradient, a.D);
    if (a.position) add_row(a.position + out, gradient, a.D);
  }
}

}  // namespace

int64_t random_masking(const RandomMasking& a, int threads) {
  ask_for_huge_pages(a.x_kept, a.B * (a.P + a.n_keep) * a.row_bytes);
  const int64_t cost = kSortCost * a.L + (a.P + a.n_keep) * a.row_bytes / 4;
  parallel_for(a.B, at_once(cost), threads, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> keys(a.L);
    for (int64_t b = begin; b < end; ++b) {
      fill_keys(a, b, keys.data());
      std::sort(keys.begin(), keys.end());
      write_ids(a, b, keys.data());
      if (a.x) gather_kept(a, b, keys.data());
    }
  });
  return -1;
}

int64_t select_rows(const SelectRows& a, int threads) {
  FirstBad bad;
  const int64_t rows = a.P + a.n_out;
  ask_for_huge_pages(a.out, a.B * rows * a.row_bytes);
  parallel_for(a.B * rows, at_once(a.row_bytes / 4), threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / rows, row = i % rows;
      char* out = a.out + i * a.row_bytes;
      const int64_t from = source_row(row, a.P, a.ids + b * a.n_out, a.n_source);
      if (from >= 0) {
        memcpy(out, a.source + b * a.batch_stride + from * a.row_stride, a.row_bytes);
      } else {
        if (a.strict) bad.report(b * a.n_out + row - a.P);
        memset(out, 0, a.row_bytes);
      }
    }
  });
  return bad.get();
}

int64_t scatter_rows(const ScatterRows& a, int threads) {
  int64_t bad = -1;
  with_dtype(a.source_dtype, [&](auto from) {
    with_dtype(a.out_dtype, [&](auto to) {
      bad = scatter_typed<decltype(from), decltype(to)>(a, threads);
    });
  });
  return bad;
}

int64_t restore_tokens(const RestoreTokens& a, int threads) {
  int64_t bad = -1;
  with_dtype(a.x_dtype, [&](auto in) {
    with_dtype(a.out_dtype, [&](auto out) {
      bad = restore_typed<decltype(in), decltype(out)>(a, threads);
    });
  });
  return bad;
}

int64_t restore_gradients(const RestoreGradients& a, int threads) {
  const int64_t rows = a.P + a.L;
  with_dtype(a.dtype, [&](auto type) {
    parallel_for(a.S * rows, at_once(a.B * a.D / a.S), threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sum_over_batch<decltype(type)>(a, i / rows, i % rows);
    });
  });
  return -1;
}

}  // namespace sslops::cpu
