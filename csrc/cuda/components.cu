// srr_ext::components on CUDA: one block per layer, all layers in one launch.
#include "components.cuh"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "graph_launch.h"

namespace srr::cuda {
namespace {

using torch::stable::Tensor;

// words int64 [sum of n * ceil(n / 64)] -> int64 [n_layers]
Tensor components(const Tensor& words, const std::vector<int64_t>& n_filters) {
  return count_per_layer(words, n_filters, "components_kernel",
                         [](const GraphLaunch& launch, const GraphJobs& jobs, const GraphEntry* entries,
                            int64_t* counts, cudaStream_t stream) {
                           SRR_LAUNCH(components_kernel, launch.blocks, launch.threads, launch.shared_bytes(), stream,
                                      jobs, entries, counts);
                         });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srr_ext, CUDA, m) { m.impl("components", TORCH_BOX(&components)); }

}  // namespace srr::cuda
