// One small kernel per primitive of cuda/device.cuh, with the result that CUDA's documentation promises. The same
// source runs on the emulated device and, compiled by nvcc, on a GPU. Exits with 1 on a failure, with 77 where there is
// no GPU.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda/device.cuh"
#include "launch.h"

#if __CUDA_ARCH__ >= 900 || defined(FAPO_EMULATE_CUDA)
#define HAS_CLUSTERS 1
#endif

namespace {

using namespace fapo::cuda;

int failures = 0;
void report(const char* name, bool ok) {
  std::printf("%s %s\n", ok ? "ok  " : "FAIL", name);
  failures += !ok;
}

uint32_t bits(float x) {
  uint32_t word;
  std::memcpy(&word, &x, sizeof word);
  return word;
}
float value(uint32_t word) {
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}
bool same(float a, float b) { return a != a ? b != b : bits(a) == bits(b); }

// ---- shared memory

struct Slots {
  float value[64];
};

__global__ void shared_kernel(float* out) {
  Slots& slots = shared<Slots>();
  slots.value[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = slots.value[threadIdx.x ^ 63] + static_cast<float>(reinterpret_cast<uint64_t>(&slots) % 16);
}
__global__ void dynamic_shared_kernel(float* out) {
  float* all = dynamic_shared<float>();
  all[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = all[threadIdx.x ^ 63] + static_cast<float>(reinterpret_cast<uint64_t>(all) % 128);
}

void test_shared_memory() {
  const auto reversed = [](const std::vector<float>& got) {
    bool ok = got.size() == 64;
    for (size_t i = 0; ok && i < 64; ++i) ok = got[i] == static_cast<float>(i ^ 63);
    return ok;
  };
  Buffer<float> out(64);
  launch(shared_kernel, {1, 64}, out.data());
  report("shared", reversed(out.values()));
  Buffer<float> dynamic_out(64);
  launch(dynamic_shared_kernel, {1, 64, 1, 64 * sizeof(float)}, dynamic_out.data());
  report("dynamic_shared", reversed(dynamic_out.values()));
}

// ---- arithmetic

enum class Op { exp2, reciprocal, max, max_bf16x2, max_f16x2, pack_bf16x2, pack_f16x2, f16_to_float };

template <Op kOp>
__global__ void arithmetic_kernel(const uint32_t* a, const uint32_t* b, uint32_t* out, int n) {
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < n;
       i += static_cast<int>(gridDim.x * blockDim.x)) {
    const float x = __uint_as_float(a[i]), y = __uint_as_float(b[i]);
    if constexpr (kOp == Op::exp2) out[i] = __float_as_uint(exp2_approx(x));
    if constexpr (kOp == Op::reciprocal) out[i] = __float_as_uint(reciprocal_approx(x));
    if constexpr (kOp == Op::max) out[i] = __float_as_uint(max_nan(x, y));
    if constexpr (kOp == Op::max_bf16x2) out[i] = max_nan_bf16x2(a[i], b[i]);
    if constexpr (kOp == Op::max_f16x2) out[i] = max_nan_f16x2(a[i], b[i]);
    if constexpr (kOp == Op::pack_bf16x2) out[i] = pack_bf16x2(x, y);
    if constexpr (kOp == Op::pack_f16x2) out[i] = pack_f16x2(x, y);
    if constexpr (kOp == Op::f16_to_float) out[i] = __float_as_uint(f16_to_float(static_cast<uint16_t>(a[i])));
  }
}

template <Op kOp>
std::vector<uint32_t> results(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  Buffer<uint32_t> left(a), right(b), out(a.size());
  launch(arithmetic_kernel<kOp>, {4, 64}, left.data(), right.data(), out.data(), static_cast<int>(a.size()));
  return out.values();
}

template <Op kOp, typename Ok>
void test_arithmetic(const char* name, const std::vector<uint32_t>& a, const std::vector<uint32_t>& b, const Ok& ok) {
  const std::vector<uint32_t> got = results<kOp>(a, b);
  bool all = got.size() == a.size();
  for (size_t i = 0; all && i < got.size(); ++i) {
    all = ok(a[i], b[i], got[i]);
    if (!all) std::printf("     %s(%08x, %08x) = %08x\n", name, a[i], b[i], got[i]);
  }
  report(name, all);
}

float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

// Subnormal results may be flushed a little early: an approximate one at the border may lie below it.
bool near(float got, double exact, double relative) {
  if (std::isnan(exact)) return got != got;
  if (std::isinf(exact) || exact == 0.0) return got == exact;
  if (got == 0.0f) return std::fabs(exact) < 0x1p-126 * (1.0 + relative);
  if (std::isinf(got)) return std::fabs(exact) > 0x1.ffffffp127 * (1.0 - relative);
  return std::fabs(got - exact) <= relative * std::fabs(exact);
}

// Of bfloat16 and float16, by definition: fields of `mantissa` bits under an exponent.
double widened(uint16_t half, int mantissa, int bias) {
  const int exponent = (half & 0x7fff) >> mantissa, fraction = half & ((1 << mantissa) - 1);
  const double sign = half & 0x8000 ? -1.0 : 1.0;
  if (exponent == 0x7fff >> mantissa) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1.0 + std::ldexp(fraction, -mantissa), exponent - bias)
                          : std::ldexp(fraction, 1 - bias - mantissa));
}
double from_bf16(uint16_t half) { return widened(half, 7, 127); }
double from_f16(uint16_t half) { return widened(half, 10, 15); }

