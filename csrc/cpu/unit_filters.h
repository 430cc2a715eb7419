// Filters of one layer as unit vectors v = W / |W|, in single precision for speed and double for decisions: there the
// arithmetic is the definition's, see core/threshold.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../core/threshold.h"
#include "cosine_tile.h"

namespace srr::cpu {

using Lanes = double[kLanes];

struct UnitFilter {
  double scale;  // a power of two
  double norm;   // of the scaled filter; 0 for filters that are zero or not finite
};

constexpr int64_t whole_lanes(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

inline double sum_of(const Lanes& lanes) {
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

// |a - b|^2, by the definition, of two filters from UnitFilters::unit.
inline double squared_distance(const double* a, const double* b, int64_t fan_in) {
  Lanes sum = {};
  for (int64_t k = 0; k < fan_in; k += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double difference = a[k + lane] - b[k + lane];
      sum[lane] += difference * difference;
    }
  }
  return sum_of(sum);
}

template <class T>
constexpr int kMantissaBits = std::numeric_limits<T>::digits - 1;

// T is the weights' own type: they are read in place.
template <class T>
struct UnitFilters {
  const T* weights;  // [n, fan_in]
  int64_t n;
  int64_t fan_in;

  // Scale and norm of one filter.
  FilterKind measure(int64_t filter, UnitFilter* out) const {
    *out = {0, 0};
    const Bits top = largest_magnitude(filter);
    if (top >= kInfinity) return kNotFinite;
    if (top == 0) return kZero;
    T largest;
    std::memcpy(&largest, &top, sizeof(T));
    int exponent;
    std::frexp(wide(largest), &exponent);
    out->scale = std::ldexp(1.0, -std::clamp(exponent, -1000, 1000));
    Lanes x, squares = {};
    for (int64_t k = 0; k < fan_in; k += kLanes) {
      load(filter, k, x);
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const double scaled = x[lane] * out->scale;
        squares[lane] += scaled * scaled;
      }
    }
    out->norm = std::sqrt(sum_of(squares));
    return kRegular;
  }

  // A regular filter's unit vector, in double precision and by the definition: whole_lanes(fan_in) elements, the ones
  // past the last are zero.
  void unit(int64_t filter, const UnitFilter& measured, double* out) const {
    Lanes x;
    for (int64_t k = 0; k < fan_in; k += kLanes) {
      load(filter, k, x);
      for (int64_t lane = 0; lane < kLanes; ++lane) out[k + lane] = x[lane] * measured.scale / measured.norm;
    }
  }

  // Writes filters first .. first + kPanel as a panel of unit vectors in single precision; filters that are absent,
  // zero or not finite are zero there.
  void pack(int64_t first, const UnitFilter* measured, float* panel) const {
    constexpr int64_t kBlock = 64;  // elements at a time, so that the lines being written stay in the first cache
    for (int64_t begin = 0; begin < fan_in; begin += kBlock) {
      const int64_t end = std::min(fan_in, begin + kBlock);
      for (int64_t r = 0; r < kPanel; ++r) {
        if (first + r >= n || measured[first + r].norm == 0) {
          for (int64_t k = begin; k < end; ++k) panel[k * kPanel + r] = 0;
          continue;
        }
        const UnitFilter filter = measured[first + r];
        const double inverse = 1 / filter.norm;  // apart from the scale: their product may overflow
        const T* from = weights + (first + r) * fan_in;
        float values[kBlock];
        for (int64_t k = begin; k < end; ++k)
          values[k - begin] = static_cast<float>(wide(from[k]) * filter.scale * inverse);
        for (int64_t k = begin; k < end; ++k) panel[k * kPanel + r] = values[k - begin];
      }
    }
  }

 private:
  // As unsigned integers, the magnitudes of floating-point numbers are in order, then infinity, then NaN: one integer
  // maximum, which compilers vectorise, finds the largest weight and whether all are finite.
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  static constexpr Bits kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;
  static constexpr Bits kInfinity = (kMagnitude >> kMantissaBits<T>) << kMantissaBits<T>;

  Bits largest_magnitude(int64_t filter) const {
    const T* from = weights + filter * fan_in;
    Bits largest = 0;
    for (int64_t k = 0; k < fan_in; ++k) {
      Bits bits;
      std::memcpy(&bits, from + k, sizeof(T));
      largest = std::max<Bits>(largest, bits & kMagnitude);
    }
    return largest;
  }

  // Elements k .. k + kLanes of a filter; the ones past the last are zero, which changes no sum.
  __attribute__((always_inline)) void load(int64_t filter, int64_t k, Lanes& out) const {
    const T* from = weights + filter * fan_in + k;
    if (fan_in - k >= kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) out[lane] = wide(from[lane]);
    } else {
      for (int64_t lane = 0; lane < kLanes; ++lane) out[lane] = lane < fan_in - k ? wide(from[lane]) : 0;
    }
  }

  static double wide(T x) {
    if constexpr (std::is_same_v<T, double>) {
      return x;
    } else {
      return static_cast<double>(static_cast<float>(x));
    }
  }
};

}  // namespace srr::cpu
