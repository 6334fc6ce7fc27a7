#pragma once
// What the host calls: names and numbers are CUDA's. runtime.h says what the emulated devices are like.
#include <cstddef>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "engine.h"

#define CUDART_VERSION 13000

// name, number, text
#define CUDA_EMULATOR_ERRORS(X)                                                                            \
  X(cudaSuccess, 0, "no error")                                                                            \
  X(cudaErrorInvalidValue, 1, "invalid argument")                                                          \
  X(cudaErrorMemoryAllocation, 2, "out of memory")                                                         \
  X(cudaErrorInitializationError, 3, "initialization error")                                               \
  X(cudaErrorCudartUnloading, 4, "driver shutting down")                                                   \
  X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                                    \
  X(cudaErrorInvalidPitchValue, 12, "invalid pitch argument")                                              \
  X(cudaErrorInvalidMemcpyDirection, 21, "invalid copy direction for memcpy")                              \
  X(cudaErrorInsufficientDriver, 35, "CUDA driver version is insufficient for CUDA runtime version")       \
  X(cudaErrorDevicesUnavailable, 46, "CUDA-capable device(s) is/are busy or unavailable")                  \
  X(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                                         \
  X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                                          \
  X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                                 \
  X(cudaErrorDeviceUninitialized, 201, "invalid device context")                                           \
  X(cudaErrorNoKernelImageForDevice, 209, "no kernel image is available for execution on the device")      \
  X(cudaErrorECCUncorrectable, 214, "uncorrectable ECC error encountered")                                 \
  X(cudaErrorUnsupportedPtxVersion, 222, "the provided PTX was compiled with an unsupported toolchain.")   \
  X(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                                        \
  X(cudaErrorIllegalState, 401, "the operation cannot be performed in the present state")                  \
  X(cudaErrorNotReady, 600, "device not ready")                                                            \
  X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")                              \
  X(cudaErrorLaunchOutOfResources, 701, "too many resources requested for launch")                         \
  X(cudaErrorLaunchTimeout, 702, "the launch timed out and was terminated")                                \
  X(cudaErrorAssert, 710, "device-side assert triggered")                                                  \
  X(cudaErrorHardwareStackError, 714, "hardware stack error")                                              \
  X(cudaErrorIllegalInstruction, 715, "an illegal instruction was encountered")                            \
  X(cudaErrorMisalignedAddress, 716, "misaligned address")                                                 \
  X(cudaErrorInvalidAddressSpace, 717, "operation not supported on global/shared address space")           \
  X(cudaErrorInvalidPc, 718, "invalid program counter")                                                    \
  X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                                             \
  X(cudaErrorNotPermitted, 800, "operation not permitted")                                                 \
  X(cudaErrorNotSupported, 801, "operation not supported")                                                 \
  X(cudaErrorSystemNotReady, 802, "system not yet initialized")                                            \
  X(cudaErrorSystemDriverMismatch, 803, "system has unsupported display driver / cuda driver combination") \
  X(cudaErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing")            \
  X(cudaErrorStreamCaptureInvalidated, 901, "operation failed due to a previous error during capture")     \
  X(cudaErrorInvalidClusterSize, 912, "cluster misconfiguration")                                          \
  X(cudaErrorUnknown, 999, "unknown error")

enum cudaError {
#define CUDA_EMULATOR_ENUMERATOR(name, number, text) name = number,
  CUDA_EMULATOR_ERRORS(CUDA_EMULATOR_ENUMERATOR)
#undef CUDA_EMULATOR_ENUMERATOR
};
using cudaError_t = cudaError;

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);  // of a lost device: what the kernel did
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();

// ---- devices

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxGridDimX = 5,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrMaxBlocksPerMultiprocessor = 106,
  cudaDevAttrMemoryPoolsSupported = 115,
  cudaDevAttrClusterLaunch = 120,
};
struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  size_t sharedMemPerBlock;
  size_t sharedMemPerBlockOptin;
  size_t sharedMemPerMultiprocessor;
  int warpSize;
  int maxThreadsPerBlock;
  int maxThreadsPerMultiProcessor;
  int multiProcessorCount;
  int l2CacheSize;
  int major;
  int minor;
};

cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceSynchronize();

// ---- memory

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4,
};
enum cudaMemoryType {
  cudaMemoryTypeUnregistered = 0,
  cudaMemoryTypeHost = 1,
  cudaMemoryTypeDevice = 2,
  cudaMemoryTypeManaged = 3,
};
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
  void* devicePointer;
  void* hostPointer;
};
constexpr unsigned cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2,
                   cudaHostAllocWriteCombined = 4;
