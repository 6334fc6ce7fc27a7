#include "native/ops/fapo_penalty.h"

#include <string>

#include "native/backend.h"
#include "native/error.h"

namespace fapo {

void check_verdicts(const FapoPenalty& a) {
  check(a.correct.size == a.sequences && a.flawed.size == a.sequences, "correct.length or flawed.length != sequences");
  check(!a.response_lengths || a.response_lengths.size == a.sequences, "responseLengths.length != sequences");
  check(a.rewards.size == a.sequences && a.fapo_rewards.size == a.sequences, "rewards.length != sequences");
  check(a.valid.size == a.sequences, "valid.length != sequences");
  if (a.device != kCpu) return;  // what lies on a GPU is checked there
  for (int64_t i = 0; i < a.sequences; ++i) {
    const int verdict = load_once(a.flawed[i]);
    if (load_once(a.correct[i]) != 0 && (verdict < -1 || verdict > 1)) {
      throw Error("ERR_INVALID_ARGUMENT", "expected flawed[" + std::to_string(i) +
                                              "] to be 1 (flawed), 0 (sound) or -1 (unknown), got " +
                                              std::to_string(verdict));
    }
    if (!a.response_lengths) continue;
    const int32_t length = load_once(a.response_lengths[i]);
    if (length < 0) {
      throw Error("ERR_INVALID_ARGUMENT", "expected responseLengths[" + std::to_string(i) +
                                              "] to be a number of tokens, got " + std::to_string(length));
    }
  }
}

void fapo_penalty(const FapoPenalty& args) {
  check_verdicts(args);
  backend(args.device).fapo_penalty(args);
}

void cpu::fapo_penalty(const FapoPenalty& args) {
  for (int64_t i = 0; i < args.sequences; ++i) fapo_penalty_sequence(args, i);
}

}  // namespace fapo
