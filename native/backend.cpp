#include "native/backend.h"

#include "native/error.h"

namespace fapo {
namespace {

constexpr Backend kCpuBackend = {
    .cast = cpu::cast,
    .token_logprob = cpu::token_logprob,
    .token_logprob_backward = cpu::token_logprob_backward,
    .fapo_penalty = cpu::fapo_penalty,
    .group_advantage = cpu::group_advantage,
    .fapo_advantage = cpu::fapo_advantage,
    .policy_loss = cpu::policy_loss,
    .fused_policy_loss = cpu::fused_policy_loss,
};

}  // namespace

const Backend& backend(int32_t device) {
  if (device == kCpu) return kCpuBackend;
  throw Error("ERR_NO_CUDA", "this build has no CUDA kernels");
}

}  // namespace fapo