// Whether `half` is `x` rounded to nearest even: no neighbour is nearer, and of two as near it is the even one.
template <typename Widen>
bool is_nearest(float x, uint16_t half, const Widen& widen) {
  const double got = widen(half);
  if (x != x) return got != got;
  if (got != got || std::signbit(x) != static_cast<bool>(half & 0x8000)) return false;
  const auto finite = [&](uint16_t h) {  // infinity stands where the next number would be
    const double w = widen(h);
    return std::isinf(w) ? std::copysign(2.0 * std::fabs(widen(h - 1)) - std::fabs(widen(h - 2)), w) : w;
  };
  if (std::isinf(x)) return std::isinf(got);
  const double error = std::fabs(finite(half) - x);
  const auto beats = [&](uint16_t other) {
    const double its = std::fabs(finite(other) - x);
    return its < error || (its == error && half & 1);
  };
  const bool below = half & 0x7fff && beats(half - 1);
  const bool above = !std::isinf(got) && beats(half + 1);
  return !below && !above;
}

template <typename Widen>
bool is_max_of(uint16_t a, uint16_t b, uint16_t got, const Widen& widen) {
  const double x = widen(a), y = widen(b);
  if (x != x || y != y) return widen(got) != widen(got);
  if (x == y) return got == (a & 0x8000 ? b : a);  // +0 is larger than -0
  return got == (x > y ? a : b);
}

void test_arithmetic() {
  std::vector<uint32_t> floats, others, halves, other_halves, small;
  uint32_t random = 1;
  const auto next = [&] { return random = random * 1664525u + 1013904223u; };
  const float special[] = {0.0f,      -0.0f,      1.0f,       -1.0f,     INFINITY,  -INFINITY, NAN,
                           0x1p-149f, -0x1p-130f, 127.99f,    -125.99f,  -126.01f,  -149.99f,  0x1p127f,
                           -0x1p126f, 65504.0f,   65520.0f,   65519.99f, 0x1p-24f,  0x1p-25f,  0x1.8p-25f,
                           0x1p-14f,  0x1.004p0f, 0x1.00cp0f, 0x1.01p0f, 0x1.03p0f, 128.0f};
  for (const float x : special) {
    for (const float y : special) floats.push_back(bits(x)), others.push_back(bits(y));
  }
  for (int i = 0; i < 4000; ++i) floats.push_back(next()), others.push_back(next());
  for (int i = 0; i < 4000; ++i) small.push_back(bits(static_cast<float>(next() >> 8) * 0x1p-24f * 254.0f - 127.0f));
  for (const float x : special) small.push_back(bits(x));
  const uint16_t halves_special[] = {0x0000, 0x8000, 0x3f80, 0xbf80, 0x7f80, 0xff80, 0x7fc0, 0xffc1, 0x7f81, 0x0001,
                                     0x8001, 0x3c00, 0xbc00, 0x7c00, 0xfc00, 0x7e00, 0xfe01, 0x03ff, 0x83ff, 0x7bff};
  for (const uint16_t a : halves_special) {
    for (const uint16_t b : halves_special) {
      halves.push_back(static_cast<uint32_t>(a) << 16 | b);
      other_halves.push_back(static_cast<uint32_t>(b) << 16 | a);
    }
  }
  for (int i = 0; i < 4000; ++i) halves.push_back(next()), other_halves.push_back(next());
  std::vector<uint32_t> every_half;
  for (uint32_t i = 0; i < 65536; ++i) every_half.push_back(i);

  test_arithmetic<Op::exp2>("exp2_approx", small, small, [](uint32_t a, uint32_t, uint32_t got) {
    const float x = flushed(value(a));
    return near(value(got), std::exp2(static_cast<double>(x)), 0x1p-22) && (x != 0.0f || value(got) == 1.0f);
  });
  test_arithmetic<Op::reciprocal>("reciprocal_approx", floats, floats, [](uint32_t a, uint32_t, uint32_t got) {
    return near(value(got), 1.0 / static_cast<double>(flushed(value(a))), 0x1p-23);
  });
  test_arithmetic<Op::max>("max_nan", floats, others, [](uint32_t a, uint32_t b, uint32_t got) {
    const float x = value(a), y = value(b);
    if (x != x || y != y) return value(got) != value(got);
    return same(value(got), x == y ? (std::signbit(x) ? y : x) : x > y ? x : y);
  });
  const auto both = [](const auto& ok, uint32_t a, uint32_t b, uint32_t got) {
    const auto low = [](uint32_t x) { return static_cast<uint16_t>(x); };
    return ok(low(a), low(b), low(got)) && ok(low(a >> 16), low(b >> 16), low(got >> 16));
  };
  test_arithmetic<Op::max_bf16x2>("max_nan_bf16x2", halves, other_halves, [&](uint32_t a, uint32_t b, uint32_t got) {
    return both([](uint16_t x, uint16_t y, uint16_t z) { return is_max_of(x, y, z, from_bf16); }, a, b, got);
  });
  test_arithmetic<Op::max_f16x2>("max_nan_f16x2", halves, other_halves, [&](uint32_t a, uint32_t b, uint32_t got) {
    return both([](uint16_t x, uint16_t y, uint16_t z) { return is_max_of(x, y, z, from_f16); }, a, b, got);
  });
  test_arithmetic<Op::pack_bf16x2>("pack_bf16x2", floats, others, [](uint32_t a, uint32_t b, uint32_t got) {
    return is_nearest(value(a), static_cast<uint16_t>(got), from_bf16) &&
           is_nearest(value(b), static_cast<uint16_t>(got >> 16), from_bf16);
  });
  test_arithmetic<Op::pack_f16x2>("pack_f16x2", floats, others, [](uint32_t a, uint32_t b, uint32_t got) {
    return is_nearest(value(a), static_cast<uint16_t>(got), from_f16) &&
           is_nearest(value(b), static_cast<uint16_t>(got >> 16), from_f16);
  });
  test_arithmetic<Op::f16_to_float>("f16_to_float", every_half, every_half, [](uint32_t a, uint32_t, uint32_t got) {
    return same(value(got), static_cast<float>(from_f16(static_cast<uint16_t>(a))));
  });
}

