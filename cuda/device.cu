#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "cuda/device.h"
#include "cuda/library.h"
#include "native/error.h"

namespace fapo::cuda {
namespace {

__global__ void probe_kernel() {}

constexpr size_t kAlignment = 256;
constexpr size_t kStagingBytes = size_t{8} << 20;
constexpr size_t kChunkBytes = kStagingBytes / 4;  // of a copy that is longer than the staging memory
constexpr size_t kMaxCalls = size_t{1} << 20;      // between two waits, of which faults tell the op
// Calls in graphs, of all of them, have the numbers above; the last is of calls that found none left.
constexpr unsigned long long kUnnamed = (1ull << 24) - 1;
constexpr size_t kMaxGraphCalls = kUnnamed - kMaxCalls;
constexpr unsigned long long kNoFault = ~0ull;

// After these the device takes no more work from this process.
bool is_sticky(cudaError_t error) {
  switch (static_cast<int>(error)) {
    case 214:  // uncorrectable memory error
    case 220:  // uncorrectable NVLink error
    case 226:  // contained memory error
    case 700:  // illegal address
    case 702:  // launch timeout
    case 709:  // context destroyed
    case 710:  // device assert
    case 714:  // hardware stack error
    case 715:  // illegal instruction
    case 716:  // misaligned address
    case 717:  // invalid address space
    case 718:  // invalid program counter
    case 719:  // launch failure
    case 721:  // tensor memory leak
      return true;
    default:
      return false;
  }
}

// Code of other architectures, or too new for the driver.
bool is_no_kernel_image(cudaError_t error) {
  const int code = static_cast<int>(error);
  return code == 200 || code == 209 || code == 218 || code == 222;
}

std::string name_and_number(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + " (" + std::to_string(static_cast<int>(error)) + ")";
}

Error runtime_error(const char* code, const std::string& message, cudaError_t error) {
  return Error(code, message, static_cast<int32_t>(error), cudaGetErrorName(error));
}

// Blocks are kept for reuse in sizes that waste an eighth at most.
size_t block_size(int64_t bytes) {
  const size_t needed = std::max(static_cast<size_t>(bytes), kAlignment);
  size_t step = kAlignment;
  while (step * 16 <= needed) step *= 2;
  return (needed + step - 1) / step * step;
}

bool flag(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' && std::strcmp(value, "0") != 0;
}

int64_t memory_limit_of_environment() {
  const char* value = std::getenv("FAPO_CUDA_MEMORY_LIMIT");
  return value == nullptr ? 0 : std::max(std::atoll(value), 0ll);
}

// Pinned host memory that copies go through: a ring whose pieces are free again when what was enqueued on them is done.
class Staging {
 public:
  // Memory for `bytes`, at most kStagingBytes; null where host memory cannot be pinned.
  char* acquire(size_t bytes, cudaError_t& error) {
    if (data_ == nullptr && !pin()) return nullptr;
    if (idle_.empty()) {  // before the copy: of one without an event nobody would know when its piece is free
      cudaEvent_t event;
      error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
      if (error != cudaSuccess) return nullptr;
      idle_.push_back(event);
    }
    if (head_ + bytes > kStagingBytes) head_ = 0;
    const size_t begin = head_, end = begin + bytes;
    // Pieces are done in the order in which they were enqueued: one wait, for the last that overlaps.
    size_t done = 0;
    for (size_t i = 0; i < in_flight_.size(); ++i) {
      if (in_flight_[i].begin < end && begin < in_flight_[i].end) done = i + 1;
    }
    if (done > 0) error = cudaEventSynchronize(in_flight_[done - 1].event);
    retire(done);
    head_ = (end + kAlignment - 1) / kAlignment * kAlignment;
    return data_ + begin;
  }

  // What was enqueued last uses this piece.
  cudaError_t enqueued(const char* piece, size_t bytes, cudaStream_t stream) {
    const cudaEvent_t event = idle_.back();
    idle_.pop_back();
    const auto begin = static_cast<size_t>(piece - data_);
    in_flight_.push_back({begin, begin + bytes, event});
    return cudaEventRecord(event, stream);
  }

  cudaEvent_t last_event() const { return in_flight_.back().event; }

  // Everything enqueued so far is done.
  void all_done() { retire(in_flight_.size()); }

 private:
  struct Piece {
    size_t begin, end;
    cudaEvent_t event;
  };

  bool pin() {
    if (cannot_pin_) return false;
    void* data = nullptr;
    cannot_pin_ = cudaHostAlloc(&data, kStagingBytes, cudaHostAllocDefault) != cudaSuccess;
    if (cannot_pin_) cudaGetLastError();
    data_ = cannot_pin_ ? nullptr : static_cast<char*>(data);
    return !cannot_pin_;
  }

  void retire(size_t pieces) {
    for (; pieces > 0; --pieces) {
      idle_.push_back(in_flight_.front().event);
      in_flight_.pop_front();
    }
  }

