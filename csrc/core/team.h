// Thread teams: the one abstraction the graph algorithms are written over.
//
// Every member of a team runs the whole algorithm (as the threads of a CUDA block do) and shares its work through the
// team. An algorithm may rely on exactly this interface:
//
//   rank(), size()       which member this is, of how many
//   kSpan                how many consecutive words of a bit row one member handles in one go
//   for_each(n, f)       f(i) for every 0 <= i < n, each by exactly one member; no barrier before or after
//   sync()               barrier: what was written before it is seen after it
//   reduce_sum(x)        sum over members, returned to all; a barrier before and after
//   atomic_or(word, b)   *word |= b, safe when several members name the same word
//   atomic_add(count, x) *count += x, likewise
//   first_where(i, end, f)    the least index in i .. end - 1 with f(index), or end, for all members; no barrier. f
//   must
//                        have no effect and give all members the same, so what it reads changes only after a barrier
//   exclusive_sum(n, x)  x[i] becomes x[0] + .. + x[i - 1] for every 0 <= i < n; a barrier after
//   number_by(n, key, next, f)    f(i, next[key(i)]++) for every 0 <= i < n with key(i) >= 0, numbered as though i went
//                        up one by one; a barrier after
//
// Answers must not depend on size(): ties go to the lowest index and sums are integers.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__CUDACC__)
#define SRR_HOST_DEVICE __host__ __device__
#else
#define SRR_HOST_DEVICE
#endif

namespace srr {

// A team of one: on a CPU the parallel work is across layers, and a row's words are left to the vectoriser.
struct SerialTeam {
  static constexpr int64_t kSpan = int64_t{1} << 40;  // whole rows: the inner loops then run along memory

  int64_t rank() const { return 0; }
  int64_t size() const { return 1; }
  template <class F>
  void for_each(int64_t n, const F& f) const {
    for (int64_t i = 0; i < n; ++i) f(i);
  }
  void sync() const {}
  int64_t reduce_sum(int64_t x) const { return x; }
  void atomic_or(uint64_t* word, uint64_t bits) const { *word |= bits; }
  void atomic_add(int32_t* count, int32_t x) const { *count += x; }
  template <class F>
  int64_t first_where(int64_t begin, int64_t end, const F& f) const {
    while (begin < end && !f(begin)) ++begin;
    return begin;
  }
  void exclusive_sum(int64_t n, int32_t* x) const {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += std::exchange(x[i], sum);
  }
  template <class Key, class F>
  void number_by(int64_t n, const Key& key, int32_t* next, const F& f) const {
    for (int64_t i = 0; i < n; ++i) {
      const int32_t k = key(i);
      if (k >= 0) f(i, next[k]++);
    }
  }
};

// f(begin, end) for consecutive spans that cover 0 .. n, each by exactly one member.
template <class Team, class F>
SRR_HOST_DEVICE void for_each_span(Team& team, int64_t n, const F& f) {
  if (Team::kSpan >= n) {
    team.for_each(n > 0 ? 1 : 0, [&](int64_t) { f(int64_t{0}, n); });
    return;
  }
  team.for_each((n + Team::kSpan - 1) / Team::kSpan, [&](int64_t span) {
    const int64_t begin = span * Team::kSpan;
    const int64_t end = begin + Team::kSpan < n ? begin + Team::kSpan : n;
    f(begin, end);
  });
}

}  // namespace srr
