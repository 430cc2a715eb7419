// srr_ext::covering on the CPU: one job per layer.
#include "../core/covering.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../layers.h"
#include "clones.h"
#include "jobs.h"

namespace srr::cpu {
namespace {

using torch::stable::Tensor;

SRR_CPU_CLONES int64_t layer_covering(BitGraph graph, int radius, uint64_t* scratch) {
  SerialTeam team;
  return srr::covering(team, graph, radius, Workspace::carve(scratch, graph.n));
}

// words int64 [sum of n * ceil(n / 64)] -> int64 [n_layers]
Tensor covering(const Tensor& words, const std::vector<int64_t>& n_filters, int64_t radius) {
  STD_TORCH_CHECK(radius == 1 || radius == 2, "radius must be 1 or 2, got ", radius);
  const Layers layers(words, n_filters);
  const std::vector<int64_t> order = layers.widest_first();
  Tensor centres = torch::stable::empty({layers.size()}, torch::headeronly::ScalarType::Long);
  int64_t* out = static_cast<int64_t*>(centres.mutable_data_ptr());
  run_jobs(layers.size(), layers.total_words(), [&](int64_t job) {
    const int64_t i = order[job];
    std::vector<uint64_t> scratch(Workspace::size(layers[i].n));
    out[i] = layer_covering(layers[i], static_cast<int>(radius), scratch.data());
  });
  return centres;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srr_ext, CPU, m) { m.impl("covering", TORCH_BOX(&covering)); }

}  // namespace srr::cpu