  char* data_ = nullptr;
  size_t head_ = 0;
  bool cannot_pin_ = false;
  std::deque<Piece> in_flight_;  // in the order of the stream
  std::vector<cudaEvent_t> idle_;
};

struct Sentence {
  const char* code;
  const char* argument;
  const char* wrong;
};

// What a kernel reported, in words; the index goes behind the argument.
Sentence sentence_of(Fault fault) {
  switch (fault) {
    case Fault::token_id:
      return {"ERR_TOKEN_OUT_OF_RANGE", "tokenIds", "is outside the vocabulary and not ignoreIndex; its row is NaN"};
    case Fault::group_id:
      return {"ERR_INVALID_ARGUMENT", "groupIds", "names no group; its advantage is NaN"};
    case Fault::group_offset:
      return {"ERR_INVALID_ARGUMENT", "groupOffsets",
              "does not belong to offsets that rise from 0 to the number of responses; what they decide is NaN"};
    case Fault::cu_seqlens:
      return {"ERR_INVALID_ARGUMENT", "cuSeqlens",
              "does not belong to offsets that rise from 0 to the number of tokens; what they decide is NaN"};
    case Fault::verdict:
      return {"ERR_INVALID_ARGUMENT", "flawed", "is not 1 (flawed), 0 (sound) or -1 (unknown); its reward is NaN"};
    case Fault::response_length:
      return {"ERR_INVALID_ARGUMENT", "responseLengths", "is not a number of tokens; its reward is NaN"};
  }
  return {"ERR_INTERNAL", "an argument", "is wrong"};
}

}  // namespace

// What a replay runs, and the work space that it alone uses.
struct Graph {
  cudaGraphExec_t exec = nullptr;
  struct Block {
    void* data;
    size_t bytes;
  };
  std::vector<Block> memory;
};

CurrentDevice::CurrentDevice(int device) : stale(cudaGetLastError()) {
  int current = device;
  error = cudaGetDevice(&current);
  if (error != cudaSuccess || current == device) return;
  error = cudaSetDevice(device);
  if (error == cudaSuccess) previous_ = current;
}

CurrentDevice::~CurrentDevice() {
  if (previous_ >= 0) cudaSetDevice(previous_);
  cudaGetLastError();
}

// All functions but the constructor are called under a Guard.
class Device {
 public:
  explicit Device(int number) : number_(number) {}

  static Device& get(int32_t number);
  static Device* if_opened(int32_t number);

  std::mutex mutex;

  int number() const { return number_; }
  const Limits& limits() const { return limits_; }
  cudaStream_t stream() const { return stream_; }
  std::string why_unusable() const { return why_unusable_; }

  // First in every guard: refuses a device that was lost, and opens one that is new.
  void enter(const CurrentDevice& current) {
    if (is_sticky(current.stale) && stream_ != nullptr && capture_ == nullptr) {
      // Of this thread, but maybe of another device: a sticky error is what every call answers.
      const cudaError_t now = cudaStreamQuery(stream_);
      cudaGetLastError();
      if (is_sticky(now)) lose(now, calls_.empty() ? "other code of this process" : in_doubt());
    }
    if (lost_ != cudaSuccess) throw lost_error();
    if (capture_ != nullptr && capture_->thread != std::this_thread::get_id()) {
      throw Error("ERR_CUDA", name() + " is being captured into a graph by another thread");
    }
    if (stream_ == nullptr) return open();
    check(current.error);
  }

  void check(cudaError_t error, const char* exactly_in = nullptr) {
    if (error != cudaSuccess) throw failure(error, exactly_in);
  }

  // ---- memory

  void* allocate(int64_t bytes, bool zeroed) {
    const size_t size = block_size(bytes);
    void* data = take(size, bytes);
    if (zeroed || debug_) {
      const cudaError_t error = cudaMemsetAsync(data, zeroed ? 0 : 0xff, size, stream_);  // 0xff: NaN
      if (error != cudaSuccess) {
        release(data, bytes);
        check(error);
      }
    }
    return data;
  }

  void release(void* data, int64_t bytes) {
    const size_t size = block_size(bytes);
    used_ -= size;
    if (lost_ != cudaSuccess) {
      reserved_ -= size;
      return;
    }
    cache_[size].push_back(data);
    if (debug_) empty_cache();
  }

  void* workspace(size_t bytes, size_t zeroed) {
    if (bytes > workspace_bytes_) {
      if (workspace_ != nullptr && capture_ != nullptr) {
        capture_->graph->memory.push_back({workspace_, workspace_bytes_});  // what was captured so far uses it
      } else if (workspace_ != nullptr) {
        release(workspace_, static_cast<int64_t>(workspace_bytes_));
      }
      workspace_ = nullptr, workspace_bytes_ = 0;
      workspace_ = allocate(static_cast<int64_t>(bytes), false);
      workspace_bytes_ = bytes;
    } else if (debug_) {
      check(cudaMemsetAsync(workspace_, 0xff, workspace_bytes_, stream_));
    }
    if (zeroed > 0) check(cudaMemsetAsync(workspace_, 0, zeroed, stream_));
    return workspace_;
  }

