#pragma once
// The reward of one response: FAPO (arXiv 2510.22543) eq. 8, and DAPO's overlong penalty (2503.14476) eq. 13.
#include "native/math/host_device.h"

namespace fapo {

enum class UnknownVerdict : int32_t { sound, flawed, exclude };

struct FapoPenaltyParams {
  double reward_correct = 1.0;
  double reward_wrong = -1.0;
  double flawed_penalty = 1.0;  // lambda
  UnknownVerdict unknown_verdict = UnknownVerdict::sound;
  double overlong_max_length = 0.0;
  double overlong_buffer = 0.0;  // 0: no overlong penalty
  double overlong_factor = 1.0;
};

struct FapoReward {
  double reward;
  bool valid;
};

// `flawed`: 1 flawed, 0 sound, -1 unknown; of no effect where the answer is wrong. No branches: verdicts are random.
FAPO_HD FapoReward fapo_reward(bool correct, int flawed, const FapoPenaltyParams& p) {
  const bool unknown = flawed < 0;
  const bool penalised = (flawed > 0) | (unknown & (p.unknown_verdict == UnknownVerdict::flawed));
  const bool excluded = correct & unknown & (p.unknown_verdict == UnknownVerdict::exclude);
  const double of_right = p.reward_correct - choose(penalised, p.flawed_penalty, 0.0);
  return {choose(correct, of_right, p.reward_wrong), !excluded};
}

// min(-(length - (max_length - buffer)) / buffer * factor, 0); not clamped below, as in verl.
FAPO_HD double overlong_penalty(double length, const FapoPenaltyParams& p) {
  if (p.overlong_buffer == 0.0) return 0.0;
  const double excess = length - (p.overlong_max_length - p.overlong_buffer);
  return excess > 0.0 ? -excess / p.overlong_buffer * p.overlong_factor : 0.0;
}

}  // namespace fapo
