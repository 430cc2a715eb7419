// Independent jobs on torch's CPU threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace srr::cpu {

// Work below which waking other threads costs more than it saves, on a busy machine milliseconds.
constexpr double kSerialNanoseconds = 1e6;

// f(i) for every 0 <= i < count, about `nanoseconds` of work in all. Threads take the next job when they finish one,
// because layers differ in cost by orders of magnitude; jobs write to separate places, so the answer does not depend on
// who takes what.
template <class F>
void run_jobs(int64_t count, double nanoseconds, const F& f) {
  std::atomic<int64_t> next{0};
  const int64_t threads = nanoseconds < kSerialNanoseconds ? 1 : torch::stable::get_num_threads();
  const int64_t workers = std::min(count, threads);
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) f(i);
    }
  });
}

}  // namespace srr::cpu