  void set_memory_limit(int64_t bytes) {
    limit_ = static_cast<size_t>(bytes);
    if (limit_ > 0 && reserved_ > limit_) empty_cache();
  }

  CudaMemoryInfo memory_info() {
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total));
    return {static_cast<int64_t>(used_), static_cast<int64_t>(reserved_), static_cast<int64_t>(limit_),
            static_cast<int64_t>(free), static_cast<int64_t>(total)};
  }

  // ---- copies

  void copy_to_device(void* to, const void* from, int64_t bytes) {
    expect_no_capture();
    auto* target = static_cast<char*>(to);
    auto* source = static_cast<const char*>(from);
    for (auto left = static_cast<size_t>(bytes); left > 0;) {
      const size_t n = std::min(left, kChunkBytes);
      const CudaUpload whole{source, static_cast<int64_t>(n), 0};
      send(target, &whole, 1, n);
      target += n, source += n, left -= n;
    }
  }

  void* upload(const CudaUpload* arrays, int32_t count, int64_t bytes) {
    expect_no_capture();
    void* data = allocate(bytes, false);
    try {
      if (static_cast<size_t>(bytes) <= kChunkBytes) {
        send(static_cast<char*>(data), arrays, count, static_cast<size_t>(bytes));
      } else {
        for (int32_t i = 0; i < count; ++i) {
          copy_to_device(static_cast<char*>(data) + arrays[i].offset, arrays[i].data, arrays[i].bytes);
        }
      }
    } catch (...) {
      release(data, bytes);
      throw;
    }
    return data;
  }

  void copy_to_host(void* to, const void* from, int64_t bytes) {
    expect_no_capture();
    auto* target = static_cast<char*>(to);
    auto* source = static_cast<const char*>(from);
    // While one chunk is on its way, the one before is copied out of the staging memory.
    const char* arrived = nullptr;
    size_t arrived_bytes = 0;
    cudaEvent_t arrival = nullptr;
    const auto take_arrived = [&] {
      if (arrived == nullptr) return;
      check(cudaEventSynchronize(arrival));
      std::memcpy(target, arrived, arrived_bytes);
      target += arrived_bytes;
    };
    for (auto left = static_cast<size_t>(bytes); left > 0;) {
      const size_t n = std::min(left, kChunkBytes);
      cudaError_t error = cudaSuccess;
      char* piece = staging_.acquire(n, error);
      check(error);
      if (piece == nullptr) {
        check(cudaMemcpyAsync(target, source, left, cudaMemcpyDeviceToHost, stream_));
        break;
      }
      check(cudaMemcpyAsync(piece, source, n, cudaMemcpyDeviceToHost, stream_));
      check(staging_.enqueued(piece, n, stream_));
      const cudaEvent_t event = staging_.last_event();
      take_arrived();
      arrived = piece, arrived_bytes = n, arrival = event;
      source += n, left -= n;
    }
    take_arrived();
    wait();
  }

  void copy_on_device(const CudaRows& rows) {
    const auto row_bytes = static_cast<size_t>(rows.row_bytes), count = static_cast<size_t>(rows.count);
    if (row_bytes == 0 || count == 0) return;
    const bool whole = count == 1 || (rows.to_stride == rows.row_bytes && rows.from_stride == rows.row_bytes);
    check(whole ? cudaMemcpyAsync(rows.to, rows.from, row_bytes * count, cudaMemcpyDeviceToDevice, stream_)
                : cudaMemcpy2DAsync(rows.to, static_cast<size_t>(rows.to_stride), rows.from,
                                    static_cast<size_t>(rows.from_stride), row_bytes, count, cudaMemcpyDeviceToDevice,
                                    stream_));
  }

  // ---- calls and waits

  unsigned long long begin(const char* op) {
    auto& calls = capture_ != nullptr ? graph_calls_ : calls_;
    if (calls.size() == (capture_ != nullptr ? kMaxGraphCalls : kMaxCalls)) return kUnnamed;
    calls.push_back(op);
    // Every replay reports the number that a call was captured with.
    return (capture_ != nullptr ? kMaxCalls : 0) + calls.size() - 1;
  }

  Faults faults(unsigned long long call) const { return {fault_word_, call << 40}; }

  void launched(cudaError_t error, const char* op) {
    check(error, op);
    if (debug_ && capture_ == nullptr) raise_fault(op);
  }

  // Until all of the stream is done; throws what kernels reported, once.
  void wait() {
    expect_no_capture();
    if (calls_.empty()) {
      check(cudaStreamSynchronize(stream_));
    } else {
      raise_fault();
    }
    staging_.all_done();
    calls_.clear();
  }

  // ---- graphs

  void begin_capture() {
    if (stream_ == cudaStreamLegacy)
      throw Error("ERR_CUDA", name() + " works on the legacy default stream, which CUDA does not capture");
    expect_no_capture("a capture cannot begin in one");
    auto graph = std::make_unique<Graph>();
    if (before_capture_ == nullptr) check(cudaEventCreateWithFlags(&before_capture_, cudaEventDisableTiming));
    check(cudaEventRecord(before_capture_, stream_));
    // Relaxed: memory may be allocated meanwhile.
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed));
    capture_ =
        std::make_unique<Capture>(Capture{std::move(graph), std::this_thread::get_id(), workspace_, workspace_bytes_});
    workspace_ = nullptr, workspace_bytes_ = 0;
  }

  std::unique_ptr<Graph> end_capture() {
    if (capture_ == nullptr) throw Error("ERR_INTERNAL", "no graph is being captured");
    auto [graph, captured, error] = stop_capture();
    const auto instantiate = [&, to = graph.get(), from = captured] {
      cudaError_t failed = cudaGraphInstantiate(&to->exec, from, 0);
      if (failed == cudaSuccess) failed = cudaGraphUpload(to->exec, stream_);  // not at the first replay
      return failed;
    };
    try {
      if (error == cudaSuccess) error = instantiate();
      if (error == cudaErrorMemoryAllocation && captured != nullptr) {
        cudaGetLastError();
        if (graph->exec != nullptr) cudaGraphExecDestroy(graph->exec);
        graph->exec = nullptr;
        empty_cache();
        error = instantiate();
      }
      if (error != cudaSuccess) throw failure(error, nullptr);
    } catch (...) {
      if (captured != nullptr) cudaGraphDestroy(captured);
      destroy(*graph);
      throw;
    }
    cudaGraphDestroy(captured);
    return std::move(graph);
  }

  // Whatever state the device is in.
  void abandon_capture() {
    if (capture_ == nullptr) return;
    const auto [graph, captured, error] = stop_capture();
    if (captured != nullptr) cudaGraphDestroy(captured);
    destroy(*graph);
  }

  void replay(const Graph& graph) {
    expect_no_capture("no replay can be part of it");
    constexpr const char* kReplay = "the replay of a graph";
    begin(kReplay);
    launched(cudaGraphLaunch(graph.exec, stream_), kReplay);
  }

  // A replay that is under way goes on; its memory is used again in the order of the stream.
  void destroy(Graph& graph) {
    if (graph.exec != nullptr && lost_ == cudaSuccess) cudaGraphExecDestroy(graph.exec);
    graph.exec = nullptr;
    for (const Graph::Block& block : graph.memory) release(block.data, static_cast<int64_t>(block.bytes));
    graph.memory.clear();
  }

  // ---- streams

  void set_stream(cudaStream_t stream) {
    if (stream == stream_) return;
    order(stream_, stream);
    stream_ = stream;
  }
  cudaStream_t own_stream() const { return own_stream_; }

  // What is enqueued on `second` from now on waits for what is on `first`.
  void order(cudaStream_t first, cudaStream_t second) {
    if (capture_ != nullptr) throw captured("other streams cannot be part of it");
    check(cudaEventRecord(order_event_, first));
    check(cudaStreamWaitEvent(second, order_event_, 0));
  }

  // ---- time

  void start_timer() {
    expect_no_capture();
    if (timer_start_ == nullptr) check(cudaEventCreate(&timer_start_));
    if (timer_stop_ == nullptr) check(cudaEventCreate(&timer_stop_));
    check(cudaEventRecord(timer_start_, stream_));
  }

  double stop_timer() {
    if (timer_start_ == nullptr) throw Error("ERR_INTERNAL", "the timer has not been started");
    check(cudaEventRecord(timer_stop_, stream_));
    wait();
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, timer_start_, timer_stop_));
    return milliseconds;
  }

  // ---- kernels

  cudaError_t allow_dynamic_shared(const void* kernel, size_t bytes) {
    size_t& allowed = dynamic_shared_[kernel];
    if (bytes <= allowed) return cudaSuccess;
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    // Of the memory that caches share with it, too: so that two blocks fit where they can.
    if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
    if (error == cudaSuccess) allowed = bytes;
    return error;
  }

  // The number that `ask` gives for this kernel and shape, asked for once.
  template <typename Ask>
  int clusters(const void* kernel, const LaunchShape& shape, const Ask& ask) {
    const auto [known, is_new] = clusters_.try_emplace({kernel, shape.threads, shape.cluster, shape.dynamic_shared}, 0);
    if (is_new) known->second = ask();
    return known->second;
  }

 private:
  void open() {
    unusable_if(cudaSetDevice(number_));
    cudaFuncAttributes attributes;
    int major = 0, minor = 0;
    unusable_if(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number_));
    unusable_if(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, number_));
    const cudaError_t probe = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe_kernel));
    if (is_no_kernel_image(probe)) {
      why_unusable_ = "it has compute capability " + std::to_string(major) + "." + std::to_string(minor) +
                      ", and these kernels were built for " FAPO_CUDA_BUILT_FOR ": " + name_and_number(probe);
    }
    unusable_if(probe);
    why_unusable_.clear();
    limits_.compute_major = major;
    check(cudaDeviceGetAttribute(&limits_.multiprocessors, cudaDevAttrMultiProcessorCount, number_));
    check(cudaDeviceGetAttribute(&limits_.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, number_));
    debug_ = flag("FAPO_CUDA_DEBUG");
    limit_ = static_cast<size_t>(memory_limit_of_environment());

    if (order_event_ == nullptr) check(cudaEventCreateWithFlags(&order_event_, cudaEventDisableTiming));
    if (own_stream_ == nullptr) check(cudaStreamCreateWithFlags(&own_stream_, cudaStreamNonBlocking));
    if (fault_word_ == nullptr) {
      void* word = nullptr;
      check(cudaMalloc(&word, kAlignment));
      fault_word_ = static_cast<unsigned long long*>(word);
    }
    check(cudaMemsetAsync(fault_word_, 0xff, sizeof *fault_word_, own_stream_));
    stream_ = own_stream_;  // last: the device is open
  }

  void unusable_if(cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();
    if (error == cudaErrorMemoryAllocation || is_sticky(error)) throw failure(error, nullptr);
    if (why_unusable_.empty()) why_unusable_ = "the CUDA runtime says " + name_and_number(error);
    throw runtime_error("ERR_NO_CUDA", name() + " cannot be used: " + why_unusable_, error);
  }

  std::string name() const { return "cuda:" + std::to_string(number_); }

  void* take(size_t size, int64_t bytes) {
    const auto cached = cache_.find(size);
    if (cached != cache_.end() && !cached->second.empty()) {
      void* data = cached->second.back();
      cached->second.pop_back();
      used_ += size;
      return data;
    }
    const auto exceeds = [&] { return limit_ > 0 && (size > limit_ || reserved_ > limit_ - size); };
    if (exceeds()) empty_cache();
    if (exceeds()) throw out_of_memory(bytes, cudaSuccess);
    void* data = nullptr;
    cudaError_t error = cudaMalloc(&data, size);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      empty_cache();
      error = cudaMalloc(&data, size);
    }
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw out_of_memory(bytes, error);
    }
    check(error);
    used_ += size, reserved_ += size;
    return data;
  }

  // What is captured meanwhile uses nothing of it: a graph keeps its memory.
  void empty_cache() {
    bool waited = false;
    for (auto& [size, blocks] : cache_) {
      for (void* data : blocks) {
        if (!waited)
          check(capture_ != nullptr ? cudaEventSynchronize(before_capture_) : cudaStreamSynchronize(stream_));
        waited = true;
        reserved_ -= size;
        check(cudaFree(data));
      }
      blocks.clear();
    }
  }

  Error out_of_memory(int64_t bytes, cudaError_t error) {
    size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) cudaGetLastError();
    std::string message = "no memory on " + name() + " for " + std::to_string(bytes) +
                          " bytes: " + std::to_string(used_) + " are in use here, " + std::to_string(free) + " of " +
                          std::to_string(total) + " are free";
    if (limit_ > 0) message += ", and the limit is " + std::to_string(limit_);
    if (error == cudaSuccess) return Error("ERR_OUT_OF_MEMORY", message);
    return runtime_error("ERR_OUT_OF_MEMORY", message + ": " + name_and_number(error), error);
  }

  // Host arrays to device memory, at their offsets, as one copy.
  void send(char* target, const CudaUpload* arrays, int32_t count, size_t bytes) {
    cudaError_t error = cudaSuccess;
    char* piece = staging_.acquire(bytes, error);
    check(error);
    if (piece == nullptr) {
      for (int32_t i = 0; i < count; ++i) {
        check(cudaMemcpyAsync(target + arrays[i].offset, arrays[i].data, static_cast<size_t>(arrays[i].bytes),
                              cudaMemcpyHostToDevice, stream_));
      }
      return check(cudaStreamSynchronize(stream_));  // host memory is not read after the call
    }
    for (int32_t i = 0; i < count; ++i) {
      if (arrays[i].bytes > 0)
        std::memcpy(piece + arrays[i].offset, arrays[i].data, static_cast<size_t>(arrays[i].bytes));
    }
    check(cudaMemcpyAsync(target, piece, bytes, cudaMemcpyHostToDevice, stream_));
    check(staging_.enqueued(piece, bytes, stream_));
  }

  // A wait cannot be recorded into a graph, and memory of the host would be read at every replay.
  void expect_no_capture(const char* why_not = "neither waits nor arrays of the host can be") {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream_, &status));
    if (status != cudaStreamCaptureStatusNone) throw captured(why_not);
  }

  Error captured(const char* why_not) const {
    return Error("ERR_CUDA", "the stream of " + name() + " is being captured into a graph: " + why_not);
  }

  void raise_fault(const char* exactly_in = nullptr) {
    check(cudaMemcpyAsync(&fault_, fault_word_, sizeof fault_, cudaMemcpyDeviceToHost, stream_));
    check(cudaStreamSynchronize(stream_), exactly_in);
    const unsigned long long fault = fault_;
    if (fault == kNoFault) return;
    const size_t call = fault >> 40;
    const size_t in_graphs = call - kMaxCalls;
    const std::string op = call < calls_.size()                                   ? calls_[call]
                           : call >= kMaxCalls && in_graphs < graph_calls_.size() ? graph_calls_[in_graphs]
                                                                                  : "an op";
    staging_.all_done();
    calls_.clear();
    check(cudaMemsetAsync(fault_word_, 0xff, sizeof *fault_word_, stream_));
    const Sentence wrong = sentence_of(static_cast<Fault>(fault >> 36 & 0xf));
    throw Error(wrong.code, std::string(wrong.argument) + "[" + std::to_string(fault & 0xfffffffffull) + "] of " + op +
                                " on " + name() + " " + wrong.wrong);
  }

  // ---- errors

  Error failure(cudaError_t error, const char* exactly_in) {
    cudaGetLastError();  // one that is not sticky is over with this
    if (is_sticky(error)) {
      lose(error, exactly_in != nullptr ? exactly_in : in_doubt());
      return lost_error();
    }
    const char* code = error == cudaErrorMemoryAllocation ? "ERR_OUT_OF_MEMORY"
                       : is_no_kernel_image(error)        ? "ERR_NO_CUDA"
                                                          : "ERR_CUDA";
    return runtime_error(
        code, "the CUDA runtime says " + name_and_number(error) + " on " + name() + ", " + cudaGetErrorString(error),
        error);
  }

  std::string in_doubt() const {
    if (calls_.empty()) return "a copy";
    return calls_.size() == 1 ? calls_[0] : std::string(calls_[0]) + " or an op after it";
  }

  void lose(cudaError_t error, const std::string& where) {
    if (lost_ != cudaSuccess) return;
    lost_ = error;
    lost_in_ = where;
  }

  Error lost_error() const {
    return runtime_error("ERR_CUDA",
                         name() + " was lost to " + name_and_number(lost_) + ", " + cudaGetErrorString(lost_) +
                             ", in " + lost_in_ + "; nothing runs on it any more: restart the process",
                         lost_);
  }

  const int number_;
  Limits limits_;
  bool debug_ = false;
  std::string why_unusable_;
  cudaError_t lost_ = cudaSuccess;  // the sticky error
  std::string lost_in_;

  cudaStream_t own_stream_ = nullptr;
  cudaStream_t stream_ = nullptr;  // null: not open yet
  cudaEvent_t order_event_ = nullptr;
  cudaEvent_t before_capture_ = nullptr;
  cudaEvent_t timer_start_ = nullptr;
  cudaEvent_t timer_stop_ = nullptr;

  std::unordered_map<size_t, std::vector<void*>> cache_;  // by size: reused in the order of the stream
  size_t used_ = 0, reserved_ = 0, limit_ = 0;
  void* workspace_ = nullptr;
  size_t workspace_bytes_ = 0;
  Staging staging_;

  unsigned long long* fault_word_ = nullptr;
  unsigned long long fault_ = kNoFault;   // what was read of it
  std::vector<const char*> calls_;        // ops since the last wait
  std::vector<const char*> graph_calls_;  // ops of all graphs

  struct Stopped {
    std::unique_ptr<Graph> graph;
    cudaGraph_t captured;
    cudaError_t error;
  };
  Stopped stop_capture() {
    Stopped stopped{std::move(capture_->graph), nullptr, cudaSuccess};
    stopped.error = cudaStreamEndCapture(stream_, &stopped.captured);
    if (workspace_ != nullptr) stopped.graph->memory.push_back({workspace_, workspace_bytes_});
    workspace_ = capture_->workspace, workspace_bytes_ = capture_->workspace_bytes;
    capture_ = nullptr;
    return stopped;
  }

  struct Capture {
    std::unique_ptr<Graph> graph;
    std::thread::id thread;
    void* workspace;  // that of calls, kept aside
    size_t workspace_bytes;
  };
  std::unique_ptr<Capture> capture_;  // while a graph is being captured

  std::unordered_map<const void*, size_t> dynamic_shared_;
  std::map<std::tuple<const void*, unsigned, unsigned, size_t>, int> clusters_;
};

