#include "native/backend.h"

#include <atomic>

#include "native/error.h"

namespace fapo {
namespace {

std::atomic<const CudaLibrary*> opened{nullptr};

}  // namespace

const Backend kCpuBackend = {
    .cast = cpu::cast,
    .token_logprob = cpu::token_logprob,
    .token_logprob_backward = cpu::token_logprob_backward,
    .fapo_penalty = cpu::fapo_penalty,
    .group_advantage = cpu::group_advantage,
    .fapo_advantage = cpu::fapo_advantage,
    .policy_loss = cpu::policy_loss,
    .fused_policy_loss = cpu::fused_policy_loss,
    .memory_floor = cpu::memory_floor,
};

const CudaLibrary& cuda_library() {
  const CudaLibrary* library = opened.load();
  if (library == nullptr) throw Error("ERR_NO_CUDA", "the CUDA kernels have not been opened");
  return *library;
}

void set_cuda_library(const CudaLibrary* library) {
  if (library->abi != kCudaAbi) throw Error("ERR_NO_CUDA", "the CUDA kernels are of another build than the addon");
  const CudaLibrary* before = nullptr;
  if (!opened.compare_exchange_strong(before, library) && before != library) {
    throw Error("ERR_NO_CUDA", "another library of CUDA kernels is in use in this process");
  }
}

}  // namespace fapo
