// Forward: one cluster of blocks per row, most often of one block; a row of many packs is cut into segments, so that
// few rows can be spread over more blocks without changing a bit. Backward: blocks share a row, as many as fill the
// GPU.
#include "cuda/library.h"
#include "cuda/row_ring.cuh"
#include "native/dispatch.h"

namespace fapo::cuda {
namespace {

constexpr int kRowSegments = 4;  // of a row of at least twice as many tiles

FAPO_DEVICE void write_row(const TokenLogprob& args, int64_t i, float logprob, float lse, float entropy) {
  args.logprobs[i] = logprob;
  args.lse[i] = lse;
  if (args.entropy) args.entropy[i] = entropy;
}

// A row that is not read.
FAPO_DEVICE void write_unread(const TokenLogprob& args, int64_t i, const Faults& faults) {
  const bool ignored = target_of(args.tokens, i).kind == Token::ignored;
  if (!ignored) faults.report(Fault::token_id, i);
  const float value = ignored ? 0.0f : NAN;
  write_row(args, i, value, value, value);
}

FAPO_DEVICE_NOINLINE void write_finished(const TokenLogprob& args, int64_t i, const SoftmaxRow& row) {
  write_row(args, i, static_cast<float>(row.logprob()), static_cast<float>(row.lse()),
            args.entropy ? static_cast<float>(row.entropy()) : 0.0f);
}

template <typename T>
struct ForwardOp {
  static constexpr bool kSums = true, kWrites = false;
  struct Inputs {};
  TokenLogprob args;
  Faults faults;

  FAPO_HD const TokenLogits& tokens() const { return args.tokens; }
  FAPO_DEVICE bool loads(int64_t i) const { return target_of(args.tokens, i).kind == Token::counted; }
  FAPO_DEVICE void skip(int64_t i) const { write_unread(args, i, faults); }
  FAPO_DEVICE T* out(int64_t) const { return nullptr; }
  FAPO_DEVICE Inputs fetch(int64_t i, float& target_logit) const {
    target_logit = widen(args.tokens.row<T>(i)[args.tokens.token_ids[i]]);
    return {};
  }
  FAPO_DEVICE RowOutcome finish(int64_t i, const Inputs&, float, const FinishedRow& finished, bool writes) const {
    if (writes) write_finished(args, i, finished.row);
    return {};
  }
};

template <typename T, bool kEntropy, bool kCapped>
__global__ void __launch_bounds__(kMaxRowThreads, 4)
    token_logprob_kernel(const __grid_constant__ TokenLogprob args, RowShape shape, Faults faults) {
  RowShared& shared = fapo::cuda::shared<RowShared>();
  const TokenLogits& tokens = args.tokens;
  const unsigned ranks = cluster_size();

  for (int64_t i = blockIdx.x / ranks; i < tokens.rows; i += gridDim.x / ranks) {
    const Target target = target_of(tokens, i);
    const bool writes = cluster_rank() == 0 && threadIdx.x == 0;
    if (target.kind != Token::counted) {
      if (writes) write_unread(args, i, faults);
      continue;
    }

    const T* row = tokens.row<T>(i);
    const RowReader<T> reader(row, tokens.vocab);
    const Segments segments(reader.packs(), shape.segments);
    const auto load = [&](int64_t p, int64_t step, int64_t end, uint4(&raw)[kBatch]) {
      reader.load(p, step, end, raw);
    };
    const float target_logit = widen(row[target.id]);
    ExpMap map;
    if constexpr (kCapped) {
      const float top = row_max<T>(segments, load, shared);
      if (threadIdx.x == 0) shared.map = capped_map(tokens, top);
      __syncthreads();
      map = shared.map;
    } else {
      map.scale = static_cast<float>(kLog2E / tokens.scale.temperature);
    }
    sum_segments<T, kEntropy, kCapped>(segments, load, map, tokens.scale, shared);
    row_barrier(ranks);
    if (cluster_rank() == 0 && warp_index() == 0) {
      const SoftmaxRow result = finish_row(segments, shared, tokens.scale, target_logit).row;
      if (lane_index() == 0) write_finished(args, i, result);
    }
    row_barrier(ranks);  // the sums have been read, here and from other blocks
  }
}

// What the gradient of a row pulls on. A row with a bad token is NaN: its pull is not none.
FAPO_DEVICE RowPull pull_of(const TokenLogprobBackward& args, int64_t i, const Target& target) {
  if (target.kind == Token::ignored) return {};
  if (target.kind == Token::bad) return {NAN, NAN};
  return {args.grad_scale * args.grad_logprobs[i], args.grad_entropy ? args.grad_scale * args.grad_entropy[i] : 0.0};
}

// `reference`: of the row, where it cannot be told from the saved outputs.
FAPO_DEVICE_NOINLINE RowOutcome outcome_of(const TokenLogprobBackward& args, int64_t i, float target_logit,
                                           double reference) {
  const LogitScale& scale = args.tokens.scale;
  const Target target = target_of(args.tokens, i);
  const double logprob = args.logprobs[i], lse = args.lse[i];
  const float rounded = well_placed(scale, static_cast<float>(reference));
  const double log2_sum = restored_log2_sum(scale, rounded, target_logit, logprob, lse);
  const double entropy = args.entropy ? static_cast<double>(args.entropy[i]) : 0.0;
  return {false, RowFactors::from(ExpMap::from(scale, rounded), pull_of(args, i, target), log2_sum, logprob, entropy,
                                  scale, target.id, target_logit)};
}

template <typename T>
struct BackwardOp {
  static constexpr bool kSums = false, kWrites = true;
  struct Inputs {};
  TokenLogprobBackward args;
  Faults faults;

