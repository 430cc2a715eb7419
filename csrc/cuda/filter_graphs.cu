// srr_ext::filter_graphs on CUDA: check, list the layers, launch.
#include "filter_graphs.cuh"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <limits>
#include <tuple>
#include <vector>

#include "limits.h"
#include "stream.h"
#include "upload.cuh"

namespace srr::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

WeightType weight_type(const Tensor& weight) {
  switch (weight.scalar_type()) {
    case ScalarType::Float:
      return kFloat32;
    case ScalarType::Double:
      return kFloat64;
    case ScalarType::Half:
      return kFloat16;
    case ScalarType::BFloat16:
      return kBFloat16;
    default:
      STD_TORCH_CHECK(false, "weights must be float16, bfloat16, float32 or float64");
  }
}

int grid_size(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "weights have too many filters for one launch");
  return static_cast<int>(blocks);
}

// weights: [n, ...] each, gammas: [n_levels, n_layers]
// -> words int64 [n_levels, sum of n * ceil(n / 64)], flat, and kinds uint8 [sum of n] (FilterKind)
std::tuple<Tensor, Tensor> filter_graphs(const std::vector<Tensor>& weights, const std::vector<double>& gammas) {
  STD_TORCH_CHECK(!weights.empty(), "weights must not be empty");
  const int64_t n_layers = static_cast<int64_t>(weights.size()), n_gammas = static_cast<int64_t>(gammas.size());
  const int64_t n_levels = n_gammas / n_layers;
  STD_TORCH_CHECK(n_gammas == n_levels * n_layers && n_levels > 0,
                  "gammas must have one entry per layer, for each level, got ", n_gammas, " for ", n_layers, " layers");
  for (const double gamma : gammas) {
    STD_TORCH_CHECK(std::isfinite(gamma) && gamma >= 0, "gamma must be finite and at least 0, got ", gamma);
  }
  for (const Tensor& weight : weights) {
    STD_TORCH_CHECK(weight.dim() >= 1 && weight.is_cuda(), "weights must be CUDA tensors of shape [n_filters, ...]");
    STD_TORCH_CHECK(weight.get_device_index() == weights[0].get_device_index(), "weights must be on one device");
    check_filters("weights", weight.size(0));
  }
  const OnDeviceOf device(weights[0]);
  const cudaStream_t stream = current_stream(weights[0]);

  std::vector<Tensor> sources;  // contiguous, and alive until the kernels are launched
  std::vector<LayerWork> layers;
  int64_t n_filters = 0, level_words = 0;
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    const Tensor& weight = weights[layer];
    const int64_t n = weight.size(0);
    sources.push_back(weight.is_contiguous() ? weight : torch::stable::contiguous(weight));
    if (n > 0) {
      layers.push_back({.weights = sources.back().const_data_ptr(),
                        .n = n,
                        .fan_in = weight.numel() / n,
                        .first_filter = n_filters,
                        .first_measured = 0,
                        .first_tile = 0,
                        .first_word = level_words,
                        .layer = static_cast<int32_t>(layer),
                        .type = weight_type(weight)});
    }
    n_filters += n;
    level_words += n * words_for(n);
  }
  Tensor words = torch::stable::new_empty(weights[0], {n_levels * level_words}, ScalarType::Long);
  Tensor kinds = torch::stable::new_empty(weights[0], {n_filters}, ScalarType::Byte);
  if (layers.empty()) return {words, kinds};

  const WorkSize total = number_work(layers);
  std::vector<Threshold> thresholds;
  for (int64_t k = 0; k < n_levels * n_layers; ++k) {
    const Tensor& weight = weights[k % n_layers];
    const int64_t fan_in = weight.size(0) == 0 ? 0 : weight.numel() / weight.size(0);
    thresholds.emplace_back(gammas[k], fan_in, cosine_error(fan_in));
  }
  const Tensor layer_table = upload(layers, weights[0], stream);
  const Tensor threshold_table = upload(thresholds, weights[0], stream);
  const Tensor scratch =
      torch::stable::new_empty(weights[0], {total.filters * static_cast<int64_t>(sizeof(Measured))}, ScalarType::Byte);
  const auto* table = static_cast<const LayerWork*>(layer_table.const_data_ptr());
  auto* measured = static_cast<Measured*>(scratch.mutable_data_ptr());
  const int listed = static_cast<int>(layers.size());

  SRR_LAUNCH(measure_filters, grid_size((total.filters * kOctet + kThreads - 1) / kThreads), kThreads, 0, stream, table,
             listed, total.filters, measured, static_cast<uint8_t*>(kinds.mutable_data_ptr()));
  check_launch("measure_filters");
  const cudaError_t shared =
      cudaFuncSetAttribute(join_filters, cudaFuncAttributeMaxDynamicSharedMemorySize, kTileBytes);
  STD_TORCH_CHECK(shared == cudaSuccess, "join_filters needs ", kTileBytes,
                  " bytes of shared memory per block: ", cudaGetErrorString(shared));
  SRR_LAUNCH(join_filters, grid_size(total.tiles), kThreads, kTileBytes, stream, table, listed, measured,
             static_cast<const Threshold*>(threshold_table.const_data_ptr()), static_cast<int>(n_layers),
             static_cast<int>(n_levels), static_cast<uint64_t*>(words.mutable_data_ptr()), level_words);
  check_launch("join_filters");
  return {words, kinds};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(srr_ext, CUDA, m) { m.impl("filter_graphs", TORCH_BOX(&filter_graphs)); }

}  // namespace srr::cuda
