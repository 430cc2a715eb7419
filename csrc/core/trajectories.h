// Redundancy of a filter graph after each removal: R(k) once the first k vertices of an order are gone.
//
// Two passes, because they run in opposite directions. Components only merge when vertices come back, so one pass adds
// them from last to first. Covers depend on the alive set alone, so any stretch of removals can be computed without
// the others, and a wide layer can be shared out. `redundancy` joins what the passes find.
#pragma once

#include "covering.h"

namespace srr {

// R = N / (a k + b (upper + lower) / 2), in [1, N] when a + b = 1.
SRR_HOST_DEVICE inline double redundancy(int64_t alive, int64_t components, int64_t upper, int64_t lower,
                                         double component_weight, double cover_weight) {
  const double covering_number = static_cast<double>(upper + lower) / 2;
  const double denominator = component_weight * static_cast<double>(components) + cover_weight * covering_number;
  return static_cast<double>(alive) / denominator;
}

// Whether order[0 .. n) has every vertex once. Every vertex in range is marked in `seen`, so all n are iff none is
// missing.
template <class Team>
SRR_HOST_DEVICE bool is_permutation(Team& team, const int64_t* order, int64_t n, uint64_t* seen) {
  clear_set(team, n, seen);
  team.for_each(n, [&](int64_t k) {
    if (order[k] >= 0 && order[k] < n) team.atomic_or(&seen[word_of(order[k])], bit_of(order[k]));
  });
  team.sync();
  int64_t mine = 0;
  team.for_each(words_for(n), [&](int64_t w) { mine += popcount(seen[w]); });
  return team.reduce_sum(mine) == n;
}

// counts[k] = components left once order[0 .. k) are gone, for k < limit. order: a permutation of 0 .. n - 1.
template <class Team>
SRR_HOST_DEVICE void components_along(Team& team, const BitGraph& graph, const int64_t* order, int64_t limit,
                                      const Workspace& space, int32_t* counts) {
  uint64_t* present = space.sets[0];
  uint64_t* touched = space.sets[1];  // labels of the components that the newcomer touches
  int32_t* label = space.ints[0];     // of a present vertex: its component
  clear_set(team, graph.n, present);
  clear_set(team, graph.n, touched);
  int64_t count = 0;
  for (int64_t k = graph.n - 1; k >= 0; --k) {
    const int64_t v = order[k];
    const uint64_t* row = graph.row(v);
    team.for_each(graph.stride, [&](int64_t w) {
      for_each_bit(row[w] & present[w], w,
                   [&](int64_t u) { team.atomic_or(&touched[word_of(label[u])], bit_of(label[u])); });
    });
    team.sync();
    int64_t mine = 0;
    team.for_each(graph.stride, [&](int64_t w) { mine += popcount(touched[w]); });
    const int64_t merged = team.reduce_sum(mine);
    count += 1 - merged;
    int64_t joined = v;
    if (merged == 1) {  // the newcomer takes its neighbours' label: no relabelling
      const int64_t w = team.first_where(0, graph.stride, [&](int64_t q) { return touched[q] != 0; });
      joined = w * kWordBits + lowest_bit(touched[w]);
    }
    team.for_each(graph.stride, [&](int64_t w) {
      if (merged > 1) {
        for_each_bit(present[w], w, [&](int64_t u) {
          if (contains(touched, label[u])) label[u] = static_cast<int32_t>(v);
        });
      }
      if (w == word_of(v)) {
        label[v] = static_cast<int32_t>(joined);
        present[w] |= bit_of(v);
      }
    });
    if (team.rank() == 0 && k < limit) counts[k] = static_cast<int32_t>(count);
    team.sync();
    clear_set(team, graph.n, touched);
  }
}

// upper[k] and lower[k] = sizes of the greedy covers by balls of radius 1 and 2 after k removals, for first <= k <
// last.
template <class Team>
SRR_HOST_DEVICE void covers_along(Team& team, const BitGraph& graph, const int64_t* order, int64_t first, int64_t last,
                                  const Workspace& space, int32_t* upper, int32_t* lower) {
  uint64_t* alive = space.sets[0];
  uint64_t* covered = space.sets[1];
  int32_t* degree = space.ints[0];
  int32_t* ranked = space.ints[1];
  clear_set(team, graph.n, alive);
  team.for_each(graph.n - first, [&](int64_t k) {
    const int64_t v = order[first + k];
    team.atomic_or(&alive[word_of(v)], bit_of(v));
  });
  team.sync();
  alive_degrees(team, graph, alive, degree);
  for (int64_t k = first; k < last; ++k) {
    const int64_t listed = order_by_degree(team, graph.n, degree, ranked, space.counts);
    const int64_t isolated = graph.n - k - listed;
    const int64_t centres = greedy_centres(team, graph, alive, ranked, listed, 1, covered);
    const int64_t far_centres = greedy_centres(team, graph, alive, ranked, listed, 2, covered);
    if (team.rank() == 0) {
      upper[k] = static_cast<int32_t>(isolated + centres);
      lower[k] = static_cast<int32_t>(isolated + far_centres);
    }
    const int64_t v = order[k];
    const uint64_t* row = graph.row(v);
    team.sync();  // all members have finished with `alive` and `degree`
    team.for_each(graph.stride, [&](int64_t w) {
      for_each_bit(row[w] & alive[w], w, [&](int64_t u) { degree[u] -= 1; });
      if (w == word_of(v)) {
        alive[w] &= ~bit_of(v);
        degree[v] = kDead;
      }
    });
    team.sync();
  }
}

}  // namespace srr
