#pragma once
// What the CPU has to know of the whole batch before the loss of one token: counts, and which sequence a token is in.
#include <algorithm>
#include <array>
#include <bit>
#include <vector>

#include "native/error.h"
#include "native/ops/policy_loss.h"
#include "native/parallel.h"
#include "native/simd/row_kernels.h"

namespace fapo {

class PolicyPlan {
 public:
  // counts(i): whether token i counts.
  template <typename Counts>
  PolicyPlan(const PolicyBatch& batch, int64_t tokens, const Counts& counts) : batch_(batch), tokens_(tokens) {
    thread_local Buffers buffers;  // kept, so that a training loop allocates nothing
    buffers_ = &buffers;
    if (batch.cu_seqlens) {
      buffers.begin.resize(static_cast<size_t>(batch.cu_seqlens.size));
      buffers.length.assign(buffers.begin.size() - 1, 0.0);
      for (size_t s = 0; s < buffers.begin.size(); ++s) {
        const int64_t begin = load_once(batch.cu_seqlens[static_cast<int64_t>(s)]);
        check(begin >= (s ? buffers.begin[s - 1] : 0) && begin <= tokens, "cuSeqlens changed during the call");
        buffers.begin[s] = begin;
      }
      // sequence_of() relies on it for every token.
      check(buffers.begin.front() == 0 && buffers.begin.back() == tokens, "cuSeqlens changed during the call");
      for (size_t s = 0; s < buffers.length.size(); ++s) {
        for (int64_t i = buffers.begin[s]; i < buffers.begin[s + 1]; ++i) buffers.length[s] += counts(i);
        counted_tokens_ += buffers.length[s];
        counted_sequences_ += buffers.length[s] > 0.0;
      }
    } else {
      for (int64_t i = 0; i < tokens; ++i) counted_tokens_ += counts(i);
    }
    agg_.mode = batch.loss_agg_mode;
    agg_.tokens = batch.global_tokens > 0.0 ? batch.global_tokens : counted_tokens_;
    agg_.sequences = batch.global_sequences > 0.0 ? batch.global_sequences : counted_sequences_;
    agg_.horizon = batch.horizon;
  }

  // -1 where there are no cu_seqlens. May be called from any thread.
  int64_t sequence_of(int64_t token) const {
    if (!batch_.cu_seqlens) return -1;
    const auto& begin = buffers_->begin;
    return std::upper_bound(begin.begin(), begin.end() - 1, token) - begin.begin() - 1;
  }

  double weight(int64_t sequence) const {
    return agg_.weight(sequence < 0 ? 1.0 : buffers_->length[static_cast<size_t>(sequence)]);
  }

  // Writes loss, metrics and counts, and dloss/dlogprob times gradScale of every token where there are grad_logprobs.
  // `entropy` is optional.
  template <typename Counts>
  void reduce(const Counts& counts, const Array<const float>& logprobs, const Array<const float>& entropy,
              const Array<float>& grad_logprobs) const {
    constexpr int64_t kPart = PolicyBlock::kTokens;
    auto& parts = buffers_->parts;
    parts.assign(static_cast<size_t>((tokens_ + kPart - 1) / kPart), {});
    const PolicyBlockParams params{batch_.params, static_cast<bool>(batch_.old_logprobs), batch_.entropy_coef,
                                   batch_.grad_scale};
    constexpr int64_t kBytesLike = 64;  // one token takes as long as this much memory
    parallel_for(tokens_, kPart, tokens_ * kBytesLike, [&](int64_t begin, int64_t end) {
      PolicyBlock block;
      gather(block, begin, end, counts, logprobs, entropy);
      PolicyLanes lanes;
      isa_kernels().policy(block, end - begin, params, lanes);
      if (grad_logprobs) std::copy_n(block.grad, end - begin, grad_logprobs.data + begin);
      parts[static_cast<size_t>(begin / kPart)] = merged(lanes);
    });
    PolicySums<double> total;
    for (const PolicySums<double>& part : parts) total.merge(part);
    batch_.loss[0] = static_cast<float>(total.loss);
    write_metrics(total, counted_tokens_, batch_.metrics.data);
    batch_.counts[0] = static_cast<int32_t>(counted_tokens_);
    batch_.counts[1] = static_cast<int32_t>(counted_sequences_);
  }

 private:
  struct Buffers {
    std::vector<int64_t> begin;  // cu_seqlens, read once
    std::vector<double> length;  // counted tokens per sequence
    std::vector<PolicySums<double>> parts;
  };

  template <typename Counts>
  void gather(PolicyBlock& block, int64_t begin, int64_t end, const Counts& counts, const Array<const float>& logprobs,
              const Array<const float>& entropy) const {
    const int64_t n = end - begin;
    const auto take = [&](float* to, const Array<const float>& from, float absent) {
      from ? void(std::copy_n(from.data + begin, n, to)) : void(std::fill_n(to, n, absent));
    };
    take(block.logprob, logprobs, 0.0f);
    take(block.old_logprob, batch_.old_logprobs, 0.0f);
    take(block.ref_logprob, batch_.ref_logprobs, 0.0f);
    take(block.entropy, entropy, 0.0f);
    if (!batch_.advantages_per_sequence) take(block.advantage, batch_.advantages, 0.0f);
    if (!batch_.importance_weights_per_sequence) take(block.importance_weight, batch_.importance_weights, 1.0f);
    for (int64_t i = 0; i < n; ++i) block.counted[i] = counts(begin + i);
    for (int64_t i = n; i % kPolicyLanes != 0; ++i) block.counted[i] = 0.0f;
    for (int64_t i = 0; i < n;) {
      const int64_t sequence = sequence_of(begin + i);
      const int64_t stop = sequence < 0 ? n : std::min(n, buffers_->begin[static_cast<size_t>(sequence) + 1] - begin);
      std::fill(block.weight + i, block.weight + stop, weight(sequence));
      const auto repeat = [&](float* to, float value) { std::fill(to + i, to + stop, value); };
      if (batch_.advantages_per_sequence) repeat(block.advantage, batch_.advantages[sequence]);
      if (batch_.importance_weights_per_sequence) repeat(block.importance_weight, batch_.importance_weights[sequence]);
      i = stop;
    }
  }

  static PolicySums<double> merged(const PolicyLanes& lanes) {
    PolicySums<double> total;
    for (int lane = 0; lane < kPolicyLanes; ++lane) {
      std::array<double, PolicyLanes::kSums> sums;
      for (size_t k = 0; k < sums.size(); ++k) sums[k] = lanes.sums[k][lane];
      total.merge(std::bit_cast<PolicySums<double>>(sums));
    }
    return total;
  }

  const PolicyBatch& batch_;
  const int64_t tokens_;
  double counted_tokens_ = 0.0;
  double counted_sequences_ = 0.0;
  LossAgg agg_;
  Buffers* buffers_ = nullptr;
};

}  // namespace fapo
