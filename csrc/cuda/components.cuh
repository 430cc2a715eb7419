// The kernel of srr_ext::components: one job per layer.
#pragma once

#include "../core/components.h"
#include "graph_jobs.cuh"

namespace srr::cuda {

// entries: [number of jobs]; counts[entry.out] = components of its graph
__global__ void __launch_bounds__(kMostThreads, kLeastBlocks)
    components_kernel(const GraphJobs jobs, const GraphEntry* entries, int64_t* counts) {
  const BlockTeam team = jobs.team();
  jobs.for_each(team, [&](int64_t job) {
    const GraphEntry entry = entries[job];
    const auto [graph, space] = jobs.place(team, entry.graph);
    const int64_t count = srr::components(team, graph, space);
    if (team.rank() == 0) counts[entry.out] = count;
  });
}

}  // namespace srr::cuda
