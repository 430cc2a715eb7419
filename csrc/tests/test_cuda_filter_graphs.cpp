// The CUDA kernels of filter_graphs, run on CPU threads, against the definition on every pair.
#include "cuda/filter_graphs.cuh"

#include <cmath>
#include <random>

#include "check.h"
#include "cpu/unit_filters.h"

using namespace srr;
using namespace srr::cuda;

namespace {

// A layer in any type, and the numbers it holds in double precision.
struct Example {
  int64_t n, fan_in;
  WeightType type;
  std::vector<double> values;  // exactly what the type holds
  std::vector<float> memory;   // the weights, in their type
  int64_t shift = 0;           // floats by which the weights are moved, so that they are not aligned to 16 bytes

  const void* weights() const { return memory.data() + shift; }
};

uint16_t half_bits(double x) {  // of a multiple of 1 / 64 below 16 in magnitude
  if (x == 0) return 0;
  int exponent;
  const double fraction = std::frexp(std::abs(x), &exponent);
  return static_cast<uint16_t>((x < 0 ? 0x8000 : 0) | (exponent + 14) << 10 |
                               (static_cast<int>(fraction * 2048) & 1023));
}

uint16_t bfloat16_bits(double x) {  // of a number with at most seven bits after the first
  const float value = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

Example example(int64_t n, int64_t fan_in, WeightType type, std::vector<double> values, int64_t shift = 0) {
  const size_t count = static_cast<size_t>(n * fan_in);
  Example out{n, fan_in, type, std::move(values), std::vector<float>(2 * count + static_cast<size_t>(shift)), shift};
  void* to = out.memory.data() + shift;
  for (size_t k = 0; k < count; ++k) {
    switch (type) {
      case kFloat32:
        static_cast<float*>(to)[k] = static_cast<float>(out.values[k]);
        out.values[k] = static_cast<double>(static_cast<float*>(to)[k]);
        break;
      case kFloat64:
        static_cast<double*>(to)[k] = out.values[k];
        break;
      case kFloat16:
        static_cast<uint16_t*>(to)[k] = half_bits(out.values[k]);
        break;
      case kBFloat16:
        static_cast<uint16_t*>(to)[k] = bfloat16_bits(out.values[k]);
        break;
    }
  }
  out.memory.resize((type == kFloat32   ? count
                     : type == kFloat64 ? 2 * count
                                        : (count + 1) / 2) +
                    static_cast<size_t>(shift));  // so that a read past the end is one past the memory
  return out;
}

// Random filters in multiples of 1 / 64, which every type holds in few bits, with some that are special.
std::vector<double> random_values(int64_t n, int64_t fan_in, std::mt19937_64& random) {
  std::uniform_int_distribution<int> step(-127, 127);
  std::vector<double> values(static_cast<size_t>(n * fan_in));
  for (double& value : values) value = step(random) / 64.0;
  const auto row = [&](int64_t v) { return values.data() + v * fan_in; };
  if (n >= 8) {
    std::fill_n(row(1), fan_in, 0.0);
    std::copy_n(row(0), fan_in, row(n - 1));  // duplicates, one scaled
    for (int64_t k = 0; k < fan_in; ++k) row(n - 2)[k] = row(2)[k] / 2;
  }
  return values;
}

struct Expected {
  std::vector<uint64_t> words;  // of one level
  std::vector<uint8_t> kinds;
  std::vector<double> distances;  // squared, of all pairs of regular filters
};

Expected expected(const Example& layer, double gamma) {
  const cpu::UnitFilters<double> filters{layer.values.data(), layer.n, layer.fan_in};
  const int64_t length = cpu::whole_lanes(layer.fan_in), across = words_for(layer.n);
  Expected out{std::vector<uint64_t>(layer.n * across), std::vector<uint8_t>(layer.n), {}};
  std::vector<double> units(layer.n * length);
  for (int64_t v = 0; v < layer.n; ++v) {
    cpu::UnitFilter measured;
    out.kinds[v] = filters.measure(v, &measured);
    if (out.kinds[v] == kRegular) filters.unit(v, measured, units.data() + v * length);
  }
  for (int64_t i = 0; i < layer.n; ++i) {
    for (int64_t j = 0; j < layer.n; ++j) {
      if (i == j || out.kinds[i] != kRegular || out.kinds[j] != kRegular) continue;
      const double distance = cpu::squared_distance(units.data() + i * length, units.data() + j * length, layer.fan_in);
      out.distances.push_back(distance);
      if (distance <= gamma * gamma * static_cast<double>(layer.fan_in)) {
        out.words[i * across + word_of(j)] |= bit_of(j);
      }
    }
  }
  return out;
}

// All layers in one launch each, at every level, as the op does it.
void check(const std::vector<const Example*>& examples, const std::vector<std::vector<double>>& levels,
           const char* name) {
  std::vector<LayerWork> layers;
  int64_t filters = 0, words = 0;
  for (size_t i = 0; i < examples.size(); ++i) {
    const Example& e = *examples[i];
    layers.push_back({e.weights(), e.n, e.fan_in, filters, 0, 0, words, static_cast<int32_t>(i), e.type});
    filters += e.n;
    words += e.n * words_for(e.n);
  }
  std::vector<Threshold> thresholds;
  for (const std::vector<double>& level : levels) {
    for (size_t i = 0; i < examples.size(); ++i) {
      thresholds.emplace_back(level[i], examples[i]->fan_in, cuda::cosine_error(examples[i]->fan_in));
    }
  }
  const WorkSize size = number_work(layers);
  const int listed = static_cast<int>(layers.size());
  std::vector<Measured> measured(size.filters);
  std::vector<uint8_t> kinds(filters, 77);
  std::vector<uint64_t> got(levels.size() * words, 0xA5A5A5A5A5A5A5A5ull);
  const auto grid = [](int64_t blocks) { return dim3(static_cast<unsigned>(blocks)); };
  SRR_LAUNCH(measure_filters, grid((size.filters * kOctet + kThreads - 1) / kThreads), kThreads, 0, nullptr,
             layers.data(), listed, size.filters, measured.data(), kinds.data());
  SRR_LAUNCH(join_filters, grid(size.tiles), kThreads, kTileBytes, nullptr, layers.data(), listed, measured.data(),
             thresholds.data(), static_cast<int>(examples.size()), static_cast<int>(levels.size()), got.data(), words);

  for (size_t l = 0; l < levels.size(); ++l) {
    const uint64_t* word = got.data() + l * words;
    const uint8_t* kind = kinds.data();
    for (size_t i = 0; i < examples.size(); ++i) {
      const Example& e = *examples[i];
      const Expected want = expected(e, levels[l][i]);
      CHECK(std::equal(want.kinds.begin(), want.kinds.end(), kind), "%s: kinds of layer %zu", name, i);
      for (int64_t v = 0; v < e.n; ++v) {
        for (int64_t w = 0; w < words_for(e.n); ++w) {
          const int64_t place = v * words_for(e.n) + w;
          CHECK(word[place] == want.words[place],
                "%s: level %zu, layer %zu of %d x %d, word %d of filter %d: %llx, not %llx", name, l, i,
                static_cast<int>(e.n), static_cast<int>(e.fan_in), static_cast<int>(w), static_cast<int>(v),
                static_cast<unsigned long long>(word[place]), static_cast<unsigned long long>(want.words[place]));
        }
      }
      word += e.n * words_for(e.n);
      kind += e.n;
    }
  }
}

// A threshold that pairs of the layer meet exactly, or nearly: about half of all are joined.
double median_gamma(const Example& layer) {
  std::vector<double> distances = expected(layer, 0).distances;
  if (distances.empty()) return 0.5;
  std::nth_element(distances.begin(), distances.begin() + distances.size() / 2, distances.end());
  return std::sqrt(distances[distances.size() / 2] / static_cast<double>(layer.fan_in));
}

void check_one(const Example& layer, const char* name) {
  const double gamma = median_gamma(layer);
  check({&layer}, {{gamma}, {0.0}, {1e3}}, name);
}

}  // namespace

int main() {
  std::mt19937_64 random(4);
  const auto made = [&](int64_t n, int64_t fan_in, WeightType type = kFloat32, int64_t shift = 0) {
    return example(n, fan_in, type, random_values(n, fan_in, random), shift);
  };

  // Sizes on both sides of words, octets, stages and flushes; several layers, each its own thresholds, in one launch.
  std::vector<Example> layers;
  for (const auto& [n, fan_in] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 5}, {2, 1}, {63, 7}, {64, 32}, {65, 33}, {8, 1028}, {9, 1024}, {130, 12}, {9, 31}, {10, 0}}) {
    layers.push_back(made(n, fan_in));
  }
  std::vector<const Example*> pointers;
  std::vector<std::vector<double>> levels(2);
  for (const Example& layer : layers) {
    pointers.push_back(&layer);
    levels[0].push_back(layer.fan_in > 0 ? median_gamma(layer) : 1.0);
    levels[1].push_back(1e3);
  }
  check(pointers, levels, "many layers");

  for (const WeightType type : {kFloat32, kFloat64, kFloat16, kBFloat16}) {
    check_one(made(20, 40, type), "types, aligned");
    check_one(made(66, 35, type), "types, odd rows");
  }
  check_one(made(20, 64, kFloat32, 1), "weights not aligned to 16 bytes");
  check_one(made(12, 2080), "several flushes");

  // Weights that single precision cannot multiply, and some that are no numbers.
  Example wild = made(20, 16);
  const auto scale = [&](int64_t v, double factor) {
    for (int64_t k = 0; k < wild.fan_in; ++k) wild.values[v * wild.fan_in + k] *= factor;
  };
  scale(0, 0x1p100);
  scale(3, 0x1p-100);
  scale(4, 0x1p-140);  // denormals
  scale(5, 0x1p39);
  wild.values[6 * wild.fan_in + 3] = NAN;
  wild.values[7 * wild.fan_in + 15] = INFINITY;
  check_one(example(wild.n, wild.fan_in, kFloat32, wild.values), "huge, tiny and not finite weights");
  scale(8, 0x1p900);
  scale(9, 0x1p-900);
  check_one(example(wild.n, wild.fan_in, kFloat64, wild.values), "the same in double precision");

  // Pairs whose distances agree to nine digits: single precision cannot tell them apart from the threshold.
  std::vector<double> close(30 * 24);
  std::normal_distribution<double> normal;
  for (int64_t v = 0; v < 30; ++v) {
    for (int64_t k = 0; k < 24; ++k)
      close[v * 24 + k] = (k == 0 ? 4.0 : k == v % 23 + 1 ? 3.0 : 0.0) + 1e-9 * normal(random);
  }
  check_one(example(30, 24, kFloat64, close), "pairs at the threshold");
  return 0;
}
