// srr_ext::covering on CUDA: one block per layer, all layers in one launch.
#include "covering.cuh"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "graph_launch.h"

namespace srr::cuda {
namespace {

using torch::stable::Tensor;

// words int64 [sum of n * ceil(n / 64)] -> int64 [n_layers]
Tensor covering(const Tensor& words, const std::vector<int64_t>& n_filters, int64_t radius) {
  STD_TORCH_CHECK(radius == 1 || radius == 2, "radius must be 1 or 2, got ", radius);
  return count_per_layer(words, n_filters, "covering_kernel",
                         [&](const GraphLaunch& launch, const GraphJobs& jobs, const GraphEntry* entries,
                             int64_t* centres, cudaStream_t stream) {
                           SRR_LAUNCH(covering_kernel, launch.blocks, launch.threads, launch.shared_bytes(), stream,
                                      jobs, entries, static_cast<int>(radius), centres);
                         });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srr_ext, CUDA, m) { m.impl("covering", TORCH_BOX(&covering)); }

}  // namespace srr::cuda
