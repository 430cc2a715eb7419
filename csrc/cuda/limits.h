// How wide a layer CUDA kernels take.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace srr::cuda {

// 512 MiB of bits.
constexpr int64_t kMostFilters = 65536;

inline void check_filters(const char* argument, int64_t n) {
  STD_TORCH_CHECK(n <= kMostFilters, argument, " must have at most ", kMostFilters, " filters each on CUDA, got ", n);
}

}  // namespace srr::cuda
