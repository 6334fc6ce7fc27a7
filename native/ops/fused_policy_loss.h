#pragma once
#include "native/ops/policy_loss.h"
#include "native/ops/token_logprob.h"

namespace fapo {

// token_logprob, policy_loss and token_logprob_backward in one pass over the logits.
struct FusedPolicyLoss {
  TokenLogits tokens;
  PolicyBatch batch;
  bool in_place = false;
  Array<float> logprobs;      // [rows], out
  Array<float> lse;           // [rows], out
  Array<float> entropy;       // [rows], out; optional unless there is an entropy_coef
  MutableMatrix grad_logits;  // [rows, vocab], dtype of the logits, out; the logits themselves when in_place

  template <typename Visitor>
  void fields(Visitor&& v) {
    v("tokens", tokens), v("batch", batch), v("inPlace", in_place);
    v("logprobs", logprobs), v("lse", lse), v("entropy", entropy), v("gradLogits", grad_logits);
  }
};

void fused_policy_loss(const FusedPolicyLoss& args);

namespace cpu {
void fused_policy_loss(const FusedPolicyLoss& args);
}  // namespace cpu

}  // namespace fapo