// ---- streaming loads and stores

__global__ void streaming_kernel(const uint4* in, uint4* out) {
  uint4 v = load_streaming(in + threadIdx.x);
  v.x += 1;
  store_streaming(out + (threadIdx.x ^ 1), v);
}

void test_streaming() {
  std::vector<uint32_t> in(32 * 4);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint32_t>(i * 3);
  Buffer<uint32_t> from(in), to(in.size());
  launch(streaming_kernel, {1, 32}, reinterpret_cast<uint4*>(from.data()), reinterpret_cast<uint4*>(to.data()));
  const std::vector<uint32_t> got = to.values();
  bool ok = got.size() == in.size();
  for (size_t i = 0; ok && i < got.size(); ++i) ok = got[i] == in[i ^ 4] + (i % 4 == 0);
  report("load_streaming, store_streaming", ok);
}

// ---- clusters

__global__ void cluster_kernel(unsigned* out) {
#ifdef HAS_CLUSTERS
  struct Ranks {
    unsigned of[8];
  };
  Ranks& mine = shared<Ranks>();
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x < cluster_size()) map_shared_rank(&mine, threadIdx.x)->of[cluster_rank()] = cluster_rank() + 1;
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x == 0) {
    out[blockIdx.x] = 0;
    for (unsigned i = 0; i < cluster_size(); ++i) out[blockIdx.x] = out[blockIdx.x] * 10 + mine.of[i];
  }
#endif
}

// ---- asynchronous copies

// 64 threads; tiles of 64 floats over two stages; out[i] = sum over tiles of in[tile][i] * (tile + 1).
__global__ void ring_kernel(const float* in, float* out, int tiles) {
#ifdef HAS_CLUSTERS
  struct Ring {
    Mbarrier full[2], empty[2];
  };
  Ring& ring = shared<Ring>();
  float* stage = dynamic_shared<float>();
  if (threadIdx.x == 0) {
    for (int s = 0; s < 2; ++s) mbarrier_init(ring.full[s], 1), mbarrier_init(ring.empty[s], 64);
    mbarrier_init_fence();
  }
  __syncthreads();
  const auto load = [&](int tile) {
    mbarrier_arrive_expect(ring.full[tile % 2], 256);
    bulk_load(stage + tile % 2 * 64, in + tile * 64, 256, ring.full[tile % 2]);
  };
  if (threadIdx.x == 0) load(0), load(1);
  float sum = 0.0f;
  for (int tile = 0; tile < tiles; ++tile) {
    const unsigned parity = static_cast<unsigned>(tile / 2 & 1);
    mbarrier_wait(ring.full[tile % 2], parity);
    sum += stage[tile % 2 * 64 + threadIdx.x] * static_cast<float>(tile + 1);
    mbarrier_arrive(ring.empty[tile % 2]);
    if (threadIdx.x == 0 && tile + 2 < tiles) {
      mbarrier_wait(ring.empty[tile % 2], parity);
      load(tile + 2);
    }
  }
  out[threadIdx.x] = sum;
#endif
}

