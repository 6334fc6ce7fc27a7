#pragma once
// What the tests of the emulator and of cuda/device.cuh need of a GPU, emulated or real.
#include <cuda_runtime.h>

#include <vector>

struct Shape {
  unsigned blocks = 1, threads = 32, cluster = 1;
  size_t dynamic_shared = 0;
};

template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), const Shape& shape, Args... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.blocks);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.dynamic_shared;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = shape.cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = shape.cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Params(args)...);
}

// Device memory of its own; uninitialised until set.
template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t size) : size_(size) { cudaMalloc(reinterpret_cast<void**>(&data_), size * sizeof(T)); }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }

  T* data() const { return data_; }
  size_t size() const { return size_; }

  // Waits for the device. Empty when it is lost.
  std::vector<T> values() const {
    std::vector<T> values(size_);
    if (cudaDeviceSynchronize() != cudaSuccess) return {};
    if (cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost) != cudaSuccess) return {};
    return values;
  }

 private:
  size_t size_;
  T* data_ = nullptr;
};
