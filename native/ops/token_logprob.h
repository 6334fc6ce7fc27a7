#pragma once
#include "native/math/logit_scale.h"
#include "native/tensor.h"

namespace fapo {

// Rows of logits with one chosen token each: what every op over a vocabulary takes.
struct TokenLogits {
  int32_t device = kCpu;
  Matrix logits;                       // [rows, vocab]
  Array<const int32_t> token_ids;      // [rows]
  Array<const uint8_t> response_mask;  // [rows], optional; 0: the row is ignored
  int64_t rows = 0;
  int64_t vocab = 0;
  LogitScale scale;
  int64_t ignore_index = -100;

  template <typename Visitor>
  void fields(Visitor&& v) {
    v("device", device), v("logits", logits), v("tokenIds", token_ids), v("responseMask", response_mask);
    v("rows", rows), v("vocab", vocab);
    v("temperature", scale.temperature), v("logitSoftcap", scale.softcap), v("ignoreIndex", ignore_index);
  }

  // An ignored row is not read: neither its logits nor, where it is masked, its token id.
  FAPO_HD bool counts(int64_t row) const {
    if (response_mask && load_once(response_mask[row]) == 0) return false;
    return load_once(token_ids[row]) != ignore_index;
  }

  template <typename T>
  FAPO_HD const T* row(int64_t i) const {
    return logits.row<T>(i);
  }
};

// Throws ERR_TOKEN_OUT_OF_RANGE for a counted token outside the vocabulary, and ERR_INTERNAL where sizes disagree.
void check_tokens(const TokenLogits& tokens);

struct TokenLogprob {
  TokenLogits tokens;
  Array<float> logprobs;  // [rows], out
  Array<float> lse;       // [rows], out
  Array<float> entropy;   // [rows], out, optional

  template <typename Visitor>
  void fields(Visitor&& v) {
    v("tokens", tokens);
    v("logprobs", logprobs), v("lse", lse), v("entropy", entropy);
  }
};

void token_logprob(const TokenLogprob& args);

struct TokenLogprobBackward {
  TokenLogits tokens;
  Array<const float> logprobs;       // [rows], of the forward op
  Array<const float> lse;            // [rows], of the forward op
  Array<const float> entropy;        // [rows], of the forward op; optional
  Array<const float> grad_logprobs;  // [rows]
  Array<const float> grad_entropy;   // [rows], optional
  double grad_scale = 1.0;
  bool in_place = false;
  MutableMatrix grad_logits;  // [rows, vocab], dtype of the logits, out; the logits themselves when in_place

  template <typename Visitor>
  void fields(Visitor&& v) {
    v("tokens", tokens);
    v("logprobs", logprobs), v("lse", lse), v("entropy", entropy);
    v("gradLogprobs", grad_logprobs), v("gradEntropy", grad_entropy), v("gradScale", grad_scale);
    v("inPlace", in_place), v("gradLogits", grad_logits);
  }
};

void token_logprob_backward(const TokenLogprobBackward& args);

namespace cpu {
void token_logprob(const TokenLogprob& args);
void token_logprob_backward(const TokenLogprobBackward& args);
}  // namespace cpu

}  // namespace fapo
