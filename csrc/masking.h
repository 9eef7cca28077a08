// The masking kernels, for the CPU and the GPU.
//
// A kernel takes one struct, the same on both devices; every field has 8 bytes, so that the binding
// fills it from a tuple of Python integers in the order of the fields.
//
// B samples, L tokens of a sample, P prefix tokens before them, D width, S chunks of the batch.
// Strides are in bytes unless they say otherwise; the elements of a row are always contiguous.
//
// Indices out of range are never followed. A CPU function returns the position of the first one in
// the array of indices, or -1; a GPU function fills the row in question with NaN.
#pragma once
#include <cstdint>

namespace sslops {

enum Dtype : int64_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// One sort per sample: ids, mask and the gather of the kept rows.
struct RandomMasking {
  const float* noise;          // [B, L]; null: Philox noise at seed, step, first_sample
  int64_t seed, step;
  const int64_t* device_step;  // [1]; not null: read instead of step
  int64_t first_sample;
  const char* x;               // [B, P + L] rows; null: no gather
  int64_t batch_stride, row_stride;
  char* x_kept;                // [B, P + n_keep] rows
  float* mask;                 // [B, L], 1 = removed
  int64_t* ids_restore;        // [B, L]
  int64_t* ids_keep;           // [B, n_keep]; may be null
  int64_t B, L, n_keep, P, row_bytes, element_bytes;
};

// Row P + i of `out` is row P + ids[i] of `source`; the first P rows are copied.
struct SelectRows {
  const char* source;  // [B, P + n_source] rows
  int64_t batch_stride, row_stride;
  const int64_t* ids;  // [B, n_out]
  char* out;           // [B, P + n_out] rows
  int64_t B, n_source, n_out, P, row_bytes, element_bytes;
  int64_t strict;      // an index outside [0, n_source) is 1: an error, 0: a row of zeros
};

// Row P + ids[i] of `out` is row P + i of `source`; rows that no index names are zero, indices
// outside [0, n_out) are skipped, a row that is named twice is an error.
struct ScatterRows {
  const char* source;  // [B, P + n_source, D]
  int64_t source_dtype;
  const int64_t* ids;  // [B, n_source]
  char* out;           // [B, P + n_out, D]
  int64_t out_dtype;
  int64_t B, n_source, n_out, P, D;
};

// Row P + i of `out` is kept row P + ids[i], or from n_keep on the mask token, plus its position.
struct RestoreTokens {
  const char* x_kept;  // [B, P + n_keep, D]
  int64_t x_dtype, batch_stride, row_stride;
  const int64_t* ids;  // [B, L]
  const char* mask_token;  // [D]
  const char* position;    // [1 or B, P + L, D] or null
  int64_t position_per_sample;  // 0: [1, ...], the same for all
  char* out;  // [B, P + L, D]; mask_token and position have its dtype
  int64_t out_dtype, B, L, n_keep, P, D;
};

// Sums of the gradient of RestoreTokens' `out` over chunk s of the batch, in float32.
struct RestoreGradients {
  const char* gradient;  // [B, P + L, D]
  int64_t dtype;
  const int64_t* ids;  // [B, L]
  float* token;        // [S, P + L, D], over the samples in which the row was masked; or null
  float* position;     // [S, P + L, D], over all samples; or null
  int64_t S, B, L, n_keep, P, D;
};

// The patches that ids name, flattened in the order row, column, channel.
struct GatherPatches {
  const char* images;  // [B, C, H, W]
  int64_t stride_b, stride_c, stride_h, stride_w;  // in elements
  const int64_t* ids;  // [B, n_keep]
  char* out;           // [B, n_keep, patch * patch * C]
  int64_t B, C, H, W, n_keep, patch, element_bytes;
};

// Its gradient: pixels of patches that no index names are zero.
struct ScatterPatches {
  const char* gradient;  // [B, n_keep, patch * patch * C]
  const int64_t* ids;    // [B, n_keep]
  char* images;          // [B, C, H, W], contiguous
  int64_t B, C, H, W, n_keep, patch, element_bytes;
};

namespace cpu {
int64_t random_masking(const RandomMasking& a, int threads);
int64_t select_rows(const SelectRows& a, int threads);
int64_t scatter_rows(const ScatterRows& a, int threads);
int64_t restore_tokens(const RestoreTokens& a, int threads);
int64_t restore_gradients(const RestoreGradients& a, int threads);
int64_t gather_patches(const GatherPatches& a, int threads);
int64_t scatter_patches(const ScatterPatches& a, int threads);
}  // namespace cpu

namespace cuda {
void random_masking(const RandomMasking& a, int device, void* stream);
void select_rows(const SelectRows& a, int device, void* stream);
void scatter_rows(const ScatterRows& a, int device, void* stream);
void restore_tokens(const RestoreTokens& a, int device, void* stream);
void restore_gradients(const RestoreGradients& a, int device, void* stream);
void gather_patches(const GatherPatches& a, int device, void* stream);
void scatter_patches(const ScatterPatches& a, int device, void* stream);
bool runs_on(int device);  // whether this build holds code for the device, and its driver takes it
}  // namespace cuda

}  // namespace sslops
