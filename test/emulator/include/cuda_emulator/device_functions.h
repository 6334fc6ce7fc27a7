#pragma once
// What kernels call.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "engine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)
#define __shared__ static_assert(false, "shared memory is declared in cuda/device.cuh");

inline constexpr int warpSize = 32;

// ---- arithmetic

#define __expf(x) std::exp(static_cast<float>(x))  // glibc declares functions of these names
#define __logf(x) std::log(static_cast<float>(x))
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }

namespace cuda_emulator {
template <typename To, typename From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace cuda_emulator
inline unsigned __float_as_uint(float x) { return ::cuda_emulator::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return ::cuda_emulator::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return ::cuda_emulator::bits_as<float>(x); }
inline float __int_as_float(int x) { return ::cuda_emulator::bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return ::cuda_emulator::bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return ::cuda_emulator::bits_as<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
// The low / high word of high:low shifted right / left by the low five bits of `shift`.
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned out = 0;
  for (unsigned i = 0; i < 4; ++i) out |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return out;
}

// As in CUDA, of floats the number where the other is NaN.
template <typename A, typename B>
std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(static_cast<T>(a), static_cast<T>(b));
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <typename A, typename B>
std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(static_cast<T>(a), static_cast<T>(b));
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

// ---- memory

#define CUDA_EMULATOR_SITE ::cuda_emulator::Site site = ::cuda_emulator::Site::current()

template <typename T>
T __ldg(const T* p, CUDA_EMULATOR_SITE) {
  ::cuda_emulator::check_aligned(p, alignof(T), site);
  return *p;
}
template <typename T>
T __ldcs(const T* p, CUDA_EMULATOR_SITE) {
  return __ldg(p, site);
}
template <typename T>
T __ldcg(const T* p, CUDA_EMULATOR_SITE) {
  return __ldg(p, site);
}
template <typename T>
void __stcs(T* p, std::type_identity_t<T> value, CUDA_EMULATOR_SITE) {
  ::cuda_emulator::check_aligned(p, alignof(T), site);
  *p = value;
}
template <typename T>
void __stcg(T* p, std::type_identity_t<T> value, CUDA_EMULATOR_SITE) {
  __stcs(p, value, site);
}

inline void __threadfence() { ::cuda_emulator::fence(); }
inline void __threadfence_block() { ::cuda_emulator::fence(); }
inline void __threadfence_system() { ::cuda_emulator::fence(); }
inline void __nanosleep(unsigned) { ::cuda_emulator::reschedule(); }

// Relaxed, as CUDA's: what else they are to order needs fences.
namespace cuda_emulator {
template <typename T, typename Change>
T atomic_change(T* p, const Change& change, Site site) {
  check_aligned(p, sizeof(T), site);
  reschedule();
  T old;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  for (;;) {
    T next = change(old);
    if (__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return old;
  }
}
}  // namespace cuda_emulator
template <typename T>
T atomicAdd(T* p, std::type_identity_t<T> value, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::atomic_change(
      p, [&](T old) { return static_cast<T>(old + value); }, site);
}
template <typename T>
T atomicMin(T* p, std::type_identity_t<T> value, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::atomic_change(
      p, [&](T old) { return value < old ? value : old; }, site);
}
template <typename T>
T atomicMax(T* p, std::type_identity_t<T> value, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::atomic_change(
      p, [&](T old) { return old < value ? value : old; }, site);
}
template <typename T>
T atomicOr(T* p, std::type_identity_t<T> value, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::atomic_change(
      p, [&](T old) { return old | value; }, site);
}
template <typename T>
T atomicExch(T* p, std::type_identity_t<T> value, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::atomic_change(
      p, [&](T) { return value; }, site);
}
template <typename T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::atomic_change(
      p, [&](T old) { return old == expected ? value : old; }, site);
}

// ---- collectives

inline void __syncthreads(CUDA_EMULATOR_SITE) { ::cuda_emulator::block_barrier(false, site); }
inline int __syncthreads_count(int predicate, CUDA_EMULATOR_SITE) {
  return static_cast<int>(::cuda_emulator::block_barrier(predicate != 0, site));
}
inline int __syncthreads_or(int predicate, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::block_barrier(predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, CUDA_EMULATOR_SITE) {
  return ::cuda_emulator::block_barrier(predicate == 0, site) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, CUDA_EMULATOR_SITE) {
  ::cuda_emulator::warp_collective(::cuda_emulator::WarpOp::sync, mask, 0, 0, site);
}

namespace cuda_emulator {
template <typename T>
T shuffle(unsigned mask, T value, unsigned from, Site site) {
  return warp_value(WarpOp::shuffle, mask, value, from, site);
}
inline unsigned first_of_segment(int width) { return lane_id() & ~static_cast<unsigned>(width - 1); }
inline unsigned end_of_segment(int width) { return first_of_segment(width) + static_cast<unsigned>(width); }
}  // namespace cuda_emulator
template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, CUDA_EMULATOR_SITE) {
  const unsigned within = static_cast<unsigned>(from) & static_cast<unsigned>(width - 1);
  return ::cuda_emulator::shuffle(mask, value, ::cuda_emulator::first_of_segment(width) + within, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, CUDA_EMULATOR_SITE) {
  const unsigned lane = ::cuda_emulator::lane_id(), from = lane ^ static_cast<unsigned>(flip);
  const bool inside = from < ::cuda_emulator::end_of_segment(width);
  return ::cuda_emulator::shuffle(mask, value, inside ? from : lane, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, CUDA_EMULATOR_SITE) {
  const unsigned lane = ::cuda_emulator::lane_id(), from = lane + by;
  const bool inside = from < ::cuda_emulator::end_of_segment(width);
  return ::cuda_emulator::shuffle(mask, value, inside ? from : lane, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, CUDA_EMULATOR_SITE) {
  const unsigned lane = ::cuda_emulator::lane_id();
  const bool inside = lane >= ::cuda_emulator::first_of_segment(width) + by;
  return ::cuda_emulator::shuffle(mask, value, inside ? lane - by : lane, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE) {
  using ::cuda_emulator::WarpOp;
  return static_cast<unsigned>(::cuda_emulator::warp_collective(WarpOp::ballot, mask, predicate != 0, 0, site));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_EMULATOR_SITE) {
  return __ballot_sync(mask, predicate == 0, site) == 0;
}
#define CUDA_EMULATOR_REDUCE(name, T, op)                                                  \
  inline T __reduce_##name##_sync(unsigned mask, T value, CUDA_EMULATOR_SITE) {            \
    return ::cuda_emulator::warp_value(::cuda_emulator::WarpOp::op, mask, value, 0, site); \
  }
CUDA_EMULATOR_REDUCE(add, unsigned, add)
CUDA_EMULATOR_REDUCE(add, int, add)
CUDA_EMULATOR_REDUCE(min, unsigned, min_unsigned)
CUDA_EMULATOR_REDUCE(min, int, min_signed)
CUDA_EMULATOR_REDUCE(max, unsigned, max_unsigned)
CUDA_EMULATOR_REDUCE(max, int, max_signed)
CUDA_EMULATOR_REDUCE(and, unsigned, all_of)
CUDA_EMULATOR_REDUCE(or, unsigned, any_of)
CUDA_EMULATOR_REDUCE(xor, unsigned, odd)
#undef CUDA_EMULATOR_REDUCE
