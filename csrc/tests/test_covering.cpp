// covering: equal to the greedy of the definition for every team size, and lower <= covering number <= upper.
#include "core/covering.h"

#include "check.h"
#include "core/components.h"
#include "graphs.h"
#include "threads.h"

using namespace srr;
using namespace srr::test;

namespace {

int64_t serial_covering(Packed& packed, int radius) {
  SerialTeam serial;
  return covering(serial, packed.graph(), radius, packed.space());
}

void check_bounds(const Matrix& matrix) {
  Packed packed(matrix);
  SerialTeam serial;
  const int64_t k = components(serial, packed.graph(), packed.space());
  const int64_t lower = serial_covering(packed, 2), upper = serial_covering(packed, 1);
  const int64_t exact = covering_number(matrix);
  CHECK(k <= lower && lower <= exact && exact <= upper && upper <= packed.n, "%d <= %d <= %d <= %d <= %d",
        static_cast<int>(k), static_cast<int>(lower), static_cast<int>(exact), static_cast<int>(upper),
        static_cast<int>(packed.n));
}

void check_greedy(const Matrix& matrix, bool with_threads) {
  Packed packed(matrix);
  for (const int radius : {1, 2}) {
    const int64_t expected = brute_cover(matrix, std::vector<bool>(matrix.size(), true), radius);
    CHECK(serial_covering(packed, radius) == expected, "n = %d, radius %d", static_cast<int>(packed.n), radius);
    for (const int64_t size : with_threads ? kTeams : std::vector<int64_t>{}) {
      const int64_t got =
          run_team(size, [&](ThreadTeam& team) { return covering(team, packed.graph(), radius, packed.space()); });
      CHECK(got == expected, "n = %d, radius %d, team of %d", static_cast<int>(packed.n), radius,
            static_cast<int>(size));
    }
  }
}

// order_by_degree, stable and complete, against the standard library's sort.
void check_order(int64_t n, int64_t most, std::mt19937_64& random) {
  std::vector<int32_t> degree(n), expected, counts(n + 1, -7);
  for (int32_t& d : degree) d = static_cast<int32_t>(random() % (most + 2)) - 1;  // kDead .. most
  for (int32_t v = 0; v < n; ++v) {
    if (degree[v] > 0) expected.push_back(v);
  }
  std::stable_sort(expected.begin(), expected.end(), [&](int32_t a, int32_t b) { return degree[a] > degree[b]; });
  for (const int64_t size : kTeams) {
    std::vector<int32_t> order(n, -7);
    const int64_t listed = run_team(
        size, [&](ThreadTeam& team) { return order_by_degree(team, n, degree.data(), order.data(), counts.data()); });
    CHECK(listed == static_cast<int64_t>(expected.size()), "n = %d, team of %d", static_cast<int>(n),
          static_cast<int>(size));
    CHECK(std::equal(expected.begin(), expected.end(), order.begin()) &&
              std::count(order.begin(), order.end(), -7) == n - listed,
          "n = %d, team of %d", static_cast<int>(n), static_cast<int>(size));
  }
}

}  // namespace

int main() {
  for (int64_t n = 0; n <= 5; ++n) {
    for (uint64_t code = 0; code < uint64_t{1} << (n * (n - 1) / 2); ++code) {
      check_bounds(coded_graph(n, code));
      check_greedy(coded_graph(n, code), false);
    }
  }
  std::mt19937_64 random(2);
  for (int round = 0; round < 300; ++round) check_bounds(random_graph(6 + round % 5, 0.05 + 0.002 * round, random));
  for (const int64_t n : kSizes) {
    for (const double density : {0.0, 1.0 / static_cast<double>(n), 4.0 / static_cast<double>(n), 0.3, 1.0}) {
      check_greedy(random_graph(n, density, random), true);
    }
  }
  for (const int64_t n : kSizes) {
    for (const int64_t most : {int64_t{0}, int64_t{1}, n / 4, n - 1})
      check_order(n, std::max<int64_t>(most, 0), random);
  }
  return 0;
}
