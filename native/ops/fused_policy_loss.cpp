#include "native/ops/fused_policy_loss.h"

#include <type_traits>

#include "native/dispatch.h"
#include "native/ops/policy_plan.h"
#include "native/run_on.h"
#include "native/simd/row_loop.h"

namespace fapo {

void fused_policy_loss(const FusedPolicyLoss& args) {
  check_tokens(args.tokens);
  const int64_t rows = args.tokens.rows;
  check_batch(args.batch, rows);
  check(args.logprobs.size == rows && args.lse.size == rows, "logprobs.length or lse.length != rows");
  check(!args.entropy || args.entropy.size == rows, "entropy.length != rows");
  check(args.batch.entropy_coef == 0.0 || args.entropy || rows == 0, "entropyCoef without entropy");
  check(holds(args.grad_logits, rows, args.tokens.vocab), "gradLogits do not hold [rows, vocab]");
  check(args.grad_logits.dtype == args.tokens.logits.dtype, "gradLogits.dtype != logits.dtype");
  run_on(args.tokens.device, &Backend::fused_policy_loss, args);
}

void cpu::fused_policy_loss(const FusedPolicyLoss& args) {
  const TokenLogits& tokens = args.tokens;
  const PolicyBatch& batch = args.batch;
  const bool entropy = args.entropy.data != nullptr;
  const auto counts = [&](int64_t i) { return counted_target(tokens, i) != kIgnored; };
  const PolicyPlan plan(batch, tokens.rows, counts);

  dispatch_float(tokens.logits.dtype, [&]<typename T>() {
    const bool streamed = !args.in_place && exceeds_caches<T>(tokens);
    // A float32 row that is overwritten anyway keeps its powers in the first pass, and the second only scales them.
    const bool keeps_powers = args.in_place && !entropy && !tokens.scale.capped();
    for_each_row<T>(tokens, [&](int64_t i, CpuSoftmaxRow<T>& row) {
      T* out = static_cast<T*>(args.grad_logits.data) + i * args.grad_logits.row_stride;
      const int64_t target = counted_target(tokens, i);
      if (target == kIgnored) {
        args.logprobs[i] = args.lse[i] = 0.0f;
        if (entropy) args.entropy[i] = 0.0f;
        return fill_zero(out, tokens.vocab);
      }

      const T* x = tokens.row<T>(i);
      const double target_logit = to_float(x[target]);
      bool kept = false;
      if constexpr (std::is_same_v<T, float>) {
        if (keeps_powers) row.forward_in_place(out, target), kept = true;
      }
      if (!kept) row.forward(x, target, entropy);
      args.logprobs[i] = static_cast<float>(row.logprob());
      args.lse[i] = static_cast<float>(row.lse());
      if (entropy) args.entropy[i] = static_cast<float>(row.entropy());

      const int64_t sequence = plan.sequence_of(i);
      const double weight = plan.weight(sequence) * batch.grad_scale;
      const RowPull pull{weight * batch.token(i, sequence, args.logprobs[i]).loss.grad, -weight * batch.entropy_coef};
      if (pull.none()) return fill_zero(out, tokens.vocab);
      if (kept) {
        if constexpr (std::is_same_v<T, float>) row.scale_in_place(out, target, target_logit, pull);
      } else {
        row.gradient(out, x, target, pull, streamed);
      }
    });
  });
  plan.reduce(
      counts, [&](int64_t i) { return args.logprobs[i]; }, [&](int64_t i) { return entropy ? args.entropy[i] : 0.0; },
      [](int64_t, double) {});
}

}  // namespace fapo
