// A CUDA block as a thread team (core/team.h). The block must be of whole warps.
#pragma once

#include "../core/team.h"
#include "device.cuh"

namespace srr::cuda {

class BlockTeam {
 public:
  static constexpr int64_t kSpan = 1;  // a word per thread, neighbours to neighbouring threads: coalesced reads
  static constexpr int kWarp = 32;

  // 64-bit words of shared memory that the team of so many threads needs for itself.
  SRR_HOST_DEVICE static constexpr int64_t shared_words(int64_t threads) { return threads / kWarp; }

  __device__ explicit BlockTeam(int64_t* shared) : partial_(shared) {}

  __device__ int64_t rank() const { return threadIdx.x; }
  __device__ int64_t size() const { return blockDim.x; }
  template <class F>
  __device__ void for_each(int64_t n, const F& f) const {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) f(i);
  }
  __device__ void sync() const { __syncthreads(); }

  __device__ int64_t reduce_sum(int64_t x) const {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAll, x, lanes);
    if (lane() == 0) partial_[threadIdx.x / kWarp] = x;
    __syncthreads();
    int64_t sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += partial_[warp];
    __syncthreads();
    return sum;
  }

  // By halves: shared memory has atomics of 32 bits, and for 64 a loop in which lanes that name one word take turns.
  __device__ void atomic_or(uint64_t* word, uint64_t bits) const {
    unsigned* halves = reinterpret_cast<unsigned*>(word);
    if (const unsigned low = static_cast<unsigned>(bits)) atomicOr(halves, low);
    if (const unsigned high = static_cast<unsigned>(bits >> 32)) atomicOr(halves + 1, high);
  }
  __device__ void atomic_add(int32_t* count, int32_t x) const { atomicAdd(count, x); }

  // Every warp searches for itself, 32 at a time: reading twice costs less than telling the other warps.
  template <class F>
  __device__ int64_t first_where(int64_t begin, int64_t end, const F& f) const {
    for (; begin < end; begin += kWarp) {
      const int64_t i = begin + lane();
      const unsigned found = __ballot_sync(kAll, i < end && f(i));
      if (found != 0) return begin + __ffs(static_cast<int>(found)) - 1;
    }
    return end;
  }

  // The two sequential ones are the first warp's, 32 at a time.
  __device__ void exclusive_sum(int64_t n, int32_t* x) const {
    int32_t before = 0;
    for (int64_t begin = 0; begin < n && rank() < kWarp; begin += kWarp) {
      const int64_t i = begin + lane();
      const int32_t mine = i < n ? x[i] : 0;
      int32_t sum = mine;  // of the lanes up to this one
      for (int lanes = 1; lanes < kWarp; lanes *= 2) {
        const int32_t lower = __shfl_up_sync(kAll, sum, lanes);
        if (lane() >= lanes) sum += lower;
      }
      if (i < n) x[i] = before + sum - mine;
      before += __shfl_sync(kAll, sum, kWarp - 1);
    }
    __syncthreads();
  }

  template <class Key, class F>
  __device__ void number_by(int64_t n, const Key& key, int32_t* next, const F& f) const {
    for (int64_t begin = 0; begin < n && rank() < kWarp; begin += kWarp) {
      const int64_t i = begin + lane();
      const int32_t k = i < n ? key(i) : -1;
      const unsigned alike = __match_any_sync(kAll, k);
      const int before = __popc(alike & ((1u << lane()) - 1));
      const int32_t first = k >= 0 ? next[k] : 0;
      __syncwarp();  // all lanes have read `next` before one of each kind changes it
      if (k >= 0) {
        if (before == 0) next[k] = first + __popc(alike);
        f(i, first + before);
      }
      __syncwarp();
    }
    __syncthreads();
  }

 private:
  static constexpr unsigned kAll = 0xFFFFFFFFu;

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  int64_t* partial_;
};

}  // namespace srr::cuda
