// A launch that counts: a block per sequence. Then a thread per token; each block adds up its tokens, and the block
// that is done last adds up the blocks, in the order of their index.
#include "cuda/library.h"
#include "cuda/policy_plan.cuh"
#include "native/error.h"

namespace fapo::cuda {
namespace {

constexpr unsigned kCountThreads = 128;
constexpr unsigned kTokenThreads = 256;

struct Count {
  int32_t n;
  FAPO_DEVICE void merge(const Count& other) { n += other.n; }
};

__global__ void __launch_bounds__(kCountThreads)
    policy_count_kernel(const __grid_constant__ PolicyPlan plan, Faults faults) {
  BlockSlots<Count>& slots = shared<BlockSlots<Count>>();
  const int64_t sequences = plan.sequences(), tokens = plan.counts.tokens;
  if (plan.batch.cu_seqlens) {
    const auto& offsets = plan.batch.cu_seqlens;
    const auto bad = [&](int64_t index) {
      faults.report(Fault::cu_seqlens, index);
      atomicOr(&plan.totals->bad, 1u);
    };
    if (blockIdx.x == 0 && threadIdx.x == 0 && offsets[0] != 0) bad(0);
    for (int64_t s = blockIdx.x; s < sequences; s += gridDim.x) {
      const int64_t begin = plan.begin_of(s), end = plan.begin_of(s + 1);
      Count mine{0};
      for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) mine.n += plan.counts(i);
      const Count all = block_merge(mine, slots);
      if (threadIdx.x != 0) continue;
      plan.lengths[s] = all.n;
      atomicAdd(&plan.totals->tokens, static_cast<unsigned long long>(all.n));
      atomicAdd(&plan.totals->sequences, all.n > 0 ? 1ull : 0ull);
      const int64_t stop = offsets[s + 1];
      if (stop < offsets[s] || stop > tokens || (s + 1 == sequences && stop != tokens)) bad(s + 1);
    }
    return;
  }
  Count mine{0};
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < tokens; i += int64_t{gridDim.x} * blockDim.x) {
    mine.n += plan.counts(i);
  }
  const Count all = block_merge(mine, slots);
  if (threadIdx.x == 0) atomicAdd(&plan.totals->tokens, static_cast<unsigned long long>(all.n));
}

__global__ void __launch_bounds__(kTokenThreads)
    policy_loss_kernel(const __grid_constant__ PolicyPlan plan, Array<const float> logprobs, Array<const float> entropy,
                       Array<float> grad_logprobs) {
  struct Shared {
    BlockSlots<PolicySums<double>> slots;
    bool last;
  };
  Shared& shared = fapo::cuda::shared<Shared>();
  const PolicyBatch& batch = plan.batch;

  for (int64_t part = blockIdx.x; part * kTokenThreads < plan.counts.tokens; part += gridDim.x) {
    const int64_t i = part * kTokenThreads + threadIdx.x;
    PolicySums<double> mine;
    if (i < plan.counts.tokens) {
      double grad = 0.0;
      if (plan.counts(i)) {
        const int64_t sequence = plan.sequence_of(i);
        const TokenLoss<double> token = batch.token(i, sequence, plan.bad() ? NAN : logprobs[i]);
        const double weight = plan.weight(sequence);
        mine.add(token, weight, entropy ? static_cast<double>(entropy[i]) : 0.0, batch.entropy_coef);
        grad = token.loss.grad * weight * batch.grad_scale;
      }
      if (grad_logprobs) grad_logprobs[i] = static_cast<float>(grad);
    }
    const PolicySums<double> sums = block_merge(mine, shared.slots);
    if (threadIdx.x == 0) plan.parts[part] = sums;
  }

  if (threadIdx.x == 0) {
    __threadfence();  // the parts are seen by whoever sees the count
    shared.last = atomicAdd(&plan.totals->blocks_done, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!shared.last) return;
  __threadfence();
  // Each thread takes a stretch of parts, so that they merge in order.
  const int64_t parts = (plan.counts.tokens + kTokenThreads - 1) / kTokenThreads;
  const int64_t stretch = (parts + kTokenThreads - 1) / kTokenThreads;
  PolicySums<double> mine;
  for (int64_t p = threadIdx.x * stretch; p < parts && p < (threadIdx.x + 1) * stretch; ++p) mine.merge(plan.parts[p]);
  const PolicySums<double> total = block_merge(mine, shared.slots);
  if (threadIdx.x != 0) return;
  batch.loss[0] = static_cast<float>(total.loss);
  write_metrics(total, static_cast<double>(plan.totals->tokens), batch.metrics.data);
  batch.counts[0] = static_cast<int32_t>(plan.totals->tokens);
  batch.counts[1] = static_cast<int32_t>(plan.totals->sequences);
}

int64_t parts_of(int64_t tokens) { return (tokens + kTokenThreads - 1) / kTokenThreads; }

// A whole launch is worth it from one block on; beyond this many, blocks go round.
int64_t at_most(int64_t blocks, int64_t most) { return blocks < 1 ? 1 : blocks > most ? most : blocks; }

}  // namespace

PolicyPlan plan_policy(Call& call, const PolicyBatch& batch, const CountedTokens& counts) {
  const int64_t sequences = batch.cu_seqlens ? batch.cu_seqlens.size - 1 : 0;
  if (batch.cu_seqlens && sequences == 0 && counts.tokens > 0) {
    throw Error("ERR_INVALID_ARGUMENT", "expected cuSeqlens to end at the number of tokens, got no sequence");
  }
  const auto aligned = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
  const size_t totals = aligned(sizeof(PolicyTotals));
  const size_t lengths = aligned(static_cast<size_t>(sequences) * sizeof(int32_t));
  const size_t parts = static_cast<size_t>(parts_of(counts.tokens)) * sizeof(PolicySums<double>);
  char* memory = static_cast<char*>(call.workspace(totals + lengths + parts, totals));
  const PolicyPlan plan{batch, counts, reinterpret_cast<PolicyTotals*>(memory),
                        reinterpret_cast<int32_t*>(memory + totals),
                        reinterpret_cast<PolicySums<double>*>(memory + totals + lengths)};
  const int64_t blocks = batch.cu_seqlens ? sequences : (counts.tokens + 4 * kCountThreads - 1) / (4 * kCountThreads);
  call.launch(policy_count_kernel, {at_most(blocks, 8192), kCountThreads}, plan, call.faults());
  return plan;
}

void reduce_policy(Call& call, const PolicyPlan& plan, const Array<const float>& logprobs,
                   const Array<const float>& entropy, const Array<float>& grad_logprobs) {
  call.launch(policy_loss_kernel, {at_most(parts_of(plan.counts.tokens), 8192), kTokenThreads}, plan, logprobs, entropy,
              grad_logprobs);
}

void policy_loss(const PolicyLoss& args) {
  Call call(args.device, "policyLoss");
  const CountedTokens counts{args.tokens, args.response_mask, {}, 0};
  const PolicyPlan plan = plan_policy(call, args.batch, counts);
  reduce_policy(call, plan, args.logprobs, {}, args.grad_logprobs);
}

}  // namespace fapo::cuda
