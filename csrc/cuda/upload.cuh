// Small tables from host to device by way of kernel parameters: nothing is pinned, nothing waits, the host memory may
// go at once, and a CUDA graph that captures the call keeps a copy of the table.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "device.cuh"
#include "stream.h"

namespace srr::cuda {

struct Chunk {
  static constexpr int kWords = 250;  // 4,000 of the 4,096 bytes that every toolkit and device allows
  uint4 words[kWords];
};

static __global__ void store_chunk(const __grid_constant__ Chunk chunk, uint4* to, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) to[i] = chunk.words[i];
}

// The bytes as a tensor uint8 [size, rounded up to 16] on the device of `like`, which must be the current one.
inline torch::stable::Tensor upload(const void* bytes, int64_t size, const torch::stable::Tensor& like,
                                    cudaStream_t stream) {
  constexpr int64_t kWord = sizeof(uint4);
  const int64_t words = (size + kWord - 1) / kWord;
  torch::stable::Tensor table = torch::stable::new_empty(like, {words * kWord}, torch::headeronly::ScalarType::Byte);
  uint4* to = static_cast<uint4*>(table.mutable_data_ptr());
  for (int64_t first = 0; first < words; first += Chunk::kWords) {
    const int64_t count = std::min<int64_t>(Chunk::kWords, words - first);
    Chunk chunk = {};
    std::memcpy(chunk.words, static_cast<const char*>(bytes) + first * kWord,
                static_cast<size_t>(std::min(count * kWord, size - first * kWord)));
    SRR_LAUNCH(store_chunk, 1, 256, 0, stream, chunk, to + first, static_cast<int>(count));
    check_launch("store_chunk");
  }
  return table;
}

template <class T>
torch::stable::Tensor upload(const std::vector<T>& table, const torch::stable::Tensor& like, cudaStream_t stream) {
  return upload(table.data(), static_cast<int64_t>(table.size() * sizeof(T)), like, stream);
}

}  // namespace srr::cuda
