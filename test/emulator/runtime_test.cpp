// The emulated runtime itself: injected faults, lost devices, streams, the ledger.
#include "runtime.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/device.cuh"
#include "launch.h"

namespace {

int failures = 0;
void expect(bool ok, const char* what) {
  std::printf("%s %s\n", ok ? "ok  " : "FAIL", what);
  failures += !ok;
}

// Starts over with these variables alone.
void start(std::initializer_list<std::pair<const char*, const char*>> variables) {
  for (const char* name : {"DEVICES", "COMPUTE", "MEMORY", "STREAM", "FAULTS"}) {
    unsetenv((std::string("CUDA_EMU_") + name).c_str());
  }
  for (const auto& [name, value] : variables) setenv(name, value, 1);
  cuda_emulator::reset_runtime();
}

__global__ void ones(float* out) { out[threadIdx.x] = 1.0f; }
__global__ void divergent(float*) {
  if (threadIdx.x > 3) __syncthreads();
}

int launch_ones(float* out, cudaStream_t stream = nullptr) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, ones, out);
}

void test_faults() {
  start({{"CUDA_EMU_FAULTS", "cudaMalloc:2=2,cudaStreamSynchronize:1=700"}});
  void *first = nullptr, *second = nullptr, *third = nullptr;
  expect(cudaMalloc(&first, 64) == 0 && cudaMalloc(&second, 64) == 2 && cudaMalloc(&third, 64) == 0,
         "the second call of cudaMalloc fails, the third does not");
  expect(!second && cudaGetLastError() == 2 && cudaGetLastError() == 0, "the last error is told once");
  cudaFree(first);
  cudaFree(third);
  expect(cudaStreamSynchronize(nullptr) == 700 && cudaMalloc(&first, 64) == 700 && cudaGetLastError() == 700 &&
             cudaGetLastError() == 700,
         "a device that is lost stays lost");

  int count = -1, version = -1;
  start({{"CUDA_EMU_FAULTS", "driver=0"}});
  expect(cudaDriverGetVersion(&version) == 0 && version == 0 && cudaGetDeviceCount(&count) == 35, "no driver");
  start({{"CUDA_EMU_FAULTS", "driver=12080"}});
  expect(cudaDriverGetVersion(&version) == 0 && version == 12080 && cudaGetDeviceCount(&count) == 35, "an old driver");
  start({{"CUDA_EMU_FAULTS", "cudaGetDeviceCount=999"}});
  expect(cudaGetDeviceCount(&count) == 999 && cudaGetDeviceCount(&count) == 999, "a fault of every call");
  start({{"CUDA_EMU_DEVICES", "0"}});
  expect(cudaGetDeviceCount(&count) == 100 && cudaMalloc(&first, 64) == 100, "no device");
  start({{"CUDA_EMU_FAULTS", "stale=9"}});
  expect(cudaMalloc(&first, 64) == 0 && cudaGetLastError() == 9 && cudaGetLastError() == 0, "an error of other code");
  cudaFree(first);
  start({{"CUDA_EMU_FAULTS", "capturing=1"}});
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  expect(cudaStreamIsCapturing(nullptr, &status) == 0 && status == cudaStreamCaptureStatusActive &&
             cudaStreamSynchronize(nullptr) == 900,
         "a stream that is being captured");
}

void test_kernel_error() {
  start({});
  const Buffer<float> out(32);
  expect(launch(divergent, {1, 32}, out.data()) == 0, "the launch of a wrong kernel returns before it runs");
  const int error = cudaStreamSynchronize(nullptr);
  const std::string text = cudaGetErrorString(static_cast<cudaError_t>(error));
  expect(error == 719 && text.find("divergent __syncthreads") == 0 && text.find("runtime_test.cpp:") != text.npos,
         "a later call tells what it did, and where");
  expect(std::strcmp(cudaGetErrorName(cudaErrorLaunchFailure), "cudaErrorLaunchFailure") == 0, "errors have names");
  start({});
  expect(launch_ones(out.data()) == 0 && out.values() == std::vector<float>(32, 1.0f), "and then a new device works");
}

void test_memory() {
  start({{"CUDA_EMU_MEMORY", "1"}, {"CUDA_EMU_DEVICES", "2"}});
  void *p = nullptr, *q = nullptr;
  size_t free = 0, total = 0;
  expect(cudaMalloc(&p, 1 << 21) == 2, "more than the device has");
  expect(cudaMalloc(&p, 1 << 19) == 0 && cudaMemGetInfo(&free, &total) == 0 && free == 1 << 19 && total == 1 << 20,
         "what is free");
  float first = 0.0f;
  cudaMemcpy(&first, p, sizeof first, cudaMemcpyDeviceToHost);
  expect(first != first, "memory is not zeroed");
  expect(cudaMemcpy(p, &first, 4, cudaMemcpyDeviceToHost) == 1, "a copy in the wrong direction");
  expect(cudaMemcpy(&first, static_cast<char*>(p) + (1 << 19) - 2, 4, cudaMemcpyDeviceToHost) == 1,
         "a copy past the end");
  cudaPointerAttributes attributes{};
  expect(cudaPointerGetAttributes(&attributes, static_cast<char*>(p) + 5) == 0 && attributes.device == 0 &&
             attributes.type == cudaMemoryTypeDevice,
         "attributes of device memory");
  expect(cudaPointerGetAttributes(&attributes, &first) == 0 && attributes.type == cudaMemoryTypeUnregistered,
         "attributes of host memory");
  expect(cudaSetDevice(1) == 0 && cudaMalloc(&q, 1 << 20) == 0 && cudaSetDevice(2) == 101, "two devices");
  cudaHostAlloc(&p, 100, cudaHostAllocDefault);
  expect(cuda_emulator::ledger().find("\"pinnedBytes\": 100") != std::string::npos, "the ledger counts pinned memory");
  expect(cudaFree(q) == 0 && cudaFree(q) == 1 &&
             cuda_emulator::ledger().find("cudaFree of what is not allocated") != std::string::npos,
         "the ledger has a double free");
  cudaFreeHost(p);
}

