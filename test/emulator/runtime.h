#pragma once
// The emulated CUDA runtime: devices, memory, streams, errors. One lock, one kernel at a time. Environment variables,
// read at the first call:
//
//   CUDA_EMU_DEVICES   how many devices there are, 0 to 4; default 1. CUDA_VISIBLE_DEVICES="" hides them
//   CUDA_EMU_COMPUTE   their compute capability; default 9.0. With 8.0 there are no clusters and no bulk copies
//   CUDA_EMU_MEMORY    their memory in MiB; default 1024
//   CUDA_EMU_STREAM    `lazy`: what is on a stream runs only when the host waits for it, queries it, or frees memory.
//                      Otherwise it runs at once; errors of kernels are reported by later calls in both modes
//   CUDA_EMU_SEED      schedule of kernels (engine.h); default 0: threads run in order
//   CUDA_EMU_NOISE     seed of the errors of approximate instructions; default: CUDA_EMU_SEED
//   CUDA_EMU_FAULTS    what goes wrong, separated by commas:
//                        cudaMalloc:3=2              the third call of cudaMalloc in the process returns error 2
//                        cudaGetDeviceCount=100      every call does
//                        cudaStreamSynchronize:1=700 700, 710 and 714 to 719 stay: the device is lost, and every later
//                                                    call on it returns the same
//                        driver=12080                the driver's CUDA version; 0: there is no driver
//                        stale=9                     an error that other code left, found by each thread's first call
//                        capturing=1                 streams say that they are being captured
//   CUDA_EMU_LEDGER    a file, written when the process exits (JSON): misuse of handles and memory, what was still
//                      allocated, and how often each function was called
//
// Stricter than CUDA: copies from and to pageable memory are asynchronous; the default stream orders nothing on others;
// no order is given to what no event orders. Two multiprocessors, so that small inputs take loops over blocks round
// more than once. A device that is lost says in cudaGetErrorString what its kernel did.
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda_emulator/runtime_api.h"

struct CudaEmulatorGraph {
  int device = 0;
  std::vector<std::function<void()>> work;
};
struct CudaEmulatorGraphExec : CudaEmulatorGraph {};

struct CudaEmulatorStream {
  int device = 0;
  std::optional<CudaEmulatorGraph> captured;  // while it is being captured
  bool capture_is_relaxed = true;
  bool capture_failed = false;
  std::deque<std::function<void()>> work;
  uint64_t enqueued = 0, finished = 0;  // pieces of work
};

struct CudaEmulatorEvent {
  bool timed = true;
  int device = 0;
  CudaEmulatorStream* stream = nullptr;  // null: not recorded
  uint64_t ticket = 0;                   // of the stream's work, done when that many pieces are
  double seconds = 0.0;                  // when it was done
};

namespace cuda_emulator {

struct Device {
  size_t used = 0;
  cudaError_t lost = cudaSuccess;  // the error that stays
  CudaEmulatorStream default_stream;
};

struct Allocation {
  size_t bytes = 0;
  int device = 0;  // -1: pinned host memory
};

struct Fault {
  std::string name;
  uint64_t call = 0;  // 0: every one
  int error = 0;
};

struct Runtime {
  std::recursive_mutex mutex;
  int device_count = 1, compute_major = 9, compute_minor = 0, driver = CUDART_VERSION, stale = 0;
  size_t memory = 0;
  bool lazy = false, capturing = false;
  std::vector<Fault> faults;
  std::deque<Device> devices;
  std::map<const char*, Allocation> allocations;
  std::set<CudaEmulatorStream*> streams;
  std::set<CudaEmulatorEvent*> events;
  std::set<CudaEmulatorGraph*> graphs;
  std::set<CudaEmulatorGraphExec*> graph_execs;
  std::map<const void*, int> dynamic_shared_limit;
  std::set<const void*> wide_clusters;  // kernels that allow more than 8 blocks
  std::map<std::string, uint64_t> calls;
  std::vector<std::string> misuse;
  std::deque<std::string> reports;  // what kernels did; never shortened, so that the texts stay

  Runtime();
  bool needs_driver() const { return driver < CUDART_VERSION / 1000 * 1000; }
};
Runtime& runtime();  // never destroyed

// Forgets devices, faults, counts and errors, and reads the environment anew; nothing may be allocated.
void reset_runtime();
std::string ledger();  // as CUDA_EMU_LEDGER gets it

int& current_device();      // of this thread
cudaError_t& last_error();  // of this thread

// Counts the call, and says whether a fault, a lost device or a missing driver answers it.
cudaError_t enter(const char* name);
cudaError_t leave(cudaError_t error);

// Every function of the runtime is call("its name", body).
template <typename Body>
cudaError_t call(const char* name, const Body& body) {
  const std::lock_guard lock(runtime().mutex);
  cudaError_t error = enter(name);
  if (error == cudaSuccess) error = body();
  return leave(error);
}

cudaError_t misused(const char* what, cudaError_t error);  // notes it in the ledger
CudaEmulatorStream* find_stream(cudaStream_t stream);      // null and a note in the ledger where there is none
int shared_per_block();                                    // of this compute capability, opted in, in bytes
bool forbidden_by_capture();                               // of any stream: what a strict mode does not allow
bool forbidden_by_capture(CudaEmulatorStream& stream);     // of this one: a wait, or what the emulator does not capture
void enqueue(CudaEmulatorStream& stream, std::function<void()> work);
void run_until(CudaEmulatorStream& stream, uint64_t ticket);
void run_all(int device);
void lose(int device, cudaError_t error, const std::string& report);

}  // namespace cuda_emulator
