// trajectories: after every removal the answer for the graph that is left, for every team size and any cut into
// stretches.
#include "core/trajectories.h"

#include <numeric>

#include "check.h"
#include "graphs.h"
#include "threads.h"

using namespace srr;
using namespace srr::test;

namespace {

constexpr double kComponents = 0.35, kCover = 0.65;

std::vector<double> brute(const Matrix& matrix, const std::vector<int64_t>& order) {
  std::vector<bool> alive(matrix.size(), true);
  std::vector<double> values;
  for (size_t k = 0; k < order.size(); ++k) {
    values.push_back(redundancy(static_cast<int64_t>(order.size() - k),
                                static_cast<double>(brute_components(matrix, alive)), brute_cover(matrix, alive, 1),
                                brute_cover(matrix, alive, 2), kComponents, kCover));
    alive[order[k]] = false;
  }
  return values;
}

template <class Team>
void trajectory(Team& team, Packed& packed, const std::vector<int64_t>& order, int64_t limit, int64_t stretch,
                double* values) {
  components_along(team, packed.graph(), order.data(), limit, packed.space(), values);
  team.sync();
  for (int64_t first = 0; first < limit; first += stretch) {
    redundancy_along(team, packed.graph(), order.data(), first, std::min(first + stretch, limit), kComponents, kCover,
                     packed.space(), values);
    team.sync();
  }
}

void check(const Matrix& matrix, std::mt19937_64& random, bool with_threads) {
  Packed packed(matrix);
  std::vector<int64_t> order(packed.n);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  const std::vector<double> expected = brute(matrix, order);
  for (const int64_t stretch : {int64_t{1}, int64_t{7}, packed.n}) {
    std::vector<double> values(packed.n, -1);
    SerialTeam serial;
    trajectory(serial, packed, order, packed.n, stretch, values.data());
    CHECK(values == expected, "n = %d, stretches of %d", static_cast<int>(packed.n), static_cast<int>(stretch));
  }
  const int64_t limit = packed.n / 2;
  for (const int64_t size : with_threads ? kTeams : std::vector<int64_t>{}) {
    std::vector<double> values(packed.n, -1);
    run_team(size, [&](ThreadTeam& team) {
      trajectory(team, packed, order, limit, 16, values.data());
      return int64_t{0};
    });
    CHECK(std::equal(values.begin(), values.begin() + limit, expected.begin()), "n = %d, team of %d",
          static_cast<int>(packed.n), static_cast<int>(size));
    CHECK(std::count(values.begin() + limit, values.end(), -1.0) == packed.n - limit, "wrote past the limit");
  }
  for (size_t k = 0; k < expected.size(); ++k) {
    CHECK(expected[k] >= 1 - 1e-12 && expected[k] <= static_cast<double>(packed.n - k) * (1 + 1e-12), "R = %g",
          expected[k]);
  }
}

}  // namespace

int main() {
  std::mt19937_64 random(3);
  for (int64_t n = 1; n <= 4; ++n) {
    for (uint64_t code = 0; code < uint64_t{1} << (n * (n - 1) / 2); ++code) check(coded_graph(n, code), random, false);
  }
  for (const int64_t n : kSizes) {
    const bool small = n <= 65;
    for (const double density : {0.0, 2.0 / static_cast<double>(n), 0.2, 1.0}) {
      if (small || density == 0.2) check(random_graph(n, density, random), random, small);
    }
  }
  return 0;
}
