// The inner product of two panels of filters, in single precision: the part that decides how fast graphs are built.
#pragma once

#include <cstdint>

namespace srr::cpu {

// A panel holds kPanel filters, interleaved: element k of filter r at [k * kPanel + r].
constexpr int64_t kPanel = 32;

// Adds a panel pair's products over `depth` elements to c: c[r * c_stride + s] += sum over k of a[k][r] * b[k][s].
// Each sum runs over k in order, in one float32 accumulator, which is what the error bound in filter_graphs.cpp counts.
using CosineTile = void (*)(const float* a, const float* b, int64_t depth, float* c, int64_t c_stride);

struct CosineKernel {
  const char* name;  // "avx512", "avx2" or "baseline"
  CosineTile tile;
};

// The fastest kernel that this CPU can run, chosen once.
const CosineKernel& cosine_kernel();

// Every kernel that this CPU can run, fastest first, for tests; ends with one whose tile is null.
const CosineKernel* cosine_kernels();

}  // namespace srr::cpu
