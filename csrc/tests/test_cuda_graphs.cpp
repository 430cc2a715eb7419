// The CUDA kernels of components, covering and trajectories on the emulator: equal to brute force for every block size
// and every place of the rows and the workspace, several layers at once.
#include <functional>

#include "check.h"
#include "cuda/components.cuh"
#include "cuda/covering.cuh"
#include "cuda/trajectories.cuh"
#include "graphs.h"

using namespace srr;
using namespace srr::cuda;
using namespace srr::test;

namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kSlow = true;  // a barrier takes several times as long
#else
constexpr bool kSlow = false;
#endif

constexpr double kComponents = 0.35, kCover = 0.65;

// Everything in shared memory, the workspaces alone (rows of up to 33 vertices fit too), nothing.
const std::vector<int64_t> kBudgets = {kSharedBytes, 2560, 64};

struct Call {
  std::vector<Matrix> matrices;
  std::vector<Packed> packed;

  void add(const Matrix& matrix) {
    matrices.push_back(matrix);
    packed.emplace_back(matrix);
  }
  int64_t size() const { return static_cast<int64_t>(packed.size()); }
  std::vector<int64_t> sizes() const {
    std::vector<int64_t> sizes;
    for (const Packed& layer : packed) sizes.push_back(layer.n);
    return sizes;
  }
};

// Layers on both sides of every boundary, an empty one and single vertices among them.
Call layers_up_to(int64_t most, std::mt19937_64& random) {
  Call call;
  call.add({});
  for (const int64_t n : kSizes) {
    if (n > most) continue;
    call.add(random_graph(n, 2.0 / static_cast<double>(n), random));
    call.add(random_graph(n, n % 2 ? 0.2 : n % 4 ? 0.0 : 1.0, random));
  }
  return call;
}

GraphLaunch plan(const std::vector<int64_t>& sizes, int64_t n_jobs, unsigned threads, int64_t budget) {
  GraphLaunch launch = plan_launch(sizes, n_jobs, budget);
  launch.threads = threads;
  return launch;
}

std::vector<uint64_t> fresh_memory(const GraphLaunch& launch) {
  std::vector<uint64_t> memory(launch.memory_words(), 0xA5A5A5A5A5A5A5A5ull);
  memory[0] = 0;
  return memory;
}

// counts[layer], as run(launch, jobs, entries, counts) finds them.
template <class Run>
std::vector<int64_t> count_per_layer(const Call& call, unsigned threads, int64_t budget, const Run& run) {
  std::vector<GraphEntry> entries;
  for (int64_t i = call.size() - 1; i >= 0; --i) entries.push_back({call.packed[i].graph(), i});
  const GraphLaunch launch = plan(call.sizes(), call.size(), threads, budget);
  std::vector<uint64_t> memory = fresh_memory(launch);
  std::vector<int64_t> counts(call.size(), -1);
  run(launch, GraphJobs(launch, call.size(), memory.data()), entries.data(), counts.data());
  return counts;
}

void check_counts(const Call& call, unsigned threads, int64_t budget) {
  const auto found =
      count_per_layer(call, threads, budget,
                      [](const GraphLaunch& launch, const GraphJobs& jobs, const GraphEntry* entries, int64_t* counts) {
                        SRR_LAUNCH(components_kernel, launch.blocks, launch.threads, launch.shared_bytes(), nullptr,
                                   jobs, entries, counts);
                      });
  std::vector<int64_t> covers[3];
  for (const int radius : {1, 2}) {
    covers[radius] = count_per_layer(
        call, threads, budget,
        [&](const GraphLaunch& launch, const GraphJobs& jobs, const GraphEntry* entries, int64_t* counts) {
          SRR_LAUNCH(covering_kernel, launch.blocks, launch.threads, launch.shared_bytes(), nullptr, jobs, entries,
                     radius, counts);
        });
  }
  for (int64_t i = 0; i < call.size(); ++i) {
    const std::vector<bool> all(call.packed[i].n, true);
    const int n = static_cast<int>(call.packed[i].n);
    CHECK(found[i] == brute_components(call.matrices[i], all), "n = %d, %u threads, budget %d", n, threads,
          static_cast<int>(budget));
    for (const int radius : {1, 2}) {
      CHECK(covers[radius][i] == brute_cover(call.matrices[i], all, radius), "n = %d, radius %d, %u threads, budget %d",
            n, radius, threads, static_cast<int>(budget));
    }
  }
}

