// The pieces that every contrastive loss on the CPU is made of: tiles of scores that stay in cache.
//
// A loss walks over the matrix of scores S = X Y^T in tiles of at most 64 x 256. A tile is made by a
// product, passed over once by an elementwise kernel (exponential, sums, weights), and consumed by the
// products of the gradients before the next tile is made; nothing of the size of S is ever stored.
//
// Products and passes live in tile_kernels.h, compiled once per instruction set. Every score is one
// chain of multiply-adds in the order of the width, whatever its place in a tile: equal rows give
// bitwise equal scores, so ties are ties and a score minus itself is exactly 0.
#pragma once
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace sslops {

constexpr int64_t kPanel = 32;      // rows of X in a panel: the unit of packing
constexpr int64_t kTileRows = 64;   // rows of a tile of scores, a multiple of kPanel
constexpr int64_t kTileColumns = 256;
// Row stride of a tile. Not a power of two, or a walk down a column would hit a few cache sets only.
constexpr int64_t kTileStride = kTileColumns + 16;
constexpr int64_t kTileSize = kTileRows * kTileStride;

inline int64_t padded(int64_t count) { return (count + kPanel - 1) / kPanel * kPanel; }

// Uninitialised floats on a cache line boundary; `fill` sets all of them.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) : size_(size), data_(allocate(size)) {}
  Buffer(int64_t size, float fill) : Buffer(size) {
    for (int64_t i = 0; i < size; ++i) data_[i] = fill;
  }
  float* data() const { return data_.get(); }
  float& operator[](int64_t i) const { return data_[i]; }
  int64_t size() const { return size_; }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(float* data) const { ::operator delete[](data, kLine); }
  };
  static float* allocate(int64_t size) {
    return static_cast<float*>(::operator new[](sizeof(float) * size + 64, kLine));
  }
  int64_t size_ = 0;
  std::unique_ptr<float[], Free> data_;
};

// A matrix X [R, D] in the two orders in which products read it. Padding rows and columns are zero.
struct Rows {
  int64_t R = 0, D = 0;
  int64_t R_pad = 0;      // R rounded up to whole panels
  int64_t D_panels = 0;   // panels of columns
  Buffer across;          // [R_pad / 32, D, 32]: element (r, d) at (r / 32, d, r % 32)
  Buffer along;           // [D_panels, R_pad, 32]: element (r, d) at (d / 32, r, d % 32)

  const float* across_from(int64_t row) const { return across.data() + row * D; }  // whole panels
  const float* along_from(int64_t row) const { return along.data() + row * kPanel; }
  int64_t along_stride() const { return R_pad * kPanel; }  // between panels of columns
};

// Packs x [R, D], row-major; row r is divided by norm[r] where norm [R] is given.
Rows pack(const float* x, const float* norm, int64_t R, int64_t D, bool with_along, int threads);
// Its panels first..last - 1 of 32 rows into `across` and `along`, either of which may be null. Row r
// is also multiplied by factor[r] where factor [R] is given.
void pack_panels(const float* x, const float* norm, const float* factor, int64_t R, int64_t D,
                 int64_t first, int64_t last, float* across, float* along, int64_t along_stride);
// out [R, D] = scale * the rows of along [D_panels, R_pad, 32].
void unpack(const float* along, int64_t along_stride, int64_t R, int64_t D, float scale, float* out,
            int threads);

// What turns the scores of one row (or column) into weighted probabilities, each [count].
struct Softmax {
  const float *shift, *offset, *weight;
};

// The kernels of one instruction set. A tile S or G is [kTileRows, kTileStride]; columns counts are
// whole panels. k is log2(e) / temperature.
struct TileKernels {
  // S_ij = <a_i, b_j>, a and b packed across, D wide.
  void (*scores)(const float* a, const float* b, int64_t rows, int64_t columns, int64_t D, float* S);
  // c_i += sum_j G_ij b_j, b and c packed along; strides between their panels of columns.
  void (*add_product)(const float* G, int64_t rows, int64_t columns, int64_t D_panels,
                      const float* b, int64_t b_stride, float* c, int64_t c_stride);
  // c_j += sum_i G_ij a_i.
  void (*add_transposed_product)(const float* G, int64_t rows, int64_t columns, int64_t D_panels,
                                 const float* a, int64_t a_stride, float* c, int64_t c_stride);
  // y_i = 2^x_i
  void (*exp2)(const float* x, int64_t count, float* y);

  // count_i += #{j: S_ij > value_i}
  void (*count_larger)(const float* S, int64_t rows, int64_t columns, const float* value,
                       float* count);
  // count_j += #{i: S_ij > value_j}
  void (*count_larger_columns)(const float* S, int64_t rows, int64_t columns, const float* value,
                               float* count);
  // top_i = max(top_i, max_j S_ij)
  void (*row_max)(const float* S, int64_t rows, int64_t columns, float* top);
  // top_j = max(top_j, max_i S_ij)
  void (*column_max)(const float* S, int64_t rows, int64_t columns, float* top);

  // S_ij = 2^((S_ij - shift_i) k - offset_i) in place; sum_i += sum_j S_ij
  void (*exp_rows)(float* S, int64_t rows, int64_t columns, float k, const float* shift,
                   const float* offset, float* sum);
  // row_sum_i += sum_j E_ij and column_sum_j += sum_i E_ij with one E_ij = 2^((S_ij - shift) k)
  void (*sum_both)(const float* S, int64_t rows, int64_t columns, float k, float shift,
                   float* row_sum, float* column_sum);
  // The same with a shift for every row and every column: two exponentials a score.
  void (*sum_both_shifted)(const float* S, int64_t rows, int64_t columns, float k,
                           const float* row_shift, float* row_sum, const float* column_shift,
                           float* column_sum);
  // S_ij = 2^((S_ij - shift) k) (row_weight_i + column_weight_j) in place
  void (*weigh_both)(float* S, int64_t rows, int64_t columns, float k, float shift,
                     const float* row_weight, const float* column_weight);
  // S_ij = row.weight_i 2^((S_ij - row.shift_i) k - row.offset_i) + the same of column j, in place
  void (*weigh_both_shifted)(float* S, int64_t rows, int64_t columns, float k, Softmax row,
                             Softmax column);
};

// out [R] = <a_i, b_i>, a and b [R, D] row-major: bitwise the scores of these pairs.
void paired_scores(const TileKernels& kernels, const float* a, const float* b, int64_t R, int64_t D,
                   int threads, float* out);

// The kernels of the instruction set in use (instruction_set.h).
const TileKernels& tile_kernels();

// Calls body(i, j) where column j = i + offset meets rows [i0, i1) and columns [j0, j1).
template <typename Body>
void on_diagonal(int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t offset, const Body& body) {
  const int64_t first = j0 - offset > i0 ? j0 - offset : i0;
  const int64_t last = j1 - offset < i1 ? j1 - offset : i1;
  for (int64_t i = first; i < last; ++i) body(i, i + offset);
}

}  // namespace sslops
