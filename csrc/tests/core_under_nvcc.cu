// Compiled, never run, by python_tests/test_build.py where nvcc is found: proof that the templates of core/ are CUDA
// code as they stand.
#include <cstdint>

#include "core/components.h"
#include "core/trajectories.h"

namespace srr::test {

// A CUDA block as a team.
class BlockTeam {
 public:
  static constexpr int64_t kSpan = 1;  // a word per thread, neighbours to neighbouring threads: coalesced reads

  // `partial`: shared memory of the block, one word per thread.
  __device__ explicit BlockTeam(int64_t* partial) : partial_(partial) {}

  __device__ int64_t rank() const { return threadIdx.x; }
  __device__ int64_t size() const { return blockDim.x; }
  template <class F>
  __device__ void for_each(int64_t n, const F& f) const {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) f(i);
  }
  __device__ void sync() const { __syncthreads(); }
  __device__ int64_t reduce_sum(int64_t x) const {
    partial_[threadIdx.x] = x;
    __syncthreads();
    int64_t sum = 0;  // integers, read by all in the same order: no tree is worth its code at this size
    for (unsigned i = 0; i < blockDim.x; ++i) sum += partial_[i];
    __syncthreads();
    return sum;
  }
  __device__ void atomic_or(uint64_t* word, uint64_t bits) const {
    atomicOr(reinterpret_cast<unsigned long long*>(word), static_cast<unsigned long long>(bits));
  }

 private:
  int64_t* partial_;
};

__global__ void all_algorithms(const uint64_t* words, int64_t n, const int64_t* order, uint64_t* scratch,
                               int64_t* counts, double* values) {
  extern __shared__ int64_t partial[];
  BlockTeam team(partial);
  const BitGraph graph = bit_graph(words, n);
  const Workspace space = Workspace::carve(scratch, n);
  const int64_t found = components(team, graph, space);
  team.sync();
  const int64_t upper = covering(team, graph, 1, space);
  team.sync();
  const int64_t lower = covering(team, graph, 2, space);
  team.sync();
  components_along(team, graph, order, n, space, values);
  team.sync();
  redundancy_along(team, graph, order, 0, n, 0.35, 0.65, space, values);
  if (team.rank() == 0) {
    counts[0] = found;
    counts[1] = upper;
    counts[2] = lower;
  }
}

}  // namespace srr::test
