#pragma once
// What the kernels have to know of the whole batch before the loss of one token, and how losses become one.
#include "cuda/device.h"
#include "cuda/reduce.cuh"
#include "native/ops/policy_loss.h"

namespace fapo::cuda {

// Which tokens count: policyLoss has a mask alone, fusedPolicyLoss token ids as well.
struct CountedTokens {
  int64_t tokens = 0;
  Array<const uint8_t> response_mask;  // optional
  Array<const int32_t> token_ids;      // optional
  int64_t ignore_index = 0;

  FAPO_DEVICE bool operator()(int64_t i) const {
    if (response_mask && response_mask[i] == 0) return false;
    return !token_ids || token_ids[i] != ignore_index;
  }
};

// Counts of a batch, in the work space of a call. Integer atomics: their order does not show.
struct PolicyTotals {
  unsigned long long tokens;
  unsigned long long sequences;
  unsigned blocks_done;
  unsigned bad;  // whether cu_seqlens are
};

// cu_seqlens may be anything: indices are clamped to what the batch holds, and losses and gradients are NaN.
struct PolicyPlan {
  PolicyBatch batch;
  CountedTokens counts;
  PolicyTotals* totals;
  int32_t* lengths;           // [sequences], counted tokens of each
  PolicySums<double>* parts;  // [blocks of the reduction]

  FAPO_DEVICE int64_t sequences() const { return batch.cu_seqlens ? batch.cu_seqlens.size - 1 : 0; }

  FAPO_DEVICE int64_t begin_of(int64_t sequence) const {
    const int64_t begin = batch.cu_seqlens[sequence];
    return begin < 0 ? 0 : begin > counts.tokens ? counts.tokens : begin;
  }

  // -1 where there are no cu_seqlens: the last sequence that begins at or before the token.
  FAPO_DEVICE int64_t sequence_of(int64_t token) const {
    if (!batch.cu_seqlens) return -1;
    int64_t low = 0, high = sequences();
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (batch.cu_seqlens[middle] <= token ? low : high) = middle;
    }
    return low;
  }

  FAPO_DEVICE LossAgg agg() const {
    LossAgg agg;
    agg.mode = batch.loss_agg_mode;
    agg.tokens = batch.global_tokens > 0.0 ? batch.global_tokens : static_cast<double>(totals->tokens);
    agg.sequences = batch.global_sequences > 0.0 ? batch.global_sequences : static_cast<double>(totals->sequences);
    agg.horizon = batch.horizon;
    return agg;
  }

  FAPO_DEVICE bool bad() const { return totals->bad != 0; }

  FAPO_DEVICE double weight(int64_t sequence) const {
    return bad() ? NAN : agg().weight(sequence < 0 ? 1.0 : lengths[sequence]);
  }
};

// Counts the batch, on the stream of the call. Takes the call's work space.
PolicyPlan plan_policy(Call& call, const PolicyBatch& batch, const CountedTokens& counts);

// Loss, metrics and counts of the batch from the log-probs of its tokens. `entropy` and `grad_logprobs` are optional.
void reduce_policy(Call& call, const PolicyPlan& plan, const Array<const float>& logprobs,
                   const Array<const float>& entropy, const Array<float>& grad_logprobs);

}  // namespace fapo::cuda