// One vector per layer, of its limit's length.
std::vector<std::vector<double>> trajectories(const Call& call, const std::vector<std::vector<int64_t>>& orders,
                                              const std::vector<int64_t>& limits, unsigned threads, int64_t budget) {
  std::vector<TrajectoryEntry> entries;
  int64_t total = 0;
  for (int64_t i = 0; i < call.size(); ++i) {
    entries.push_back({call.packed[i].graph(), orders[i].data(), limits[i], total, 0});
    total += limits[i];
  }
  const int64_t n_stretches = arrange(entries), n_layers = static_cast<int64_t>(entries.size());
  const GraphLaunch launch = plan(call.sizes(), n_layers + n_stretches, threads, budget);
  std::vector<uint64_t> memory = fresh_memory(launch);
  std::vector<int32_t> counts(3 * total, -7);
  std::vector<double> values(total, -7);
  const Parts parts = {counts.data(), counts.data() + total, counts.data() + 2 * total};
  const GraphJobs jobs(launch, n_layers + n_stretches, memory.data());
  SRR_LAUNCH(removals_kernel, launch.blocks, launch.threads, launch.shared_bytes(), nullptr, jobs, entries.data(),
             n_layers, parts);
  SRR_LAUNCH(redundancy_kernel, static_cast<unsigned>(n_layers), 32, 0, nullptr, entries.data(), parts, kComponents,
             kCover, values.data());
  std::vector<std::vector<double>> split;
  auto at = values.begin();
  for (const int64_t limit : limits) {
    split.emplace_back(at, at + limit);
    at += limit;
  }
  return split;
}

void check_trajectories(const Call& call, unsigned threads, int64_t budget, std::mt19937_64& random) {
  std::vector<std::vector<int64_t>> orders;
  std::vector<int64_t> limits;
  for (int64_t i = 0; i < call.size(); ++i) {
    const int64_t n = call.packed[i].n;
    orders.push_back(random_order(n, random));
    limits.push_back(i % 4 == 3 ? 0 : i % 4 == 2 ? n / 2 : n);
  }
  const auto values = trajectories(call, orders, limits, threads, budget);
  for (int64_t i = 0; i < call.size(); ++i) {
    const std::vector<double> expected = brute_trajectory(call.matrices[i], orders[i], kComponents, kCover);
    CHECK(std::equal(values[i].begin(), values[i].end(), expected.begin()), "n = %d, %u threads, budget %d",
          static_cast<int>(call.packed[i].n), threads, static_cast<int>(budget));
  }
}

// Whatever stands in for an order, its layer alone has no answer, and nothing is read or written out of bounds.
void check_bad_orders(std::mt19937_64& random) {
  Call call;
  for (int layer = 0; layer < 3; ++layer) call.add(random_graph(40, 0.1, random));
  std::vector<std::vector<int64_t>> orders;
  for (int layer = 0; layer < 3; ++layer) orders.push_back(random_order(40, random));
  const auto right = trajectories(call, orders, {40, 40, 40}, 32, kSharedBytes);
  const std::vector<int64_t> wrong = {-1, 40, orders[1][0], INT64_MAX, INT64_MIN};
  for (size_t i = 0; i < wrong.size(); ++i) {
    auto bad = orders;
    bad[1][39] = wrong[i];
    const auto values = trajectories(call, bad, {40, 20, 40}, 64, i % 2 ? 64 : kSharedBytes);
    CHECK(values[0] == right[0] && values[2] == right[2], "the other layers, case %d", static_cast<int>(i));
    CHECK(values[1].size() == 20 && std::all_of(values[1].begin(), values[1].end(), [](double x) { return x != x; }),
          "case %d", static_cast<int>(i));
  }
}

// Each of the team's own algorithms, against a team of one.
__global__ void primitives(int64_t n, const int32_t* keys, int32_t* sums, int32_t* reversed, int32_t* next,
                           int32_t* numbers, int64_t* firsts, int64_t* sum) {
  const BlockTeam team(dynamic_shared<int64_t>());
  team.exclusive_sum(n, sums);
  team.for_each(n, [&](int64_t i) { reversed[i] = sums[n - 1 - i]; });  // what others wrote
  team.number_by(n, [&](int64_t i) { return keys[i]; }, next, [&](int64_t i, int32_t number) { numbers[i] = number; });
  for (int32_t k = -1; k < 4; ++k) {  // 3 is no key: not found
    const int64_t first = team.first_where(n / 3, n, [&](int64_t i) { return keys[i] == k; });
    if (first != team.reduce_sum(first) / team.size()) return;  // not all members agree
    if (team.rank() == 0) firsts[k + 1] = first;
  }
  int64_t mine = 0;
  team.for_each(n, [&](int64_t i) { mine += (int64_t{1} << 40) * i; });
  const int64_t all = team.reduce_sum(mine);
  if (team.rank() == team.size() - 1) *sum = all;
}

