#include "cosine_tile.h"

// A product and its sum may be fused here, and only here: the error bound holds either way, and fusing doubles the
// speed. The rest of the library is compiled with contraction off, so that double-precision decisions are the same on
// every machine.
#if defined(__clang__)
#pragma clang fp contract(fast)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=fast")
#endif

namespace srr::cpu {
namespace {

template <int kLanes>
struct VectorOf {
  typedef float Type __attribute__((vector_size(kLanes * sizeof(float)), aligned(alignof(float))));
};

// A panel pair in blocks of kRows filters by kVectors vectors of kLanes filters, sized so that the accumulators of a
// block fill the vector registers.
template <int kLanes, int kRows, int kVectors>
__attribute__((always_inline)) inline void panel_products(const float* a, const float* b, int64_t depth, float* c,
                                                          int64_t c_stride) {
  using Vector = typename VectorOf<kLanes>::Type;
  for (int64_t column = 0; column < kPanel; column += kLanes * kVectors) {
    for (int64_t row = 0; row < kPanel; row += kRows) {
      Vector sum[kRows][kVectors] = {};
      const float* x = a + row;
      const float* y = b + column;
      for (int64_t k = 0; k < depth; ++k, x += kPanel, y += kPanel) {
        Vector v[kVectors];
        for (int j = 0; j < kVectors; ++j) v[j] = *reinterpret_cast<const Vector*>(y + j * kLanes);
        for (int i = 0; i < kRows; ++i) {
          for (int j = 0; j < kVectors; ++j) sum[i][j] += x[i] * v[j];
        }
      }
      for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kVectors; ++j) {
          *reinterpret_cast<Vector*>(c + (row + i) * c_stride + column + j * kLanes) += sum[i][j];
        }
      }
    }
  }
}

#if defined(__x86_64__)
__attribute__((target("avx512f,avx2,fma"))) void tile_avx512(const float* a, const float* b, int64_t depth, float* c,
                                                             int64_t c_stride) {
  panel_products<16, 8, 2>(a, b, depth, c, c_stride);
}

__attribute__((target("avx2,fma"))) void tile_avx2(const float* a, const float* b, int64_t depth, float* c,
                                                   int64_t c_stride) {
  panel_products<8, 4, 2>(a, b, depth, c, c_stride);
}
#endif

void tile_baseline(const float* a, const float* b, int64_t depth, float* c, int64_t c_stride) {
  panel_products<4, 4, 2>(a, b, depth, c, c_stride);
}

struct Kernels {
  CosineKernel list[4] = {};

  Kernels() {
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f")) list[count++] = {"avx512", tile_avx512};
    if (avx2) list[count++] = {"avx2", tile_avx2};
#endif
    list[count] = {"baseline", tile_baseline};
  }
};

}  // namespace

const CosineKernel* cosine_kernels() {
  static const Kernels kernels;
  return kernels.list;
}

const CosineKernel& cosine_kernel() { return cosine_kernels()[0]; }

}  // namespace srr::cpu
