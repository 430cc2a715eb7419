// CUDA kernels on CPU threads: their logic runs, and sanitizers watch it, on machines without a GPU.
//
// Blocks run one after the other, each CUDA thread on a thread of its own. ThreadSanitizer then reports a missing
// barrier as a race, and AddressSanitizer an access past the dynamic shared memory, which is a heap block of exactly
// the size asked for, filled with rubbish before each block. What a GPU would leave undefined is refused here: a
// barrier that not every thread reaches, a partial mask, misaligned or never awaited asynchronous copies.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr size_t count() const { return size_t{x} * y * z; }
  constexpr uint3 index(size_t i) const {
    return {static_cast<unsigned>(i % x), static_cast<unsigned>(i / x % y), static_cast<unsigned>(i / x / y)};
  }
};
inline thread_local uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
using cudaStream_t = void*;

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

#if defined(__SANITIZE_THREAD__)
extern "C" void AnnotateIgnoreSyncBegin(const char* file, int line);
extern "C" void AnnotateIgnoreSyncEnd(const char* file, int line);
#endif

namespace srr::emulator {

constexpr int kWarp = 32;

[[noreturn]] inline void fail(const char* what, const char* detail) {
  std::fprintf(stderr, "CUDA emulator: block %u, thread %u: %s%s\n", blockIdx.x, threadIdx.x, what, detail);
  std::abort();
}

// A barrier of `size` threads that says so when they do not all stop for the same reason, or never will.
class Barrier {
 public:
  explicit Barrier(size_t size) : size_(static_cast<int>(size)) {}

  // waiting: how many of all the block's `threads` wait at any barrier.
  void wait(const char* reason, std::atomic<int>& waiting, int threads) {
    const char* common = nullptr;
    const unsigned phase = phase_.load();
    if (!reason_.compare_exchange_strong(common, reason) && std::strcmp(common, reason) != 0) {
      std::fprintf(stderr, "others wait at %s\n", common);
      fail("not all threads come to ", reason);
    }
    if (arrived_.fetch_add(1) + 1 == size_) {
      arrived_.store(0);
      reason_.store(nullptr);
      waiting.fetch_sub(size_ - 1);
      phase_.fetch_add(1);
      phase_.notify_all();
      return;
    }
    if (waiting.fetch_add(1) + 1 == threads) fail("all threads wait, the last one at ", reason);
    while (phase_.load() == phase) phase_.wait(phase);
  }

 private:
  int size_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> phase_{0};
  std::atomic<const char*> reason_{nullptr};
};

struct Warp {
  Barrier barrier{kWarp};
  std::atomic<uint64_t> slots[2][kWarp];  // by turns: a lane may write its next value while others read the last one
};

// While it lives, ThreadSanitizer takes no note of this thread's synchronisation: of all collectives only __syncwarp
// orders what lanes write to memory.
class Unordered {
 public:
  explicit Unordered(bool unordered) : unordered_(unordered) {
    if (unordered_) annotate_begin();
  }
  ~Unordered() {
    if (unordered_) annotate_end();
  }

 private:
#if defined(__SANITIZE_THREAD__)
  static void annotate_begin() { AnnotateIgnoreSyncBegin(__FILE__, __LINE__); }
  static void annotate_end() { AnnotateIgnoreSyncEnd(__FILE__, __LINE__); }
#else
  static void annotate_begin() {}
  static void annotate_end() {}
#endif
  bool unordered_;
};

struct Block {
  Block(size_t threads, size_t shared_bytes)
      : threads(static_cast<int>(threads)), barrier(threads), warps(threads / kWarp), shared_bytes(shared_bytes) {}
  void fresh_shared_memory() {
    shared.reset(new std::byte[shared_bytes]);  // aligned to 16 bytes, as operator new is
    std::memset(shared.get(), 0x7E, shared_bytes);
  }
  void sync(const char* reason) { barrier.wait(reason, waiting, threads); }
  void sync_warp(int warp, const char* reason) { warps[warp].barrier.wait(reason, waiting, threads); }

  int threads;
  Barrier barrier;
  std::vector<Warp> warps;
  std::atomic<int> waiting{0};
  size_t shared_bytes;
  std::unique_ptr<std::byte[]> shared;
};

struct AsyncCopy {
  void* shared;
  const void* global;
  size_t bytes;
  bool valid;
};

// What belongs to one CUDA thread.
struct Thread {
  Block* block = nullptr;
  int rank = 0;  // within the block
  unsigned collectives = 0;
  std::vector<AsyncCopy> open;                 // not committed yet
  std::deque<std::vector<AsyncCopy>> pending;  // committed groups, oldest first
};
inline thread_local Thread self;

inline void* dynamic_shared_memory() { return self.block->shared.get(); }

inline void copy_async(void* shared, const void* global, size_t bytes, bool valid) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(shared) | (valid ? reinterpret_cast<uintptr_t>(global) : 0);
  if (address % bytes != 0) fail("misaligned ", "asynchronous copy");
  self.open.push_back({shared, global, bytes, valid});
}

inline void copy_async_commit() { self.pending.push_back(std::exchange(self.open, {})); }

// Copies happen only now, so that memory that nobody waited for shows as rubbish.
inline void copy_async_wait(size_t groups_left) {
  for (; self.pending.size() > groups_left; self.pending.pop_front()) {
    for (const AsyncCopy& copy : self.pending.front()) {
      if (copy.valid) {
        std::memcpy(copy.shared, copy.global, copy.bytes);
      } else {
        std::memset(copy.shared, 0, copy.bytes);
      }
    }
  }
}

