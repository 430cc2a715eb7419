// srr_ext::filter_graphs on the CPU: every layer's graph at one threshold or several in one call, the products in
// single precision and once, every close call in double.
//
// A pair is an edge iff |v_i - v_j|^2 <= gamma^2 n, that is cos >= 1 - gamma^2 n / 2. Blocks of one triangle of the
// cosine matrix are computed and turned into bits at once, so at most kBlock x kBlock cosines per thread exist. A
// cosine within the error bound of the threshold says nothing: that pair is decided again by the definition, in double
// precision. Hence the answer is that of srr_ext/reference.py on every pair, on any machine and for any thread count.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <limits>
#include <memory>
#include <tuple>

#include "../core/bit_graph.h"
#include "../core/threshold.h"
#include "../layers.h"
#include "clones.h"
#include "cosine_tile.h"
#include "jobs.h"
#include "unit_filters.h"

namespace srr::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kBlock = 128;               // filters per side of a block: two words, four panels
constexpr int64_t kChunk = 256;               // elements per float32 partial sum
constexpr int64_t kPackedBytes = 64ll << 20;  // scratch for packed panels; a wider layer takes what it needs

// Bound of |float32 cosine - exact cosine|. Unit roundoff u = 2^-24; a partial sum of kChunk products contributes at
// most kChunk u (Cauchy-Schwarz bounds the products' magnitudes by 1), adding up the partial sums one u each, rounding
// the two vectors' elements one u each. Four more cover the second-order terms and the double-precision side.
double cosine_error(int64_t fan_in) {
  const int64_t chunks = (fan_in + kChunk - 1) / kChunk;
  return static_cast<double>(std::min(fan_in, kChunk) + chunks + 2 + 4) * 0x1p-24;
}

// Transposes a 64 x 64 bit matrix in place: swap quadrants, then their quadrants, and so on.
void transpose(uint64_t* rows) {
  uint64_t mask = 0x00000000FFFFFFFFull;
  for (int width = 32; width != 0; width /= 2, mask ^= mask << width) {
    for (int r = 0; r < 64; r = ((r | width) + 1) & ~width) {
      const uint64_t swap = ((rows[r] >> width) ^ rows[r | width]) & mask;
      rows[r] ^= swap << width;
      rows[r | width] ^= swap;
    }
  }
}

// A layer's graph at one threshold.
struct Level {
  Threshold threshold;
  uint64_t* words;  // [n, words_for(n)]
};

// One layer. Base of the typed ones, so that layers of several types can share a list of jobs.
class Layer {
 public:
  Layer(int64_t n, int64_t fan_in, std::vector<Level> levels, uint8_t* kinds)
      : n_(n), fan_in_(fan_in), levels_(std::move(levels)), kinds_(kinds), measured_(n), regular_(words_for(n)) {}
  virtual ~Layer() = default;

  int64_t panels() const { return (n_ + kPanel - 1) / kPanel; }
  int64_t blocks() const { return (n_ + kBlock - 1) / kBlock; }
  int64_t packed_size() const { return panels() * kPanel * fan_in_; }
  double products() const { return static_cast<double>(packed_size()) * static_cast<double>(n_) / 2; }

  // Measures and packs panel p into the layer's place in the scratch.
  virtual void pack(int64_t p, float* packed) = 0;
  // Rows of block I against rows of block J >= I: writes words J of rows I and words I of rows J, at every level.
  virtual void join(int64_t block_i, int64_t block_j, const float* packed) = 0;

  // After all panels are packed, before any block is joined.
  void collect_regular() {
    for (int64_t v = 0; v < n_; ++v) {
      if (kinds_[v] == kRegular) regular_[word_of(v)] |= bit_of(v);
    }
  }

 protected:
  int64_t n_, fan_in_;
  std::vector<Level> levels_;
  uint8_t* kinds_;
  std::vector<UnitFilter> measured_;
  std::vector<uint64_t> regular_;  // the filters that may have edges
};

