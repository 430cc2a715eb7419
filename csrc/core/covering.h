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
// A single member sorts by counting, in 3n steps; several find the rank of each vertex on their own, in n steps each.
template <class Team>
SRR_HOST_DEVICE int64_t order_by_degree(Team& team, int64_t n, const int32_t* degree, int32_t* order, int32_t* counts) {
  int64_t listed = 0;
  if (team.size() == 1) {
    for (int64_t d = 0; d <= n; ++d) counts[d] = 0;
    for (int64_t v = 0; v < n; ++v) counts[degree[v] > 0 ? degree[v] : 0] += 1;
    for (int64_t d = n; d > 0; --d) {
      const int32_t here = counts[d];
      counts[d] = static_cast<int32_t>(listed);
      listed += here;
    }
    for (int64_t v = 0; v < n; ++v) {
      if (degree[v] > 0) order[counts[degree[v]]++] = static_cast<int32_t>(v);
    }
    return listed;
  }
  team.for_each(n, [&](int64_t v) {
    if (degree[v] <= 0) return;
    int64_t rank = 0;
    for (int64_t u = 0; u < n; ++u) rank += degree[u] > degree[v] || (degree[u] == degree[v] && u < v);
    order[rank] = static_cast<int32_t>(v);
    ++listed;
  });
  return team.reduce_sum(listed);
}

// covered |= the ball around `centre` in the graph of the alive vertices (radius 1 or 2).
template <class Team>
SRR_HOST_DEVICE void cover_ball(Team& team, const BitGraph& graph, const uint64_t* alive, int64_t centre, int radius,
                                uint64_t* covered) {
  const uint64_t* neighbours = graph.row(centre);
  for_each_span(team, graph.stride, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) covered[w] |= neighbours[w];
    if (begin <= word_of(centre) && word_of(centre) < end) covered[word_of(centre)] |= bit_of(centre);
    if (radius == 1) return;
    for (int64_t q = 0; q < graph.stride; ++q) {
      for_each_bit(neighbours[q] & alive[q], q, [&](int64_t v) {
        const uint64_t* row = graph.row(v);
        for (int64_t w = begin; w < end; ++w) covered[w] |= row[w];
      });
    }
  });
}

// Number of centres among the first `listed` vertices of `order`.
template <class Team>
SRR_HOST_DEVICE int64_t greedy_centres(Team& team, const BitGraph& graph, const uint64_t* alive, const int32_t* order,
                                       int64_t listed, int radius, uint64_t* covered) {
  team.sync();  // all members have finished with `covered` as an earlier cover left it
  clear_set(team, graph.n, covered);
  int64_t centres = 0;
  for (int64_t p = 0; p < listed; ++p) {
    const int64_t v = order[p];
    if (contains(covered, v)) continue;
    ++centres;
    team.sync();  // all members have read `covered` before any of them changes it
    cover_ball(team, graph, alive, v, radius, covered);
    team.sync();
  }
  return centres;
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
