#pragma once
// The loss of some tokens at a time, eight in a vector. Compiled once per instruction set, like row_kernels.h, and
// under the same rules.
#include "native/math/policy_metrics.h"

namespace fapo {

// What is summed in each of eight lanes: the order in which tokens are added does not depend on the instruction set.
constexpr int kPolicyLanes = 8;
struct PolicyLanes {
  static constexpr int kSums = sizeof(PolicySums<double>) / sizeof(double);
  double sums[kSums][kPolicyLanes];  // the members of PolicySums, in their order
};

// Tokens in memory of their own: what another thread may change meanwhile has been read once.
struct PolicyBlock {
  static constexpr int64_t kTokens = 512;

  alignas(64) float logprob[kTokens];
  alignas(64) float old_logprob[kTokens];
  alignas(64) float ref_logprob[kTokens];
  alignas(64) float advantage[kTokens];
  alignas(64) float importance_weight[kTokens];
  alignas(64) float entropy[kTokens];
  alignas(64) float counted[kTokens];  // not 0: the token counts. What the others hold does not matter
  alignas(64) double weight[kTokens];  // in the loss
  alignas(64) float grad[kTokens];     // out: dloss/dlogprob times grad_scale, 0 where a token does not count
};

struct PolicyBlockParams {
  PolicyLossParams loss;
  bool has_old_logprobs;
  double entropy_coef;
  double grad_scale;
};

// Of the first `tokens` tokens.
using PolicyKernel = void (*)(PolicyBlock& block, int64_t tokens, const PolicyBlockParams& params, PolicyLanes& lanes);

}  // namespace fapo
