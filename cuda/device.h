#pragma once
// A GPU as the ops see it: memory, one stream, a work space, and what went wrong. One object per device and process.
#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>

#include "native/backend.h"

namespace fapo::cuda {

// Bad data that a kernel came upon. It clamps what protects memory, writes NaN, and reports; the host learns of it at
// the next wait.
enum class Fault : uint32_t { token_id, group_id, group_offset, cu_seqlens, verdict, response_length };

// Where kernels report. The lowest index of the first fault of the earliest call is kept, in whatever order blocks run.
struct Faults {
  unsigned long long* word;  // ~0: none
  unsigned long long call;   // the upper bits of what this call reports

  __device__ void report(Fault fault, int64_t index) const {
    atomicMin(word, call | static_cast<unsigned long long>(fault) << 36 | static_cast<unsigned long long>(index));
  }
};

struct Limits {
  int compute_major = 0;  // 9: clusters and bulk copies
  int multiprocessors = 0;
  int shared_per_block = 0;  // bytes, opted in
};

struct LaunchShape {
  int64_t blocks = 1;  // on grid.x; more than fit there is the kernel's own loop
  unsigned threads = 0;
  unsigned cluster = 1;
  size_t dynamic_shared = 0;
};

class Device;

// Makes a device current for this thread, and the one before current again at its end.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  const cudaError_t stale;          // what other code of this thread had left behind
  cudaError_t error = cudaSuccess;  // why it could not be made current

 private:
  int previous_ = -1;
};

// While it lives the device is this thread's alone, and current. Throws ERR_CUDA at once when the device has been lost.
class Guard {
 public:
  explicit Guard(Device& device);

 private:
  std::unique_lock<std::mutex> lock_;
  CurrentDevice current_;
};

// One call of an op. While it lives the device is locked and current, and what it launches goes on the device's stream,
// in order. Throws ERR_CUDA at once when the device has been lost.
class Call {
 public:
  Call(int32_t device, const char* op);

  const Limits& limits() const;
  cudaStream_t stream() const;
  Faults faults() const;

  // Device memory for this call alone, 256-byte aligned; asked for once per call. It grows with the largest call so
  // far, so that a training loop allocates nothing. `zeroed` bytes at its beginning are 0.
  void* workspace(size_t bytes, size_t zeroed = 0);

  // How many clusters of this shape the device runs at once; 0 where it cannot. Asked once per kernel and shape.
  int max_active_clusters(const void* kernel, const LaunchShape& shape);

  // Zero blocks are a launch of nothing.
  template <typename... Params, typename... Args>
  void launch(void (*kernel)(Params...), const LaunchShape& shape, Args&&... args);

 private:
  cudaError_t prepare(const void* kernel, const LaunchShape& shape, cudaLaunchConfig_t& config,
                      cudaLaunchAttribute& attribute);
  void launched(cudaError_t error);

  Device& device_;
  Guard guard_;
  const char* op_;
  unsigned long long number_;  // among the calls since the last wait
};

template <typename... Params, typename... Args>
void Call::launch(void (*kernel)(Params...), const LaunchShape& shape, Args&&... args) {
  if (shape.blocks == 0) return;
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute{};
  const cudaError_t error = prepare(reinterpret_cast<const void*>(kernel), shape, config, attribute);
  launched(error == cudaSuccess ? cudaLaunchKernelEx(&config, kernel, Params(args)...) : error);
}

}  // namespace fapo::cuda
