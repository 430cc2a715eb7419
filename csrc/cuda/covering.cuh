// The kernel of srr_ext::covering: one job per layer.
#pragma once

#include "../core/covering.h"
#include "graph_jobs.cuh"

namespace srr::cuda {

// entries: [number of jobs]; centres[entry.out] = size of the greedy cover of its graph by balls of this radius
__global__ void __launch_bounds__(kMostThreads, kLeastBlocks)
    covering_kernel(const GraphJobs jobs, const GraphEntry* entries, int radius, int64_t* centres) {
  const BlockTeam team = jobs.team();
  jobs.for_each(team, [&](int64_t job) {
    const GraphEntry entry = entries[job];
    const auto [graph, space] = jobs.place(team, entry.graph);
    const int64_t count = srr::covering(team, graph, radius, space);
    if (team.rank() == 0) centres[entry.out] = count;
  });
}

}  // namespace srr::cuda
