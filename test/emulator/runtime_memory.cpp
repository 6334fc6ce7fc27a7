// Memory of the emulated devices, and pinned memory: exactly as many bytes as were asked for, so that AddressSanitizer
// sees the first one past the end, and never zeroed.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "runtime.h"

namespace cuda_emulator {
namespace {

constexpr int kPinned = -1;
constexpr size_t kAlignment = 256;

const std::pair<const char* const, Allocation>* find(const void* p) {
  const auto& all = runtime().allocations;
  auto it = all.upper_bound(static_cast<const char*>(p));
  if (it == all.begin()) return nullptr;
  --it;
  const bool inside = p == it->first || static_cast<const char*>(p) < it->first + it->second.bytes;
  return inside ? &*it : nullptr;
}

cudaError_t allocate(void** p, size_t bytes, int device) {
  if (!p) return cudaErrorInvalidValue;
  if (bytes == 0) return *p = nullptr, cudaSuccess;
  void* at = nullptr;
  if (bytes > size_t{1} << 40 || posix_memalign(&at, kAlignment, bytes)) return cudaErrorMemoryAllocation;
  std::memset(at, 0xff, bytes);  // NaN, in every floating-point type
  runtime().allocations[static_cast<char*>(at)] = {bytes, device};
  *p = at;
  return cudaSuccess;
}

cudaError_t release_memory(void* p, bool pinned) {
  if (!p) return cudaSuccess;
  auto& all = runtime().allocations;
  const auto it = all.find(static_cast<char*>(p));
  if (it == all.end() || (it->second.device == kPinned) != pinned) {
    return misused(pinned ? "cudaFreeHost of what is not allocated" : "cudaFree of what is not allocated",
                   cudaErrorInvalidValue);
  }
  for (int device = 0; device < runtime().device_count; ++device) run_all(device);
  if (!pinned) runtime().devices[static_cast<size_t>(it->second.device)].used -= it->second.bytes;
  all.erase(it);
  std::free(p);
  return cudaSuccess;
}

bool is_device(const void* p) {
  const auto* found = find(p);
  return found && found->second.device != kPinned;
}

// Whole ranges of device memory; host memory is the caller's.
bool in_bounds(const void* p, size_t bytes) {
  const auto* found = find(p);
  return !found || static_cast<const char*>(p) + bytes <= found->first + found->second.bytes;
}

cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream, bool waits) {
  CudaEmulatorStream* found = find_stream(stream);
  if (!found) return cudaErrorInvalidResourceHandle;
  if (bytes == 0) return cudaSuccess;
  if (!to || !from || !in_bounds(to, bytes) || !in_bounds(from, bytes)) return cudaErrorInvalidValue;
  if (kind != cudaMemcpyDefault) {
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (is_device(to) != to_device || is_device(from) != from_device) return cudaErrorInvalidValue;
  }
  if (waits && forbidden_by_capture(*found)) return cudaErrorStreamCaptureUnsupported;
  enqueue(*found, [=] { std::memmove(to, from, bytes); });
  if (waits) run_until(*found, found->enqueued);
  return cudaSuccess;
}

cudaError_t set(void* p, int byte, size_t bytes, cudaStream_t stream, bool waits) {
  CudaEmulatorStream* found = find_stream(stream);
  if (!found) return cudaErrorInvalidResourceHandle;
  if (bytes == 0) return cudaSuccess;
  if (!is_device(p) || !in_bounds(p, bytes)) return cudaErrorInvalidValue;
  enqueue(*found, [=] { std::memset(p, byte, bytes); });
  if (waits) run_until(*found, found->enqueued);
  return cudaSuccess;
}

}  // namespace

bool is_device_memory(const void* p, size_t bytes, int device) {
  const auto* found = find(p);
  return found && found->second.device == device && in_bounds(p, bytes);
}

}  // namespace cuda_emulator

using cuda_emulator::call;
using cuda_emulator::runtime;

cudaError_t cudaMalloc(void** p, size_t bytes) {
  return call("cudaMalloc", [&] {
    if (!runtime().device_count) return cudaErrorNoDevice;
    if (cuda_emulator::forbidden_by_capture()) return cudaErrorStreamCaptureUnsupported;
    const int number = cuda_emulator::current_device();
    cuda_emulator::Device& device = runtime().devices[static_cast<size_t>(number)];
    if (bytes > runtime().memory - device.used) return cudaErrorMemoryAllocation;
    const cudaError_t error = cuda_emulator::allocate(p, bytes, number);
    if (error == cudaSuccess) device.used += bytes;
    return error;
  });
}

cudaError_t cudaFree(void* p) {
  return call("cudaFree", [&] { return cuda_emulator::release_memory(p, false); });
}

cudaError_t cudaMallocHost(void** p, size_t bytes) {
  return call("cudaMallocHost", [&] { return cuda_emulator::allocate(p, bytes, cuda_emulator::kPinned); });
}

cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  return call("cudaHostAlloc", [&] { return cuda_emulator::allocate(p, bytes, cuda_emulator::kPinned); });
}

cudaError_t cudaFreeHost(void* p) {
  return call("cudaFreeHost", [&] { return cuda_emulator::release_memory(p, true); });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return call("cudaMemcpyAsync", [&] { return cuda_emulator::copy(to, from, bytes, kind, stream, false); });
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return call("cudaMemcpy2DAsync", [&] {
    if (width > to_pitch || width > from_pitch || std::max(to_pitch, from_pitch) > 0x7fffffff) {
      return cudaErrorInvalidPitchValue;
    }
    cudaError_t error = cudaSuccess;
    for (size_t row = 0; row < height && error == cudaSuccess; ++row) {
      error = cuda_emulator::copy(static_cast<char*>(to) + row * to_pitch,
                                  static_cast<const char*>(from) + row * from_pitch, width, kind, stream, false);
    }
    return error;
  });
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return call("cudaMemcpy", [&] { return cuda_emulator::copy(to, from, bytes, kind, nullptr, true); });
}

cudaError_t cudaMemsetAsync(void* p, int byte, size_t bytes, cudaStream_t stream) {
  return call("cudaMemsetAsync", [&] { return cuda_emulator::set(p, byte, bytes, stream, false); });
}

cudaError_t cudaMemset(void* p, int byte, size_t bytes) {
  return call("cudaMemset", [&] { return cuda_emulator::set(p, byte, bytes, nullptr, true); });
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return call("cudaMemGetInfo", [&] {
    if (!runtime().device_count) return cudaErrorNoDevice;
    *total = runtime().memory;
    *free = *total - runtime().devices[static_cast<size_t>(cuda_emulator::current_device())].used;
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  return call("cudaPointerGetAttributes", [&] {
    const auto* found = cuda_emulator::find(p);
    *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, const_cast<void*>(p)};
    if (!found) return cudaSuccess;
    const bool pinned = found->second.device == cuda_emulator::kPinned;
    attributes->type = pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->device = pinned ? cuda_emulator::current_device() : found->second.device;
    attributes->devicePointer = const_cast<void*>(p);
    if (!pinned) attributes->hostPointer = nullptr;
    return cudaSuccess;
  });
}
