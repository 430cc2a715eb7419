// What kernels use of CUDA. Compiled by another compiler than nvcc, the same kernels run on CPU threads, block by
// block, where tests, thread and address sanitizers can watch them (tests/cuda_emulator.h).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_runtime.h>

// Before a loop: unroll it whole, or not at all.
#define SRR_UNROLL _Pragma("unroll")
#define SRR_KEEP_LOOP _Pragma("unroll 1")
#define SRR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)

namespace srr::cuda {

// The block's dynamic shared memory.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ uint4 memory[];  // 16-byte aligned
  return reinterpret_cast<T*>(memory);
}

// Starts a copy of kBytes (4 or 16, both sides aligned to that) from global to shared memory; zeros when not valid, and
// `global` is then not read. Done once copy_async_wait has returned; other threads see it after a barrier.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
  } else {
    static_assert(kBytes == 4);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
  }
}

// Ends a group of copies.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// x, in a way that keeps the compiler from computing what depends on it ahead of a loop, where it would take registers.
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

}  // namespace srr::cuda

#else

#include "../tests/cuda_emulator.h"

#define SRR_UNROLL
#define SRR_KEEP_LOOP

namespace srr::cuda {
inline int opaque(int x) { return x; }
}  // namespace srr::cuda

#endif
