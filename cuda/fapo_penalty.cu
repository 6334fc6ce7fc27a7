// One thread per response.
#include "cuda/fapo_penalty.cuh"
#include "cuda/library.h"

namespace fapo::cuda {
namespace {

constexpr unsigned kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    fapo_penalty_kernel(const __grid_constant__ FapoPenalty args, Faults faults) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < args.sequences; i += step) {
    penalise(args, i, faults);
  }
}

}  // namespace

void fapo_penalty(const FapoPenalty& args) {
  Call call(args.device, "fapoPenalty");
  const int64_t blocks = (args.sequences + kThreads - 1) / kThreads;
  call.launch(fapo_penalty_kernel, {blocks < 8192 ? blocks : 8192, kThreads}, args, call.faults());
}

}  // namespace fapo::cuda
