// Kernels: what may be launched, and the launch.
#include <algorithm>

#include "runtime.h"

namespace cuda_emulator {
namespace {

constexpr int kSharedPerBlock = 48 << 10;
constexpr uint64_t kPortableCluster = 8, kWidestCluster = 16;

uint64_t size_of(dim3 d) { return uint64_t{d.x} * d.y * d.z; }

dim3 cluster_of(const cudaLaunchConfig_t& config) {
  dim3 cluster(1, 1, 1);
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id != cudaLaunchAttributeClusterDimension) continue;
    const auto& d = config.attrs[i].val.clusterDim;
    cluster = dim3(d.x, d.y, d.z);
  }
  return cluster;
}

bool asks_for_cluster(const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) return true;
  }
  return false;
}

int dynamic_limit(const void* kernel) {
  const auto it = runtime().dynamic_shared_limit.find(kernel);
  return it == runtime().dynamic_shared_limit.end() ? kSharedPerBlock : it->second;
}

cudaError_t check(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  if (!size_of(grid) || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  if (!size_of(block) || size_of(block) > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > static_cast<size_t>(dynamic_limit(kernel))) return cudaErrorInvalidValue;
  if (!asks_for_cluster(config)) return cudaSuccess;
  if (runtime().compute_major < 9) return cudaErrorNotSupported;
  const dim3 cluster = cluster_of(config);
  const uint64_t widest = runtime().wide_clusters.count(kernel) ? kWidestCluster : kPortableCluster;
  if (!size_of(cluster) || size_of(cluster) > widest) return cudaErrorInvalidClusterSize;
  if (grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z) return cudaErrorInvalidConfiguration;
  return cudaSuccess;
}

int blocks_per_multiprocessor(int threads, size_t dynamic_shared) {
  const int by_threads = 2048 / threads;
  const auto by_shared =
      dynamic_shared ? static_cast<int>(static_cast<size_t>(shared_per_block()) / dynamic_shared) : 32;
  return std::min({by_threads, by_shared, 32});
}

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> body,
                   std::function<bool(int device)> arguments_are_on_device) {
  return call("cudaLaunchKernelEx", [&] {
    CudaEmulatorStream* stream = find_stream(config.stream);
    if (!stream || stream->device != current_device()) return cudaErrorInvalidResourceHandle;
    const cudaError_t error = check(config, kernel);
    if (error != cudaSuccess) return error;
    Launch job;
    job.kernel = kernel;
    job.grid = config.gridDim;
    job.block = config.blockDim;
    job.cluster = cluster_of(config);
    job.dynamic_shared = config.dynamicSmemBytes;
    job.shared_limit = static_cast<size_t>(shared_per_block());
    job.device = stream->device;
    job.has_clusters = runtime().compute_major >= 9;
    job.body = std::move(body);
    job.arguments_are_on_device = std::move(arguments_are_on_device);
    enqueue(*stream, [job = std::move(job)] {
      const Violation violation = run(job);
      if (violation.error) lose(job.device, static_cast<cudaError_t>(violation.error), violation.text);
    });
    return cudaSuccess;
  });
}

}  // namespace cuda_emulator

using namespace cuda_emulator;

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  return call("cudaFuncSetAttribute", [&] {
    switch (attribute) {
      case cudaFuncAttributeMaxDynamicSharedMemorySize:
        if (value < 0 || value > shared_per_block()) return cudaErrorInvalidValue;
        runtime().dynamic_shared_limit[kernel] = value;
        return cudaSuccess;
      case cudaFuncAttributeNonPortableClusterSizeAllowed:
        if (value) runtime().wide_clusters.insert(kernel);
        return cudaSuccess;
      case cudaFuncAttributePreferredSharedMemoryCarveout:
        return cudaSuccess;
    }
    return cudaErrorInvalidValue;
  });
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  return call("cudaFuncGetAttributes", [&] {
    cudaFuncAttributes a{};
    a.maxThreadsPerBlock = 1024;
    a.numRegs = 32;
    a.ptxVersion = a.binaryVersion = runtime().compute_major * 10 + runtime().compute_minor;
    a.maxDynamicSharedSizeBytes = dynamic_limit(kernel);
    return *attributes = a, cudaSuccess;
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads,
                                                          size_t dynamic_shared) {
  return call("cudaOccupancyMaxActiveBlocksPerMultiprocessor", [&] {
    if (threads <= 0 || threads > 1024) return cudaErrorInvalidValue;
    return *blocks = blocks_per_multiprocessor(threads, dynamic_shared), cudaSuccess;
  });
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config) {
  return call("cudaOccupancyMaxActiveClusters", [&] {
    const cudaError_t error = check(*config, kernel);
    if (error != cudaSuccess) return error;
    const int blocks = blocks_per_multiprocessor(static_cast<int>(size_of(config->blockDim)), config->dynamicSmemBytes);
    constexpr int kMultiprocessors = 2;
    *clusters = std::max(1, kMultiprocessors * blocks / static_cast<int>(size_of(cluster_of(*config))));
    return cudaSuccess;
  });
}