void check_primitives(int64_t n, unsigned threads, std::mt19937_64& random) {
  std::vector<int32_t> keys(n), sums(n), next = {5, 0, 2}, numbers(n, -7);
  for (int32_t& key : keys) key = static_cast<int32_t>(random() % 4) - 1;
  for (int32_t& x : sums) x = static_cast<int32_t>(random() % 100);
  std::vector<int32_t> expected_sums = sums, expected_next = next, expected_numbers = numbers;
  const SerialTeam serial;
  serial.exclusive_sum(n, expected_sums.data());
  serial.number_by(
      n, [&](int64_t i) { return keys[i]; }, expected_next.data(),
      [&](int64_t i, int32_t number) { expected_numbers[i] = number; });
  std::vector<int64_t> firsts(5, -7);
  std::vector<int32_t> reversed(n);
  int64_t sum = -7;
  SRR_LAUNCH(primitives, 1, threads, 8 * BlockTeam::shared_words(threads), nullptr, n, keys.data(), sums.data(),
             reversed.data(), next.data(), numbers.data(), firsts.data(), &sum);
  const int size = static_cast<int>(n);
  std::reverse(reversed.begin(), reversed.end());
  CHECK(sums == expected_sums && reversed == sums && next == expected_next && numbers == expected_numbers,
        "n = %d, %u threads", size, threads);
  for (int32_t k = -1; k < 4; ++k) {
    CHECK(firsts[k + 1] == std::find(keys.begin() + n / 3, keys.end(), k) - keys.begin(), "n = %d, key %d", size, k);
  }
  CHECK(sum == (int64_t{1} << 40) * (n * (n - 1) / 2), "n = %d, %u threads", size, threads);
}

void check_plans() {
  const auto words = [](int64_t n) { return Workspace::size(n) + n * words_for(n); };
  const GraphLaunch common = plan_launch({64, 256, 512, 2048}, 1000);
  CHECK(common.threads == 32 && common.blocks == 1000 && common.memory_words() == 1, "the layers of a common network");
  CHECK(common.job_words >= words(512) && common.job_words >= Workspace::size(2048), "%d words",
        static_cast<int>(common.job_words));
  const GraphLaunch wide = plan_launch({65536, 64}, 5000);
  CHECK(wide.threads == kMostThreads && wide.scratch_words == Workspace::size(65536), "%u threads", wide.threads);
  CHECK(wide.blocks > 100 && wide.memory_words() * 8 <= kScratchBytes + 8, "%u blocks", wide.blocks);
  for (const GraphLaunch& launch : {common, wide, plan_launch({4096}, 3), plan_launch({3900}, 3)}) {
    CHECK(launch.shared_bytes() <= kSharedBytes, "%d bytes", static_cast<int>(launch.shared_bytes()));
  }
  const GraphLaunch empty = plan_launch({0}, 1);
  CHECK(empty.threads == 32 && empty.blocks == 1 && empty.scratch_words == 0, "an empty layer");
}

}  // namespace

int main() {
  std::mt19937_64 random(7);
  check_plans();
  for (const unsigned threads : {32u, 64u, 96u, 256u}) {
    for (const int64_t n : {1, 31, 32, 33, 100}) check_primitives(n, threads, random);
  }
  for (const int64_t budget : kBudgets) {
    check_counts(layers_up_to(129, random), 32, budget);
    check_counts(layers_up_to(kSlow ? 33 : 65, random), 64, budget);
    check_trajectories(layers_up_to(33, random), 32, budget, random);
  }
  check_counts(layers_up_to(65, random), 128, kSharedBytes);
  check_trajectories(layers_up_to(kSlow ? 33 : 65, random), 32, kBudgets[1], random);
  check_trajectories(layers_up_to(33, random), 64, kBudgets[1], random);
  check_trajectories(layers_up_to(kSlow ? 2 : 33, random), 128, kSharedBytes, random);
  if (!kSlow) {
    Call large;
    large.add(random_graph(129, 0.1, random));
    check_trajectories(large, 32, kBudgets[1], random);
  }
  check_bad_orders(random);
  return 0;
}
