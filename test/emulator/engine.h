#pragma once
// The engine as kernels and the runtime see it: every CUDA thread of a cluster of blocks is a fiber of one host thread,
// clusters run one after the other, and rules that a GPU leaves undefined are checked. A fiber runs until a collective.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <string>
#include <type_traits>

#include "cuda_emulator/vector_types.h"

inline uint3 threadIdx, blockIdx;  // of the thread that is running; one kernel runs at a time
inline dim3 blockDim, gridDim;

namespace cuda_emulator {

// Collectives record where they were called: it is reported, and compared between threads.
using Site = std::source_location;

// ---- settings

struct Settings {
  // 0: threads run in order. Others draw the order of lanes, warps and blocks, when copies complete, and what
  // uninitialised shared memory holds. The same seed gives the same run.
  uint64_t seed = 0;
  // Seed of the errors of approximate functions, a function of their arguments; 0: none.
  uint64_t noise = 0;
};
Settings& settings();  // as CUDA_EMU_SEED and CUDA_EMU_NOISE (default: the seed) say; tests may change them

// ---- launches

struct Launch {
  const void* kernel = nullptr;
  dim3 grid, block, cluster;
  size_t dynamic_shared = 0;
  size_t shared_limit = 227 << 10;  // of a block, static and dynamic
  int device = 0;
  bool has_clusters = true;  // compute capability 9.0 and newer: clusters and bulk copies
  std::function<void()> body;
  std::function<bool(int device)> arguments_are_on_device;
};

// What a kernel did wrong: an error that the device does not recover from, and one sentence. Error 0: nothing.
struct Violation {
  int error = 0;
  std::string text;
};
Violation run(const Launch& launch);

constexpr int kIllegalAddress = 700, kMisalignedAddress = 716, kLaunchFailure = 719;
// Ends the kernel that is running.
[[noreturn]] void fail(int error, const char* format, ...) __attribute__((format(printf, 2, 3)));

// ---- threads

unsigned lane_id();
void reschedule();  // lets others run first
void fence();       // orders memory like __threadfence: fences are ordered as they run
void check_aligned(const void* p, size_t bytes, Site site);

enum class WarpOp {
  sync,
  shuffle,
  ballot,
  add,
  min_unsigned,
  max_unsigned,
  min_signed,
  max_signed,
  all_of,
  any_of,
  odd
};
// Lanes that `mask` names meet. `source` is the lane that a shuffle reads. Only `sync` orders memory: CUDA promises no
// more.
uint64_t warp_collective(WarpOp op, unsigned mask, uint64_t value, unsigned source, Site site);
template <typename T>
T warp_value(WarpOp op, unsigned mask, T value, unsigned source, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = warp_collective(op, mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

unsigned block_barrier(bool predicate, Site site);  // how many threads said true
void cluster_arrive(Site site);
void cluster_wait(Site site);
unsigned cluster_rank();
unsigned cluster_size();

// ---- shared memory

void* static_shared(const void* key, size_t bytes);  // one object per block and key, 16-byte aligned, uninitialised
void* dynamic_shared();                              // 128-byte aligned
void* map_shared_rank(const void* shared, unsigned rank);

// ---- mbarriers, and copies that a copy engine makes when the seed says so

void mbarrier_init(uint64_t* barrier, unsigned arrivals, Site site);
void mbarrier_init_fence();
void mbarrier_arrive(uint64_t* barrier, unsigned expected_bytes, Site site);
void mbarrier_wait(uint64_t* barrier, unsigned parity, Site site);
void bulk_load(void* shared, const void* global, unsigned bytes, uint64_t* barrier, Site site);
void bulk_store(void* global, const void* shared, unsigned bytes, Site site);
void bulk_commit();
// Until at most `pending` groups of this thread have not read their shared memory / are not done.
void bulk_wait_read(unsigned pending, Site site);
void bulk_wait(unsigned pending, Site site);
void proxy_fence();
void store_async(void* to, const void* bytes16, uint64_t* barrier, unsigned rank, Site site);

// ---- numbers

// In [-1, 1], of a value's bits and the noise seed; 0 without noise.
double noise_of(uint32_t bits);

// ---- what the runtime knows

bool is_device_memory(const void* p, size_t bytes, int device);

}  // namespace cuda_emulator
