// The kernels of srr_ext::trajectories.
//
// Counting a layer's components is sequential in the removals, its covers are not: so a layer is one job for the
// components and one per stretch of removals for the covers, all in one launch, where the former hide behind
// the latter. A second kernel puts both together.
#pragma once

#include <vector>

#include "../core/trajectories.h"
#include "graph_jobs.cuh"

namespace srr::cuda {

// Removals per job: enough that counting degrees afresh at its start is a small part of its work, and few enough that
// one wide layer alone makes a hundred blocks.
constexpr int64_t kStretch = 16;

// A layer with a limit above 0.
struct TrajectoryEntry {
  BitGraph graph;        // in device memory
  const int64_t* order;  // [n], in device memory
  int64_t limit;
  int64_t out;            // where its removals begin in Parts and in the result
  int64_t first_stretch;  // stretches of the layers before it in the table
};

// Makes the table of a launch from all layers of a call: those with something to compute, widest first. Returns the
// number of stretches.
inline int64_t arrange(std::vector<TrajectoryEntry>& entries) {
  std::erase_if(entries, [](const TrajectoryEntry& entry) { return entry.limit == 0; });
  std::stable_sort(entries.begin(), entries.end(),
                   [](const TrajectoryEntry& a, const TrajectoryEntry& b) { return a.graph.n > b.graph.n; });
  int64_t stretches = 0;
  for (TrajectoryEntry& entry : entries) {
    entry.first_stretch = stretches;
    stretches += (entry.limit + kStretch - 1) / kStretch;
  }
  return stretches;
}

// What the first kernel finds after every removal of all layers: [sum of limits] each.
struct Parts {
  int32_t* components;  // kNoOrder in a layer whose order is no permutation
  int32_t* upper;
  int32_t* lower;
};
constexpr int32_t kNoOrder = -1;

// Number of the last entry that begins at or before this stretch.
__device__ inline int64_t layer_of(const TrajectoryEntry* entries, int64_t n_layers, int64_t stretch) {
  int64_t low = 0, high = n_layers;  // entries[low] begins at or before it, entries[high] after it
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (entries[middle].first_stretch <= stretch ? low : high) = middle;
  }
  return low;
}

// Jobs: the components of every layer, then every stretch. entries: [n_layers]. An order that is no permutation would
// lead out of bounds, and cannot be refused here without waiting for the device: its layer's jobs end at once.
__global__ void __launch_bounds__(kMostThreads, kLeastBlocks)
    removals_kernel(const GraphJobs jobs, const TrajectoryEntry* entries, int64_t n_layers, Parts parts) {
  const BlockTeam team = jobs.team();
  jobs.for_each(team, [&](int64_t job) {
    const int64_t stretch = job - n_layers;
    const TrajectoryEntry entry = entries[stretch < 0 ? job : layer_of(entries, n_layers, stretch)];
    const auto [graph, space] = jobs.place(team, entry.graph);
    const bool ordered = is_permutation(team, entry.order, graph.n, space.sets[0]);
    int32_t* components = parts.components + entry.out;
    if (stretch < 0) {
      if (ordered) {
        components_along(team, graph, entry.order, entry.limit, space, components);
      } else {
        team.for_each(entry.limit, [&](int64_t k) { components[k] = kNoOrder; });
      }
    } else if (ordered) {
      const int64_t first = (stretch - entry.first_stretch) * kStretch;
      const int64_t last = first + kStretch < entry.limit ? first + kStretch : entry.limit;
      covers_along(team, graph, entry.order, first, last, space, parts.upper + entry.out, parts.lower + entry.out);
    }
  });
}

// values[entry.out + k] = R(k) for k < limit, NaN in a layer without an order; one block per layer.
__global__ void redundancy_kernel(const TrajectoryEntry* entries, Parts parts, double component_weight,
                                  double cover_weight, double* values) {
  const TrajectoryEntry entry = entries[blockIdx.x];
  for (int64_t k = threadIdx.x; k < entry.limit; k += blockDim.x) {
    const int64_t at = entry.out + k;
    values[at] = parts.components[at] == kNoOrder ? nan("")
                                                  : redundancy(entry.graph.n - k, parts.components[at], parts.upper[at],
                                                               parts.lower[at], component_weight, cover_weight);
  }
}

}  // namespace srr::cuda
