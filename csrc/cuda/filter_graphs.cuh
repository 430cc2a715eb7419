// Filter graphs of all layers: one launch that measures every filter, one over the tiles of all layers' triangles.
//
// A tile is 64 rows by 64 columns of one layer's cosine matrix: one word of each of 64 bit rows and, mirrored, one word
// of each of 64 others. Its block multiplies the raw weights in single precision, divides by the norms at the end,
// compares with every level's threshold, decides the pairs within the error bound again in double precision by the
// definition (core/threshold.h), and writes the bits. So the answer is that of srr_ext/reference.py on every pair.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../core/bit_graph.h"
#include "../core/threshold.h"
#include "device.cuh"
#include "weights.cuh"

namespace srr::cuda {

struct LayerWork {
  const void* weights;     // [n, fan_in]
  int64_t n, fan_in;       // n > 0
  int64_t first_filter;    // in kinds, over all layers in the order given
  int64_t first_measured;  // in measured, over all layers in the order listed
  int64_t first_tile;      // in the grid, likewise
  int64_t first_word;      // in a level's words
  int32_t layer;           // in a level's thresholds
  WeightType type;
};

struct Measured {
  double scale;   // a power of two
  double norm;    // of the scaled filter; 0 for filters that are zero or not finite
  float inverse;  // 1 / |W|; 0 where the norm is, NaN where products in single precision might overflow or vanish
};

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kSide = static_cast<int>(kWordBits);  // filters per side of a tile
constexpr int kOctet = static_cast<int>(kLanes);    // threads that share a filter or a pair, each with a partial sum

// The four groups of a block share a tile but not its elements: a group multiplies its quarter of every kDepth
// elements. Deep layers so finish in a quarter of the steps, and chains of sums are short.
constexpr int kGroups = 4;
constexpr int kDepth = 32;
constexpr int kSlice = kDepth / kGroups;
constexpr int kStages = 2;               // one being multiplied, one on its way
constexpr int kStagesPerFlush = 32;      // a thread adds up 256 products before it adds them to the totals
constexpr int kMicro = 8;                // a thread has kMicro x kMicro cosines, its rows and columns kMicro apart
constexpr int kPitch = kDepth + 4;       // floats per row of a stage: eight rows then start in different banks
constexpr int kTotalsPitch = kSide + 8;  // floats per row of the totals: so do four rows of eight columns
constexpr int kStageFloats = 2 * kSide * kPitch;
constexpr int kTileFloats = kStages * kStageFloats + kSide * kTotalsPitch;
constexpr int kTileBytes = kTileFloats * static_cast<int>(sizeof(float));
static_assert(kGroups * (kSide / kMicro) * (kSide / kMicro) == kThreads);
static_assert(kSide * kSide * sizeof(uint16_t) <= kStages * kStageFloats * sizeof(float));  // the list of unsure pairs

// Bound of |cosine in single precision - exact cosine|, in units of 2^-24: the chain of products of a partial sum; one
// for each partial sum added to the totals (all products' magnitudes add up to 1 at most, by Cauchy and Schwarz); one
// for each rounding of two elements, two inverse norms and the two products with them; four for the second order.
inline double cosine_error(int64_t fan_in) {
  constexpr int64_t kChain = kStagesPerFlush * kSlice, kPerFlush = kStagesPerFlush * kDepth;
  const int64_t flushes = std::max<int64_t>(1, (fan_in + kPerFlush - 1) / kPerFlush);
  return static_cast<double>(std::min(fan_in, kChain) + kGroups * flushes + 2 + 2 + 2 + 4) * 0x1p-24;
}

// Filters whose largest weight lies outside of these bounds are left to double precision: 1 / |W| is NaN for them,
// which makes every comparison of their cosines say "unsure".
constexpr double kTiny = 0x1p-40, kHuge = 0x1p40;

inline int64_t tile_count(int64_t n) { return words_for(n) * (words_for(n) + 1) / 2; }

struct WorkSize {
  int64_t filters, tiles;
};

// Puts the layers with the deepest tiles first, because those take longest, and numbers all filters and tiles.
inline WorkSize number_work(std::vector<LayerWork>& layers) {
  std::stable_sort(layers.begin(), layers.end(), [](const auto& a, const auto& b) { return a.fan_in > b.fan_in; });
  WorkSize total = {0, 0};
  for (LayerWork& work : layers) {
    work.first_measured = total.filters;
    work.first_tile = total.tiles;
    total.filters += work.n;
    total.tiles += tile_count(work.n);
  }
  return total;
}

// The layer that `index` falls into, by the ascending places where layers begin.
__device__ inline const LayerWork& find_layer(const LayerWork* layers, int n_layers, int64_t LayerWork::* first,
                                              int64_t index) {
  int low = 0;
  for (int high = n_layers; high - low > 1;) {
    const int middle = (low + high) / 2;
    (layers[middle].*first <= index ? low : high) = middle;
  }
  return layers[low];
}

// Row and column of a triangle's tile. Row i of `across` has the columns i .. across - 1; rows follow each other.
struct Tile {
  int64_t row, column;
};
__device__ inline Tile find_tile(int64_t across, int64_t index) {
  const auto first = [&](int64_t row) { return row * across - row * (row - 1) / 2; };
  const double side = static_cast<double>(2 * across + 1);
  int64_t row = static_cast<int64_t>((side - sqrt(side * side - 8.0 * static_cast<double>(index))) / 2);
  while (first(row) > index) --row;  // what the square root may be off by
  while (first(row + 1) <= index) ++row;
  return {row, row + index - first(row)};
}

// The filter behind row r of a stage: first the tile's rows, then its columns.
__device__ inline int64_t filter_of(const Tile& tile, int r) {
  return r < kSide ? tile.row * kSide + r : tile.column * kSide + r - kSide;
}

// Sum of an octet's partial sums from the first to the last, as the definition has it; all its threads get it.
__device__ inline double octet_sum(double partial) {
  const int first = static_cast<int>(threadIdx.x) % kWarp / kOctet * kOctet;
  double sum = 0;
  for (int lane = 0; lane < kOctet; ++lane) sum += __shfl_sync(kAllLanes, partial, first + lane);
  return sum;
}

// Kind, scale and norm of every filter. Grid: an octet for each.
static __global__ void __launch_bounds__(kThreads)
    measure_filters(const LayerWork* layers, int n_layers, int64_t n_filters, Measured* measured, uint8_t* kinds) {
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kOctet;
  const int64_t filter = index < n_filters ? index : n_filters - 1;  // every lane takes part in the shuffles
  const int lane = static_cast<int>(threadIdx.x) % kOctet;
  const LayerWork& work = find_layer(layers, n_layers, &LayerWork::first_measured, filter);
  const int64_t row = filter - work.first_measured, begin = row * work.fan_in, end = begin + work.fan_in;

  unsigned long long top = 0;
  with_type(work.type, work.weights, [&](const auto* weights) {
    for (int64_t k = begin + lane; k < end; k += kOctet) {
      const unsigned long long bits = magnitude(weights[k]);
      top = bits > top ? bits : top;
    }
  });
  for (int step = 1; step < kOctet; step *= 2) {
    const unsigned long long other = __shfl_xor_sync(kAllLanes, top, step);
    top = other > top ? other : top;
  }

  FilterKind kind = kZero;
  double largest = 0, scale = 0, squares = 0;
  with_type(work.type, work.weights, [&]<class T>(const T* weights) {
    if (top >= kInfinity<T>) kind = kNotFinite;
    if (top == 0 || top >= kInfinity<T>) return;
    kind = kRegular;
    largest = wide(bits_as<T>(static_cast<Bits<T>>(top)));
    int exponent;
    frexp(largest, &exponent);
    scale = ldexp(1.0, -(exponent < -1000 ? -1000 : exponent > 1000 ? 1000 : exponent));
    for (int64_t k = begin + lane; k < end; k += kOctet) {
      const double scaled = wide(weights[k]) * scale;
      squares += scaled * scaled;
    }
  });
  const double norm = sqrt(octet_sum(squares));
  if (index >= n_filters || lane != 0) return;
  float inverse = 0;
  if (kind == kRegular) inverse = kTiny <= largest && largest <= kHuge ? static_cast<float>(scale / norm) : NAN;
  measured[filter] = {scale, norm, inverse};
  kinds[work.first_filter + row] = kind;
}

// copy(to, from, valid) for kDepth elements, from k on, of kSide filters from `first` on, kVector elements at a time;
// not valid past the last filter and element.
template <int kVector, class T, class Copy>
__device__ __forceinline__ void bring_rows(const LayerWork& work, const T* weights, int64_t first, int64_t k,
                                           float* stage, const Copy& copy) {
  const int64_t n = work.n, fan_in = work.fan_in;  // read once: a copy might change memory, for all the compiler knows
  constexpr int kAcross = kDepth / kVector, kStep = kThreads / kAcross;
  const int thread = opaque(static_cast<int>(threadIdx.x)), r = thread / kAcross, c = thread % kAcross * kVector;
  const T* from = weights + (first + r) * fan_in + k + c;
  SRR_UNROLL
  for (int step = 0; step < kSide; step += kStep) {
    const bool valid = first + r + step < n && k + c < fan_in;
    copy(stage + (r + step) * kPitch + c, valid ? from + step * fan_in : weights, valid);
  }
}

// Starts to bring a tile's kDepth elements, from k on, into a stage: its rows, then its columns.
__device__ inline void fill_stage(const LayerWork& work, const Tile& tile, int64_t k, float* stage) {
  const auto both = [&](const auto& bring) {
    bring(tile.row * kSide, stage);
    bring(tile.column * kSide, stage + kSide * kPitch);
  };
  if (work.type != kFloat32) {  // converted on the way, hence through registers
    with_type(work.type, work.weights, [&](const auto* weights) {
      both([&](int64_t first, float* to) {
        bring_rows<1>(work, weights, first, k, to,
                      [](float* cell, const auto* from, bool valid) { *cell = valid ? narrow(*from) : 0.0f; });
      });
    });
    return;
  }
  const float* weights = static_cast<const float*>(work.weights);
  if (work.fan_in % 4 == 0 && reinterpret_cast<uintptr_t>(weights) % 16 == 0) {
    both([&](int64_t first, float* to) { bring_rows<4>(work, weights, first, k, to, copy_async<16>); });
  } else {
    both([&](int64_t first, float* to) { bring_rows<1>(work, weights, first, k, to, copy_async<4>); });
  }
}

// Inner products of the tile's raw filters into totals[row * kTotalsPitch + column].
__device__ inline void multiply(const LayerWork& work, const Tile& tile, float* stages, float* totals) {
  constexpr int kAcross = kSide / kMicro;
  const int thread = static_cast<int>(threadIdx.x), group = thread / (kThreads / kGroups);
  const int ty = thread / kAcross % kAcross, tx = thread % kAcross;
  const int64_t n_stages = (work.fan_in + kDepth - 1) / kDepth;
  float sums[kMicro][kMicro] = {};

  const auto flush = [&](bool first) {
    for (int turn = 0; turn < kGroups; ++turn) {
      if (group == turn) {
        SRR_UNROLL
        for (int i = 0; i < kMicro; ++i) {
          SRR_UNROLL
          for (int j = 0; j < kMicro; ++j) {
            float& total = totals[(ty + kAcross * i) * kTotalsPitch + tx + kAcross * j];
            total = first && turn == 0 ? sums[i][j] : total + sums[i][j];
            sums[i][j] = 0;
          }
        }
      }
      __syncthreads();
    }
  };

  if (n_stages > 0) fill_stage(work, tile, 0, stages);
  copy_async_commit();
  for (int64_t s = 0; s < n_stages; ++s) {
    copy_async_wait<0>();
    __syncthreads();  // stage s is there for all, and all have finished with the one that is filled next
    if (s + 1 < n_stages) fill_stage(work, tile, (s + 1) * kDepth, stages + (s + 1) % kStages * kStageFloats);
    copy_async_commit();
    const float* x = stages + s % kStages * kStageFloats + ty * kPitch + group * kSlice;
    const float* y = stages + s % kStages * kStageFloats + (kSide + tx) * kPitch + group * kSlice;
    // Unrolled, this would spill registers.
    SRR_KEEP_LOOP
    for (int k = 0; k < kSlice; k += 4) {
      float4 a[kMicro];
      SRR_UNROLL
      for (int i = 0; i < kMicro; ++i) a[i] = *reinterpret_cast<const float4*>(x + kAcross * i * kPitch + k);
      SRR_UNROLL
      for (int j = 0; j < kMicro; ++j) {
        const float4 b = *reinterpret_cast<const float4*>(y + kAcross * j * kPitch + k);
        SRR_UNROLL
        for (int i = 0; i < kMicro; ++i) {
          sums[i][j] = fmaf(a[i].x, b.x, sums[i][j]);
          sums[i][j] = fmaf(a[i].y, b.y, sums[i][j]);
          sums[i][j] = fmaf(a[i].z, b.z, sums[i][j]);
          sums[i][j] = fmaf(a[i].w, b.w, sums[i][j]);
        }
      }
    }
    if ((s + 1) % kStagesPerFlush == 0 && s + 1 < n_stages) flush(s + 1 == kStagesPerFlush);
  }
  flush(n_stages <= kStagesPerFlush);
}

// |v_i - v_j|^2 by the definition; the octets of a warp may ask for different pairs.
__device__ inline double squared_distance(const LayerWork& work, int64_t i, int64_t j, const Measured& at_i,
                                          const Measured& at_j) {
  double partial = 0;
  with_type(work.type, work.weights, [&](const auto* weights) {
    const auto *a = weights + i * work.fan_in, *b = weights + j * work.fan_in;
    for (int64_t k = threadIdx.x % kOctet; k < work.fan_in; k += kOctet) {
      const double difference = wide(a[k]) * at_i.scale / at_i.norm - wide(b[k]) * at_j.scale / at_j.norm;
      partial += difference * difference;
    }
  });
  return octet_sum(partial);
}

// Row t of a 64 x 64 bit matrix's mirror image.
__device__ inline uint64_t mirrored(const unsigned long long* rows, int t) {
  uint64_t word = 0;
  for (int r = 0; r < kSide; ++r) word |= (rows[r] >> t & 1) << r;
  return word;
}

// Every level's bits of every layer. Grid: a block for each tile. Shared memory: kTileBytes.
// thresholds: [n_levels, stride of a level]; words: [n_levels, level_words].
static __global__ void __launch_bounds__(kThreads, 2)
    join_filters(const LayerWork* layers, int n_layers, const Measured* all_measured, const Threshold* thresholds,
                 int threshold_stride, int n_levels, uint64_t* words, int64_t level_words) {
  __shared__ LayerWork work;  // these two not in registers, which the products need
  __shared__ Tile tile;
  __shared__ unsigned long long edges[kSide];
  __shared__ float inverse[2 * kSide];
  __shared__ int n_unsure;
  float* stages = dynamic_shared<float>();
  float* totals = stages + kStages * kStageFloats;
  uint16_t* unsure = reinterpret_cast<uint16_t*>(stages);  // row * kSide + column, once the stages are done with
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;

  if (thread == 0) {
    work = find_layer(layers, n_layers, &LayerWork::first_tile, blockIdx.x);
    tile = find_tile(words_for(work.n), static_cast<int64_t>(blockIdx.x) - work.first_tile);
  }
  __syncthreads();
  const Measured* measured = all_measured + work.first_measured;

  if (thread < 2 * kSide) {
    const int64_t filter = filter_of(tile, thread);
    inverse[thread] = filter < work.n ? measured[filter].inverse : 0.0f;
  }
  multiply(work, tile, stages, totals);  // ends with a barrier

  const uint64_t regular = static_cast<uint64_t>(__ballot_sync(kAllLanes, inverse[kSide + lane] != 0)) |
                           static_cast<uint64_t>(__ballot_sync(kAllLanes, inverse[kSide + kWarp + lane] != 0)) << 32;
  for (int level = 0; level < n_levels; ++level) {
    const Threshold threshold = thresholds[static_cast<int64_t>(level) * threshold_stride + work.layer];
    if (thread == 0) n_unsure = 0;
    __syncthreads();
    for (int r = warp * kMicro; r < (warp + 1) * kMicro; ++r) {
      uint64_t edge = 0, possible = 0;
      for (int half = 0; half < 2; ++half) {
        const int c = half * kWarp + lane;
        const float cosine = totals[r * kTotalsPitch + c] * inverse[r] * inverse[kSide + c];
        edge |= static_cast<uint64_t>(__ballot_sync(kAllLanes, cosine > threshold.edge)) << (half * kWarp);
        possible |= static_cast<uint64_t>(__ballot_sync(kAllLanes, !(cosine < threshold.none))) << (half * kWarp);
      }
      uint64_t pairs = inverse[r] != 0 ? regular : 0;
      if (tile.row == tile.column) pairs &= ~(bit_of(r) | (bit_of(r) - 1));  // columns after r
      const uint64_t open = possible & ~edge & pairs;
      int place = 0;
      if (lane == 0) {
        edges[r] = edge & pairs;
        if (open != 0) place = atomicAdd(&n_unsure, popcount(open));
      }
      place = __shfl_sync(kAllLanes, place, 0);
      for (int c = lane; c < kSide; c += kWarp) {
        if (open & bit_of(c)) unsure[place + popcount(open & (bit_of(c) - 1))] = static_cast<uint16_t>(r * kSide + c);
      }
    }
    __syncthreads();
    const int count = n_unsure;
    for (int first = warp * (kWarp / kOctet); first < count; first += kThreads / kOctet) {
      const int mine = first + lane / kOctet, pair = unsure[mine < count ? mine : count - 1];
      const int64_t i = tile.row * kSide + pair / kSide, j = tile.column * kSide + pair % kSide;
      const double distance = squared_distance(work, i, j, measured[i], measured[j]);
      if (distance <= threshold.squared && lane % kOctet == 0) {
        atomicOr(&edges[pair / kSide], static_cast<unsigned long long>(bit_of(pair % kSide)));
      }
    }
    __syncthreads();
    uint64_t* out = words + level * level_words + work.first_word;
    const int64_t filter = filter_of(tile, thread), across = words_for(work.n);
    if (thread < kSide && filter < work.n) {
      out[filter * across + tile.column] = edges[thread] | (tile.row == tile.column ? mirrored(edges, thread) : 0);
    } else if (kSide <= thread && thread < 2 * kSide && filter < work.n && tile.row != tile.column) {
      out[filter * across + tile.row] = mirrored(edges, thread - kSide);
    }
  }
}

}  // namespace srr::cuda
