#pragma once
// The table of ops that each backend fills: the CPU here, CUDA in a library of its own.
#include "native/ops/cast.h"
#include "native/ops/fapo_advantage.h"
#include "native/ops/fapo_penalty.h"
#include "native/ops/fused_policy_loss.h"
#include "native/ops/group_advantage.h"
#include "native/ops/policy_loss.h"
#include "native/ops/token_logprob.h"

namespace fapo {

struct Backend {
  void (*cast)(const Cast&);
  void (*token_logprob)(const TokenLogprob&);
  void (*token_logprob_backward)(const TokenLogprobBackward&);
  void (*fapo_penalty)(const FapoPenalty&);
  void (*group_advantage)(const GroupAdvantage&);
  void (*fapo_advantage)(const FapoAdvantage&);
  void (*policy_loss)(const PolicyLoss&);
  void (*fused_policy_loss)(const FusedPolicyLoss&);
};

// Arguments are already checked. Throws ERR_NO_CUDA for a device that has no backend.
const Backend& backend(int32_t device);

}  // namespace fapo