  FAPO_HD const TokenLogits& tokens() const { return args.tokens; }
  FAPO_DEVICE bool loads(int64_t i) const { return !pull_of(args, i, target_of(args.tokens, i)).none(); }
  FAPO_DEVICE void skip(int64_t) const {}
  FAPO_DEVICE T* out(int64_t i) const { return args.grad_logits.row<T>(i); }
  FAPO_DEVICE Inputs fetch(int64_t i, float& target_logit) const {
    const Target target = target_of(args.tokens, i);
    if (target.kind == Token::bad) faults.report(Fault::token_id, i);
    target_logit = widen(args.tokens.row<T>(i)[target.id]);
    return {};
  }
  FAPO_DEVICE RowOutcome finish(int64_t i, const Inputs&, float target_logit, const FinishedRow&, bool) const {
    return outcome_of(args, i, target_logit,
                      restored_reference(args.tokens.scale, target_logit, args.logprobs[i], args.lse[i]));
  }
};

// Block blockIdx.x works on part blockIdx.x % parts of row blockIdx.x / parts.
template <typename T, bool kCapped>
__global__ void __launch_bounds__(kMaxRowThreads, 4)
    token_logprob_backward_kernel(const __grid_constant__ BackwardOp<T> op, unsigned parts) {
  struct Shared {
    RowShared row;
    RowOutcome outcome;
  };
  Shared& shared = fapo::cuda::shared<Shared>();
  const TokenLogits& tokens = op.tokens();
  const unsigned part = blockIdx.x % parts;
  const int64_t packs = (tokens.vocab + kPackSize<T> - 1) / kPackSize<T>;

  for (int64_t i = blockIdx.x / parts; i < tokens.rows; i += gridDim.x / parts) {
    const RowWriter<T> writer(op.out(i), tokens.vocab);
    if (!op.loads(i)) {
      writer.fill_zero(packs, part, parts);
      continue;
    }
    const RowReader<T> reader(tokens.row<T>(i), tokens.vocab);
    const auto load = [&](int64_t p, int64_t step, int64_t end, uint4(&raw)[kBatch]) {
      reader.load(p, step, end, raw);
    };
    float target_logit = 0.0f;
    double reference = 0.0;
    if (threadIdx.x == 0) {
      op.fetch(i, target_logit);
      reference = restored_reference(tokens.scale, target_logit, op.args.logprobs[i], op.args.lse[i]);
    }
    if constexpr (kCapped) {
      // Under a cap the row may have to be measured from its maximum.
      if (__syncthreads_or(reference != reference)) {
        const float top = row_max<T>(Segments(packs, 1), load, shared.row);
        if (reference != reference) reference = top;
      }
    }
    if (threadIdx.x == 0) shared.outcome = outcome_of(op.args, i, target_logit, reference);
    __syncthreads();
    const RowFactors factors = shared.outcome.factors;
    const int64_t step = int64_t{parts} * blockDim.x;
    for (int64_t p = int64_t{part} * blockDim.x + threadIdx.x; p < packs; p += kBatch * step) {
      uint4 raw[kBatch];
      load(p, step, packs, raw);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (p + j * step < packs) writer.store(p + j * step, gradient_of<T, kCapped>(raw[j], p + j * step, factors));
      }
    }
    __syncthreads();  // the factors have been read
  }
}

// Slots for two blocks on a multiprocessor, or where 6 are too many for a block, as many as it has room for.
int stream_slots(const Limits& limits) {
  const int most = most_slots(limits);
  return most < 6 ? most : 6;
}

// Too few rows to give each of the ring's blocks, two on a multiprocessor, one.
bool few(const TokenLogits& tokens, const Limits& limits) { return tokens.rows < 2 * limits.multiprocessors; }

template <typename T>
bool suits_ring(const TokenLogits& tokens, const Limits& limits) {
  return limits.compute_major >= 9 && !tokens.scale.capped() && RowShape::of(packs_of<T>(tokens.vocab)).fills_block() &&
         ring_aligned(tokens.logits, sizeof(T)) && !few(tokens, limits);
}

}  // namespace

