// trajectories: after every removal the answer for the graph that is left, for every team size and any cut into
// stretches; and what is no order of removals is told.
#include "core/trajectories.h"

#include "check.h"
#include "graphs.h"
#include "threads.h"

using namespace srr;
using namespace srr::test;

namespace {

constexpr double kComponents = 0.35, kCover = 0.65;

// What the two passes write: -1 where they should not.
struct Parts {
  explicit Parts(int64_t n) : components(n, -1), upper(n, -1), lower(n, -1) {}

  template <class Team>
  void compute(Team& team, Packed& packed, const std::vector<int64_t>& order, int64_t limit, int64_t stretch) {
    components_along(team, packed.graph(), order.data(), limit, packed.space(), components.data());
    team.sync();
    for (int64_t first = 0; first < limit; first += stretch) {
      covers_along(team, packed.graph(), order.data(), first, std::min(first + stretch, limit), packed.space(),
                   upper.data(), lower.data());
      team.sync();
    }
  }
  std::vector<double> values(int64_t limit) const {
    const int64_t n = static_cast<int64_t>(upper.size());
    std::vector<double> values;
    for (int64_t k = 0; k < limit; ++k) {
      values.push_back(redundancy(n - k, components[k], upper[k], lower[k], kComponents, kCover));
    }
    return values;
  }
  bool untouched_from(int64_t limit) const {
    bool untouched = true;
    for (const auto* part : {&components, &upper, &lower}) {
      untouched &= std::all_of(part->begin() + limit, part->end(), [](int32_t x) { return x == -1; });
    }
    return untouched;
  }

  std::vector<int32_t> components, upper, lower;
};

void check(const Matrix& matrix, std::mt19937_64& random, bool with_threads) {
  Packed packed(matrix);
  const std::vector<int64_t> order = random_order(packed.n, random);
  const std::vector<double> expected = brute_trajectory(matrix, order, kComponents, kCover);
  for (const int64_t stretch : {int64_t{1}, int64_t{7}, packed.n}) {
    Parts parts(packed.n);
    SerialTeam serial;
    parts.compute(serial, packed, order, packed.n, stretch);
    CHECK(parts.values(packed.n) == expected, "n = %d, stretches of %d", static_cast<int>(packed.n),
          static_cast<int>(stretch));
  }
  const int64_t limit = packed.n / 2;
  for (const int64_t size : with_threads ? kTeams : std::vector<int64_t>{}) {
    Parts parts(packed.n);
    run_team(size, [&](ThreadTeam& team) {
      parts.compute(team, packed, order, limit, 16);
      return int64_t{0};
    });
    const std::vector<double> values = parts.values(limit);
    CHECK(std::equal(values.begin(), values.end(), expected.begin()), "n = %d, team of %d", static_cast<int>(packed.n),
          static_cast<int>(size));
    CHECK(parts.untouched_from(limit), "wrote past the limit");
  }
  for (size_t k = 0; k < expected.size(); ++k) {
    CHECK(expected[k] >= 1 - 1e-12 && expected[k] <= static_cast<double>(packed.n - k) * (1 + 1e-12), "R = %g",
          expected[k]);
  }
}

void check_permutations() {
  const auto permutes = [](const std::vector<int64_t>& order) {
    std::vector<uint64_t> seen(words_for(static_cast<int64_t>(order.size())), 7);
    for (const int64_t size : kTeams) {
      const bool answer = run_team(size, [&](ThreadTeam& team) -> int64_t {
        return is_permutation(team, order.data(), static_cast<int64_t>(order.size()), seen.data());
      });
      SerialTeam serial;
      CHECK(answer == is_permutation(serial, order.data(), static_cast<int64_t>(order.size()), seen.data()), "team");
      if (!answer) return false;
    }
    return true;
  };
  std::mt19937_64 random(5);
  for (const int64_t n : {1, 5, 64, 65, 130}) {
    const std::vector<int64_t> order = random_order(n, random);
    CHECK(permutes(order), "n = %d", static_cast<int>(n));
    for (const int64_t wrong :
         {int64_t{-1}, n, order[0] == 0 && n > 1 ? order[n - 1] : order[0] - 1, INT64_MIN, INT64_MAX}) {
      std::vector<int64_t> bad = order;
      bad[0] = wrong;
      CHECK(!permutes(bad), "n = %d with %ld for %ld", static_cast<int>(n), static_cast<long>(wrong),
            static_cast<long>(order[0]));
    }
  }
  CHECK(permutes({}), "the empty order");
}

}  // namespace

int main() {
  check_permutations();
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
