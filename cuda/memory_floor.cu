// Every thread moves 16 bytes at a time and has several loads in flight: reading, writing back what was read, copying.
#include "cuda/device.cuh"
#include "cuda/device.h"
#include "cuda/library.h"

namespace fapo::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kInFlight = 4;
constexpr int64_t kChunk = int64_t{kThreads} * kInFlight;

template <MemoryFloor::Kind kKind>
__global__ void __launch_bounds__(kThreads)
    memory_floor_kernel(uint4* data, uint4* destination, int64_t packs, float* result) {
  uint32_t seen = 0;
  for (int64_t begin = int64_t{blockIdx.x} * kChunk; begin < packs; begin += int64_t{gridDim.x} * kChunk) {
    uint4 raw[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int64_t p = begin + j * kThreads + threadIdx.x;
      raw[j] = p < packs ? load_streaming(data + p) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int64_t p = begin + j * kThreads + threadIdx.x;
      if constexpr (kKind == MemoryFloor::Kind::read) {
        seen |= raw[j].x | raw[j].y | raw[j].z | raw[j].w;
      } else if (p < packs) {
        store_streaming((kKind == MemoryFloor::Kind::copy ? destination : data) + p, raw[j]);
      }
    }
  }
  // Hardly ever true, but the compiler cannot know.
  if (seen == 0xffffffffu) result[0] = 1.0f;
}

}  // namespace

// What is left of a number of bytes that 16 does not divide stays as it is.
void memory_floor(const MemoryFloor& args) {
  Call call(args.device, "memoryFloor");
  const int64_t packs = args.data.size / 4;
  const int64_t most = 4 * call.limits().multiprocessors, wanted = (packs + kChunk - 1) / kChunk;
  const auto kernel = args.kind == MemoryFloor::Kind::read         ? memory_floor_kernel<MemoryFloor::Kind::read>
                      : args.kind == MemoryFloor::Kind::read_write ? memory_floor_kernel<MemoryFloor::Kind::read_write>
                                                                   : memory_floor_kernel<MemoryFloor::Kind::copy>;
  call.launch(kernel, {wanted < most ? wanted : most, kThreads}, reinterpret_cast<uint4*>(args.data.data),
              reinterpret_cast<uint4*>(args.destination.data), packs, args.result.data);
}

}  // namespace fapo::cuda