// The values that the 32 lanes of a warp pass, once all have come.
template <class T>
const std::atomic<uint64_t>* exchange(const char* name, unsigned mask, T value, bool orders_memory = false) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  if (mask != 0xFFFFFFFFu) fail(name, ": the mask must be full");
  const Unordered unordered(!orders_memory);
  std::atomic<uint64_t>* slots = self.block->warps[self.rank / kWarp].slots[self.collectives++ % 2];
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  slots[self.rank % kWarp] = bits;
  self.block->sync_warp(self.rank / kWarp, name);
  return slots;
}

template <class T>
T shuffle(const char* name, unsigned mask, T value, int source) {
  const std::atomic<uint64_t>* slots = exchange(name, mask, value);
  if (source < 0 || source >= kWarp) return value;  // as __shfl_down_sync does past the last lane
  const uint64_t bits = slots[source].load(std::memory_order_relaxed);
  T result;
  std::memcpy(&result, &bits, sizeof(T));
  return result;
}

// kernel() on every thread of every block of the grid.
template <class Kernel>
void launch(dim3 grid, dim3 threads, size_t shared_bytes, const Kernel& kernel) {
  if (threads.count() % kWarp != 0 || threads.count() > 1024) fail("a block must be of whole warps, ", "at most 32");
  blockDim = threads;
  gridDim = grid;
  Block block(threads.count(), shared_bytes);
  std::vector<std::thread> team;
  for (size_t rank = 0; rank < threads.count(); ++rank) {
    team.emplace_back([&, rank] {
      threadIdx = threads.index(rank);
      self.block = &block;
      self.rank = static_cast<int>(rank);
      for (size_t b = 0; b < grid.count(); ++b) {
        blockIdx = grid.index(b);
        if (rank == 0) block.fresh_shared_memory();
        block.sync("the start of the block");
        kernel();
        for (const auto& group : self.pending) {
          if (!group.empty()) fail("ended without waiting for ", "asynchronous copies");
        }
        self.pending.clear();
        if (!self.open.empty()) fail("ended without committing ", "asynchronous copies");
        block.sync("the end of the kernel");
      }
    });
  }
  for (std::thread& thread : team) thread.join();
}

template <class T>
concept AtomicInteger = std::same_as<T, int> || std::same_as<T, unsigned> || std::same_as<T, unsigned long long>;

template <AtomicInteger T, class F>
T update(T* address, const F& f) {
  std::atomic_ref<T> cell(*address);
  T old = cell.load(std::memory_order_relaxed);
  while (!cell.compare_exchange_weak(old, f(old), std::memory_order_relaxed)) {
  }
  return old;
}

}  // namespace srr::emulator

inline void __syncthreads() { srr::emulator::self.block->sync("__syncthreads"); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { srr::emulator::exchange("__syncwarp", mask, 0, true); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return srr::emulator::shuffle("__shfl_sync", mask, value, source % srr::emulator::kWarp);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return srr::emulator::shuffle("__shfl_xor_sync", mask, value, srr::emulator::self.rank % srr::emulator::kWarp ^ bits);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  const int lane = srr::emulator::self.rank % srr::emulator::kWarp;
  return srr::emulator::shuffle("__shfl_down_sync", mask, value, lane + static_cast<int>(by));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  const int lane = srr::emulator::self.rank % srr::emulator::kWarp;
  return srr::emulator::shuffle("__shfl_up_sync", mask, value, lane - static_cast<int>(by));
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  const auto* slots = srr::emulator::exchange("__match_any_sync", mask, value);
  const uint64_t mine = slots[srr::emulator::self.rank % srr::emulator::kWarp];
  unsigned peers = 0;
  for (int lane = 0; lane < srr::emulator::kWarp; ++lane) peers |= unsigned{slots[lane] == mine} << lane;
  return peers;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const auto* slots = srr::emulator::exchange("__ballot_sync", mask, predicate != 0);
  unsigned votes = 0;
  for (int lane = 0; lane < srr::emulator::kWarp; ++lane) votes |= unsigned{slots[lane] != 0} << lane;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xFFFFFFFFu; }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline int __ffsll(long long x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(x)) + 1; }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }

template <srr::emulator::AtomicInteger T>
T atomicAdd(T* address, std::type_identity_t<T> x) {
  return std::atomic_ref<T>(*address).fetch_add(x, std::memory_order_relaxed);
}
template <srr::emulator::AtomicInteger T>
T atomicOr(T* address, std::type_identity_t<T> x) {
  return std::atomic_ref<T>(*address).fetch_or(x, std::memory_order_relaxed);
}
template <srr::emulator::AtomicInteger T>
T atomicMin(T* address, std::type_identity_t<T> x) {
  return srr::emulator::update(address, [x](T old) { return std::min(old, x); });
}
template <srr::emulator::AtomicInteger T>
T atomicMax(T* address, std::type_identity_t<T> x) {
  return srr::emulator::update(address, [x](T old) { return std::max(old, x); });
}

#define SRR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  srr::emulator::launch(grid, block, shared_bytes, [&] { kernel(__VA_ARGS__); })

namespace srr::cuda {  // what cuda/device.cuh defines for nvcc

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(emulator::dynamic_shared_memory());
}
template <int kBytes>
void copy_async(void* shared, const void* global, bool valid) {
  static_assert(kBytes == 4 || kBytes == 16);
  emulator::copy_async(shared, global, kBytes, valid);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int kPending>
void copy_async_wait() {
  emulator::copy_async_wait(kPending);
}

}  // namespace srr::cuda
