#pragma once
// The table of ops that each backend fills: the CPU here, CUDA in a library of its own.
#include "native/memory_floor.h"
#include "native/ops/cast.h"
#include "native/ops/fapo_advantage.h"
#include "native/ops/fapo_penalty.h"
#include "native/ops/fused_policy_loss.h"
#include "native/ops/group_advantage.h"
#include "native/ops/policy_loss.h"
#include "native/ops/token_logprob.h"

namespace fapo {

struct Backend {
  void (*cast)(const Cast&) = nullptr;
  void (*token_logprob)(const TokenLogprob&) = nullptr;
  void (*token_logprob_backward)(const TokenLogprobBackward&) = nullptr;
  void (*fapo_penalty)(const FapoPenalty&) = nullptr;
  void (*group_advantage)(const GroupAdvantage&) = nullptr;
  void (*fapo_advantage)(const FapoAdvantage&) = nullptr;
  void (*policy_loss)(const PolicyLoss&) = nullptr;
  void (*fused_policy_loss)(const FusedPolicyLoss&) = nullptr;
  void (*memory_floor)(const MemoryFloor&) = nullptr;  // for benchmarks
};

// What was found when the CUDA runtime was asked for its devices.
struct CudaProbe {
  int32_t devices = 0;
  int32_t status = 0;  // cudaError_t: why there are none
  const char* status_name = "";
  const char* status_message = "";
  int32_t driver = 0;   // CUDA version that the driver supports, such as 13000; 0: no driver
  int32_t runtime = 0;  // that this library was built with
};

struct CudaDeviceInfo {
  char name[256] = {};
  char reason[512] = {};  // why it cannot be used; empty where it can, as far as that is known without using it
  int32_t compute_major = 0;
  int32_t compute_minor = 0;
  int32_t multiprocessors = 0;
  int64_t total_bytes = 0;
};

struct CudaMemoryInfo {
  int64_t used = 0;      // in tensors and work space of this process
  int64_t reserved = 0;  // taken from the device, used or kept for reuse
  int64_t limit = 0;     // what may be reserved; 0: no limit but the device's
  int64_t free = 0;      // of the device, whoever uses the rest
  int64_t total = 0;
};

// An array of the host, and where it goes within one piece of device memory.
struct CudaUpload {
  const void* data = nullptr;
  int64_t bytes = 0;
  int64_t offset = 0;
};

// Rows of device memory to be copied; sizes and strides in bytes.
struct CudaRows {
  void* to = nullptr;
  const void* from = nullptr;
  int64_t to_stride = 0, from_stride = 0;
  int64_t row_bytes = 0, count = 0;
};

// What a library of CUDA kernels hands to the addon: the ops, and the memory they work on. Its functions may be called
// from any thread, and throw fapo::Error. Addresses are of device memory.
struct CudaLibrary {
  uint64_t abi = 0;  // kCudaAbi of the build: the two libraries must be of one build
  bool emulated = false;
  Backend ops;
  CudaProbe (*probe)() = nullptr;  // does not throw
  CudaDeviceInfo (*device_info)(int32_t device) = nullptr;
  void* (*allocate)(int32_t device, int64_t bytes, bool zeroed) = nullptr;
  void (*release)(int32_t device, void* data, int64_t bytes) noexcept = nullptr;  // when what was enqueued is done
  // Host memory is read or written inside the call, and not afterwards.
  void* (*upload)(int32_t device, const CudaUpload* arrays, int32_t count, int64_t bytes) = nullptr;  // to be released
  void (*copy_to_device)(int32_t device, void* to, const void* from, int64_t bytes) = nullptr;
  void (*copy_to_host)(int32_t device, void* to, const void* from, int64_t bytes) = nullptr;  // waits, as synchronize
  void (*copy_on_device)(int32_t device, const CudaRows& rows) = nullptr;
  void (*synchronize)(int32_t device) = nullptr;  // throws what kernels reported
  CudaMemoryInfo (*memory_info)(int32_t device) = nullptr;
  void (*set_memory_limit)(int32_t device, int64_t bytes) = nullptr;
  uint64_t (*stream)(int32_t device) = nullptr;                   // the address of the cudaStream_t in use
  void (*set_stream)(int32_t device, uint64_t stream) = nullptr;  // 0: our own again
  void (*wait_for)(int32_t device, uint64_t stream) = nullptr;    // ours waits for what is on that one
  void (*make_wait)(int32_t device, uint64_t stream) = nullptr;   // that one waits for what is on ours
  // Throws ERR_INVALID_ARGUMENT unless it is memory of that device.
  void (*check_foreign)(int32_t device, uint64_t address, int64_t bytes) = nullptr;
  // Between the two, what this thread enqueues is kept instead of run, and no other thread may use the device.
  void (*begin_capture)(int32_t device) = nullptr;
  void* (*end_capture)(int32_t device) = nullptr;  // a graph, to be released
  void (*abandon_capture)(int32_t device) noexcept = nullptr;
  void (*replay)(int32_t device, void* graph) = nullptr;  // enqueues it; what it works on has to be there still
  void (*release_graph)(int32_t device, void* graph) noexcept = nullptr;
  void (*start_timer)(int32_t device) = nullptr;   // one per device: a second start begins anew
  double (*stop_timer)(int32_t device) = nullptr;  // waits; milliseconds of what was enqueued since the start
};

// napi_type_tag of the External over it.
constexpr uint64_t kCudaLibraryTag[2] = {0x6661706f6b65726e, 0x6c73637564616c69};

// Differs between builds whose structs differ.
constexpr uint64_t kCudaAbi =
    (((((sizeof(TokenLogprob) * 31 + sizeof(TokenLogprobBackward)) * 31 + sizeof(FapoAdvantage)) * 31 +
       sizeof(PolicyLoss)) *
          31 +
      sizeof(FusedPolicyLoss)) *
         31 +
     sizeof(CudaLibrary)) *
        31 +
    1;

// The CUDA library of this process, once it has been opened; throws ERR_NO_CUDA before. It stays for good.
const CudaLibrary& cuda_library();

// Throws ERR_NO_CUDA for a library of another build, or where another one is in use.
void set_cuda_library(const CudaLibrary* library);

extern const Backend kCpuBackend;

}  // namespace fapo