namespace {

// Never destroyed: at the end of the process the runtime may already be gone.
struct Devices {
  std::mutex mutex;
  std::vector<Device*> opened;
};
Devices& devices() {
  static auto& all = *new Devices;
  return all;
}

}  // namespace

Device* Device::if_opened(int32_t number) {
  std::lock_guard lock(devices().mutex);
  const auto& opened = devices().opened;
  return number >= 0 && static_cast<size_t>(number) < opened.size() ? opened[static_cast<size_t>(number)] : nullptr;
}

Device& Device::get(int32_t number) {
  if (Device* device = if_opened(number)) return *device;
  const CudaProbe found = probe();
  if (number < 0 || number >= found.devices) {
    throw Error("ERR_NO_CUDA", "there is no cuda:" + std::to_string(number), found.status,
                found.status ? found.status_name : nullptr);
  }
  std::lock_guard lock(devices().mutex);
  auto& opened = devices().opened;
  for (auto next = static_cast<int>(opened.size()); next < found.devices; ++next) opened.push_back(new Device(next));
  return *opened[static_cast<size_t>(number)];
}

Guard::Guard(Device& device) : lock_(device.mutex), current_(device.number()) { device.enter(current_); }

// ---- one call of an op

Call::Call(int32_t device, const char* op)
    : device_(Device::get(device)), guard_(device_), op_(op), number_(device_.begin(op)) {}

