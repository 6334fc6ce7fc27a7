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

void cpu::token_logprob(const TokenLogprob& args) {
  const TokenLogits& tokens = args.tokens;
  const bool entropy = args.entropy.data != nullptr;
  dispatch_float(tokens.logits.dtype, [&]<typename T>() {
    for_each_row<T>(tokens, [&](int64_t i, CpuSoftmaxRow<T>& row) {
      const int64_t target = counted_target(tokens, i);
      if (target == kIgnored) {
        args.logprobs[i] = args.lse[i] = 0.0f;
        if (entropy) args.entropy[i] = 0.0f;
        return;
      }
      row.forward(tokens.row<T>(i), target, entropy);
      args.logprobs[i] = static_cast<float>(row.logprob());
      args.lse[i] = static_cast<float>(row.lse());
      if (entropy) args.entropy[i] = static_cast<float>(row.entropy());
    });
  });
}

void cpu::token_logprob_backward(const TokenLogprobBackward& args) {
  const TokenLogits& tokens = args.tokens;
  dispatch_float(tokens.logits.dtype, [&]<typename T>() {
    const bool streamed = !args.in_place && exceeds_caches<T>(tokens);
    for_each_row<T>(tokens, [&](int64_t i, CpuSoftmaxRow<T>& row) {
      T* out = static_cast<T*>(args.grad_logits.data) + i * args.grad_logits.row_stride;
      const int64_t target = counted_target(tokens, i);
      RowPull pull;
      if (target != kIgnored) {
        pull.logprob = args.grad_scale * args.grad_logprobs[i];
        if (args.grad_entropy) pull.entropy = args.grad_scale * args.grad_entropy[i];
      }
      if (pull.none()) return fill_zero(out, tokens.vocab);
      const T* x = tokens.row<T>(i);
      row.restore(x, target, args.logprobs[i], args.lse[i], args.entropy ? args.entropy[i] : 0.0);
      row.gradient(out, x, target, pull, streamed);
    });
  });
}

}  // namespace fapo