void token_logprob(const TokenLogprob& args) {
  const TokenLogits& tokens = args.tokens;
  Call call(tokens.device, "tokenLogprob");
  dispatch_float(tokens.logits.dtype, [&]<typename T>() {
    const int64_t packs = packs_of<T>(tokens.vocab);
    const int segments = tiles_of(packs) >= 2 * kRowSegments ? kRowSegments : 1;
    const bool entropy = args.entropy.data != nullptr, capped = tokens.scale.capped();
    if (suits_ring<T>(tokens, call.limits())) {
      const ForwardOp<T> op{args, call.faults()};
      const RingShape ring{stream_slots(call.limits()), segments, 1};
      if (entropy ? launch_ring<T, ForwardOp<T>, true>(call, op, ring)
                  : launch_ring<T, ForwardOp<T>, false>(call, op, ring)) {
        return;
      }
    }
    const bool spread = few(tokens, call.limits()) && call.limits().compute_major >= 9;
    const RowShape shape = RowShape::of(packs, segments, spread ? static_cast<unsigned>(segments) : 1);
    const auto kernel = entropy  ? capped ? token_logprob_kernel<T, true, true> : token_logprob_kernel<T, true, false>
                         : capped ? token_logprob_kernel<T, false, true>
                                 : token_logprob_kernel<T, false, false>;
    call.launch(kernel, {row_blocks(tokens.rows, shape.cluster), shape.threads, shape.cluster}, args, shape,
                call.faults());
  });
}

void token_logprob_backward(const TokenLogprobBackward& args) {
  const TokenLogits& tokens = args.tokens;
  Call call(tokens.device, "tokenLogprobBackward");
  dispatch_float(tokens.logits.dtype, [&]<typename T>() {
    const BackwardOp<T> op{args, call.faults()};
    if (suits_ring<T>(tokens, call.limits()) && ring_aligned(args.grad_logits, sizeof(T)) &&
        launch_ring<T, BackwardOp<T>, false>(call, op, {stream_slots(call.limits()), 1, 1})) {
      return;
    }
    const int64_t packs = packs_of<T>(tokens.vocab);
    const RowShape shape = RowShape::of(packs);
    // As many blocks for a row as fill the GPU; in place one, which has read the target before it is overwritten.
    int64_t parts = args.in_place ? 1 : 8 * call.limits().multiprocessors / (tokens.rows > 0 ? tokens.rows : 1);
    const int64_t most = packs / (shape.threads * kBatch);
    parts = parts < 1 || most < 1 ? 1 : parts < most ? parts : most;
    const auto kernel =
        tokens.scale.capped() ? token_logprob_backward_kernel<T, true> : token_logprob_backward_kernel<T, false>;
    call.launch(kernel, {row_blocks(tokens.rows, static_cast<unsigned>(parts)), shape.threads}, op,
                static_cast<unsigned>(parts));
  });
}

}  // namespace fapo::cuda
