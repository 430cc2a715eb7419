// What the kernels on filter graphs share: blocks that take jobs until none is left, and the memory a job works in.
//
// One launch serves all layers of a call. A block is one thread team; it takes the next job from a counter, so that
// long and short jobs balance, and the jobs come largest first, so that no long one starts last.
#pragma once

#include <algorithm>
#include <vector>

#include "../core/bit_graph.h"
#include "block_team.cuh"

namespace srr::cuda {

// Dynamic shared memory of a block: what every device gives without being asked for more. Three or four such
// blocks fit on a multiprocessor of the data-centre ones.
constexpr int64_t kSharedBytes = 48 << 10;

// Scratch memory of a launch whose workspaces are too large for shared memory (beyond about 3,900 filters): it bounds
// the number of blocks instead, to 300 for a layer of 65,536.
constexpr int64_t kScratchBytes = 256ll << 20;

// A word each for 16,384 filters. One such block per multiprocessor is enough: told so, the compiler uses all the
// registers it needs.
constexpr int kMostThreads = 256;
constexpr int kLeastBlocks = 1;

// A layer's graph as the table of a launch lists it.
struct GraphEntry {
  BitGraph graph;  // in device memory
  int64_t out;     // where its result goes
};

// How to launch blocks for graphs of these sizes.
struct GraphLaunch {
  unsigned threads = BlockTeam::kWarp;
  unsigned blocks = 0;
  int64_t job_words = 0;      // shared memory of a job, 64-bit words
  int64_t scratch_words = 0;  // global memory of a block

  int64_t shared_bytes() const { return 8 * (BlockTeam::shared_words(threads) + job_words); }

  // 64-bit words of device memory: the counter of jobs taken, zero at the launch, and the blocks' scratch.
  int64_t memory_words() const { return 1 + blocks * scratch_words; }
};

// A graph is shared out word by word, so more threads than its rows have words would mostly wait: a row of 2,048
// filters, wide for a layer, keeps one warp busy. The other blocks on a multiprocessor hide that warp's latencies.
inline GraphLaunch plan_launch(const std::vector<int64_t>& n_filters, int64_t n_jobs,
                               int64_t shared_bytes = kSharedBytes) {
  GraphLaunch launch;
  constexpr int64_t kWarp = BlockTeam::kWarp;
  int64_t widest = 0;
  for (const int64_t n : n_filters) widest = std::max(widest, words_for(n));
  const int64_t threads = std::clamp<int64_t>((widest + kWarp - 1) / kWarp * kWarp, kWarp, kMostThreads);
  const int64_t budget = shared_bytes / 8 - BlockTeam::shared_words(threads);
  for (const int64_t n : n_filters) {
    const int64_t space = Workspace::size(n), rows = n * words_for(n);
    if (space > budget) {
      launch.scratch_words = std::max(launch.scratch_words, space);
    } else {
      launch.job_words = std::max(launch.job_words, space + rows > budget ? space : space + rows);
    }
  }
  const int64_t slots = launch.scratch_words == 0 ? n_jobs : kScratchBytes / 8 / launch.scratch_words;
  launch.threads = static_cast<unsigned>(threads);
  launch.blocks = static_cast<unsigned>(std::min<int64_t>({n_jobs, std::max<int64_t>(slots, 1), INT32_MAX}));
  return launch;
}

// A kernel's view of its jobs and of its block's memory.
class GraphJobs {
 public:
  // memory: [launch.memory_words()], the first word zero.
  GraphJobs(const GraphLaunch& launch, int64_t n_jobs, uint64_t* memory)
      : n_jobs_(n_jobs), job_words_(launch.job_words), scratch_words_(launch.scratch_words), memory_(memory) {}

  __device__ static BlockTeam team() { return BlockTeam(dynamic_shared<int64_t>()); }

  // f(job) for every job of the launch, each by one block.
  template <class F>
  __device__ void for_each(const BlockTeam& team, const F& f) const {
    for (;;) {
      // A sum, so that all members get it, whose barriers also end the use of the memory by the job before.
      const int64_t job = team.reduce_sum(team.rank() == 0 ? take() : 0);
      if (job >= n_jobs_) return;
      f(job);
    }
  }

  struct Place {
    BitGraph graph;
    Workspace space;
  };

  // Where to work on a graph: rows and workspace in shared memory, or the workspace alone, or neither. Small graphs'
  // rows are read many times over, and those of wide ones come through the caches.
  __device__ Place place(const BlockTeam& team, const BitGraph& graph) const {
    uint64_t* shared = dynamic_shared<uint64_t>() + BlockTeam::shared_words(team.size());
    const int64_t space = Workspace::size(graph.n), rows = graph.n * graph.stride;
    if (space > job_words_) {
      return {graph, Workspace::carve(memory_ + 1 + blockIdx.x * scratch_words_, graph.n)};
    }
    if (space + rows > job_words_) return {graph, Workspace::carve(shared, graph.n)};
    team.for_each(rows, [&](int64_t i) { shared[space + i] = graph.words[i]; });
    team.sync();
    return {bit_graph(shared + space, graph.n), Workspace::carve(shared, graph.n)};
  }

 private:
  __device__ int64_t take() const {
    return static_cast<int64_t>(atomicAdd(reinterpret_cast<unsigned long long*>(memory_), 1ull));
  }

  int64_t n_jobs_, job_words_, scratch_words_;
  uint64_t* memory_;
};

}  // namespace srr::cuda
