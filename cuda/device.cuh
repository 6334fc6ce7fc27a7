#pragma once
// Everything of a GPU that CUDA C++ does not spell as a portable function: the only file with inline PTX, and the only
// declarations of shared memory. test/emulator/device_emulated.h is its twin for the emulated device.
#include <cuda_runtime.h>

#include <cstdint>

#ifdef FAPO_EMULATE_CUDA
#include "device_emulated.h"
#else

namespace fapo::cuda {

#define FAPO_DEVICE __device__ __forceinline__
// For what runs once per row, so that it takes no registers of the loops.
#define FAPO_DEVICE_NOINLINE inline __device__ __noinline__

// ---- shared memory: one object per block and type. Nothing initialises it.

template <typename T>
FAPO_DEVICE T& shared() {
  __shared__ __align__(16) unsigned char object[sizeof(T)];
  return *reinterpret_cast<T*>(object);
}

template <typename T>
FAPO_DEVICE T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

FAPO_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// ---- arithmetic

// 2^x to 2 ulp; 0 for results below 2^-126; NaN stays.
FAPO_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x to 1 ulp.
FAPO_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The larger one; NaN if either is NaN, which fmaxf would drop.
FAPO_DEVICE float max_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
// The same for pairs of 16-bit floats.
FAPO_DEVICE uint32_t max_nan_bf16x2(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}
FAPO_DEVICE uint32_t max_nan_f16x2(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}

// Two floats rounded to nearest even; `low` in the lower half.
FAPO_DEVICE uint32_t pack_bf16x2(float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
FAPO_DEVICE uint32_t pack_f16x2(float low, float high) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
FAPO_DEVICE float f16_to_float(uint16_t bits) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
}

// ---- 16 bytes of global memory that are used once: past the first-level cache

FAPO_DEVICE uint4 load_streaming(const void* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::256B.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
FAPO_DEVICE void store_streaming(void* p, uint4 v) {
  asm volatile("st.global.L1::no_allocate.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

// Counts arrivals of threads and bytes of asynchronous copies.
struct Mbarrier {
  uint64_t state;
};

// ---- clusters, sm_90 and newer. Elsewhere a cluster is one block.
#if __CUDA_ARCH__ >= 900

FAPO_DEVICE unsigned cluster_rank() {
  unsigned r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
FAPO_DEVICE unsigned cluster_size() {
  unsigned r;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
  return r;
}
FAPO_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
FAPO_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The same object in the shared memory of another block of the cluster.
template <typename T>
FAPO_DEVICE T* map_shared_rank(T* p, unsigned rank) {
  uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(reinterpret_cast<uint64_t>(p)), "r"(rank));
  return reinterpret_cast<T*>(there);
}

#else

FAPO_DEVICE unsigned cluster_rank() { return 0; }
FAPO_DEVICE unsigned cluster_size() { return 1; }
FAPO_DEVICE void cluster_arrive() { __syncthreads(); }
FAPO_DEVICE void cluster_wait() {}
template <typename T>
FAPO_DEVICE T* map_shared_rank(T* p, unsigned) {
  return p;
}

#endif

// ---- asynchronous copies, sm_90 and newer. No kernel of older GPUs comes here, but their compiler reads it.
#if __CUDA_ARCH__ >= 900
#define FAPO_SM90(...) asm volatile(__VA_ARGS__)
#else
#define FAPO_SM90(...)
#endif

FAPO_DEVICE void mbarrier_init(Mbarrier& b, unsigned arrivals) {
  FAPO_SM90("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&b)), "r"(arrivals) : "memory");
}
FAPO_DEVICE void mbarrier_init_fence() { FAPO_SM90("fence.mbarrier_init.release.cluster;" ::: "memory"); }
FAPO_DEVICE void mbarrier_arrive(Mbarrier& b) {
  FAPO_SM90("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&b)) : "memory");
}
FAPO_DEVICE void mbarrier_arrive_expect(Mbarrier& b, unsigned bytes) {
  FAPO_SM90("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&b)), "r"(bytes) : "memory");
}
FAPO_DEVICE void mbarrier_wait(Mbarrier& b, unsigned parity) {
  FAPO_SM90(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(&b)),
      "r"(parity)
      : "memory");
}
// Addresses and size are multiples of 16 bytes.
FAPO_DEVICE void bulk_load(void* shared, const void* global, unsigned bytes, Mbarrier& b) {
  FAPO_SM90("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                shared_address(shared)),
            "l"(global), "r"(bytes), "r"(shared_address(&b))
            : "memory");
}
FAPO_DEVICE void bulk_store(void* global, const void* shared, unsigned bytes) {
  FAPO_SM90("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(shared_address(shared)),
            "r"(bytes)
            : "memory");
}
FAPO_DEVICE void bulk_commit() { FAPO_SM90("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most kPending groups of this thread still read their shared memory / are not done.
template <int kPending>
FAPO_DEVICE void bulk_wait_read() {
  FAPO_SM90("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
template <int kPending>
FAPO_DEVICE void bulk_wait() {
  FAPO_SM90("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}
// What this thread wrote to shared memory is seen by bulk copies issued after it.
FAPO_DEVICE void proxy_fence() { FAPO_SM90("fence.proxy.async.shared::cta;" ::: "memory"); }

// Writes 16 bytes into the shared memory of block `rank` of the cluster, and counts them on the mbarrier there.
FAPO_DEVICE void store_async(float4* to, float4 v, Mbarrier& b, unsigned rank) {
  [[maybe_unused]] uint32_t there = 0, barrier = 0;
  FAPO_SM90("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(to)), "r"(rank));
  FAPO_SM90("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(barrier) : "r"(shared_address(&b)), "r"(rank));
  FAPO_SM90("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(there),
            "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
            : "memory");
}

#undef FAPO_SM90

}  // namespace fapo::cuda

#endif
