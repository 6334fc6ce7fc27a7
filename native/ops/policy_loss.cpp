#include "native/ops/policy_loss.h"

#include "native/ops/offsets.h"
#include "native/ops/policy_plan.h"
#include "native/run_on.h"

namespace fapo {

void check_batch(const PolicyBatch& b, int64_t tokens) {
  const int64_t sequences = b.cu_seqlens ? b.cu_seqlens.size - 1 : 0;
  const auto per = [&](bool per_sequence) { return per_sequence ? sequences : tokens; };
  check(!b.old_logprobs || b.old_logprobs.size == tokens, "oldLogprobs.length != tokens");
  check(!b.ref_logprobs || b.ref_logprobs.size == tokens, "refLogprobs.length != tokens");
  check(b.params.kl_estimator == KlEstimator::none || b.ref_logprobs || tokens == 0, "klEstimator without refLogprobs");
  check(b.advantages.size == per(b.advantages_per_sequence), "advantages.length");
  check(!b.importance_weights || b.importance_weights.size == per(b.importance_weights_per_sequence),
        "importanceWeights.length");
  check(!b.advantages_per_sequence || b.cu_seqlens, "advantages per sequence without cuSeqlens");
  check(!b.importance_weights_per_sequence || b.cu_seqlens, "importanceWeights per sequence without cuSeqlens");
  check(b.loss.size == 1 && b.metrics.size == kPolicyMetrics && b.counts.size == 2, "scalar outputs");
  if (b.cu_seqlens && b.cu_seqlens.device == kCpu)
    check_offsets("cuSeqlens", b.cu_seqlens, tokens, "the number of tokens");
}

void policy_loss(const PolicyLoss& args) {
  check(args.logprobs.size == args.tokens && args.grad_logprobs.size == args.tokens, "logprobs.length != tokens");
  check(!args.response_mask || args.response_mask.size == args.tokens, "responseMask.length != tokens");
  check_batch(args.batch, args.tokens);
  run_on(args.device, &Backend::policy_loss, args);
}

void cpu::policy_loss(const PolicyLoss& args) {
  const auto counts = [&](int64_t i) { return !args.response_mask || load_once(args.response_mask[i]) != 0; };
  const PolicyPlan plan(args.batch, args.tokens, counts);
  plan.reduce(counts, args.logprobs, {}, args.grad_logprobs);
}

}  // namespace fapo
