// Devices and their properties.
#include <cstdio>

#include "runtime.h"

namespace cuda_emulator {
namespace {

constexpr int kMultiprocessors = 2;
constexpr size_t kSharedPerBlock = 48 << 10;

bool exists(int device) { return device >= 0 && device < runtime().device_count; }

std::optional<int> value_of(cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return 1024;
    case cudaDevAttrMaxGridDimX:
      return 0x7fffffff;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return static_cast<int>(kSharedPerBlock);
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMultiProcessorCount:
      return kMultiprocessors;
    case cudaDevAttrL2CacheSize:
      return 1 << 20;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 2048;
    case cudaDevAttrComputeCapabilityMajor:
      return runtime().compute_major;
    case cudaDevAttrComputeCapabilityMinor:
      return runtime().compute_minor;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return shared_per_block() + (1 << 10);
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return shared_per_block();
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return 32;
    case cudaDevAttrMemoryPoolsSupported:
      return 0;
    case cudaDevAttrClusterLaunch:
      return runtime().compute_major >= 9;
  }
  return std::nullopt;
}

}  // namespace

int shared_per_block() {
  const int compute = runtime().compute_major * 10 + runtime().compute_minor;
  const int kilobytes = compute >= 120 ? 99 : compute >= 90 ? 227 : compute == 80 || compute == 87 ? 163 : 99;
  return kilobytes << 10;
}

}  // namespace cuda_emulator

using cuda_emulator::call;
using cuda_emulator::runtime;

cudaError_t cudaDriverGetVersion(int* version) {
  return call("cudaDriverGetVersion", [&] { return *version = runtime().driver, cudaSuccess; });
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  return call("cudaRuntimeGetVersion", [&] { return *version = CUDART_VERSION, cudaSuccess; });
}

cudaError_t cudaGetDeviceCount(int* count) {
  return call("cudaGetDeviceCount", [&] {
    *count = runtime().device_count;
    return *count ? cudaSuccess : cudaErrorNoDevice;
  });
}

cudaError_t cudaSetDevice(int device) {
  return call("cudaSetDevice", [&] {
    if (!cuda_emulator::exists(device)) return cudaErrorInvalidDevice;
    cuda_emulator::current_device() = device;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return call("cudaGetDevice", [&] {
    if (!runtime().device_count) return cudaErrorNoDevice;
    return *device = cuda_emulator::current_device(), cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return call("cudaDeviceGetAttribute", [&] {
    if (!cuda_emulator::exists(device)) return cudaErrorInvalidDevice;
    const std::optional<int> found = cuda_emulator::value_of(attribute);
    if (!found) return cudaErrorInvalidValue;
    return *value = *found, cudaSuccess;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return call("cudaGetDeviceProperties", [&] {
    if (!cuda_emulator::exists(device)) return cudaErrorInvalidDevice;
    cudaDeviceProp p{};
    std::snprintf(p.name, sizeof p.name, "Emulated GPU %d", device);
    p.totalGlobalMem = runtime().memory;
    p.sharedMemPerBlock = cuda_emulator::kSharedPerBlock;
    p.sharedMemPerBlockOptin = static_cast<size_t>(cuda_emulator::shared_per_block());
    p.sharedMemPerMultiprocessor = p.sharedMemPerBlockOptin + 1024;
    p.warpSize = 32;
    p.maxThreadsPerBlock = 1024;
    p.maxThreadsPerMultiProcessor = 2048;
    p.multiProcessorCount = cuda_emulator::kMultiprocessors;
    p.l2CacheSize = 1 << 20;
    p.major = runtime().compute_major;
    p.minor = runtime().compute_minor;
    return *properties = p, cudaSuccess;
  });
}

cudaError_t cudaDeviceSynchronize() {
  return call("cudaDeviceSynchronize", [&] {
    if (!runtime().device_count) return cudaErrorNoDevice;
    const int device = cuda_emulator::current_device();
    cuda_emulator::run_all(device);
    return runtime().devices[static_cast<size_t>(device)].lost;
  });
}
