// Kernels with one planted fault each, and correct ones beside them. The table at the end says which builds (plain;
// AddressSanitizer and UndefinedBehaviorSanitizer; ThreadSanitizer) must catch a fault in one of eight schedules;
// correct kernels stay clean in all. Every case runs in a process of its own.
//   faults_test                 runs the table
//   faults_test NAME            runs one case; the exit status is an Outcome, or a sanitizer's
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "cuda/device.cuh"
#include "launch.h"
#include "native/tensor.h"
#include "runtime.h"

namespace {

using namespace fapo::cuda;
using Floats = std::vector<float>;

constexpr uint64_t kSeeds = 8;

enum Outcome { clean = 0, wrong_result = 10, reported = 11, refused = 12, sanitizer = 86 };

// Hides a value from the optimiser.
template <typename T>
T opaque(T x) {
  asm("" : "+r"(x));
  return x;
}

void cluster_sync(cuda_emulator::Site site = cuda_emulator::Site::current()) {
  cuda_emulator::cluster_arrive(site);
  cuda_emulator::cluster_wait(site);
}

// ---- memory

__global__ void write_past_end(float* p, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i <= n) p[i] = 1.0f;
}
__global__ void read_past_end(const float* p, float* out, int n) {  // rounds up to whole packs
  if (static_cast<int>(threadIdx.x) * 4 < n) out[threadIdx.x] = __uint_as_float(load_streaming(p + threadIdx.x * 4).x);
}
__global__ void past_dynamic_shared(float* out) {
  auto* all = dynamic_shared<float>();
  all[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = all[threadIdx.x];
}
__global__ void static_and_dynamic_shared(float* out) {
  auto* all = dynamic_shared<float>();
  auto& one = shared<float>();
  all[threadIdx.x] = 1.0f;
  if (threadIdx.x == 0) one = 1.0f;
  __syncthreads();
  out[threadIdx.x] = all[threadIdx.x] * one;
}
__global__ void past_array_in_shared(float* out) {
  struct Shared {
    float a[4], b[4];
  };
  auto& s = shared<Shared>();
  if (threadIdx.x < 4) s.b[threadIdx.x] = 1.0f;
  __syncthreads();
  const int i = opaque(static_cast<int>(threadIdx.x));
  if (i < 5) s.a[i] = 2.0f;
  __syncthreads();
  if (threadIdx.x < 4) out[threadIdx.x] = s.b[threadIdx.x];
}
__global__ void misaligned_streaming(const float* p, float* out) {
  out[threadIdx.x] = __uint_as_float(load_streaming(p + 1 + threadIdx.x * 4).x);
}
__global__ void misaligned_dereference(const float* p, float* out) {
  out[threadIdx.x] = reinterpret_cast<const float4*>(p + 1 + threadIdx.x * 4)->x;
}
__global__ void uninitialised_shared(float* out) {  // the last warp writes nothing
  struct Shared {
    float warp[8];
  };
  auto& s = shared<Shared>();
  if (threadIdx.x % 32 == 0 && threadIdx.x < 224) s.warp[threadIdx.x / 32] = 1.0f;
  __syncthreads();
  float sum = 0.0f;
  for (const float w : s.warp) sum += w;
  out[threadIdx.x] = sum - 7.0f + 1.0f;
}
__global__ void index_overflow(float* out, int rows, int vocab) {
  const int at = opaque(rows) * opaque(vocab);
  out[threadIdx.x] = at == 0 ? 0.0f : 1.0f;
}

// ---- order between threads

template <bool kBeforeRead, bool kBeforeReuse>
__global__ void reduce(const float* in, float* out, int rows) {  // 256 threads
  struct Shared {
    float warp[8];
  };
  auto& s = shared<Shared>();
  for (int row = 0; row < rows; ++row) {
    float sum = in[static_cast<unsigned>(row) * 256 + threadIdx.x];
    for (int flip = 16; flip; flip /= 2) sum += __shfl_xor_sync(~0u, sum, flip);
    if (threadIdx.x % 32 == 0) s.warp[threadIdx.x / 32] = sum;
    if (kBeforeRead) __syncthreads();
    sum = 0.0f;
    for (const float w : s.warp) sum += w;
    if (kBeforeReuse) __syncthreads();
    if (threadIdx.x == 37) out[row] = sum;
  }
}
template <bool kSync>
__global__ void warp_exchange(float* out) {
  struct Shared {
    float lane[32];
  };
  auto& s = shared<Shared>();
  s.lane[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (kSync) __syncwarp();
  out[threadIdx.x] = s.lane[threadIdx.x ^ 1] == static_cast<float>(threadIdx.x ^ 1) ? 1.0f : 0.0f;
}
__global__ void blocks_write_same(float* out) {
  out[blockIdx.x / 2 * 32 + threadIdx.x] = static_cast<float>(blockIdx.x % 2);
}
__global__ void sum_by_atomics(const float* in, float* out) { atomicAdd(out, in[blockIdx.x]); }

// Every block leaves a part; the last one to finish adds them.
template <bool kFences>
__global__ void last_block_adds(float* parts, unsigned* finished, float* out) {
  struct Shared {
    bool is_last;
  };
  auto& s = shared<Shared>();
  parts[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (kFences) __threadfence();
    s.is_last = atomicAdd(finished, 1u) == gridDim.x - 1;
    if (kFences) __threadfence();
  }
  __syncthreads();
  if (!s.is_last) return;
  float sum = 0.0f;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += parts[b * blockDim.x + threadIdx.x];
  out[threadIdx.x] = sum / static_cast<float>(gridDim.x);
}

// ---- barriers and warps

__global__ void two_barriers(float* out) {
  out[threadIdx.x] = 1.0f;
  if (threadIdx.x < 128) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void barrier_after_exit(float* out) {
  out[threadIdx.x] = 1.0f;
  if (threadIdx.x >= 100) return;
  __syncthreads();
}
__global__ void barrier_trip_count(float* out) {
  for (unsigned i = threadIdx.x; i < 300; i += 256) __syncthreads();
  out[threadIdx.x] = 1.0f;
}
__global__ void mask_names_absent(float* out) {
  float x = 1.0f;
  if (threadIdx.x % 32 < 16) x = __shfl_xor_sync(~0u, x, 1);
  out[threadIdx.x] = x;
}
__global__ void mask_lacks_caller(float* out) { out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 1); }
__global__ void shuffle_from_outside(float* out) {
  float x = 1.0f;
  if (threadIdx.x % 32 < 16) x = __shfl_down_sync(0xffffu, x, 8);
  out[threadIdx.x] = x;
}
__global__ void divergent_collective(float* out) {
  if (threadIdx.x % 2) {
    out[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
  } else {
    out[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
  }
}

// ---- clusters

template <bool kBefore, bool kAfter>
__global__ void cluster_sum(float* out) {  // blocks of 4: 1 + 2 + 3 + 4
  struct Shared {
    float from[8];
  };
  auto& s = shared<Shared>();
  if (threadIdx.x < 8) s.from[threadIdx.x] = 0.0f;
  if (kBefore) cluster_sync();
  if (threadIdx.x < cluster_size()) {
    map_shared_rank(&s, threadIdx.x)->from[cluster_rank()] = static_cast<float>(cluster_rank() + 1);
  }
  if (kAfter) cluster_sync();
  float sum = 0.0f;
  for (const float x : s.from) sum += x;
  if (threadIdx.x == 0) out[blockIdx.x] = sum / 10.0f;
}
__global__ void reads_exited_peer(float* out) {
  struct Shared {
    float x;
  };
  auto& s = shared<Shared>();
  if (threadIdx.x == 0) s.x = 1.0f;
  cluster_sync();
  const float* theirs = &map_shared_rank(&s, cluster_size() - 1)->x;
  if (cluster_rank() + 1 < cluster_size()) __nanosleep(1);
  if (threadIdx.x == 0) out[blockIdx.x] = *theirs;
}
template <unsigned kBytes>
__global__ void remote_stores(float* out) {  // every block sends 16 bytes to every block
  struct Inbox {
    float4 from[8];
    Mbarrier full;
  };
  auto& inbox = shared<Inbox>();
  if (threadIdx.x == 0) {
    mbarrier_init(inbox.full, 1);
    mbarrier_init_fence();
  }
  cluster_sync();
  if (threadIdx.x == 0) mbarrier_arrive_expect(inbox.full, kBytes * cluster_size());
  if (threadIdx.x < cluster_size()) {
    store_async(&inbox.from[cluster_rank()], make_float4(0.25f, 0, 0, 0), inbox.full, threadIdx.x);
  }
  mbarrier_wait(inbox.full, 0);
  float sum = 0.0f;
  for (unsigned i = 0; i < cluster_size(); ++i) sum += inbox.from[i].x;
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
  cluster_sync();
}

// ---- bulk copies

struct RingSteps {
  bool fences = true, syncs_after_init = true, waits = true, frees = true;
  unsigned bytes = 256, copied = 256;
};
template <RingSteps kSteps>
__global__ void ring(const float* in, float* out, int tiles) {  // 64 threads, two stages of 64 floats
  struct Ring {
    Mbarrier full[2];
  };
  auto& r = shared<Ring>();
  auto* stage = dynamic_shared<float>();
  const auto load = [&](int tile) {
    mbarrier_arrive_expect(r.full[tile % 2], kSteps.bytes);
    bulk_load(stage + tile % 2 * 64, in + tile * 64, kSteps.copied, r.full[tile % 2]);
  };
  if (threadIdx.x == 0) {
    mbarrier_init(r.full[0], 1);
    mbarrier_init(r.full[1], 1);
    if (kSteps.fences) mbarrier_init_fence();
  }
  if (kSteps.syncs_after_init) __syncthreads();
  if (threadIdx.x == 0) load(0), load(1);
  float sum = 0.0f;
  for (int tile = 0; tile < tiles; ++tile) {
    if (kSteps.waits) mbarrier_wait(r.full[tile % 2], static_cast<unsigned>(tile / 2 & 1));
    sum += stage[tile % 2 * 64 + static_cast<int>(threadIdx.x ^ 32)];
    if (kSteps.frees) __syncthreads();
    if (threadIdx.x == 0 && tile + 2 < tiles) load(tile + 2);
  }
  out[threadIdx.x] = sum / static_cast<float>(tiles);
}
__global__ void uninitialised_mbarrier(float* out) {
  struct Shared {
    Mbarrier full;
  };
  auto& s = shared<Shared>();
  mbarrier_arrive(s.full);
  out[threadIdx.x] = 1.0f;
}
__global__ void too_many_arrivals(float* out) {
  struct Shared {
    Mbarrier full;
  };
  auto& s = shared<Shared>();
  if (threadIdx.x == 0) mbarrier_init(s.full, 3), mbarrier_init_fence();
  __syncthreads();
  mbarrier_arrive_expect(s.full, 16);  // 32 threads, and the phase never ends
  out[threadIdx.x] = 1.0f;
}

struct StoreSteps {
  bool fences = true, commits = true, waits_for_reads = true, waits = true;
};
template <StoreSteps kSteps>
__global__ void bulk_stores(float* out, int rounds) {  // 64 threads, one stage of 64 floats
  auto* stage = dynamic_shared<float>();
  for (int round = 0; round < rounds; ++round) {
    stage[threadIdx.x] = static_cast<float>(round + 1);
    if (kSteps.fences) proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
      bulk_store(out + round * 64, stage, 256);
      if (kSteps.commits) bulk_commit();
      if (kSteps.waits_for_reads) bulk_wait_read<0>();
    }
    __syncthreads();
  }
  if (kSteps.waits && threadIdx.x == 0) bulk_wait<0>();
}
__global__ void bulk_load_past_end(const float* in, float* out) {
  struct Shared {
    Mbarrier full;
  };
  auto& s = shared<Shared>();
  if (threadIdx.x == 0) {
    mbarrier_init(s.full, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(s.full, 256);
    bulk_load(dynamic_shared<float>(), in + 4, 256, s.full);
  }
  __syncthreads();
  mbarrier_wait(s.full, 0);
  out[threadIdx.x] = 1.0f;
}
// Its own global result, when only the reads of the store have been waited for.
template <bool kWaits>
__global__ void reads_stored_result(float* out) {
  auto* stage = dynamic_shared<float>();
  stage[threadIdx.x] = 1.0f;
  proxy_fence();
  __syncthreads();
  if (threadIdx.x != 0) return;
  bulk_store(out, stage, 256);
  bulk_commit();
  if (kWaits) {
    bulk_wait<0>();
  } else {
    bulk_wait_read<0>();
  }
  out[0] += 0.0f;
}

// ---- arguments

struct Inner {
  fapo::Matrix matrix;
  template <typename Visitor>
  void fields(Visitor&& v) {
    v("matrix", matrix);
  }
};
struct Arguments {
  Inner inner;
  fapo::Array<float> out;
  double scale = 1.0;
  template <typename Visitor>
  void fields(Visitor&& v) {
    v("inner", inner), v("out", out), v("scale", scale);
  }
};
__global__ void takes_struct(Arguments args) {
  args.out[threadIdx.x] = static_cast<const float*>(args.inner.matrix.data)[0];
}
__global__ void ones(float* out) { out[threadIdx.x] = 1.0f; }

// ---- running them

Outcome outcome_of(cudaError_t launched, const Buffer<float>& out, const Floats& want) {
  if (launched != cudaSuccess) return refused;
  const Floats got = out.values();
  if (const cudaError_t error = cudaPeekAtLastError(); error != cudaSuccess) {
    std::printf("%s\n", cudaGetErrorString(error));
    return reported;
  }
  return got == want ? clean : wrong_result;
}

// A kernel that takes only its output, of `size` ones when it is right.
template <void (*kKernel)(float*)>
Outcome writes_ones(Shape shape, size_t size) {
  const Buffer<float> out(size);
  return outcome_of(launch(kKernel, shape, out.data()), out, Floats(size, 1.0f));
}

template <bool kBeforeRead, bool kBeforeReuse>
Outcome run_reduce() {
  Floats in(4 * 256), want(4, 0.0f);
  for (size_t i = 0; i < in.size(); ++i) want[i / 256] += in[i] = static_cast<float>(i % 97);
  const Buffer<float> from(in), out(4);
  return outcome_of(launch(reduce<kBeforeRead, kBeforeReuse>, {1, 256}, from.data(), out.data(), 4), out, want);
}
template <RingSteps kSteps>
Outcome run_ring() {
  constexpr int kTiles = 6;
  const Buffer<float> from(Floats(kTiles * 64, 1.0f)), out(64);
  return outcome_of(launch(ring<kSteps>, {1, 64, 1, 512}, from.data(), out.data(), kTiles), out, Floats(64, 1.0f));
}
template <StoreSteps kSteps>
Outcome run_stores() {
  Floats want(3 * 64);
  for (size_t i = 0; i < want.size(); ++i) want[i] = static_cast<float>(i / 64 + 1);
  const Buffer<float> out(want.size());
  return outcome_of(launch(bulk_stores<kSteps>, {1, 64, 1, 256}, out.data(), 3), out, want);
}
template <bool kFences>
Outcome run_last_block() {
  const Buffer<float> parts(4 * 32), out(32);
  const Buffer<unsigned> finished(std::vector<unsigned>(1, 0));
  const cudaError_t error = launch(last_block_adds<kFences>, {4, 32}, parts.data(), finished.data(), out.data());
  return outcome_of(error, out, Floats(32, 1.0f));
}
template <bool kStreaming>
Outcome run_misaligned() {
  const Buffer<float> in(Floats(200, 1.0f)), out(32);
  const cudaError_t error =
      launch(kStreaming ? misaligned_streaming : misaligned_dereference, {1, 32}, in.data(), out.data());
  return outcome_of(error, out, Floats(32, 1.0f));
}
Outcome run_write_past_end() {
  const Buffer<float> out(100);
  return outcome_of(launch(write_past_end, {1, 128}, out.data(), 100), out, Floats(100, 1.0f));
}
Outcome run_read_past_end() {
  const Buffer<float> in(Floats(126, 1.0f)), out(32);
  return outcome_of(launch(read_past_end, {1, 32}, in.data(), out.data(), 126), out, Floats(32, 1.0f));
}
Outcome run_index_overflow() {
  const Buffer<float> out(32);
  return outcome_of(launch(index_overflow, {1, 32}, out.data(), 65536, 128257), out, Floats(32, 1.0f));
}
Outcome run_atomic_sum() {
  static float first = NAN;
  Floats parts(64);
  for (size_t i = 0; i < parts.size(); ++i) parts[i] = 1.0f / static_cast<float>(i + 1);
  const Buffer<float> in(parts), out(Floats(1, 0.0f));
  launch(sum_by_atomics, {64, 1}, in.data(), out.data());
  const float sum = out.values().at(0);
  if (first != first) first = sum;
  return sum == first ? clean : wrong_result;
}
Outcome run_blocks_write_same() {
  const Buffer<float> out(64);
  return outcome_of(launch(blocks_write_same, {4, 32}, out.data()), out, Floats(64, 1.0f));
}
Outcome run_bulk_load_past_end() {
  const Buffer<float> in(Floats(64, 1.0f)), out(32);
  return outcome_of(launch(bulk_load_past_end, {1, 32, 1, 256}, in.data(), out.data()), out, Floats(32, 1.0f));
}
template <bool kWaits>
Outcome run_reads_stored() {
  const Buffer<float> out(64);
  return outcome_of(launch(reads_stored_result<kWaits>, {1, 64, 1, 256}, out.data()), out, Floats(64, 1.0f));
}
Outcome run_host_pointer() {
  static float host[32];
  const Buffer<float> out(32);
  return outcome_of(launch(ones, {1, 32}, static_cast<float*>(host)), out, {});
}
Outcome run_freed_pointer() {
  const Buffer<float> out(64);
  float* freed = nullptr;
  {
    const Buffer<float> gone(32);
    freed = gone.data();
  }
  return outcome_of(launch(ones, {1, 32}, freed), out, {});
}
Outcome run_other_device() {
  setenv("CUDA_EMU_DEVICES", "2", 1);
  cuda_emulator::reset_runtime();
  float* theirs = nullptr;
  cudaSetDevice(1);
  cudaMalloc(&theirs, 128);
  cudaSetDevice(0);
  const Buffer<float> out(32);
  const Outcome outcome = outcome_of(launch(ones, {1, 32}, theirs), out, {});
  cuda_emulator::reset_runtime();
  cudaSetDevice(1);
  cudaFree(theirs);
  cudaSetDevice(0);
  return outcome;
}
template <bool kOnHost>
Outcome run_struct() {
  static const float host = 1.0f;
  const Buffer<float> in(Floats(1, 1.0f)), out(32);
  Arguments args;
  args.inner.matrix = {kOnHost ? &host : in.data(), 1, 1, fapo::DType::float32, 0};
  args.out = {out.data(), 32, 0};
  return outcome_of(launch(takes_struct, {1, 32}, args), out, Floats(32, 1.0f));
}
Outcome run_host_reads_early() {
  setenv("CUDA_EMU_STREAM", "lazy", 1);
  cuda_emulator::reset_runtime();
  const Buffer<float> out(32);
  Floats got(32, 0.0f);
  launch(ones, {1, 32}, out.data());
  cudaMemcpyAsync(got.data(), out.data(), 128, cudaMemcpyDeviceToHost);
  const bool right = got == Floats(32, 1.0f);  // nobody has waited
  cudaDeviceSynchronize();
  return right ? clean : wrong_result;
}
Outcome run_cluster_on_old_device() {
  setenv("CUDA_EMU_COMPUTE", "8.0", 1);
  cuda_emulator::reset_runtime();
  return writes_ones<cluster_sum<true, true>>({8, 32, 4}, 8);
}

// ---- the table

constexpr unsigned kPlain = 1, kAddress = 2, kThread = 4, kAll = 7, kNone = 0;

struct Case {
  const char* name;
  unsigned caught_by;  // kNone: correct
  std::function<Outcome()> run;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"reduction (correct)", kNone, run_reduce<true, true>},
      {"warp exchange (correct)", kNone,
       [] {
         return writes_ones<warp_exchange<true>>({1, 32}, 32);
       }},
      {"last block adds (correct)", kNone, run_last_block<true>},
      {"cluster sum (correct)", kNone,
       [] {
         return writes_ones<cluster_sum<true, true>>({8, 64, 4}, 8);
       }},
      {"remote stores (correct)", kNone,
       [] {
         return writes_ones<remote_stores<16>>({8, 32, 4}, 8);
       }},
      {"bulk loads (correct)", kNone, run_ring<RingSteps{}>},
      {"bulk stores (correct)", kNone, run_stores<StoreSteps{}>},
      {"stored result read back (correct)", kNone, run_reads_stored<true>},
      {"struct of device pointers (correct)", kNone, run_struct<false>},

      {"write past the end", kAddress, run_write_past_end},
      {"read past the end", kAddress, run_read_past_end},
      {"past dynamic shared memory", kAddress,
       [] {
         return writes_ones<past_dynamic_shared>({1, 256, 1, 255 * 4}, 256);
       }},
      {"more shared memory than a block has", kAll,
       [] {
         return writes_ones<static_and_dynamic_shared>({1, 256, 1, 227 << 10}, 256);
       }},
      {"past an array in shared memory", kPlain | kAddress,
       [] {
         return writes_ones<past_array_in_shared>({1, 32}, 4);
       }},
      {"misaligned streaming load", kAll, run_misaligned<true>},
      {"misaligned dereference", kAddress, run_misaligned<false>},
      {"uninitialised shared memory", kAll,
       [] {
         return writes_ones<uninitialised_shared>({1, 256}, 256);
       }},
      {"32-bit index overflow", kAddress, run_index_overflow},

      {"no barrier before reading", kAll, run_reduce<false, true>},
      {"no barrier before reuse", kPlain | kThread, run_reduce<true, false>},
      {"no __syncwarp", kAll,
       [] {
         return writes_ones<warp_exchange<false>>({1, 32}, 32);
       }},
      {"blocks write the same element", kPlain | kThread, run_blocks_write_same},
      {"sum in the order of atomics", kPlain, run_atomic_sum},
      {"no fence around an atomic", kThread, run_last_block<false>},

      {"two barriers in a branch", kAll,
       [] {
         return writes_ones<two_barriers>({1, 256}, 256);
       }},
      {"barrier after threads exited", kAll,
       [] {
         return writes_ones<barrier_after_exit>({1, 256}, 256);
       }},
      {"barrier in a loop of uneven length", kAll,
       [] {
         return writes_ones<barrier_trip_count>({1, 256}, 256);
       }},
      {"mask names absent lanes", kAll,
       [] {
         return writes_ones<mask_names_absent>({1, 64}, 64);
       }},
      {"mask lacks the caller", kAll,
       [] {
         return writes_ones<mask_lacks_caller>({1, 64}, 64);
       }},
      {"shuffle from outside the mask", kAll,
       [] {
         return writes_ones<shuffle_from_outside>({1, 64}, 64);
       }},
      {"two shuffles in a branch", kAll,
       [] {
         return writes_ones<divergent_collective>({1, 32}, 32);
       }},

      {"no cluster barrier before remote writes", kAll,
       [] {
         return writes_ones<cluster_sum<false, true>>({8, 64, 4}, 8);
       }},
      {"no cluster barrier after remote writes", kPlain | kThread,
       [] {
         return writes_ones<cluster_sum<true, false>>({8, 64, 4}, 8);
       }},
      {"reads a block that has exited", kPlain | kAddress,
       [] {
         return writes_ones<reads_exited_peer>({8, 64, 4}, 8);
       }},
      {"remote stores of too few bytes", kAll,
       [] {
         return writes_ones<remote_stores<32>>({8, 32, 4}, 8);
       }},

      {"bulk load not waited for", kAll, run_ring<RingSteps{.waits = false}>},
      {"stage reused too early", kPlain | kThread, run_ring<RingSteps{.frees = false}>},
      {"wrong number of bytes expected", kAll, run_ring<RingSteps{.bytes = 512}>},
      {"bulk load of a multiple of 8 bytes", kAll, run_ring<RingSteps{.bytes = 248, .copied = 248}>},
      {"no fence after mbarrier_init", kAll, run_ring<RingSteps{.fences = false}>},
      {"no barrier after mbarrier_init", kThread, run_ring<RingSteps{.syncs_after_init = false}>},
      {"mbarrier never initialised", kAll,
       [] {
         return writes_ones<uninitialised_mbarrier>({1, 32}, 32);
       }},
      {"too many arrivals", kAll,
       [] {
         return writes_ones<too_many_arrivals>({1, 32}, 32);
       }},
      {"bulk load past the end", kAll, run_bulk_load_past_end},
      {"no proxy fence before a bulk store", kThread, run_stores<StoreSteps{.fences = false}>},
      {"stage rewritten while it is stored", kPlain | kThread,
       run_stores<StoreSteps{.waits_for_reads = false, .waits = true}>},
      {"bulk stores never committed", kPlain | kThread, run_stores<StoreSteps{.commits = false}>},
      {"exit while a bulk store reads", kAll, run_stores<StoreSteps{.waits_for_reads = false, .waits = false}>},
      {"stored result read too early", kThread, run_reads_stored<false>},

      {"host pointer as argument", kAll, run_host_pointer},
      {"host pointer inside a struct", kAll, run_struct<true>},
      {"freed pointer as argument", kAll, run_freed_pointer},
      {"pointer of another device", kAll, run_other_device},
      {"dynamic shared memory not opted in", kAll,
       [] {
         return writes_ones<ones>({1, 32, 1, 64 << 10}, 32);
       }},
      {"2048 threads in a block", kAll,
       [] {
         return writes_ones<ones>({1, 2048}, 2048);
       }},
      {"cluster that does not divide the grid", kAll,
       [] {
         return writes_ones<cluster_sum<true, true>>({6, 32, 4}, 6);
       }},
      {"cluster where there are none", kAll, run_cluster_on_old_device},
      {"host reads without waiting", kAll, run_host_reads_early},
  };
  return all;
}

constexpr unsigned build() {
#if defined(__SANITIZE_THREAD__)
  return kThread;
#elif defined(__SANITIZE_ADDRESS__)
  return kAddress;
#else
  return kPlain;
#endif
}

int run_case(const std::string& name) {
  for (const Case& c : cases()) {
    if (c.name != name) continue;
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      cuda_emulator::settings().seed = seed * 1000003;
      cuda_emulator::reset_runtime();
      if (const Outcome outcome = c.run(); outcome != clean) return outcome;
    }
    return clean;
  }
  std::printf("no case is called %s\n", name.c_str());
  return 1;
}

// Exit status of a process of its own.
int run_apart(const char* self, const char* name) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    if (!std::freopen("/dev/null", "w", stdout) || !std::freopen("/dev/null", "w", stderr)) _exit(1);
    const std::string status = "halt_on_error=1:exitcode=" + std::to_string(sanitizer);
    setenv("TSAN_OPTIONS", status.c_str(), 1);
    setenv("ASAN_OPTIONS", (status + ":detect_leaks=0:detect_stack_use_after_return=0").c_str(), 1);
    setenv("UBSAN_OPTIONS", status.c_str(), 1);
    execl(self, self, name, static_cast<char*>(nullptr));
    _exit(1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

const char* text_of(int status) {
  switch (status) {
    case clean:
      return "clean";
    case wrong_result:
      return "wrong result";
    case reported:
      return "reported";
    case refused:
      return "refused";
    case sanitizer:
      return build() == kThread ? "data race" : "sanitizer";
  }
  return "crash";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return run_case(argv[1]);
  int failures = 0;
  for (const Case& c : cases()) {
    const int status = run_apart("/proc/self/exe", c.name);
    const bool known =
        status == clean || status == wrong_result || status == reported || status == refused || status == sanitizer;
    const bool must = c.caught_by & build();
    const bool ok = known && (c.caught_by == kNone ? status == clean : !must || status != clean);
    failures += !ok;
    std::printf("%-4s  %-42s  %s\n", ok ? "ok" : "FAIL", c.name, text_of(status));
  }
  std::printf("%zu cases, %d failures\n", cases().size(), failures);
  return failures != 0;
}
