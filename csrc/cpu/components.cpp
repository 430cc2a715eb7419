// srr_ext::components on the CPU: one job per layer.
#include "../core/components.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../layers.h"
#include "clones.h"
#include "jobs.h"

namespace srr::cpu {
namespace {

using torch::stable::Tensor;

SRR_CPU_CLONES int64_t layer_components(BitGraph graph, uint64_t* scratch) {
  SerialTeam team;
  return srr::components(team, graph, Workspace::carve(scratch, graph.n));
}

// words int64 [sum of n * ceil(n / 64)] -> int64 [n_layers]
Tensor components(const Tensor& words, const std::vector<int64_t>& n_filters) {
  const Layers layers(words, n_filters);
  const std::vector<int64_t> order = layers.widest_first();
  Tensor counts = torch::stable::empty({layers.size()}, torch::headeronly::ScalarType::Long);
  int64_t* out = static_cast<int64_t*>(counts.mutable_data_ptr());
  run_jobs(layers.size(), layers.total_words(), [&](int64_t job) {
    const int64_t i = order[job];
    std::vector<uint64_t> scratch(Workspace::size(layers[i].n));
    out[i] = layer_components(layers[i], scratch.data());
  });
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srr_ext, CPU, m) { m.impl("components", TORCH_BOX(&components)); }

}  // namespace srr::cpu