// One thread stores rounds of 64 floats that all threads write, over two stages.
__global__ void store_kernel(float* out, int rounds) {
#ifdef HAS_CLUSTERS
  float* stage = dynamic_shared<float>();
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x == 0) bulk_wait_read<1>();
    __syncthreads();
    stage[round % 2 * 64 + static_cast<int>(threadIdx.x)] =
        static_cast<float>(round * 64 + static_cast<int>(threadIdx.x));
    proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
      bulk_store(out + round * 64, stage + round % 2 * 64, 256);
      bulk_commit();
    }
  }
  if (threadIdx.x == 0) bulk_wait<0>();
#endif
}

// Every block writes 16 bytes into every block of its cluster.
__global__ void store_async_kernel(float* out) {
#ifdef HAS_CLUSTERS
  struct Inbox {
    float4 from[8];
    Mbarrier full;
  };
  Inbox& inbox = shared<Inbox>();
  if (threadIdx.x == 0) {
    mbarrier_init(inbox.full, 1);
    mbarrier_init_fence();
  }
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x == 0) mbarrier_arrive_expect(inbox.full, 16 * cluster_size());
  const auto mine = static_cast<float>(cluster_rank() + 1);
  if (threadIdx.x < cluster_size()) {
    store_async(&inbox.from[cluster_rank()], make_float4(mine, 2 * mine, 3 * mine, 4 * mine), inbox.full, threadIdx.x);
  }
  mbarrier_wait(inbox.full, 0);
  if (threadIdx.x == 0) {
    float4 sum = make_float4(0, 0, 0, 0);
    for (unsigned i = 0; i < cluster_size(); ++i) {
      const float4 v = inbox.from[i];
      sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
    }
    out[blockIdx.x] = sum.x + 100 * sum.y + 10000 * sum.z + 1000000 * sum.w;
  }
  cluster_arrive();  // nobody leaves while others write to it
  cluster_wait();
#endif
}

void test_clusters() {
  Buffer<unsigned> ranks(8);
  launch(cluster_kernel, {8, 32, 4}, ranks.data());
  report("cluster_rank, cluster_size, cluster_arrive, cluster_wait, map_shared_rank",
         ranks.values() == std::vector<unsigned>(8, 1234));

  for (const int tiles : {2, 7}) {
    std::vector<float> in(static_cast<size_t>(tiles) * 64), want(64, 0.0f);
    for (size_t i = 0; i < in.size(); ++i) {
      in[i] = static_cast<float>(i % 101);
      want[i % 64] += in[i] * static_cast<float>(i / 64 + 1);
    }
    Buffer<float> from(in), out(64);
    launch(ring_kernel, {1, 64, 1, 512}, from.data(), out.data(), tiles);
    report("mbarrier_init, mbarrier_init_fence, mbarrier_arrive, mbarrier_arrive_expect, mbarrier_wait, bulk_load",
           out.values() == want);
  }

  std::vector<float> stored(5 * 64);
  for (size_t i = 0; i < stored.size(); ++i) stored[i] = static_cast<float>(i);
  Buffer<float> out(stored.size());
  launch(store_kernel, {1, 64, 1, 512}, out.data(), 5);
  report("proxy_fence, bulk_store, bulk_commit, bulk_wait_read, bulk_wait", out.values() == stored);

  Buffer<float> sums(4);
  launch(store_async_kernel, {4, 32, 2}, sums.data());
  report("store_async", sums.values() == std::vector<float>(4, 3.0f * 4030201.0f));
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device\n");
    return 77;
  }
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  test_shared_memory();
  test_arithmetic();
  test_streaming();
  if (major >= 9) {
    test_clusters();
  } else {
    std::printf("skip clusters and asynchronous copies: compute capability %d\n", major);
  }
  const cudaError_t error = cudaDeviceSynchronize();
  report(error == cudaSuccess ? "no error is left" : cudaGetErrorString(error), error == cudaSuccess);
  return failures != 0;
}
