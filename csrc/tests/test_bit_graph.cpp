// Bit arithmetic, sets and the carving of scratch memory.
#include "check.h"
#include "graphs.h"
#include "threads.h"

using namespace srr;

int main() {
  for (const int64_t n : {0, 1, 31, 63, 64, 65, 127, 128, 129, 2048}) {
    CHECK(words_for(n) == (n + 63) / 64, "n = %d", static_cast<int>(n));
    SerialTeam team;
    std::vector<uint64_t> set(words_for(n) + 1, 7);
    fill_set(team, n, set.data());
    int64_t members = 0;
    for (int64_t w = 0; w < words_for(n); ++w) {
      for_each_bit(set[w], w, [&](int64_t v) { CHECK(v == members++, "vertex %d", static_cast<int>(v)); });
    }
    CHECK(members == n && set[words_for(n)] == 7, "n = %d", static_cast<int>(n));

    // The parts of a workspace do not overlap and stay inside.
    std::vector<uint64_t> memory(Workspace::size(n) + 1, 0);
    const Workspace space = Workspace::carve(memory.data(), n);
    for (uint64_t* part : space.sets) std::fill_n(part, words_for(n), ~uint64_t{0});
    for (int32_t* part : space.ints) std::fill_n(part, n, 1);
    std::fill_n(space.counts, n + 1, 2);
    int64_t ones = 0;
    for (uint64_t* part : space.sets) ones += std::count(part, part + words_for(n), ~uint64_t{0});
    for (int32_t* part : space.ints) ones += std::count(part, part + n, 1);
    ones += std::count(space.counts, space.counts + n + 1, 2);
    CHECK(ones == 3 * words_for(n) + 3 * n + 1 && memory.back() == 0, "n = %d", static_cast<int>(n));
  }
  for (const int64_t size : test::kTeams) {
    for (const int64_t n : {0, 1, 5, 64}) {
      std::vector<int> visits(n, 0);
      const int64_t sum = test::run_team(size, [&](test::ThreadTeam& team) {
        int64_t mine = 0;
        team.for_each(n, [&](int64_t i) {
          visits[i] += 1;
          mine += i;
        });
        return team.reduce_sum(mine);
      });
      CHECK(sum == n * (n - 1) / 2, "team of %d", static_cast<int>(size));
      CHECK(std::count(visits.begin(), visits.end(), 1) == n, "team of %d", static_cast<int>(size));
    }
  }
  return 0;
}
