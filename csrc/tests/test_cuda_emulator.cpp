// The emulator itself: barriers, warp collectives, asynchronous copies, shared memory and atomics do what CUDA's do.
#include <numeric>
#include <vector>

#include "check.h"
#include "cuda/device.cuh"

using namespace srr::cuda;

namespace {

constexpr unsigned kAll = 0xFFFFFFFFu;

// Reverses each block's part of `values` through shared memory: wrong, or a race, without the barrier.
__global__ void reverse(const int* values, int* reversed) {
  int* shared = dynamic_shared<int>();
  const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
  shared[threadIdx.x] = values[at];
  __syncthreads();
  reversed[at] = shared[blockDim.x - 1 - threadIdx.x];
}

void check_barrier() {
  std::vector<int> values(3 * 96), reversed(values.size());
  std::iota(values.begin(), values.end(), 0);
  SRR_LAUNCH(reverse, 3, 96, 96 * sizeof(int), nullptr, values.data(), reversed.data());
  for (int i = 0; i < 3 * 96; ++i) {
    CHECK(reversed[i] == i / 96 * 96 + 95 - i % 96, "at %d: %d", i, reversed[i]);
  }
}

__global__ void collectives(int* failures) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  bool right = __ballot_sync(kAll, lane % 3 == warp) == (warp == 0 ? 0x49249249u : 0x92492492u);
  right &= __shfl_sync(kAll, int64_t{lane} << 33, 7) == int64_t{7} << 33;
  right &= __shfl_xor_sync(kAll, lane * 1.5, 5) == (lane ^ 5) * 1.5;
  right &= __shfl_down_sync(kAll, lane, 3u) == (lane + 3 < 32 ? lane + 3 : lane);
  right &= __shfl_up_sync(kAll, lane, 3u) == (lane >= 3 ? lane - 3 : lane);
  right &= __match_any_sync(kAll, lane / 4 == 2 ? -1 : lane % 2) ==
           (lane / 4 == 2 ? 0xF00u : (lane % 2 ? 0xAAAAAAAAu : 0x55555555u) & ~0xF00u);
  right &= __any_sync(kAll, lane == 31) && !__all_sync(kAll, lane != 31) && __all_sync(kAll, lane < 32);
  int sum = lane;  // collectives in a row, so that a fast lane meets slow ones
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(kAll, sum, bits);
  right &= sum == 31 * 16;
  if (!right) atomicAdd(failures, 1);
}

__global__ void atomics(int* sum, unsigned long long* set, int* low, int* high) {
  atomicAdd(sum, 2);
  atomicOr(set, 1ull << threadIdx.x);
  atomicMin(low, static_cast<int>(threadIdx.x) - 5);
  atomicMax(high, static_cast<int>(threadIdx.x) - 5);
}

// Rubbish until a group has been waited for; zeros for what is not valid.
__global__ void copies(const float4* from, int* failures) {
  float4* shared = dynamic_shared<float4>() + 2 * threadIdx.x;
  const float before = shared[0].x;
  copy_async<16>(&shared[0], &from[threadIdx.x], true);
  copy_async_commit();
  copy_async<16>(&shared[1], nullptr, false);
  copy_async_commit();
  bool right = shared[0].x == before && before != from[threadIdx.x].x;
  copy_async_wait<1>();
  right &= shared[0].w == from[threadIdx.x].w && shared[1].x == before;
  copy_async_wait<0>();
  right &= shared[1].x == 0 && shared[1].w == 0;
  copy_async<4>(&shared[1].y, &from[threadIdx.x].z, true);
  copy_async_commit();
  copy_async_wait<0>();
  right &= shared[1].y == from[threadIdx.x].z && shared[1].z == 0;
  if (!right) atomicAdd(failures, 1);
}

__global__ void indices(unsigned* seen) {
  const unsigned block = blockIdx.x + gridDim.x * blockIdx.y;
  seen[block * blockDim.x * blockDim.y + threadIdx.x + blockDim.x * threadIdx.y] += 1;
}

}  // namespace

int main() {
  check_barrier();

  int failures = 0;
  SRR_LAUNCH(collectives, 2, 64, 0, nullptr, &failures);
  CHECK(failures == 0, "%d threads saw a wrong collective", failures);

  int sum = 0, low = 0, high = 0;
  unsigned long long set = 0;
  SRR_LAUNCH(atomics, 1, 64, 0, nullptr, &sum, &set, &low, &high);
  CHECK(sum == 128 && set == ~0ull && low == -5 && high == 58, "%d %llx %d %d", sum, set, low, high);

  std::vector<float4> from(32);
  for (int i = 0; i < 32; ++i) from[i] = make_float4(1.0f + static_cast<float>(i), 2, 3, 4);
  SRR_LAUNCH(copies, 1, 32, 64 * sizeof(float4), nullptr, from.data(), &failures);
  CHECK(failures == 0, "%d threads saw a copy too early or never", failures);

  std::vector<unsigned> seen(6 * 64, 0);
  SRR_LAUNCH(indices, dim3(3, 2), dim3(32, 2), 0, nullptr, seen.data());
  CHECK(std::count(seen.begin(), seen.end(), 1u) == 6 * 64, "not every thread of every block ran once");
  return 0;
}
