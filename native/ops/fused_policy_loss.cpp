#include "native/ops/fused_policy_loss.h"

#include <type_traits>
#include <utility>

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

namespace {

// What a row needs besides the arguments.
struct Fused {
  const FusedPolicyLoss& args;
  const PolicyPlan& plan;
};

// A pass for the log-prob, from which the loss and its pull come, and a pass for the gradient; where there is something
// to gain, that pass is also the first one of the next row.
template <typename T>
class ForwardBackward {
  using Row = CpuSoftmaxRow<T>;

 public:
  static constexpr int kPasses = 2;

  ForwardBackward(const Fused& fused, const RowParts& parts)
      : args_(fused.args),
        plan_(fused.plan),
        parts_(parts),
        rows_{Row(args_.tokens.scale, parts), Row(args_.tokens.scale, parts)} {}

  void start(int64_t i, bool more) {
    i_ = i;
    x_ = args_.tokens.row<T>(i);
    out_ = args_.grad_logits.row<T>(i);
    measured_ = std::exchange(next_measured_, false);
    target_ = measured_ ? next_target_ : counted_target(args_.tokens, i);
    if (target_ != kIgnored && !measured_) row_at(i).start(x_, target_);
    next_target_ = more && streamed_ && (beside_ || asks_) ? counted_target(args_.tokens, i + 1) : kIgnored;
    next_x_ = next_target_ == kIgnored ? nullptr : args_.tokens.row<T>(i + 1);
  }

  void parts(int pass, int64_t first, int64_t last) {
    if (pass == 0) {
      if (target_ != kIgnored && !measured_) measure(first, last);
    } else if (!row_at(i_).pulled()) {
      fill_zero(out_, parts_, first, last, target_ == kIgnored ? worth_streaming_ : streamed_);
    } else {
      gradient(first, last);
    }
  }

  void end(int pass) {
    if (pass != 0) {
      if (!next_measured_) prefetch_row<T>(args_.tokens, i_ + 1);
      return;
    }
    if (target_ == kIgnored) {
      args_.logprobs[i_] = args_.lse[i_] = 0.0f;
      if (entropy_) args_.entropy[i_] = 0.0f;
      return row_at(i_).pull({});
    }
    Row& row = row_at(i_);
    row.finish(entropy_);
    args_.logprobs[i_] = static_cast<float>(row.logprob());
    args_.lse[i_] = static_cast<float>(row.lse());
    if (entropy_) args_.entropy[i_] = static_cast<float>(row.entropy());
    const PolicyBatch& batch = args_.batch;
    const int64_t sequence = plan_.sequence_of(i_);
    const double weight = plan_.weight(sequence) * batch.grad_scale;
    row.pull({weight * batch.token(i_, sequence, args_.logprobs[i_]).loss.grad, -weight * batch.entropy_coef});
    if (next_x_ != nullptr) __builtin_prefetch(next_x_ + next_target_);
  }

 private:
  // This row, or the next one.
  Row& row_at(int64_t i) { return rows_[i % 2]; }

  void measure(int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      if constexpr (std::is_same_v<T, float>) {
        if (keeps_powers_) {
          row_at(i_).measure_in_place(out_, part);
          continue;
        }
      }
      row_at(i_).measure(x_, part, entropy_);
    }
  }

  void gradient(int64_t first, int64_t last) {
    if constexpr (std::is_same_v<T, float>) {
      if (keeps_powers_) return row_at(i_).scale_in_place(out_, first, last);
    }
    if (beside_ && next_x_ != nullptr) {
      next_measured_ = true;
      row_at(i_ + 1).start(next_x_, next_target_);
      return row_at(i_).gradient_and_measure(out_, x_, row_at(i_ + 1), next_x_);
    }
    // Storing past the caches leaves time to read: as much of the next row as this pass has done of this one.
    row_at(i_).gradient(out_, x_, first, last, {streamed_, next_x_});
  }

  const FusedPolicyLoss& args_;
  const PolicyPlan& plan_;
  const bool entropy_ = args_.entropy.data != nullptr;
  const bool worth_streaming_ = worth_streaming<T>(args_.tokens);
  const bool streamed_ = worth_streaming_ && !args_.in_place;
  const bool beside_ = Row::can_measure_beside(args_.tokens.scale, entropy_);
  const bool asks_ = asking().streamed_ahead > 0 && asking().ahead > 0;
  // A float32 row that is overwritten anyway keeps its powers in the first pass, and the second only scales them.
  const bool keeps_powers_ = std::is_same_v<T, float> && args_.in_place && !entropy_ && !args_.tokens.scale.capped();
  const RowParts parts_;
  Row rows_[2];
  int64_t i_ = 0;
  int64_t target_ = kIgnored;
  const T* x_ = nullptr;
  T* out_ = nullptr;
  bool measured_ = false;  // by the pass of the row before
  // The next row, where this one's second pass measures it or asks for it.
  int64_t next_target_ = kIgnored;
  const T* next_x_ = nullptr;
  bool next_measured_ = false;
};

}  // namespace

void cpu::fused_policy_loss(const FusedPolicyLoss& args) {
  const TokenLogits& tokens = args.tokens;
  const auto counts = [&](int64_t i) { return counted_target(tokens, i) != kIgnored; };
  const PolicyPlan plan(args.batch, tokens.rows, counts);
  dispatch_float(tokens.logits.dtype, [&]<typename T>() {
    for_each_row<ForwardBackward<T>>(Fused{args, plan}, tokens);
  });
  plan.reduce(counts, {args.logprobs.data, tokens.rows}, {args.entropy.data, args.entropy.size}, {});
}

}  // namespace fapo
