// Patches of images on the CPU, by index and back; csrc/masking.h says what each kernel does.
#include "common.cuh"
#include "masking.h"
#include "parallel.h"
#include "rows.h"

namespace sslops::cpu {
namespace {

// Calls move(element, its place in the image) for all elements of a patch.
template <typename Move>
void for_each_element(int64_t id, int64_t W, int64_t patch, int64_t C, int64_t stride_c,
                      int64_t stride_h, int64_t stride_w, const Move& move) {
  const int64_t across = W / patch, top = id / across * patch, left = id % across * patch;
  PatchElement at = {0, 0, 0};
  for (int64_t e = 0; e < patch * patch * C; ++e, at = next_element(at, patch, C))
    move(e, at.channel * stride_c + (top + at.row) * stride_h + (left + at.column) * stride_w);
}

template <typename T>
int64_t gather_patches_typed(const GatherPatches& a, int threads) {
  FirstBad bad;
  const int64_t patches = a.H / a.patch * (a.W / a.patch), E = a.patch * a.patch * a.C;
  parallel_for(a.B * a.n_keep, at_once(4 * E), threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (!in_range(a.ids[i], patches)) {
        bad.report(i);
        continue;
      }
      const T* image = reinterpret_cast<const T*>(a.images) + i / a.n_keep * a.stride_b;
      T* out = reinterpret_cast<T*>(a.out) + i * E;
      for_each_element(a.ids[i], a.W, a.patch, a.C, a.stride_c, a.stride_h, a.stride_w,
                       [&](int64_t e, int64_t place) { out[e] = image[place]; });
    }
  });
  return bad.get();
}

template <typename T>
int64_t scatter_patches_typed(const ScatterPatches& a, int threads) {
  FirstBad bad;
  const int64_t patches = a.H / a.patch * (a.W / a.patch), E = a.patch * a.patch * a.C;
  parallel_for(a.B, at_once(4 * patches * E), threads, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> position(patches);
    for (int64_t b = begin; b < end; ++b) {
      T* image = reinterpret_cast<T*>(a.images) + b * a.C * a.H * a.W;
      invert(a.ids + b * a.n_keep, a.n_keep, b * a.n_keep, position, bad);
      for (int64_t id = 0; id < patches; ++id) {
        const bool kept = position[id] >= 0;
        const T* gradient = reinterpret_cast<const T*>(a.gradient) + b * a.n_keep * E +
                            (kept ? position[id] * E : 0);
        for_each_element(id, a.W, a.patch, a.C, a.H * a.W, a.W, 1, [&](int64_t e, int64_t place) {
          image[place] = kept ? gradient[e] : T{0};
        });
      }
    }
  });
  return bad.get();
}

}  // namespace

int64_t gather_patches(const GatherPatches& a, int threads) {
  if (a.element_bytes == 2) return gather_patches_typed<uint16_t>(a, threads);
  return gather_patches_typed<uint32_t>(a, threads);
}

int64_t scatter_patches(const ScatterPatches& a, int threads) {
  if (a.element_bytes == 2) return scatter_patches_typed<uint16_t>(a, threads);
  return scatter_patches_typed<uint32_t>(a, threads);
}

}  // namespace sslops::cpu
