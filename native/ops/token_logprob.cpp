#include "native/ops/token_logprob.h"

#include <string>

#include "native/dispatch.h"
#include "native/parallel.h"
#include "native/run_on.h"
#include "native/simd/row_loop.h"
#include "native/simd/row_softmax.h"

namespace fapo {

void check_tokens(const TokenLogits& t) {
  check(t.rows >= 0 && t.vocab >= 1, "vocab < 1");
  check(holds(t.logits, t.rows, t.vocab), "logits do not hold [rows, vocab]");
  check(t.token_ids.size == t.rows, "tokenIds.length != rows");
  check(!t.response_mask || t.response_mask.size == t.rows, "responseMask.length != rows");
  // What lies on a GPU is checked there.
  if (t.token_ids.device != kCpu || t.response_mask.device != kCpu) return;
  for (int64_t i = 0; i < t.rows; ++i) {
    if (!t.counts(i)) continue;
    const int32_t id = load_once(t.token_ids[i]);
    if (id >= 0 && id < t.vocab) continue;
    throw Error("ERR_TOKEN_OUT_OF_RANGE", "expected tokenIds[" + std::to_string(i) + "] to be in 0.." +
                                              std::to_string(t.vocab - 1) + " or ignoreIndex (" +
                                              std::to_string(t.ignore_index) + "), got " + std::to_string(id));
  }
}

void token_logprob(const TokenLogprob& args) {
  check_tokens(args.tokens);
  const int64_t rows = args.tokens.rows;
  check(args.logprobs.size == rows && args.lse.size == rows, "logprobs.length or lse.length != rows");
  check(!args.entropy || args.entropy.size == rows, "entropy.length != rows");
  run_on(args.tokens.device, &Backend::token_logprob, args);
}

void token_logprob_backward(const TokenLogprobBackward& args) {
  check_tokens(args.tokens);
  const int64_t rows = args.tokens.rows;
  check(args.logprobs.size == rows && args.lse.size == rows, "logprobs.length or lse.length != rows");
  check(args.grad_logprobs.size == rows, "gradLogprobs.length != rows");
  check(!args.grad_entropy || args.grad_entropy.size == rows, "gradEntropy.length != rows");
  check(!args.entropy || args.entropy.size == rows, "entropy.length != rows");
  check(!args.grad_entropy || args.entropy || rows == 0, "gradEntropy without entropy");
  check(holds(args.grad_logits, rows, args.tokens.vocab), "gradLogits do not hold [rows, vocab]");
  check(args.grad_logits.dtype == args.tokens.logits.dtype, "gradLogits.dtype != logits.dtype");
  run_on(args.tokens.device, &Backend::token_logprob_backward, args);
}

namespace {

template <typename T>
class Forward {
 public:
  static constexpr int kPasses = 1;

  Forward(const TokenLogprob& args, const RowParts& parts) : args_(args), row_(args.tokens.scale, parts) {}

  void start(int64_t i, bool) {
    i_ = i;
    target_ = counted_target(args_.tokens, i);
    x_ = args_.tokens.row<T>(i);
    if (target_ != kIgnored) row_.start(x_, target_);
  }

  void parts(int, int64_t first, int64_t last) {
    if (target_ == kIgnored) return;
    for (int64_t part = first; part < last; ++part) row_.measure(x_, part, entropy_);
  }

  void end(int) {
    prefetch_row<T>(args_.tokens, i_ + 1);
    const bool counts = target_ != kIgnored;
    if (counts) row_.finish(entropy_);
    args_.logprobs[i_] = counts ? static_cast<float>(row_.logprob()) : 0.0f;
    args_.lse[i_] = counts ? static_cast<float>(row_.lse()) : 0.0f;
    if (entropy_) args_.entropy[i_] = counts ? static_cast<float>(row_.entropy()) : 0.0f;
  }

 private:
  const TokenLogprob& args_;
  const bool entropy_ = args_.entropy.data != nullptr;
  CpuSoftmaxRow<T> row_;
  int64_t i_ = 0;
  int64_t target_ = kIgnored;
  const T* x_ = nullptr;
};

template <typename T>
class Backward {
 public:
  static constexpr int kPasses = 1;

  Backward(const TokenLogprobBackward& args, const RowParts& parts)
      : args_(args), parts_(parts), row_(args.tokens.scale, parts) {}

  void start(int64_t i, bool) {
    i_ = i;
    x_ = args_.tokens.row<T>(i);
    out_ = args_.grad_logits.row<T>(i);
    const int64_t target = counted_target(args_.tokens, i);
    RowPull pull;
    if (target != kIgnored) {
      pull.logprob = args_.grad_scale * args_.grad_logprobs[i];
      if (args_.grad_entropy) pull.entropy = args_.grad_scale * args_.grad_entropy[i];
    }
    if (!pull.none()) row_.restore(x_, target, args_.logprobs[i], args_.lse[i], args_.entropy ? args_.entropy[i] : 0.0);
    row_.pull(pull);
  }

  void parts(int, int64_t first, int64_t last) {
    if (!row_.pulled()) return fill_zero(out_, parts_, first, last, worth_streaming_);
    row_.gradient(out_, x_, first, last, {.streamed = worth_streaming_ && !args_.in_place});
  }

  void end(int) { prefetch_row<T>(args_.tokens, i_ + 1); }

 private:
  const TokenLogprobBackward& args_;
  const bool worth_streaming_ = worth_streaming<T>(args_.tokens);
  const RowParts parts_;
  CpuSoftmaxRow<T> row_;
  int64_t i_ = 0;
  const T* x_ = nullptr;
  T* out_ = nullptr;
};

}  // namespace

void cpu::token_logprob(const TokenLogprob& args) {
  dispatch_float(args.tokens.logits.dtype, [&]<typename T>() { for_each_row<Forward<T>>(args, args.tokens); });
}

void cpu::token_logprob_backward(const TokenLogprobBackward& args) {
  dispatch_float(args.tokens.logits.dtype, [&]<typename T>() { for_each_row<Backward<T>>(args, args.tokens); });
}

}  // namespace fapo
