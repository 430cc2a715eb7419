// Graphs to test on, and answers found the obvious way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "core/bit_graph.h"

namespace srr::test {

using Matrix = std::vector<std::vector<bool>>;

// Sizes on both sides of every boundary of words and spans.
inline const std::vector<int64_t> kSizes = {1, 2, 31, 32, 33, 63, 64, 65, 129};
inline const std::vector<int64_t> kTeams = {1, 2, 3, 8};

struct Packed {
  std::vector<uint64_t> words;
  std::vector<uint64_t> scratch;
  int64_t n;

  explicit Packed(const Matrix& matrix) : n(static_cast<int64_t>(matrix.size())) {
    words.assign(n * words_for(n), 0);
    for (int64_t v = 0; v < n; ++v) {
      for (int64_t u = 0; u < n; ++u) {
        if (matrix[v][u]) words[v * words_for(n) + word_of(u)] |= bit_of(u);
      }
    }
    // What a kernel finds in fresh memory is arbitrary: an algorithm that reads before it writes shows here.
    scratch.assign(Workspace::size(n), 0xA5A5A5A5A5A5A5A5ull);
  }
  BitGraph graph() const { return bit_graph(words.data(), n); }
  Workspace space() { return Workspace::carve(scratch.data(), n); }
};

inline Matrix random_graph(int64_t n, double density, std::mt19937_64& random) {
  Matrix matrix(n, std::vector<bool>(n, false));
  std::bernoulli_distribution edge(density);
  for (int64_t v = 0; v < n; ++v) {
    for (int64_t u = v + 1; u < n; ++u) matrix[v][u] = matrix[u][v] = edge(random);
  }
  return matrix;
}

// The graph on n vertices whose edges are the bits of `code`, pair by pair.
inline Matrix coded_graph(int64_t n, uint64_t code) {
  Matrix matrix(n, std::vector<bool>(n, false));
  for (int64_t v = 0; v < n; ++v) {
    for (int64_t u = v + 1; u < n; ++u, code >>= 1) matrix[v][u] = matrix[u][v] = code & 1;
  }
  return matrix;
}

inline int64_t brute_components(const Matrix& m, const std::vector<bool>& alive) {
  const int64_t n = static_cast<int64_t>(m.size());
  std::vector<int64_t> label(n);
  for (int64_t v = 0; v < n; ++v) label[v] = v;
  for (int64_t round = 0; round < n; ++round) {
    for (int64_t v = 0; v < n; ++v) {
      for (int64_t u = 0; u < n; ++u) {
        if (m[v][u] && alive[v] && alive[u]) label[v] = std::min(label[v], label[u]);
      }
    }
  }
  int64_t count = 0;
  for (int64_t v = 0; v < n; ++v) count += alive[v] && label[v] == v;
  return count;
}

// The greedy cover of the definition, on matrices.
inline int64_t brute_cover(const Matrix& m, const std::vector<bool>& alive, int radius) {
  const int64_t n = static_cast<int64_t>(m.size());
  std::vector<int64_t> degree(n, 0), order;
  for (int64_t v = 0; v < n; ++v) {
    for (int64_t u = 0; u < n; ++u) degree[v] += m[v][u] && alive[u];
    if (alive[v]) order.push_back(v);
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return degree[a] > degree[b]; });
  std::vector<bool> covered(n, false);
  int64_t centres = 0;
  for (const int64_t v : order) {
    if (covered[v]) continue;
    ++centres;
    covered[v] = true;
    for (int64_t u = 0; u < n; ++u) {
      if (!m[v][u] || !alive[u]) continue;
      covered[u] = true;
      for (int64_t t = 0; radius == 2 && t < n; ++t) {
        if (m[u][t]) covered[t] = true;
      }
    }
  }
  return centres;
}

// R after 0, 1, ... removals in the given order.
inline std::vector<double> brute_trajectory(const Matrix& m, const std::vector<int64_t>& order, double component_weight,
                                            double cover_weight) {
  std::vector<bool> alive(m.size(), true);
  std::vector<double> values;
  for (size_t k = 0; k < order.size(); ++k) {
    const double cover = static_cast<double>(brute_cover(m, alive, 1) + brute_cover(m, alive, 2)) / 2;
    const double components = static_cast<double>(brute_components(m, alive));
    values.push_back(static_cast<double>(order.size() - k) / (component_weight * components + cover_weight * cover));
    alive[order[k]] = false;
  }
  return values;
}

inline std::vector<int64_t> random_order(int64_t n, std::mt19937_64& random) {
  std::vector<int64_t> order(n);
  for (int64_t k = 0; k < n; ++k) order[k] = k;
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

// The covering number itself, by trying every set of vertices: for graphs of few vertices.
inline int64_t covering_number(const Matrix& m) {
  const int64_t n = static_cast<int64_t>(m.size());
  std::vector<uint32_t> ball(n, 0);
  for (int64_t v = 0; v < n; ++v) {
    for (int64_t u = 0; u < n; ++u) {
      if (u == v || m[v][u]) ball[v] |= 1u << u;
    }
  }
  int64_t best = n;
  for (uint32_t set = 0; set < (1u << n); ++set) {
    uint32_t covered = 0;
    for (int64_t v = 0; v < n; ++v) covered |= (set >> v & 1) ? ball[v] : 0;
    if (covered == (1u << n) - 1) best = std::min<int64_t>(best, popcount(set));
  }
  return best;
}

}  // namespace srr::test
