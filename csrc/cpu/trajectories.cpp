// srr_ext::trajectories on the CPU: one job per layer for the components, then one per stretch of removals.
#include "../core/trajectories.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../layers.h"
#include "clones.h"
#include "jobs.h"

namespace srr::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Removals per job: long enough that counting degrees afresh at its start is a few percent of the work.
constexpr int64_t kStretch = 64;

struct Stretch {
  int64_t layer, first, last;
};

SRR_CPU_CLONES void layer_components(BitGraph graph, const int64_t* order, int64_t limit, uint64_t* scratch,
                                     int32_t* counts) {
  SerialTeam team;
  components_along(team, graph, order, limit, Workspace::carve(scratch, graph.n), counts);
}

SRR_CPU_CLONES void layer_covers(BitGraph graph, const int64_t* order, int64_t first, int64_t last, uint64_t* scratch,
                                 int32_t* upper, int32_t* lower) {
  SerialTeam team;
  covers_along(team, graph, order, first, last, Workspace::carve(scratch, graph.n), upper, lower);
}

void check_permutation(const int64_t* order, int64_t n, int64_t layer) {
  SerialTeam team;
  std::vector<uint64_t> seen(words_for(n));
  STD_TORCH_CHECK(is_permutation(team, order, n, seen.data()), "orders of layer ", layer,
                  " must be a permutation of 0 .. ", n - 1);
}

// words int64 [sum of n * ceil(n / 64)], orders int64 [sum of n] -> float64 [sum of limits]
Tensor trajectories(const Tensor& words, const std::vector<int64_t>& n_filters, const Tensor& orders,
                    const std::vector<int64_t>& limits, double component_weight, double cover_weight) {
  const Layers layers(words, n_filters);
  STD_TORCH_CHECK(orders.scalar_type() == ScalarType::Long && orders.is_contiguous() && orders.is_cpu(),
                  "orders must be a contiguous int64 tensor on the CPU");
  STD_TORCH_CHECK(limits.size() == n_filters.size(), "limits must have one entry per layer");
  std::vector<int64_t> starts, outs;  // of each layer's order and result
  int64_t total = 0, filters = 0;
  for (int64_t i = 0; i < layers.size(); ++i) {
    STD_TORCH_CHECK(limits[i] >= 0 && limits[i] <= n_filters[i], "limits must lie in 0 .. n_filters, got ", limits[i]);
    starts.push_back(filters);
    outs.push_back(total);
    filters += n_filters[i];
    total += limits[i];
  }
  STD_TORCH_CHECK(orders.numel() == filters, "orders must have ", filters, " elements, got ", orders.numel());
  const int64_t* order = static_cast<const int64_t*>(orders.const_data_ptr());
  for (int64_t i = 0; i < layers.size(); ++i) check_permutation(order + starts[i], n_filters[i], i);

  Tensor values = torch::stable::empty({total}, ScalarType::Double);
  double* out = static_cast<double*>(values.mutable_data_ptr());
  std::vector<int32_t> components(total), upper(total), lower(total);
  const std::vector<int64_t> widest = layers.widest_first();
  run_jobs(layers.size(), 64 * layers.total_words(), [&](int64_t job) {
    const int64_t i = widest[job];
    std::vector<uint64_t> scratch(Workspace::size(layers[i].n));
    layer_components(layers[i], order + starts[i], limits[i], scratch.data(), components.data() + outs[i]);
  });
  std::vector<Stretch> stretches;
  double word_steps = 0;  // every removal passes over the rows that are left, at best a few words per nanosecond
  for (const int64_t i : widest) {
    word_steps += static_cast<double>(limits[i] * layers[i].n * layers[i].stride);
    for (int64_t k = 0; k < limits[i]; k += kStretch) {
      stretches.push_back({i, k, std::min(k + kStretch, limits[i])});
    }
  }
  run_jobs(static_cast<int64_t>(stretches.size()), word_steps / 8, [&](int64_t job) {
    const auto [i, first, last] = stretches[job];
    std::vector<uint64_t> scratch(Workspace::size(layers[i].n));
    const int64_t at = outs[i];
    layer_covers(layers[i], order + starts[i], first, last, scratch.data(), upper.data() + at, lower.data() + at);
    for (int64_t k = first; k < last; ++k) {
      out[at + k] =
          redundancy(layers[i].n - k, components[at + k], upper[at + k], lower[at + k], component_weight, cover_weight);
    }
  });
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srr_ext, CPU, m) { m.impl("trajectories", TORCH_BOX(&trajectories)); }

}  // namespace srr::cpu
