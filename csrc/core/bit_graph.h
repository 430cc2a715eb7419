// Undirected graphs as bit matrices, and sets of vertices as bit rows.
//
// Row v holds one bit per vertex: bit u % 64 of word u / 64 is set iff {u, v} is an edge. Rows are symmetric, have no
// self loops, and their bits past the last vertex are zero.
#pragma once

#include <cstdint>

#include "team.h"

namespace srr {

constexpr int64_t kWordBits = 64;

SRR_HOST_DEVICE constexpr int64_t words_for(int64_t n) { return (n + kWordBits - 1) / kWordBits; }

struct BitGraph {
  const uint64_t* words;  // [n, stride]
  int64_t n;              // vertices
  int64_t stride;         // words per row, words_for(n)

  SRR_HOST_DEVICE const uint64_t* row(int64_t v) const { return words + v * stride; }
};

SRR_HOST_DEVICE inline BitGraph bit_graph(const uint64_t* words, int64_t n) { return {words, n, words_for(n)}; }

SRR_HOST_DEVICE inline int popcount(uint64_t word) {
#if defined(__CUDA_ARCH__)
  return __popcll(word);
#else
  return __builtin_popcountll(word);
#endif
}

// Index of the lowest set bit; the word must not be zero.
SRR_HOST_DEVICE inline int lowest_bit(uint64_t word) {
#if defined(__CUDA_ARCH__)
  return __ffsll(static_cast<long long>(word)) - 1;
#else
  return __builtin_ctzll(word);
#endif
}

SRR_HOST_DEVICE constexpr int64_t word_of(int64_t v) { return v / kWordBits; }
SRR_HOST_DEVICE constexpr uint64_t bit_of(int64_t v) { return uint64_t{1} << (v % kWordBits); }
SRR_HOST_DEVICE inline bool contains(const uint64_t* set, int64_t v) { return (set[word_of(v)] & bit_of(v)) != 0; }

// f(v) for every vertex v whose bit is set in the w-th word of a set, lowest first.
template <class F>
SRR_HOST_DEVICE void for_each_bit(uint64_t word, int64_t w, const F& f) {
  for (; word != 0; word &= word - 1) f(w * kWordBits + lowest_bit(word));
}

// The w-th word of the set of all n vertices.
SRR_HOST_DEVICE constexpr uint64_t full_word(int64_t n, int64_t w) {
  return n - w * kWordBits >= kWordBits ? ~uint64_t{0} : bit_of(n) - 1;
}

template <class Team>
SRR_HOST_DEVICE void fill_set(Team& team, int64_t n, uint64_t* set) {
  team.for_each(words_for(n), [&](int64_t w) { set[w] = full_word(n, w); });
  team.sync();
}

template <class Team>
SRR_HOST_DEVICE void clear_set(Team& team, int64_t n, uint64_t* set) {
  team.for_each(words_for(n), [&](int64_t w) { set[w] = 0; });
  team.sync();
}

// Scratch memory of the graph algorithms, about 12 bytes per vertex; the graph itself has n / 8.
struct Workspace {
  uint64_t* sets[3];  // [words_for(n)] each
  int32_t* ints[2];   // [n] each
  int32_t* counts;    // [n + 1]

  // 64-bit words that `carve` needs for a graph of n vertices.
  SRR_HOST_DEVICE static constexpr int64_t size(int64_t n) { return 3 * words_for(n) + (3 * n + 2) / 2; }

  SRR_HOST_DEVICE static Workspace carve(uint64_t* memory, int64_t n) {
    const int64_t set = words_for(n);
    int32_t* ints = reinterpret_cast<int32_t*>(memory + 3 * set);
    return {{memory, memory + set, memory + 2 * set}, {ints, ints + n}, ints + 2 * n};
  }
};

}  // namespace srr
