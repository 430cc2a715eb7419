// The arithmetic under filter_graphs: every kernel's products within the error bound, and the measures of filters.
#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/cosine_tile.h"
#include "cpu/unit_filters.h"

using namespace srr;
using namespace srr::cpu;

namespace {

void check_tiles() {
  std::mt19937_64 random(4);
  std::normal_distribution<float> normal;
  for (const int64_t depth : {0, 1, 3, 27, 256}) {
    std::vector<float> a(kPanel * depth), b(kPanel * depth);
    for (float& x : a) x = normal(random);
    for (float& x : b) x = normal(random);
    for (const CosineKernel* kernel = cosine_kernels(); kernel->tile != nullptr; ++kernel) {
      constexpr int64_t kStride = kPanel + 5;
      std::vector<float> c(kPanel * kStride, 1.0f);
      kernel->tile(a.data(), b.data(), depth, c.data(), kStride);
      for (int64_t r = 0; r < kPanel; ++r) {
        for (int64_t s = 0; s < kStride; ++s) {
          double exact = 1, magnitude = 1;
          for (int64_t k = 0; s < kPanel && k < depth; ++k) {
            const double product = static_cast<double>(a[k * kPanel + r]) * b[k * kPanel + s];
            exact += product;
            magnitude += std::fabs(product);
          }
          const double error = std::fabs(c[r * kStride + s] - exact);
          CHECK(error <= magnitude * static_cast<double>(depth + 2) * 0x1p-24, "%s, depth %d: error %g", kernel->name,
                static_cast<int>(depth), error);
        }
      }
    }
  }
}

template <class T>
void check_measures() {
  using Limits = std::numeric_limits<T>;
  const std::vector<T> rows = {
      3,
      4,
      0,  // norm 5
      0,
      0,
      0,  // zero
      Limits::max(),
      -Limits::max(),
      0,  // squares overflow
      Limits::denorm_min(),
      0,
      -Limits::denorm_min(),  // squares vanish
      1,
      Limits::infinity(),
      0,  //
      -Limits::infinity(),
      0,
      0,  //
      Limits::quiet_NaN(),
      1,
      2,  //
  };
  const UnitFilters<T> filters{rows.data(), static_cast<int64_t>(rows.size()) / 3, 3};
  const std::vector<FilterKind> kinds = {kRegular, kZero, kRegular, kRegular, kNotFinite, kNotFinite, kNotFinite};
  std::vector<UnitFilter> measured(kinds.size());
  for (size_t i = 0; i < kinds.size(); ++i) {
    CHECK(filters.measure(static_cast<int64_t>(i), &measured[i]) == kinds[i], "filter %d", static_cast<int>(i));
    CHECK((measured[i].norm > 0) == (kinds[i] == kRegular), "norm %g", measured[i].norm);
  }
  CHECK(measured[0].norm / measured[0].scale == 5, "norm %g", measured[0].norm / measured[0].scale);
  std::vector<double> unit(whole_lanes(3), -1);
  std::vector<float> panel(kPanel * 3, -1);
  filters.pack(0, measured.data(), panel.data());
  for (const int64_t i : {0, 2, 3}) {
    filters.unit(i, measured[i], unit.data());
    double length = 0;
    for (const double x : unit) length += x * x;
    CHECK(std::fabs(length - 1) < 1e-14, "length %g", length);
    for (int64_t k = 0; k < 3; ++k) {
      CHECK(std::fabs(panel[k * kPanel + i] - unit[k]) < 1e-7, "filter %d", static_cast<int>(i));
    }
  }
  for (int64_t r : {1, 4, 5, 6, 7, 31}) CHECK(panel[r] == 0 && panel[kPanel + r] == 0, "row %d", static_cast<int>(r));
}

void check_order_of_sums() {
  std::vector<double> a(16, 0.0);
  const std::vector<double> b(16, 0.0);
  a[0] = 0x1p27, a[8] = 1, a[1] = 1;  // squares 2^54, 1 and 1: alone in its lane a 1 is lost, 1 + 1 would not be
  CHECK(squared_distance(a.data(), b.data(), 16) == 0x1p54, "lanes must be summed from first to last");
}

}  // namespace

int main() {
  check_tiles();
  check_measures<float>();
  check_measures<double>();
  check_order_of_sums();
  return 0;
}
