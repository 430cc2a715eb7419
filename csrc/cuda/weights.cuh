// The weights of a layer as kernels read them: in place and in their own type.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "device.cuh"

namespace srr::cuda {

enum WeightType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

// Sixteen-bit floating-point numbers by their bits: kernels do no arithmetic in them.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class To, class From>
__device__ __forceinline__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

__device__ __forceinline__ float narrow(float x) { return x; }
__device__ __forceinline__ float narrow(double x) { return static_cast<float>(x); }
__device__ __forceinline__ float narrow(BFloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float narrow(Float16 x) {
  // A half's exponent and mantissa, read as a float's, are the number times 2^(15 - 127): exact, denormals included.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, rest = x.bits & 0x7FFFu;
  const float value = bits_as<float>(rest << 13) * 0x1p112f;
  return bits_as<float>(sign | (rest < 0x7C00u ? bits_as<uint32_t>(value) : 0x7F800000u | rest << 13));
}

template <class T>
__device__ __forceinline__ double wide(T x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else {
    return static_cast<double>(narrow(x));
  }
}

// Without the sign, and read as unsigned integers, floating-point numbers are in order, then infinity, then NaN.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
template <class T>
constexpr Bits<T> kMagnitude = static_cast<Bits<T>>(~Bits<T>{0}) >> 1;
template <class T>
constexpr Bits<T> kInfinity = 0x7F800000u;
template <>
constexpr uint64_t kInfinity<double> = 0x7FF0000000000000u;
template <>
constexpr uint16_t kInfinity<Float16> = 0x7C00u;
template <>
constexpr uint16_t kInfinity<BFloat16> = 0x7F80u;

template <class T>
__device__ __forceinline__ Bits<T> magnitude(T x) {
  return bits_as<Bits<T>>(x) & kMagnitude<T>;
}

// f(weights), with a pointer of their type.
template <class F>
__device__ __forceinline__ void with_type(WeightType type, const void* weights, const F& f) {
  switch (type) {
    case kFloat32:
      return f(static_cast<const float*>(weights));
    case kFloat64:
      return f(static_cast<const double*>(weights));
    case kFloat16:
      return f(static_cast<const Float16*>(weights));
    case kBFloat16:
      return f(static_cast<const BFloat16*>(weights));
  }
}

}  // namespace srr::cuda
