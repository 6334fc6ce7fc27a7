#pragma once
// What the CPU has to know of the whole batch before the loss of one token: counts, and which sequence a token is in.
#include <algorithm>
#include <vector>

#include "native/error.h"
#include "native/ops/policy_loss.h"
#include "native/parallel.h"

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

  // Writes loss, metrics and counts. logprob(i) and entropy(i) are asked for counted tokens alone; each(i, grad) gets
  // dloss/dlogprob of every token, 0 where it does not count.
  template <typename Counts, typename Logprob, typename Entropy, typename Each>
  void reduce(const Counts& counts, const Logprob& logprob, const Entropy& entropy, const Each& each) const {
    constexpr int64_t kPart = 1024;
    auto& parts = buffers_->parts;
    parts.assign(static_cast<size_t>((tokens_ + kPart - 1) / kPart), PolicySums{});
    constexpr int64_t kBytesLike = 256;  // one token takes as long as this much memory
    parallel_for(tokens_, kPart, tokens_ * kBytesLike, [&](int64_t begin, int64_t end) {
      PolicySums sums;  // of its own: parts side by side in memory would share cache lines between threads
      for (int64_t i = begin; i < end;) {
        const int64_t sequence = sequence_of(i);
        const int64_t sequence_end = sequence < 0 ? end : buffers_->begin[static_cast<size_t>(sequence) + 1];
        const double its_weight = weight(sequence);
        for (const int64_t until = std::min(sequence_end, end); i < until; ++i) {
          if (!counts(i)) {
            each(i, 0.0);
            continue;
          }
          const TokenLoss token = batch_.token(i, sequence, logprob(i));
          sums.add(token, its_weight, entropy(i), batch_.entropy_coef);
          each(i, token.loss.grad * its_weight);
        }
      }
      parts[static_cast<size_t>(begin / kPart)] = sums;
    });
    PolicySums total;
    for (const PolicySums& part : parts) total.merge(part);
    batch_.loss[0] = static_cast<float>(total.loss);
    write_metrics(total, counted_tokens_, batch_.metrics.data);
    batch_.counts[0] = static_cast<int32_t>(counted_tokens_);
    batch_.counts[1] = static_cast<int32_t>(counted_sequences_);
  }

 private:
  struct Buffers {
    std::vector<int64_t> begin;  // cu_seqlens, read once
    std::vector<double> length;  // counted tokens per sequence
    std::vector<PolicySums> parts;
  };

  const PolicyBatch& batch_;
  const int64_t tokens_;
  double counted_tokens_ = 0.0;
  double counted_sequences_ = 0.0;
  LossAgg agg_;
  Buffers* buffers_ = nullptr;
};

}  // namespace fapo
