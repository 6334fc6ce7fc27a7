#pragma once
#include "native/math/loss_agg.h"
#include "native/math/policy_loss.h"
#include "native/math/policy_metrics.h"
#include "native/tensor.h"

namespace fapo {

// What the policy loss knows of a batch besides the current log-probs, and where the scalars go.
struct PolicyBatch {
  Array<const float> old_logprobs;        // [tokens], optional: absent = the current ones
  Array<const float> advantages;          // [sequences] or [tokens]
  Array<const float> ref_logprobs;        // [tokens], optional
  Array<const float> importance_weights;  // [sequences] or [tokens], optional
  Array<const int32_t> cu_seqlens;        // [sequences + 1], optional
  bool advantages_per_sequence = false;
  bool importance_weights_per_sequence = false;
  PolicyLossParams params;
  LossAggMode loss_agg_mode = LossAggMode::token_mean;
  double global_tokens = 0.0;     // 0: those of this call
  double global_sequences = 0.0;  // 0: those of this call
  double horizon = 1.0;
  double grad_scale = 1.0;
  double entropy_coef = 0.0;
  Array<float> loss;      // [1], out
  Array<float> metrics;   // [kPolicyMetrics], out
  Array<int32_t> counts;  // [2]: tokens, sequences; out

  template <typename Visitor>
  void fields(Visitor&& v) {
    v("oldLogprobs", old_logprobs), v("advantages", advantages), v("refLogprobs", ref_logprobs);
    v("importanceWeights", importance_weights), v("cuSeqlens", cu_seqlens);
    v("advantagesPerSequence", advantages_per_sequence);
    v("importanceWeightsPerSequence", importance_weights_per_sequence);
    v("clipRatioLow", params.clip_ratio_low), v("clipRatioHigh", params.clip_ratio_high);
    v("clipRatioC", params.clip_ratio_c), v("logRatioClamp", params.log_ratio_clamp);
    v("klEstimator", params.kl_estimator), v("klCoef", params.kl_coef);
    v("lossAggMode", loss_agg_mode), v("globalTokens", global_tokens), v("globalSequences", global_sequences);
    v("horizon", horizon), v("gradScale", grad_scale), v("entropyCoef", entropy_coef);
    v("loss", loss), v("metrics", metrics), v("counts", counts);
  }

  // What the loss of token i takes besides its current log-prob; `sequence` is -1 where there are no cu_seqlens.
  struct Token {
    float old_logprob, ref_logprob, advantage, importance_weight;
  };
  FAPO_HD Token inputs(int64_t i, int64_t sequence) const {
    return {old_logprobs ? old_logprobs[i] : 0.0f, ref_logprobs ? ref_logprobs[i] : 0.0f,
            advantages[advantages_per_sequence ? sequence : i],
            importance_weights ? importance_weights[importance_weights_per_sequence ? sequence : i] : 1.0f};
  }
  FAPO_HD TokenLoss<double> token(const Token& t, double logprob) const {
    const double log_ratio = log_ratio_of<double>(logprob, t.old_logprob, static_cast<bool>(old_logprobs));
    return token_loss<double>(logprob, log_ratio, t.advantage, t.importance_weight, t.ref_logprob, params);
  }
  FAPO_HD TokenLoss<double> token(int64_t i, int64_t sequence, double logprob) const {
    return token(inputs(i, sequence), logprob);
  }
};

struct PolicyLoss {
  int32_t device = kCpu;
  int64_t tokens = 0;
  Array<const float> logprobs;         // [tokens]
  Array<const uint8_t> response_mask;  // [tokens], optional
  PolicyBatch batch;
  Array<float> grad_logprobs;  // [tokens], out

  template <typename Visitor>
  void fields(Visitor&& v) {
    v("device", device), v("tokens", tokens), v("logprobs", logprobs), v("responseMask", response_mask);
    v("batch", batch), v("gradLogprobs", grad_logprobs);
  }
};

// Throws ERR_INVALID_ARGUMENT for cu_seqlens of the host that do not rise from 0 to `tokens`.
void check_batch(const PolicyBatch& batch, int64_t tokens);
void policy_loss(const PolicyLoss& args);

namespace cpu {
void policy_loss(const PolicyLoss& args);
}  // namespace cpu

}  // namespace fapo
