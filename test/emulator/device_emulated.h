#pragma once
// The twin of cuda/device.cuh on the emulated device: the same names, made of the engine.
#include <bit>
#include <cmath>

#include "engine.h"
#include "native/half.h"

namespace fapo::cuda {

#define FAPO_DEVICE inline
#define FAPO_DEVICE_NOINLINE __attribute__((noinline)) inline
#define FAPO_SITE ::cuda_emulator::Site site = ::cuda_emulator::Site::current()

// ---- shared memory

template <typename T>
FAPO_DEVICE T& shared() {
  static_assert(alignof(T) <= 16);
  static constexpr char key = 0;
  return *static_cast<T*>(cuda_emulator::static_shared(&key, sizeof(T)));
}

template <typename T>
FAPO_DEVICE T* dynamic_shared() {
  return static_cast<T*>(cuda_emulator::dynamic_shared());
}

// ---- arithmetic: what the instructions promise, with errors that the noise seed draws

// Subnormal numbers are 0 to instructions with .ftz.
FAPO_DEVICE float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

// Relative error up to 2^-22, a quarter of it from rounding; exact at 0.
FAPO_DEVICE float exp2_approx(float x) {
  if (flushed(x) == 0.0f) return 1.0f;
  const double exact = std::exp2(static_cast<double>(x));
  return flushed(static_cast<float>(exact * (1.0 + 0x1.8p-23 * cuda_emulator::noise_of(std::bit_cast<uint32_t>(x)))));
}

// One of the two floats around the exact result.
FAPO_DEVICE float reciprocal_approx(float x) {
  const double exact = 1.0 / static_cast<double>(flushed(x));
  float y = static_cast<float>(exact);
  const double noise = cuda_emulator::noise_of(std::bit_cast<uint32_t>(x));
  if (noise > 0.0 && std::isfinite(y) && y != exact) y = std::nextafter(y, y < exact ? INFINITY : -INFINITY);
  return flushed(y);
}

FAPO_DEVICE float max_nan(float a, float b) {
  if (a != a || b != b) return std::bit_cast<float>(0x7fffffffu);
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
template <typename T>
FAPO_DEVICE uint16_t max_nan_16(uint16_t a, uint16_t b) {
  const float x = to_float(T{a}), y = to_float(T{b});
  if (x != x || y != y) return 0x7fff;
  if (x == y) return a & 0x8000 ? b : a;
  return x > y ? a : b;
}
template <typename T>
FAPO_DEVICE uint32_t max_nan_16x2(uint32_t a, uint32_t b) {
  const auto low = [](uint32_t x) { return static_cast<uint16_t>(x); };
  return max_nan_16<T>(low(a), low(b)) | static_cast<uint32_t>(max_nan_16<T>(low(a >> 16), low(b >> 16))) << 16;
}
FAPO_DEVICE uint32_t max_nan_bf16x2(uint32_t a, uint32_t b) { return max_nan_16x2<bf16>(a, b); }
FAPO_DEVICE uint32_t max_nan_f16x2(uint32_t a, uint32_t b) { return max_nan_16x2<f16>(a, b); }

template <typename T>
FAPO_DEVICE uint32_t pack_16x2(float low, float high) {
  const auto rounded = [](float x) { return uint32_t{x != x ? uint16_t{0x7fff} : from_float<T>(x).bits}; };
  return rounded(low) | rounded(high) << 16;
}
FAPO_DEVICE uint32_t pack_bf16x2(float low, float high) { return pack_16x2<bf16>(low, high); }
FAPO_DEVICE uint32_t pack_f16x2(float low, float high) { return pack_16x2<f16>(low, high); }
FAPO_DEVICE float f16_to_float(uint16_t bits) { return to_float(f16{bits}); }

// ---- 16 bytes of global memory

// Volatile: all 16 bytes are loaded, and AddressSanitizer sees it, also where some are not used.
FAPO_DEVICE uint4 load_streaming(const void* p, FAPO_SITE) {
  cuda_emulator::check_aligned(p, 16, site);
  typedef uint32_t Words __attribute__((vector_size(16)));
  const Words words = *static_cast<const volatile Words*>(p);
  return {words[0], words[1], words[2], words[3]};
}
FAPO_DEVICE void store_streaming(void* p, uint4 v, FAPO_SITE) {
  cuda_emulator::check_aligned(p, 16, site);
  *static_cast<uint4*>(p) = v;
}

// ---- clusters: of one block where a device has none

FAPO_DEVICE unsigned cluster_rank() { return cuda_emulator::cluster_rank(); }
FAPO_DEVICE unsigned cluster_size() { return cuda_emulator::cluster_size(); }
FAPO_DEVICE void cluster_arrive(FAPO_SITE) { cuda_emulator::cluster_arrive(site); }
FAPO_DEVICE void cluster_wait(FAPO_SITE) { cuda_emulator::cluster_wait(site); }
template <typename T>
FAPO_DEVICE T* map_shared_rank(T* p, unsigned rank) {
  return static_cast<T*>(cuda_emulator::map_shared_rank(p, rank));
}

// ---- asynchronous copies

struct Mbarrier {
  uint64_t state;
};

FAPO_DEVICE void mbarrier_init(Mbarrier& b, unsigned arrivals, FAPO_SITE) {
  cuda_emulator::mbarrier_init(&b.state, arrivals, site);
}
FAPO_DEVICE void mbarrier_init_fence() { cuda_emulator::mbarrier_init_fence(); }
FAPO_DEVICE void mbarrier_arrive(Mbarrier& b, FAPO_SITE) { cuda_emulator::mbarrier_arrive(&b.state, 0, site); }
FAPO_DEVICE void mbarrier_arrive_expect(Mbarrier& b, unsigned bytes, FAPO_SITE) {
  cuda_emulator::mbarrier_arrive(&b.state, bytes, site);
}
FAPO_DEVICE void mbarrier_wait(Mbarrier& b, unsigned parity, FAPO_SITE) {
  cuda_emulator::mbarrier_wait(&b.state, parity, site);
}
FAPO_DEVICE void bulk_load(void* shared, const void* global, unsigned bytes, Mbarrier& b, FAPO_SITE) {
  cuda_emulator::bulk_load(shared, global, bytes, &b.state, site);
}
FAPO_DEVICE void bulk_store(void* global, const void* shared, unsigned bytes, FAPO_SITE) {
  cuda_emulator::bulk_store(global, shared, bytes, site);
}
FAPO_DEVICE void bulk_commit() { cuda_emulator::bulk_commit(); }
template <int kPending>
FAPO_DEVICE void bulk_wait_read(FAPO_SITE) {
  cuda_emulator::bulk_wait_read(kPending, site);
}
template <int kPending>
FAPO_DEVICE void bulk_wait(FAPO_SITE) {
  cuda_emulator::bulk_wait(kPending, site);
}
FAPO_DEVICE void proxy_fence() { cuda_emulator::proxy_fence(); }
FAPO_DEVICE void store_async(float4* to, float4 v, Mbarrier& b, unsigned rank, FAPO_SITE) {
  cuda_emulator::store_async(to, &v, &b.state, rank, site);
}

}  // namespace fapo::cuda