const Limits& Call::limits() const { return device_.limits(); }
cudaStream_t Call::stream() const { return device_.stream(); }
Faults Call::faults() const { return device_.faults(number_); }
void* Call::workspace(size_t bytes, size_t zeroed) { return device_.workspace(bytes, zeroed); }
void Call::launched(cudaError_t error) { device_.launched(error, op_); }

cudaError_t Call::prepare(const void* kernel, const LaunchShape& shape, cudaLaunchConfig_t& config,
                          cudaLaunchAttribute& attribute) {
  config.gridDim =
      dim3(static_cast<unsigned>(std::min<int64_t>(shape.blocks, INT_MAX / shape.cluster * shape.cluster)));
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.dynamic_shared;
  config.stream = device_.stream();
  if (shape.cluster > 1) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = shape.cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  return device_.allow_dynamic_shared(kernel, shape.dynamic_shared);
}

int Call::max_active_clusters(const void* kernel, const LaunchShape& shape) {
  if (device_.limits().compute_major < 9) return 0;
  return device_.clusters(kernel, shape, [&] {
    cudaLaunchConfig_t config{};
    cudaLaunchAttribute attribute{};
    int found = 0;
    cudaError_t error = prepare(kernel, shape, config, attribute);
    if (error == cudaSuccess) {
      error = shape.cluster > 1 ? cudaOccupancyMaxActiveClusters(&found, kernel, &config)
                                : cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                                      &found, kernel, static_cast<int>(shape.threads), shape.dynamic_shared);
    }
    if (error != cudaSuccess) {
      cudaGetLastError();  // this shape does not fit
      return 0;
    }
    return shape.cluster > 1 ? found : found * device_.limits().multiprocessors;
  });
}

