// Quotient space size: the number of connected components of a filter graph.
#pragma once

#include "bit_graph.h"

namespace srr {

// Breadth-first search from each vertex not seen yet, on bit rows: a whole frontier's neighbours are the OR of its
// rows, so a search reads every row once. Vertices without an edge, often most of them, are counted beforehand, all
// members at once. Uses all three sets of the workspace.
template <class Team>
SRR_HOST_DEVICE int64_t components(Team& team, const BitGraph& graph, const Workspace& space) {
  uint64_t* unseen = space.sets[0];
  uint64_t* frontier = space.sets[1];
  uint64_t* next = space.sets[2];
  clear_set(team, graph.n, unseen);
  int64_t alone = 0;
  team.for_each(graph.n, [&](int64_t v) {
    const uint64_t* row = graph.row(v);
    uint64_t any = 0;
    for (int64_t w = 0; w < graph.stride; ++w) any |= row[w];
    if (any == 0) {
      ++alone;
    } else {
      team.atomic_or(&unseen[word_of(v)], bit_of(v));
    }
  });
  int64_t count = team.reduce_sum(alone);
  for (int64_t w = 0;;) {
    w = team.first_where(w, graph.stride, [&](int64_t q) { return unseen[q] != 0; });
    if (w == graph.stride) return count;
    const uint64_t start = unseen[w] & (~unseen[w] + 1);
    ++count;
    team.sync();  // all members have read `unseen` before any of them changes it
    team.for_each(graph.stride, [&](int64_t q) {
      frontier[q] = q == w ? start : 0;
      unseen[q] &= ~frontier[q];
    });
    team.sync();
    for (int64_t reached = 1; reached > 0;) {
      int64_t mine = 0;
      for_each_span(team, graph.stride, [&](int64_t begin, int64_t end) {
        for (int64_t q = begin; q < end; ++q) next[q] = 0;
      });
      // The members look for the next of the frontier together: most words of a wide row have none.
      const auto any = [&](int64_t q) { return frontier[q] != 0; };
      for (int64_t q = team.first_where(0, graph.stride, any); q < graph.stride;
           q = team.first_where(q + 1, graph.stride, any)) {
        for_each_bit(frontier[q], q, [&](int64_t v) {
          const uint64_t* row = graph.row(v);
          for_each_span(team, graph.stride, [&](int64_t begin, int64_t end) {
            for (int64_t p = begin; p < end; ++p) next[p] |= row[p];
          });
        });
      }
      for_each_span(team, graph.stride, [&](int64_t begin, int64_t end) {
        for (int64_t q = begin; q < end; ++q) {
          next[q] &= unseen[q];
          mine += next[q] != 0;
        }
      });
      reached = team.reduce_sum(mine);
      team.for_each(graph.stride, [&](int64_t q) {
        frontier[q] = next[q];
        unseen[q] &= ~next[q];
      });
      team.sync();
    }
  }
}

}  // namespace srr
