// Three launches: count the batch, all rows, reduce. A row is read once and kept in the shared memory of a cluster of
// blocks until its gradient is known: in a ring of tiles (row_ring.cuh), or, where rows are misaligned or capped, as it
// is. Where it does not fit, it is read again.
#include "cuda/library.h"
#include "cuda/policy_plan.cuh"
#include "cuda/row_ring.cuh"
#include "native/dispatch.h"

namespace fapo::cuda {
namespace {

// What the loss of a row's token takes, but the row: fetched while the row is being summed up.
struct RowToken {
  int64_t row;
  Target target;
  PolicyBatch::Token inputs;
  double weight;
};

FAPO_DEVICE_NOINLINE RowToken token_of(const FusedPolicyLoss& args, const PolicyPlan& plan, int64_t row,
                                       const Target& target) {
  const int64_t sequence = plan.sequence_of(row);
  return {row, target, args.batch.inputs(row, sequence), plan.weight(sequence) * args.batch.grad_scale};
}

// From the sums of a row to its outputs and to what its gradient is made of. `map` is used under a cap alone.
FAPO_DEVICE_NOINLINE RowOutcome outcome_of(const FusedPolicyLoss& args, const RowToken& token, float target_logit,
                                           const FinishedRow& finished, const ExpMap& map, bool writes) {
  const LogitScale& scale = args.tokens.scale;
  const SoftmaxRow& row = finished.row;
  const bool bad = token.target.kind == Token::bad;
  const double logprob = bad ? NAN : row.logprob();
  const double entropy = args.entropy ? row.entropy() : 0.0;
  if (writes) {
    args.logprobs[token.row] = static_cast<float>(logprob);
    args.lse[token.row] = bad ? NAN : static_cast<float>(row.lse());
    if (args.entropy) args.entropy[token.row] = bad ? NAN : static_cast<float>(entropy);
  }
  const double grad = args.batch.token(token.inputs, static_cast<float>(logprob)).loss.grad;
  const RowPull pull{token.weight * grad, -token.weight * args.batch.entropy_coef};
  RowOutcome outcome{pull.none(), {}};
  if (outcome.zero) return outcome;
  outcome.factors = RowFactors::from(scale.capped() ? map : ExpMap::from(scale, finished.reference), pull,
                                     row.log2_sum(), logprob, entropy, scale, token.target.id, target_logit);
  return outcome;
}

template <typename T>
struct FusedOp {
  static constexpr bool kSums = true, kWrites = true;
  using Inputs = RowToken;
  FusedPolicyLoss args;
  PolicyPlan plan;
  Faults faults;

  FAPO_HD const TokenLogits& tokens() const { return args.tokens; }
  FAPO_DEVICE bool loads(int64_t i) const { return target_of(args.tokens, i).kind != Token::ignored; }
  FAPO_DEVICE void skip(int64_t i) const {
    args.logprobs[i] = args.lse[i] = 0.0f;
    if (args.entropy) args.entropy[i] = 0.0f;
  }
  FAPO_DEVICE T* out(int64_t i) const { return args.grad_logits.row<T>(i); }
  FAPO_DEVICE Inputs fetch(int64_t i, float& target_logit) const {
    const Target target = target_of(args.tokens, i);
    if (target.kind == Token::bad) faults.report(Fault::token_id, i);
    target_logit = widen(args.tokens.row<T>(i)[target.id]);
    return token_of(args, plan, i, target);
  }
  FAPO_DEVICE RowOutcome finish(int64_t, const Inputs& token, float target_logit, const FinishedRow& row,
                                bool writes) const {
    return outcome_of(args, token, target_logit, row, ExpMap{}, writes);
  }
};

struct FusedShared {
  RowShared row;
  RowOutcome outcome;
};

// on_chip: the row stays in dynamic shared memory from the first pass on.
template <typename T, bool kEntropy, bool kCapped>
__global__ void __launch_bounds__(kMaxRowThreads, 3)
    fused_policy_loss_kernel(const __grid_constant__ FusedOp<T> op, RowShape shape, bool on_chip) {
  FusedShared& shared = fapo::cuda::shared<FusedShared>();
  uint4* kept = on_chip ? dynamic_shared<uint4>() : nullptr;
  const TokenLogits& tokens = op.tokens();
  const unsigned rank = cluster_rank(), ranks = cluster_size();

  for (int64_t i = blockIdx.x / ranks; i < tokens.rows; i += gridDim.x / ranks) {
    const RowWriter<T> writer(op.out(i), tokens.vocab);
    const RowReader<T> reader(tokens.row<T>(i), tokens.vocab);
    if (!op.loads(i)) {
      if (rank == 0 && threadIdx.x == 0) op.skip(i);
      writer.fill_zero(reader.packs(), rank, ranks);
      continue;
    }

    // A block has one segment. Its threads keep to their own packs, so no barrier is needed between the passes.
    const Segments segments(reader.packs(), shape.segments);
    const int segment = static_cast<int>(rank);
    const int64_t first = segments.begin(segment);
    const auto fetch = [&](int64_t p, int64_t step, int64_t end, uint4(&raw)[kBatch]) {
      reader.load(p, step, end, raw);
      if (!on_chip) return;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (p + j * step < end) kept[p + j * step - first] = raw[j];
      }
    };
    const auto recall = [&](int64_t p, int64_t step, int64_t end, uint4(&raw)[kBatch]) {
      if (!on_chip) return reader.load(p, step, end, raw);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        raw[j] = p + j * step < end ? kept[p + j * step - first] : RowReader<T>::nothing();
      }
    };

