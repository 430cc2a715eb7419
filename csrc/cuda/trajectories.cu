// srr_ext::trajectories on CUDA: components and covers of all layers in one launch, their redundancy in a second one.
#include "trajectories.cuh"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "graph_launch.h"

namespace srr::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// words int64 [sum of n * ceil(n / 64)], orders int64 [sum of n] -> float64 [sum of limits], NaN for a layer whose
// order is no permutation: the device finds that out, and the host does not wait for it.
Tensor trajectories(const Tensor& words, const std::vector<int64_t>& n_filters, const Tensor& orders,
                    const std::vector<int64_t>& limits, double component_weight, double cover_weight) {
  const Layers layers = layers_on_cuda(words, n_filters);
  STD_TORCH_CHECK(orders.scalar_type() == ScalarType::Long && orders.is_contiguous() && orders.is_cuda() &&
                      orders.get_device_index() == words.get_device_index(),
                  "orders must be a contiguous int64 tensor on the device of words");
  STD_TORCH_CHECK(limits.size() == n_filters.size(), "limits must have one entry per layer");
  const OnDeviceOf device(words);
  const int64_t* order = static_cast<const int64_t*>(orders.const_data_ptr());
  std::vector<TrajectoryEntry> entries;
  int64_t total = 0, filters = 0;
  for (int64_t i = 0; i < layers.size(); ++i) {
    STD_TORCH_CHECK(limits[i] >= 0 && limits[i] <= n_filters[i], "limits must lie in 0 .. n_filters, got ", limits[i]);
    entries.push_back({layers[i], order + filters, limits[i], total, 0});
    filters += n_filters[i];
    total += limits[i];
  }
  STD_TORCH_CHECK(orders.numel() == filters, "orders must have ", filters, " elements, got ", orders.numel());
  Tensor values = torch::stable::new_empty(words, {total}, ScalarType::Double);
  if (total == 0) return values;

  const int64_t n_stretches = arrange(entries);
  std::vector<int64_t> sizes;
  for (const TrajectoryEntry& entry : entries) sizes.push_back(entry.graph.n);
  const int64_t n_layers = static_cast<int64_t>(entries.size()), n_jobs = n_layers + n_stretches;
  const cudaStream_t stream = current_stream(words);
  const GraphLaunch launch = plan_launch(sizes, n_jobs);
  const Tensor table = upload(entries, words, stream);
  const auto* on_device = static_cast<const TrajectoryEntry*>(table.const_data_ptr());
  Tensor memory = launch_memory(launch, words, stream);
  Tensor counts = torch::stable::new_empty(words, {3 * total}, ScalarType::Int);
  int32_t* counted = static_cast<int32_t*>(counts.mutable_data_ptr());
  const Parts parts = {counted, counted + total, counted + 2 * total};
  SRR_LAUNCH(removals_kernel, launch.blocks, launch.threads, launch.shared_bytes(), stream,
             GraphJobs(launch, n_jobs, static_cast<uint64_t*>(memory.mutable_data_ptr())), on_device, n_layers, parts);
  check_launch("removals_kernel");
  SRR_LAUNCH(redundancy_kernel, static_cast<unsigned>(n_layers), 256, 0, stream, on_device, parts, component_weight,
             cover_weight, static_cast<double*>(values.mutable_data_ptr()));
  check_launch("redundancy_kernel");
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srr_ext, CUDA, m) { m.impl("trajectories", TORCH_BOX(&trajectories)); }

}  // namespace srr::cuda