// ---- what the addon calls

CudaProbe probe() {
  CudaProbe found;
  int devices = 0;  // the runtime leaves it alone when it fails
  if (cudaDriverGetVersion(&found.driver) != cudaSuccess) found.driver = 0;
  if (cudaRuntimeGetVersion(&found.runtime) != cudaSuccess) found.runtime = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  cudaGetLastError();
  found.devices = status == cudaSuccess ? devices : 0;
  found.status = static_cast<int32_t>(status);
  found.status_name = cudaGetErrorName(status);
  found.status_message = cudaGetErrorString(status);
  return found;
}

CudaDeviceInfo device_info(int32_t device) {
  CudaDeviceInfo info;
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  cudaGetLastError();
  std::string reason;
  if (error != cudaSuccess) {
    reason = "the CUDA runtime says " + name_and_number(error);
  } else {
    std::snprintf(info.name, sizeof info.name, "%s", properties.name);
    info.compute_major = properties.major;
    info.compute_minor = properties.minor;
    info.multiprocessors = properties.multiProcessorCount;
    info.total_bytes = static_cast<int64_t>(properties.totalGlobalMem);
    if (Device* opened = Device::if_opened(device)) {
      std::lock_guard lock(opened->mutex);
      reason = opened->why_unusable();
    }
    if (reason.empty() && properties.major * 10 + properties.minor < FAPO_CUDA_OLDEST) {
      reason = "it has compute capability " + std::to_string(properties.major) + "." +
               std::to_string(properties.minor) + ", and these kernels were built for " FAPO_CUDA_BUILT_FOR;
    }
  }
  std::snprintf(info.reason, sizeof info.reason, "%s", reason.c_str());
  return info;
}

