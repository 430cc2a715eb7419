// A team of real threads: what a CUDA block does to the algorithms, where thread sanitizers can watch.
#pragma once

#include <atomic>
#include <barrier>
#include <cstdint>
#include <thread>
#include <vector>

#include "core/team.h"

namespace srr::test {

class ThreadTeam {
 public:
  static constexpr int64_t kSpan = 1;

  struct Shared {
    explicit Shared(int64_t size) : barrier(size), partial(size) {}
    std::barrier<> barrier;
    std::vector<int64_t> partial;
  };

  ThreadTeam(int64_t rank, int64_t size, Shared& shared) : rank_(rank), size_(size), shared_(shared) {}

  int64_t rank() const { return rank_; }
  int64_t size() const { return size_; }
  template <class F>
  void for_each(int64_t n, const F& f) const {
    for (int64_t i = rank_; i < n; i += size_) f(i);
  }
  void sync() const { shared_.barrier.arrive_and_wait(); }
  int64_t reduce_sum(int64_t x) const {
    shared_.partial[rank_] = x;
    sync();
    int64_t sum = 0;
    for (const int64_t part : shared_.partial) sum += part;
    sync();
    return sum;
  }
  void atomic_or(uint64_t* word, uint64_t bits) const { std::atomic_ref<uint64_t>(*word).fetch_or(bits); }
  void atomic_add(int32_t* count, int32_t x) const { std::atomic_ref<int32_t>(*count).fetch_add(x); }
  template <class F>
  int64_t first_where(int64_t begin, int64_t end, const F& f) const {
    return SerialTeam().first_where(begin, end, f);
  }
  void exclusive_sum(int64_t n, int32_t* x) const {
    if (rank_ == 0) SerialTeam().exclusive_sum(n, x);
    sync();
  }
  template <class Key, class F>
  void number_by(int64_t n, const Key& key, int32_t* next, const F& f) const {
    if (rank_ == 0) SerialTeam().number_by(n, key, next, f);
    sync();
  }

 private:
  int64_t rank_, size_;
  Shared& shared_;
};

// Runs f(team) on every member of a team; returns member 0's answer, after checking that all gave the same.
template <class F>
int64_t run_team(int64_t size, const F& f) {
  ThreadTeam::Shared shared(size);
  std::vector<int64_t> answers(size);
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadTeam team(rank, size, shared);
      answers[rank] = f(team);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int64_t answer : answers) {
    if (answer != answers[0]) return -1;
  }
  return answers[0];
}

}  // namespace srr::test
