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
//
// Answers must not depend on size(): ties go to the lowest index and sums are integers.
#pragma once

#include <cstdint>

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