void test_streams() {
  start({{"CUDA_EMU_STREAM", "lazy"}});
  const Buffer<float> out(std::vector<float>(32, 0.0f));
  cudaStream_t one = nullptr, two = nullptr;
  cudaEvent_t event = nullptr, other = nullptr;
  cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&two, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&event, cudaEventDefault);
  cudaEventCreateWithFlags(&other, cudaEventDefault);
  std::vector<float> got(32, 0.0f);
  cudaEventRecord(other, one);
  launch_ones(out.data(), one);
  cudaEventRecord(event, one);
  expect(out.data()[0] == 0.0f, "lazy work has not run");
  cudaStreamWaitEvent(two, event, 0);
  cudaMemcpyAsync(got.data(), out.data(), 128, cudaMemcpyDeviceToHost, two);
  expect(got[0] == 0.0f, "nor has the copy that follows it");
  expect(cudaStreamSynchronize(two) == 0 && got == std::vector<float>(32, 1.0f), "one stream waits for another");
  float milliseconds = -1.0f;
  expect(cudaEventElapsedTime(&milliseconds, other, event) == 0 && milliseconds >= 0.0f, "events tell the time");
  launch_ones(out.data(), one);
  int polls = 0;
  while (cudaStreamQuery(one) == cudaErrorNotReady) ++polls;
  expect(polls < 2, "whoever asks often enough sees it done");
  cudaStreamDestroy(one);
  cudaEventDestroy(event);
  expect(cudaStreamSynchronize(one) == 400 && cudaEventQuery(event) == 400, "destroyed handles are refused");
  const std::string ledger = cuda_emulator::ledger();
  expect(ledger.find("use of a stream that does not exist") != ledger.npos &&
             ledger.find("use of an event that does not exist") != ledger.npos,
         "and stand in the ledger");
  cudaStreamDestroy(two);
  cudaEventDestroy(other);
}

void test_graphs() {
  start({});
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  Buffer<float> out(32);
  const std::vector<float> before = out.values();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  expect(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeRelaxed) == 900, "the default stream is not captured");
  expect(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed) == 0 && launch_ones(out.data(), stream) == 0 &&
             cudaStreamIsCapturing(stream, &status) == 0 && status == cudaStreamCaptureStatusActive &&
             cudaStreamEndCapture(stream, &graph) == 0 && graph,
         "a launch is captured");
  expect(std::memcmp(out.values().data(), before.data(), 32 * sizeof(float)) == 0, "and does not run");
  expect(cudaGraphInstantiate(&exec, graph) == 0 && cudaGraphDestroy(graph) == 0 &&
             cudaGraphLaunch(exec, stream) == 0 && cudaStreamSynchronize(stream) == 0 &&
             out.values() == std::vector<float>(32, 1.0f),
         "a graph runs what was captured");
  cudaMemsetAsync(out.data(), 0, 32 * sizeof(float), stream);
  expect(cudaGraphLaunch(exec, stream) == 0 && cudaStreamSynchronize(stream) == 0 &&
             out.values() == std::vector<float>(32, 1.0f),
         "and again");

  void* p = nullptr;
  expect(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed) == 0 && cudaMalloc(&p, 64) == 0 &&
             cudaStreamSynchronize(stream) == 900 && cudaStreamIsCapturing(stream, &status) == 0 &&
             status == cudaStreamCaptureStatusInvalidated && cudaStreamEndCapture(stream, &graph) == 901 && !graph,
         "a wait makes the capture fail, memory does not");
  cudaFree(p);
  expect(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == 0 && cudaMalloc(&p, 64) == 900 &&
             cudaGraphLaunch(exec, stream) == 900 && cudaStreamEndCapture(stream, &graph) == 901,
         "in a strict mode memory does, too");
  expect(cudaStreamSynchronize(stream) == 0 && cudaGraphExecDestroy(exec) == 0 && cudaStreamDestroy(stream) == 0,
         "and the stream is free afterwards");
  expect(cudaGraphLaunch(exec, nullptr) != 0 &&
             cuda_emulator::ledger().find("graph that does not exist") != std::string::npos,
         "a graph that was destroyed");
}

void test_threads() {
  start({});
  std::vector<std::thread> threads;
  bool ok[4] = {};
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([i, &ok] {
      for (int round = 0; round < 20; ++round) {
        const Buffer<float> out(32);
        cudaStream_t stream = nullptr;
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
        launch_ones(out.data(), stream);
        cudaStreamSynchronize(stream);
        cudaStreamDestroy(stream);
        ok[i] = out.values() == std::vector<float>(32, 1.0f);
        if (!ok[i]) return;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  expect(ok[0] && ok[1] && ok[2] && ok[3], "four host threads launch at once");
}

}  // namespace

int main() {
  test_faults();
  test_kernel_error();
  test_memory();
  test_streams();
  test_graphs();
  test_threads();
  return failures != 0;
}