template <class T>
SRR_CPU_CLONES void measure_and_pack(const UnitFilters<T>& filters, int64_t first, UnitFilter* measured, uint8_t* kinds,
                                     float* panel) {
  for (int64_t v = first; v < std::min(first + kPanel, filters.n); ++v) kinds[v] = filters.measure(v, measured + v);
  filters.pack(first, measured, panel);
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Range {
  float least, most;
};

// Least and most of 64 x 64 cosines: where a threshold lies beyond them, one comparison settles all pairs.
SRR_CPU_CLONES Range range_of(const float* cosines) {
  float least[kWordBits], most[kWordBits];
  std::copy_n(cosines, kWordBits, least);
  std::copy_n(cosines, kWordBits, most);
  for (int r = 1; r < kWordBits; ++r) {
    const float* row = cosines + r * kBlock;
    for (int s = 0; s < kWordBits; ++s) {
      least[s] = std::min(least[s], row[s]);
      most[s] = std::max(most[s], row[s]);
    }
  }
  return {*std::min_element(least, least + kWordBits), *std::max_element(most, most + kWordBits)};
}

// Bits of 64 x 64 cosines: bit s of edges[r] iff surely an edge, of unsure[r] iff too close to call.
SRR_CPU_CLONES void compare(const float* cosines, const Threshold& threshold, uint64_t* edges, uint64_t* unsure) {
  for (int r = 0; r < kWordBits; ++r) {
    const float* row = cosines + r * kBlock;
    uint64_t edge = 0, possible = 0;
    for (int s = 0; s < kWordBits; ++s) {
      edge |= static_cast<uint64_t>(row[s] > threshold.edge) << s;
      possible |= static_cast<uint64_t>(row[s] >= threshold.none) << s;
    }
    edges[r] = edge;
    unsure[r] = possible & ~edge;
  }
}

// Unit vectors in double precision of the filters of two words, each computed when first asked for.
template <class T>
class UnitCache {
 public:
  UnitCache(const UnitFilters<T>& filters, const UnitFilter* measured) : filters_(filters), measured_(measured) {}

  SRR_CPU_CLONES double distance(int64_t i, int64_t j) {
    const double* a = unit(0, i);
    return squared_distance(a, unit(1, j), filters_.fan_in);
  }

 private:
  const double* unit(int side, int64_t filter) {
    const int64_t slot = side * kWordBits + filter % kWordBits, length = whole_lanes(filters_.fan_in);
    if (units_.empty()) units_.resize(2 * kWordBits * length);
    if (!ready_[slot]) filters_.unit(filter, measured_[filter], units_.data() + slot * length);
    ready_[slot] = true;
    return units_.data() + slot * length;
  }

  const UnitFilters<T>& filters_;
  const UnitFilter* measured_;
  std::vector<double> units_;
  bool ready_[2 * kWordBits] = {};
};

template <class T>
class TypedLayer final : public Layer {
 public:
  TypedLayer(const T* weights, int64_t n, int64_t fan_in, std::vector<Level> levels, uint8_t* kinds)
      : Layer(n, fan_in, std::move(levels), kinds), filters_{weights, n, fan_in} {}

  void pack(int64_t p, float* packed) override {
    measure_and_pack(filters_, p * kPanel, measured_.data(), kinds_, packed + p * kPanel * fan_in_);
  }

  void join(int64_t block_i, int64_t block_j, const float* packed) override {
    thread_local std::vector<float> cosines;
    cosines.assign(kBlock * kBlock, 0.0f);
    multiply(block_i, block_j, packed, cosines.data());
    for (int64_t a = 0; a < kBlock / kWordBits; ++a) {
      for (int64_t b = 0; b < kBlock / kWordBits; ++b) {
        const int64_t word_i = block_i * (kBlock / kWordBits) + a, word_j = block_j * (kBlock / kWordBits) + b;
        if (word_i > word_j || word_j >= words_for(n_)) continue;
        decide(word_i, word_j, cosines.data() + a * kWordBits * kBlock + b * kWordBits);
      }
    }
  }

 private:
  void multiply(int64_t block_i, int64_t block_j, const float* packed, float* cosines) const {
    constexpr int64_t kPanels = kBlock / kPanel;
    const CosineTile tile = cosine_kernel().tile;
    for (int64_t k = 0; k < fan_in_; k += kChunk) {
      const int64_t depth = std::min(kChunk, fan_in_ - k);
      for (int64_t q = block_j * kPanels; q < std::min((block_j + 1) * kPanels, panels()); ++q) {
        for (int64_t p = block_i * kPanels; p < std::min((block_i + 1) * kPanels, q + 1); ++p) {
          tile(packed + (p * fan_in_ + k) * kPanel, packed + (q * fan_in_ + k) * kPanel, depth,
               cosines + (p % kPanels) * kPanel * kBlock + (q % kPanels) * kPanel, kBlock);
        }
      }
    }
  }

  // The 64 x 64 pairs of one word of rows and one word of columns, at every level.
  void decide(int64_t word_i, int64_t word_j, float* cosines) {
    uint64_t pairs[kWordBits];
    for (int64_t r = 0; r < kWordBits; ++r) {
      const int64_t i = word_i * kWordBits + r;
      pairs[r] = i < n_ && contains(regular_.data(), i) ? regular_[word_j] : 0;
      if (word_i == word_j) pairs[r] &= ~(bit_of(r) | (bit_of(r) - 1));  // columns after r
    }
    Range range = {-kInfinity, kInfinity};
    if (levels_.size() > 1) {
      // No filter is compared with itself: its cosine of 1 would only widen the range.
      for (int64_t r = 0; r < kWordBits && word_i == word_j; ++r) cosines[r * kBlock + r] = 0;
      range = range_of(cosines);
    }
    UnitCache<T> units(filters_, measured_.data());
    for (const Level& level : levels_) {
      uint64_t edges[kWordBits] = {}, unsure[kWordBits];
      if (range.least > level.threshold.edge) {
        std::copy_n(pairs, kWordBits, edges);
      } else if (range.most >= level.threshold.none) {
        compare(cosines, level.threshold, edges, unsure);
        for (int64_t r = 0; r < kWordBits; ++r) {
          edges[r] &= pairs[r];
          for_each_bit(unsure[r] & pairs[r], word_j, [&](int64_t j) {
            if (units.distance(word_i * kWordBits + r, j) <= level.threshold.squared) edges[r] |= bit_of(j);
          });
        }
      }
      store(word_i, word_j, edges, level.words);
    }
  }

  // Writes the bits of a tile and of its mirror image.
  void store(int64_t word_i, int64_t word_j, uint64_t* edges, uint64_t* words) const {
    uint64_t mirror[kWordBits];
    std::copy_n(edges, kWordBits, mirror);
    transpose(mirror);
    if (word_i == word_j) {
      for (int r = 0; r < kWordBits; ++r) edges[r] |= mirror[r];
    } else {
      store_rows(word_j, word_i, mirror, words);
    }
    store_rows(word_i, word_j, edges, words);
  }

  void store_rows(int64_t row_word, int64_t column_word, const uint64_t* rows, uint64_t* words) const {
    const int64_t first = row_word * kWordBits;
    for (int64_t r = 0; r < std::min(kWordBits, n_ - first); ++r) {
      words[(first + r) * words_for(n_) + column_word] = rows[r];
    }
  }

  UnitFilters<T> filters_;
};

std::unique_ptr<Layer> make_layer(const Tensor& weight, const std::vector<double>& gammas, uint64_t* words,
                                  int64_t words_per_level, uint8_t* kinds) {
  const int64_t n = weight.size(0);
  const int64_t fan_in = n == 0 ? 0 : weight.numel() / n;
  std::vector<Level> levels;
  for (const double gamma : gammas) {
    levels.push_back({Threshold(gamma, fan_in, cosine_error(fan_in)), words});
    words += words_per_level;
  }
  const void* data = weight.const_data_ptr();
  const auto typed = [&](auto zero) -> std::unique_ptr<Layer> {
    using T = decltype(zero);
    return std::make_unique<TypedLayer<T>>(static_cast<const T*>(data), n, fan_in, levels, kinds);
  };
  switch (weight.scalar_type()) {
    case ScalarType::Float:
      return typed(float{});
    case ScalarType::Double:
      return typed(double{});
    case ScalarType::Half:
      return typed(c10::Half{});
    case ScalarType::BFloat16:
      return typed(c10::BFloat16{});
    default:
      STD_TORCH_CHECK(false, "weights must be float16, bfloat16, float32 or float64");
  }
}

struct Job {
  Layer* layer;
  float* packed;
  int64_t i, j;
};

// Layers whose packed panels fit the scratch together, so that small layers fill all threads.
void build_together(const std::vector<Layer*>& layers, std::vector<float>& scratch) {
  std::vector<Job> packs, joins;
  double products = 0;
  int64_t offset = 0;
  for (const Layer* layer : layers) offset += layer->packed_size();
  if (static_cast<int64_t>(scratch.size()) < offset) scratch.resize(offset);
  offset = 0;
  for (Layer* layer : layers) {
    float* packed = scratch.data() + offset;
    for (int64_t p = 0; p < layer->panels(); ++p) packs.push_back({layer, packed, p, p});
    for (int64_t i = 0; i < layer->blocks(); ++i) {
      for (int64_t j = i; j < layer->blocks(); ++j) joins.push_back({layer, packed, i, j});
    }
    offset += layer->packed_size();
    products += layer->products();
  }
  run_jobs(static_cast<int64_t>(packs.size()), static_cast<double>(offset),  // an element takes about a nanosecond
           [&](int64_t k) { packs[k].layer->pack(packs[k].i, packs[k].packed); });
  for (Layer* layer : layers) layer->collect_regular();
  run_jobs(static_cast<int64_t>(joins.size()), products / 50,  // fifty products about as long
           [&](int64_t k) { joins[k].layer->join(joins[k].i, joins[k].j, joins[k].packed); });
}

// weights: [n, ...] each, gammas: [n_levels * n_layers] -> words int64 [n_levels * sum of n * ceil(n / 64)], kinds
// uint8 [sum of n] (FilterKind)
std::tuple<Tensor, Tensor> filter_graphs(const std::vector<Tensor>& weights, const std::vector<double>& gammas) {
  const int64_t n_layers = static_cast<int64_t>(weights.size()), n_gammas = static_cast<int64_t>(gammas.size());
  const int64_t n_levels = n_layers == 0 ? 0 : n_gammas / n_layers;
  STD_TORCH_CHECK(n_gammas == n_levels * n_layers && (n_levels > 0 || n_layers == 0),
                  "gammas must have one entry per layer, for each level, got ", n_gammas, " for ", n_layers, " layers");
  for (const double gamma : gammas) {
    STD_TORCH_CHECK(std::isfinite(gamma) && gamma >= 0, "gamma must be finite and at least 0, got ", gamma);
  }
  std::vector<Tensor> sources;  // contiguous, and kept alive until the end
  int64_t n_words = 0, n_filters = 0;
  for (const Tensor& weight : weights) {
    STD_TORCH_CHECK(weight.dim() >= 1 && weight.is_cpu(), "weights must be CPU tensors of shape [n_filters, ...]");
    STD_TORCH_CHECK(weight.size(0) <= kMostFilters, "weights must have at most ", kMostFilters, " filters each, got ",
                    weight.size(0));
    sources.push_back(weight.is_contiguous() ? weight : torch::stable::contiguous(weight));
    n_words += weight.size(0) * words_for(weight.size(0));
    n_filters += weight.size(0);
  }
  STD_TORCH_CHECK(n_words <= std::numeric_limits<int64_t>::max() / std::max<int64_t>(1, n_levels),
                  "weights must describe no more words than int64 can count");
  Tensor words = torch::stable::empty({n_levels * n_words}, ScalarType::Long);
  Tensor kinds = torch::stable::empty({n_filters}, ScalarType::Byte);
  uint64_t* word = static_cast<uint64_t*>(words.mutable_data_ptr());
  uint8_t* kind = static_cast<uint8_t*>(kinds.mutable_data_ptr());

  std::vector<std::unique_ptr<Layer>> layers;
  for (int64_t i = 0; i < n_layers; ++i) {
    const int64_t n = sources[i].size(0);
    std::vector<double> of_layer;
    for (int64_t level = 0; level < n_levels; ++level) of_layer.push_back(gammas[level * n_layers + i]);
    layers.push_back(make_layer(sources[i], of_layer, word, n_words, kind));
    word += n * words_for(n);
    kind += n;
  }
  std::vector<float> scratch;
  std::vector<Layer*> together;
  int64_t bytes = 0;
  for (const std::unique_ptr<Layer>& layer : layers) {
    const int64_t more = layer->packed_size() * static_cast<int64_t>(sizeof(float));
    if (!together.empty() && bytes + more > kPackedBytes) {
      build_together(together, scratch);
      together.clear();
      bytes = 0;
    }
    together.push_back(layer.get());
    bytes += more;
  }
  if (!together.empty()) build_together(together, scratch);
  return {words, kinds};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srr_ext, CPU, m) { m.impl("filter_graphs", TORCH_BOX(&filter_graphs)); }

}  // namespace srr::cpu
