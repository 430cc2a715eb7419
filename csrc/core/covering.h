// Greedy covers of a filter graph by balls of radius 1 (an upper bound of the covering number) and 2 (a lower one).
//
// Vertices are visited by degree, highest first, ties to the lowest index; one that no ball covers yet becomes a
// centre. Centres of radius-2 balls are more than 2 apart, so their radius-1 balls are disjoint and every cover by
// radius-1 balls needs at least one centre in each: hence the lower bound.
#pragma once

#include "bit_graph.h"

namespace srr {

constexpr int32_t kDead = -1;  // degree of a vertex that is not alive

// degree[v] within the alive vertices, kDead for the others.
template <class Team>
SRR_HOST_DEVICE void alive_degrees(Team& team, const BitGraph& graph, const uint64_t* alive, int32_t* degree) {
  team.for_each(graph.n, [&](int64_t v) {
    const uint64_t* row = graph.row(v);
    int32_t count = 0;
    for (int64_t w = 0; w < graph.stride; ++w) count += popcount(row[w] & alive[w]);
    degree[v] = contains(alive, v) ? count : kDead;
  });
  team.sync();
}

// Lists the vertices with an edge by degree, highest first, ties to the lowest index; returns how many there are.
// Sorts by counting, in about 3n steps that the members share. counts: [n + 1].
template <class Team>
SRR_HOST_DEVICE int64_t order_by_degree(Team& team, int64_t n, const int32_t* degree, int32_t* order, int32_t* counts) {
  const auto place = [&](int64_t v) { return degree[v] > 0 ? static_cast<int32_t>(n) - degree[v] : -1; };
  team.for_each(n + 1, [&](int64_t p) { counts[p] = 0; });
  team.sync();
  team.for_each(n, [&](int64_t v) {
    if (place(v) >= 0) team.atomic_add(&counts[place(v)], 1);
  });
  team.sync();
  team.exclusive_sum(n + 1, counts);
  team.number_by(n, place, counts, [&](int64_t v, int32_t rank) { order[rank] = static_cast<int32_t>(v); });
  return counts[n];  // the place of degree 0, where no vertex went: the sum of all others
}

// covered |= the ball around `centre` in the graph of the alive vertices (radius 1 or 2).
template <class Team>
SRR_HOST_DEVICE void cover_ball(Team& team, const BitGraph& graph, const uint64_t* alive, int64_t centre, int radius,
                                uint64_t* covered) {
  const uint64_t* neighbours = graph.row(centre);
  for_each_span(team, graph.stride, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) covered[w] |= neighbours[w];
    if (begin <= word_of(centre) && word_of(centre) < end) covered[word_of(centre)] |= bit_of(centre);
  });
  if (radius == 1) return;
  // The members look for the next neighbours together: most words of a wide row have none.
  const auto any = [&](int64_t q) { return (neighbours[q] & alive[q]) != 0; };
  for (int64_t q = team.first_where(0, graph.stride, any); q < graph.stride;
       q = team.first_where(q + 1, graph.stride, any)) {
    for_each_bit(neighbours[q] & alive[q], q, [&](int64_t v) {
      const uint64_t* row = graph.row(v);
      for_each_span(team, graph.stride, [&](int64_t begin, int64_t end) {
        for (int64_t w = begin; w < end; ++w) covered[w] |= row[w];
      });
    });
  }
}

// Number of centres among the first `listed` vertices of `order`.
template <class Team>
SRR_HOST_DEVICE int64_t greedy_centres(Team& team, const BitGraph& graph, const uint64_t* alive, const int32_t* order,
                                       int64_t listed, int radius, uint64_t* covered) {
  team.sync();  // all members have finished with `covered` as an earlier cover left it
  clear_set(team, graph.n, covered);
  int64_t centres = 0;
  for (int64_t p = 0;; ++p) {
    p = team.first_where(p, listed, [&](int64_t q) { return !contains(covered, order[q]); });
    if (p == listed) return centres;
    ++centres;
    team.sync();  // all members have read `covered` before any of them changes it
    cover_ball(team, graph, alive, order[p], radius, covered);
    team.sync();
  }
}

// Greedy cover of the whole graph. Vertices without an edge are their own centres and are never listed.
template <class Team>
SRR_HOST_DEVICE int64_t covering(Team& team, const BitGraph& graph, int radius, const Workspace& space) {
  uint64_t* alive = space.sets[0];
  int32_t* degree = space.ints[0];
  int32_t* order = space.ints[1];
  fill_set(team, graph.n, alive);
  alive_degrees(team, graph, alive, degree);
  const int64_t listed = order_by_degree(team, graph.n, degree, order, space.counts);
  return graph.n - listed + greedy_centres(team, graph, alive, order, listed, radius, space.sets[1]);
}

}  // namespace srr
