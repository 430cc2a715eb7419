// components: every graph of up to five vertices, random graphs of awkward sizes, every team size.
#include "core/components.h"

#include "check.h"
#include "graphs.h"
#include "threads.h"

using namespace srr;
using namespace srr::test;

namespace {

void check(const Matrix& matrix, bool with_threads) {
  Packed packed(matrix);
  const int64_t expected = brute_components(matrix, std::vector<bool>(matrix.size(), true));
  SerialTeam serial;
  CHECK(components(serial, packed.graph(), packed.space()) == expected, "n = %d", static_cast<int>(packed.n));
  for (const int64_t size : with_threads ? kTeams : std::vector<int64_t>{}) {
    const int64_t got =
        run_team(size, [&](ThreadTeam& team) { return components(team, packed.graph(), packed.space()); });
    CHECK(got == expected, "n = %d, team of %d", static_cast<int>(packed.n), static_cast<int>(size));
  }
}

}  // namespace

int main() {
  for (int64_t n = 0; n <= 5; ++n) {
    for (uint64_t code = 0; code < uint64_t{1} << (n * (n - 1) / 2); ++code) check(coded_graph(n, code), false);
  }
  std::mt19937_64 random(1);
  for (const int64_t n : kSizes) {
    for (const double density : {0.0, 0.5 / static_cast<double>(n), 2.0 / static_cast<double>(n), 0.3, 1.0}) {
      check(random_graph(n, density, random), true);
    }
  }
  Matrix path(200, std::vector<bool>(200, false));  // the deepest search
  for (int v = 0; v + 1 < 200; ++v) path[v][v + 1] = path[v + 1][v] = true;
  check(path, true);
  return 0;
}
