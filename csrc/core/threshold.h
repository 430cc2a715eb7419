// When two filters are joined: the definition, and what a cosine in single precision says about it.
//
// Filters i and j are joined iff |v_i - v_j|^2 <= gamma^2 n for their unit vectors v and fan-in n, which is
// cos >= 1 - gamma^2 n / 2. The definition's arithmetic is that of srr_ext/reference.py, operation by operation: double
// precision, each filter scaled by a power of two (exact) so that squares neither overflow nor vanish, and sums in
// kLanes interleaved partial sums, added up from the first to the last. No step may be fused or reordered.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace srr {

constexpr int64_t kLanes = 8;

enum FilterKind : uint8_t { kRegular = 0, kZero = 1, kNotFinite = 2 };

struct Threshold {
  float none, edge;  // a cosine below `none` is no edge, one above `edge` is one, between them nothing is known
  double squared;    // the definition: |v_i - v_j|^2 <= squared

  Threshold() = default;

  // `error`: bound of |cosine in single precision - exact cosine|.
  Threshold(double gamma, int64_t fan_in, double error) : squared(gamma * gamma * static_cast<double>(fan_in)) {
    const double cosine = std::max(1 - squared / 2, -4.0);  // -4 is as good as minus infinity
    none = std::nextafter(static_cast<float>(cosine - error), -std::numeric_limits<float>::infinity());
    edge = std::nextafter(static_cast<float>(cosine + error), std::numeric_limits<float>::infinity());
  }
};

}  // namespace srr
