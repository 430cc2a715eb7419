// The host's side of graph_jobs.cuh: from the tensors that an op receives to tables and memory on the device.
#pragma once

#include <vector>

#include "../layers.h"
#include "graph_jobs.cuh"
#include "limits.h"
#include "stream.h"
#include "upload.cuh"

namespace srr::cuda {

inline Layers layers_on_cuda(const torch::stable::Tensor& words, const std::vector<int64_t>& n_filters) {
  STD_TORCH_CHECK(words.is_cuda(), "words must be on a CUDA device, as the other tensors");
  return Layers(words, n_filters, kMostFilters);
}

// The memory that a launch takes: no job is taken yet.
inline torch::stable::Tensor launch_memory(const GraphLaunch& launch, const torch::stable::Tensor& like,
                                           cudaStream_t stream) {
  torch::stable::Tensor memory =
      torch::stable::new_empty(like, {launch.memory_words()}, torch::headeronly::ScalarType::Long);
  const cudaError_t error = cudaMemsetAsync(memory.mutable_data_ptr(), 0, sizeof(uint64_t), stream);
  STD_TORCH_CHECK(error == cudaSuccess, "the counter of jobs could not be cleared: ", cudaGetErrorString(error));
  return memory;
}

// A number per layer, int64 [n_layers] on the device of the words, from a kernel of one job per layer, which
// run(launch, jobs, entries, counts, stream) launches.
template <class F>
torch::stable::Tensor count_per_layer(const torch::stable::Tensor& words, const std::vector<int64_t>& n_filters,
                                      const char* kernel, const F& run) {
  using torch::headeronly::ScalarType;
  const Layers layers = layers_on_cuda(words, n_filters);
  const OnDeviceOf device(words);
  torch::stable::Tensor counts = torch::stable::new_empty(words, {layers.size()}, ScalarType::Long);
  if (layers.size() == 0) return counts;
  std::vector<GraphEntry> entries;
  for (const int64_t i : layers.widest_first()) entries.push_back({layers[i], i});
  const cudaStream_t stream = current_stream(words);
  const GraphLaunch launch = plan_launch(n_filters, layers.size());
  const torch::stable::Tensor table = upload(entries, words, stream);
  torch::stable::Tensor memory = launch_memory(launch, words, stream);
  run(launch, GraphJobs(launch, layers.size(), static_cast<uint64_t*>(memory.mutable_data_ptr())),
      static_cast<const GraphEntry*>(table.const_data_ptr()), static_cast<int64_t*>(counts.mutable_data_ptr()), stream);
  check_launch(kernel);
  return counts;
}

}  // namespace srr::cuda
