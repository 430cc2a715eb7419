// The ragged buffer of all layers' filter graphs, as the ops receive it.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "core/bit_graph.h"

namespace srr {

// A layer's filters are numbered in 32 bits, and n * words_for(n) of so many fits in 64.
constexpr int64_t kMostFilters = std::numeric_limits<int32_t>::max();

// Graph i, for all i, behind a check that the buffer has the size its layers need. The words may lie on any device, and
// are not touched. int64 words carry the bits of uint64 ones, because few torch functions accept the unsigned type.
class Layers {
 public:
  Layers(const torch::stable::Tensor& words, const std::vector<int64_t>& n_filters, int64_t most_filters = kMostFilters)
      : n_filters_(n_filters) {
    STD_TORCH_CHECK(words.scalar_type() == torch::headeronly::ScalarType::Long && words.is_contiguous(),
                    "words must be a contiguous int64 tensor");
    int64_t total = 0;
    for (const int64_t n : n_filters) {
      STD_TORCH_CHECK(n >= 0, "n_filters must not be negative, got ", n);
      STD_TORCH_CHECK(n <= most_filters, "n_filters must be at most ", most_filters, " each",
                      words.is_cuda() ? " on CUDA" : "", ", got ", n);
      const int64_t more = n * words_for(n);
      STD_TORCH_CHECK(more <= std::numeric_limits<int64_t>::max() - total,
                      "n_filters must describe no more words than int64 can count");
      offsets_.push_back(total);
      total += more;
    }
    STD_TORCH_CHECK(words.numel() == total, "words must have ", total, " elements for these n_filters, got ",
                    words.numel());
    words_ = static_cast<const uint64_t*>(words.const_data_ptr());
  }

  int64_t size() const { return static_cast<int64_t>(n_filters_.size()); }
  BitGraph operator[](int64_t i) const { return bit_graph(words_ + offsets_[i], n_filters_[i]); }

  // Words of all graphs together, about a nanosecond of work each in a pass over every row.
  double total_words() const {
    double total = 0;
    for (const int64_t n : n_filters_) total += static_cast<double>(n * words_for(n));
    return total;
  }

  // Layers by number of filters, widest first: the long jobs start first.
  std::vector<int64_t> widest_first() const {
    std::vector<int64_t> order(n_filters_.size());
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return n_filters_[a] > n_filters_[b]; });
    return order;
  }

 private:
  std::vector<int64_t> n_filters_;
  std::vector<int64_t> offsets_;
  const uint64_t* words_;
};

}  // namespace srr
