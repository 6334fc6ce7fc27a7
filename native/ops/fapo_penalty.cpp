#include "native/ops/fapo_penalty.h"

#include <string>

#include "native/error.h"
#include "native/run_on.h"

namespace fapo {

void check_verdicts(const FapoPenalty& a) {
  check(a.correct.size == a.sequences && a.flawed.size == a.sequences, "correct.length or flawed.length != sequences");
  check(!a.response_lengths || a.response_lengths.size == a.sequences, "responseLengths.length != sequences");
  check(a.rewards.size == a.sequences && a.fapo_rewards.size == a.sequences, "rewards.length != sequences");
  check(a.valid.size == a.sequences, "valid.length != sequences");
  // What lies on a GPU is checked there.
  const bool verdicts = a.correct.device == kCpu && a.flawed.device == kCpu;
  const bool lengths = a.response_lengths && a.response_lengths.device == kCpu;
  for (int64_t i = 0; i < a.sequences; ++i) {
    const int verdict = verdicts ? load_once(a.flawed[i]) * (load_once(a.correct[i]) != 0) : 0;
    if (verdict < -1 || verdict > 1) {
      throw Error("ERR_INVALID_ARGUMENT", "expected flawed[" + std::to_string(i) +
                                              "] to be 1 (flawed), 0 (sound) or -1 (unknown), got " +
                                              std::to_string(verdict));
    }
    const int32_t length = lengths ? load_once(a.response_lengths[i]) : 0;
    if (length < 0) {
      throw Error("ERR_INVALID_ARGUMENT", "expected responseLengths[" + std::to_string(i) +
                                              "] to be a number of tokens, got " + std::to_string(length));
    }
  }
}

void fapo_penalty(const FapoPenalty& args) {
  check_verdicts(args);
  run_on(args.device, &Backend::fapo_penalty, args);
}

void cpu::fapo_penalty(const FapoPenalty& args) {
  const FapoPenalty own = args;  // which what is written cannot alias
  for (int64_t i = 0; i < own.sequences; ++i) fapo_penalty_sequence(own, i);
}

}  // namespace fapo
