// The library's front door: the schema of every op, once, and the Python module _C, which says how it was built.
//
// Kernels register themselves from cpu/ (linked into this object) and cuda/ (the object _C_cuda).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/version.h>

#include <string>
#include <vector>

#include "cpu/cosine_tile.h"

// A layer's graph is [n, ceil(n / 64)] words; `words` holds all layers, one after the other. The sizes alone say where
// each begins. filter_graphs takes a gamma per layer, for one level or several, level by level, and returns the words
// level after level; kinds are FilterKind of core/threshold.h.
STABLE_TORCH_LIBRARY(srr_ext, m) {
  m.def("filter_graphs(Tensor[] weights, float[] gammas) -> (Tensor words, Tensor kinds)");
  m.def("components(Tensor words, int[] n_filters) -> Tensor");
  m.def("covering(Tensor words, int[] n_filters, int radius) -> Tensor");
  m.def(
      "trajectories(Tensor words, int[] n_filters, Tensor orders, int[] limits, float component_weight, "
      "float cover_weight) -> Tensor");
}

namespace {

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("gcc ") + __VERSION__;
#else
  return "unknown";
#endif
}

std::string sanitizer() {
#if defined(__SANITIZE_ADDRESS__)
  return "address";
#else
  return "";
#endif
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> features;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("sse4.2")) features.push_back("sse4.2");
  if (__builtin_cpu_supports("avx2")) features.push_back("avx2");
  if (__builtin_cpu_supports("fma")) features.push_back("fma");
  if (__builtin_cpu_supports("avx512f")) features.push_back("avx512f");
#endif
  return features;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native ops of srr_ext: importing it registers them under torch.ops.srr_ext.";
  m.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["compiler"] = compiler();
        info["cxx_standard"] = __cplusplus;
        info["torch_built"] = TORCH_VERSION;
        info["cpu_features"] = cpu_features();
        info["cpu_kernel"] = srr::cpu::cosine_kernel().name;
        info["sanitizer"] = sanitizer();
        return info;
      },
      "How this object was built, and what this CPU lets it use.");
}