void* allocate(int32_t number, int64_t bytes, bool zeroed) {
  Device& device = Device::get(number);
  Guard guard(device);
  return device.allocate(bytes, zeroed);
}

void release(int32_t number, void* data, int64_t bytes) noexcept {
  try {
    if (Device* device = Device::if_opened(number)) {
      std::lock_guard lock(device->mutex);
      const CurrentDevice current(number);
      device->release(data, bytes);
    }
  } catch (...) {
    // Of a device that was lost, or of a process that ends: nobody is left to be told.
  }
}

void* upload(int32_t number, const CudaUpload* arrays, int32_t count, int64_t bytes) {
  Device& device = Device::get(number);
  Guard guard(device);
  return device.upload(arrays, count, bytes);
}

void copy_to_device(int32_t number, void* to, const void* from, int64_t bytes) {
  Device& device = Device::get(number);
  Guard guard(device);
  device.copy_to_device(to, from, bytes);
}

void copy_to_host(int32_t number, void* to, const void* from, int64_t bytes) {
  Device& device = Device::get(number);
  Guard guard(device);
  device.copy_to_host(to, from, bytes);
}

void copy_on_device(int32_t number, const CudaRows& rows) {
  Device& device = Device::get(number);
  Guard guard(device);
  device.copy_on_device(rows);
}