using cudaStream_t = struct CudaEmulatorStream*;
using cudaEvent_t = struct CudaEmulatorEvent*;
using cudaGraph_t = struct CudaEmulatorGraph*;
using cudaGraphExec_t = struct CudaEmulatorGraphExec*;

cudaError_t cudaMalloc(void** p, size_t bytes);
cudaError_t cudaFree(void* p);
cudaError_t cudaMallocHost(void** p, size_t bytes);
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* p);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream = nullptr);
cudaError_t cudaMemset(void* p, int byte, size_t bytes);
cudaError_t cudaMemsetAsync(void* p, int byte, size_t bytes, cudaStream_t stream = nullptr);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p);
template <typename T>
cudaError_t cudaMalloc(T** p, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(p), bytes);
}
template <typename T>
cudaError_t cudaMallocHost(T** p, size_t bytes) {
  return cudaMallocHost(reinterpret_cast<void**>(p), bytes);
}
template <typename T>
cudaError_t cudaHostAlloc(T** p, size_t bytes, unsigned flags) {
  return cudaHostAlloc(reinterpret_cast<void**>(p), bytes, flags);
}

// ---- streams and events

constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2;
enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone = 0,
  cudaStreamCaptureStatusActive = 1,
  cudaStreamCaptureStatusInvalidated = 2,
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal = 0,
  cudaStreamCaptureModeThreadLocal = 1,
  cudaStreamCaptureModeRelaxed = 2,
};
#define cudaStreamLegacy (reinterpret_cast<cudaStream_t>(1))
#define cudaStreamPerThread (reinterpret_cast<cudaStream_t>(2))

cudaError_t cudaStreamCreate(cudaStream_t* stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end);

// ---- graphs: what was captured of one stream

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

// ---- kernels

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 14,
};
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
  size_t constSizeBytes;
  size_t localSizeBytes;
  int maxThreadsPerBlock;
  int numRegs;
  int ptxVersion;
  int binaryVersion;
  int cacheModeCA;
  int maxDynamicSharedSizeBytes;
};
enum cudaLaunchAttributeID {
  cudaLaunchAttributeIgnore = 0,
  cudaLaunchAttributeClusterDimension = 4,
  cudaLaunchAttributeProgrammaticStreamSerialization = 6,
};
union cudaLaunchAttributeValue {
  struct {
    unsigned x, y, z;
  } clusterDim;
  int programmaticStreamSerializationAllowed;
  char pad[64];
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config);
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads,
                                                          size_t dynamic_shared);
template <typename F>
  requires std::is_function_v<F>
cudaError_t cudaFuncSetAttribute(F* kernel, cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <typename F>
  requires std::is_function_v<F>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, F* kernel) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}
template <typename F>
  requires std::is_function_v<F>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, F* kernel, const cudaLaunchConfig_t* config) {
  return cudaOccupancyMaxActiveClusters(clusters, reinterpret_cast<const void*>(kernel), config);
}
template <typename F>
  requires std::is_function_v<F>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, F* kernel, int threads, size_t dynamic_shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), threads,
                                                       dynamic_shared);
}

namespace cuda_emulator {

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> body,
                   std::function<bool(int device)> arguments_are_on_device);

// Whether what a kernel is given points to memory of the device: pointers, and what structs with `fields(visitor)`
// hold. On a CPU a pointer to host memory would work, and nobody would notice.
template <typename T>
bool is_on_device(const T& value, int device) {
  if constexpr (std::is_pointer_v<T>) {
    return !value || is_device_memory(value, 1, device);
  } else if constexpr (requires(T & t) { t.fields([](const char*, auto&) {}); }) {
    T copy = value;
    bool all = true;
    copy.fields([&](const char*, auto& field) { all = all && is_on_device(field, device); });
    return all;
  } else if constexpr (requires { value.data, value.size; }) {
    return is_on_device(value.data, device);
  } else {
    return true;
  }
}

}  // namespace cuda_emulator

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  std::tuple<std::decay_t<Params>...> values(std::forward<Args>(args)...);
  return ::cuda_emulator::launch(
      *config, reinterpret_cast<const void*>(kernel), [=] { std::apply(kernel, values); },
      [=](int device) {
        return std::apply([&](const auto&... value) { return (::cuda_emulator::is_on_device(value, device) && ...); },
                          values);
      });
}
