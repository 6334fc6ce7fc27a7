#pragma once
// Elements in memory and in arithmetic: float32, bfloat16 and float16 are stored, float is computed with.
#include <type_traits>

#include "cuda/device.cuh"
#include "native/half.h"

namespace fapo::cuda {

FAPO_DEVICE float widen(float x) { return x; }
FAPO_DEVICE float widen(bf16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
FAPO_DEVICE float widen(f16 x) { return f16_to_float(x.bits); }

template <typename T>
FAPO_DEVICE T narrow(float x);  // to nearest even; NaN stays NaN
template <>
FAPO_DEVICE float narrow<float>(float x) {
  return x;
}
template <>
FAPO_DEVICE bf16 narrow<bf16>(float x) {
  return {static_cast<uint16_t>(pack_bf16x2(x, 0.0f))};
}
template <>
FAPO_DEVICE f16 narrow<f16>(float x) {
  return {static_cast<uint16_t>(pack_f16x2(x, 0.0f))};
}

// ---- packs: 16 bytes at a time

template <typename T>
constexpr int kPackSize = 16 / static_cast<int>(sizeof(T));

// The pair of 16-bit floats in a word.
template <typename T>
FAPO_DEVICE float2 unpack_pair(uint32_t word);
template <>
FAPO_DEVICE float2 unpack_pair<bf16>(uint32_t word) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
template <>
FAPO_DEVICE float2 unpack_pair<f16>(uint32_t word) {
  return make_float2(f16_to_float(static_cast<uint16_t>(word & 0xffffu)),
                     f16_to_float(static_cast<uint16_t>(word >> 16)));
}

template <typename T>
FAPO_DEVICE void unpack(const uint4& raw, float (&x)[kPackSize<T>]) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      x[i] = __uint_as_float(words[i]);
    } else {
      const float2 pair = unpack_pair<T>(words[i]);
      x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
    }
  }
}

template <typename T>
FAPO_DEVICE uint4 pack(const float (&x)[kPackSize<T>]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      words[i] = __float_as_uint(x[i]);
    } else if constexpr (std::is_same_v<T, bf16>) {
      words[i] = pack_bf16x2(x[2 * i], x[2 * i + 1]);
    } else {
      words[i] = pack_f16x2(x[2 * i], x[2 * i + 1]);
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// The largest element of some packs: of 16-bit floats in pairs, without a conversion. NaN if there is one.
template <typename T, int kPacks>
FAPO_DEVICE float max_of(const uint4 (&raw)[kPacks]) {
  const auto larger = [](uint32_t a, uint32_t b) {
    if constexpr (sizeof(T) == 4) {
      return __float_as_uint(max_nan(__uint_as_float(a), __uint_as_float(b)));
    } else if constexpr (std::is_same_v<T, bf16>) {
      return max_nan_bf16x2(a, b);
    } else {
      return max_nan_f16x2(a, b);
    }
  };
  uint32_t top = larger(larger(raw[0].x, raw[0].y), larger(raw[0].z, raw[0].w));
#pragma unroll
  for (int i = 1; i < kPacks; ++i) {
    top = larger(top, larger(larger(raw[i].x, raw[i].y), larger(raw[i].z, raw[i].w)));
  }
  if constexpr (sizeof(T) == 4) {
    return __uint_as_float(top);
  } else {
    const float2 pair = unpack_pair<T>(top);
    return max_nan(pair.x, pair.y);
  }
}

}  // namespace fapo::cuda