void synchronize(int32_t number) {
  Device& device = Device::get(number);
  Guard guard(device);
  device.wait();
}

CudaMemoryInfo memory_info(int32_t number) {
  Device& device = Device::get(number);
  Guard guard(device);
  return device.memory_info();
}

void set_memory_limit(int32_t number, int64_t bytes) {
  Device& device = Device::get(number);
  Guard guard(device);
  device.set_memory_limit(bytes);
}

uint64_t stream(int32_t number) {
  Device& device = Device::get(number);
  Guard guard(device);
  return reinterpret_cast<uint64_t>(device.stream());
}

void set_stream(int32_t number, uint64_t stream) {
  Device& device = Device::get(number);
  Guard guard(device);
  device.set_stream(stream == 0 ? device.own_stream() : reinterpret_cast<cudaStream_t>(stream));
}

void wait_for(int32_t number, uint64_t stream) {
  Device& device = Device::get(number);
  Guard guard(device);
  device.order(reinterpret_cast<cudaStream_t>(stream), device.stream());
}

void make_wait(int32_t number, uint64_t stream) {
  Device& device = Device::get(number);
  Guard guard(device);
  device.order(device.stream(), reinterpret_cast<cudaStream_t>(stream));
}

void check_foreign(int32_t number, uint64_t address, int64_t bytes) {
  Device& device = Device::get(number);
  Guard guard(device);
  // The runtime tells of an address, not of a range: the first and the last byte.
  for (const uint64_t byte : {address, address + static_cast<uint64_t>(std::max(bytes, int64_t{1})) - 1}) {
    cudaPointerAttributes attributes;
    const cudaError_t error = cudaPointerGetAttributes(&attributes, reinterpret_cast<const void*>(byte));
    if (is_sticky(error)) device.check(error);
    if (error != cudaSuccess) cudaGetLastError();
    const bool on_a_device =
        error == cudaSuccess && (attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged);
    const std::string here = "cuda:" + std::to_string(number);
    if (!on_a_device) {
      throw Error("ERR_INVALID_ARGUMENT", "expected address to begin " + std::to_string(bytes) +
                                              " bytes of memory of " + here +
                                              ", got memory that the device does not know");
    }
    if (attributes.device != number) {
      throw Error("ERR_DEVICE_MISMATCH", "expected address to be memory of " + here +
                                             ", got memory of cuda:" + std::to_string(attributes.device));
    }
  }
}

void begin_capture(int32_t number) {
  Device& device = Device::get(number);
  Guard guard(device);
  device.begin_capture();
}

void* end_capture(int32_t number) {
  Device& device = Device::get(number);
  Guard guard(device);
  return device.end_capture().release();
}

void abandon_capture(int32_t number) noexcept {
  try {
    if (Device* device = Device::if_opened(number)) {
      std::lock_guard lock(device->mutex);
      const CurrentDevice current(number);
      device->abandon_capture();
    }
  } catch (...) {
    // As in release().
  }
}

void replay(int32_t number, void* graph) {
  Device& device = Device::get(number);
  Guard guard(device);
  device.replay(*static_cast<Graph*>(graph));
}

void release_graph(int32_t number, void* data) noexcept {
  std::unique_ptr<Graph> graph(static_cast<Graph*>(data));
  try {
    if (Device* device = Device::if_opened(number)) {
      std::lock_guard lock(device->mutex);
      const CurrentDevice current(number);
      device->destroy(*graph);
    }
  } catch (...) {
    // As in release().
  }
}

void start_timer(int32_t number) {
  Device& device = Device::get(number);
  Guard guard(device);
  device.start_timer();
}

double stop_timer(int32_t number) {
  Device& device = Device::get(number);
  Guard guard(device);
  return device.stop_timer();
}

}  // namespace fapo::cuda