    // Before anyone overwrites the target: all blocks wait for each other before the second pass.
    float target_logit = 0.0f;
    RowToken token{};
    if (threadIdx.x == 0) token = op.fetch(i, target_logit);
    target_logit = __shfl_sync(kAllLanes, target_logit, 0);

    ExpMap map{};
    if constexpr (kCapped) {
      const float top = row_max<T>(segments, fetch, shared.row);
      if (threadIdx.x == 0) shared.row.map = capped_map(tokens, top);
      __syncthreads();
      map = shared.row.map;
      sum_segments<T, kEntropy, kCapped>(segments, recall, map, tokens.scale, shared.row);
    } else {
      map.scale = static_cast<float>(kLog2E / tokens.scale.temperature);
      sum_segments<T, kEntropy, kCapped>(segments, fetch, map, tokens.scale, shared.row);
    }
    row_barrier(ranks);

    // Every block comes to the same numbers by itself.
    if (warp_index() == 0) {
      const FinishedRow finished = finish_row(segments, shared.row, tokens.scale, target_logit);
      if (lane_index() == 0) shared.outcome = outcome_of(op.args, token, target_logit, finished, map, rank == 0);
    }
    __syncthreads();
    const RowOutcome outcome = shared.outcome;
    if (outcome.zero) {
      writer.fill_zero(reader.packs(), rank, ranks);
    } else {
      segments.for_batches_of(segment, recall, [&](const uint4(&raw)[kBatch], int64_t p, int64_t step, int64_t end) {
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          if (p + j * step < end) {
            writer.store(p + j * step, gradient_of<T, kCapped>(raw[j], p + j * step, outcome.factors));
          }
        }
      });
    }
    row_barrier(ranks);  // the sums and the outcome have been read
  }
}

// How a row stays on chip: `slots` tiles of room in each block of the cluster.
struct Room {
  unsigned cluster = 1;
  int slots = 0;  // 0: none is large enough
};

// The smallest cluster of which two blocks fit on a multiprocessor, with a slot to load ahead; failing that, the
// smallest that holds the row. A function of the vocabulary and the GPU alone, as a row's result depends on it.
Room room_for(int64_t tiles, const Limits& limits) {
  const int alone = most_slots(limits);
  const unsigned largest = limits.compute_major >= 9 ? kMaxSegments : 1;
  for (const int slots : {alone / 2, alone}) {
    for (unsigned cluster = 1; cluster <= largest; cluster *= 2) {
      // Each block has a tile: what a ring sums up is told at the end of one.
      if (cluster <= tiles && (tiles + cluster - 1) / cluster < slots) return {cluster, slots};
    }
  }
  return {};
}

template <typename T>
void launch_rows(Call& call, const FusedPolicyLoss& args, const PolicyPlan& plan) {
  const TokenLogits& tokens = args.tokens;
  const FusedOp<T> op{args, plan, call.faults()};
  const int64_t packs = packs_of<T>(tokens.vocab);
  const bool entropy = args.entropy.data != nullptr, capped = tokens.scale.capped();
  Room room = room_for(tiles_of(packs), call.limits());
  const auto segments = static_cast<int>(room.cluster);

  if (room.slots > 0 && call.limits().compute_major >= 9 && !capped && RowShape::of(packs).fills_block() &&
      ring_aligned(tokens.logits, sizeof(T)) && ring_aligned(args.grad_logits, sizeof(T))) {
    const RingShape ring{room.slots, segments, room.cluster};
    if (entropy ? launch_ring<T, FusedOp<T>, true>(call, op, ring)
                : launch_ring<T, FusedOp<T>, false>(call, op, ring)) {
      return;
    }
  }
  const auto kernel = entropy
                          ? capped ? fused_policy_loss_kernel<T, true, true> : fused_policy_loss_kernel<T, true, false>
                      : capped ? fused_policy_loss_kernel<T, false, true>
                               : fused_policy_loss_kernel<T, false, false>;
  RowShape shape = RowShape::of(packs, segments, room.cluster);
  const int64_t part = (tiles_of(packs) + room.cluster - 1) / room.cluster * kTilePacks;
  const int64_t kept = room.slots == 0 ? 0 : (packs < part ? packs : part) * static_cast<int64_t>(sizeof(uint4));
  LaunchShape launch{row_blocks(tokens.rows, shape.cluster), shape.threads, shape.cluster, static_cast<size_t>(kept)};
  if (shape.cluster > 1 && call.max_active_clusters(reinterpret_cast<const void*>(kernel), launch) < 1) {
    shape = RowShape::of(packs);
    launch = {row_blocks(tokens.rows, 1), shape.threads};
  }
  call.launch(kernel, launch, op, shape, launch.dynamic_shared > 0);
}

}  // namespace

void fused_policy_loss(const FusedPolicyLoss& args) {
  const TokenLogits& tokens = args.tokens;
  Call call(tokens.device, "fusedPolicyLoss");
  const PolicyPlan plan =
      plan_policy(call, args.batch, {tokens.rows, tokens.response_mask, tokens.token_ids, tokens.ignore_index});
  dispatch_float(tokens.logits.dtype, [&]<typename T>() { launch_rows<T>(call, args, plan); });
  reduce_policy(call, plan, {args.logprobs.data, args.logprobs.size, args.logprobs.device},
                {args.entropy.data, args.entropy.size, args.entropy.device}, {});
}

}  // namespace fapo::cuda
