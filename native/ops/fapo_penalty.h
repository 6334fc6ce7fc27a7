#pragma once
#include "native/math/fapo_penalty.h"
#include "native/tensor.h"

namespace fapo {

struct FapoPenalty {
  int32_t device = kCpu;
  Array<const uint8_t> correct;           // [sequences]
  Array<const int8_t> flawed;             // [sequences]: 1 flawed, 0 sound, -1 unknown
  Array<const int32_t> response_lengths;  // [sequences], optional
  int64_t sequences = 0;
  FapoPenaltyParams params;
  Array<float> rewards;       // [sequences], out
  Array<float> fapo_rewards;  // [sequences], out: without the overlong term
  Array<uint8_t> valid;       // [sequences], out

  template <typename Visitor>
  void fields(Visitor&& v) {
    v("device", device), v("correct", correct), v("flawed", flawed), v("responseLengths", response_lengths);
    v("sequences", sequences);
    v("rewardCorrect", params.reward_correct), v("rewardWrong", params.reward_wrong);
    v("flawedPenalty", params.flawed_penalty), v("unknownVerdict", params.unknown_verdict);
    v("overlongMaxLength", params.overlong_max_length), v("overlongBuffer", params.overlong_buffer);
    v("overlongFactor", params.overlong_factor);
    v("rewards", rewards), v("fapoRewards", fapo_rewards), v("valid", valid);
  }
};

// One response of the op.
FAPO_HD void fapo_penalty_sequence(const FapoPenalty& a, int64_t i) {
  const FapoReward r = fapo_reward(a.correct.data[i] != 0, a.flawed.data[i], a.params);
  a.fapo_rewards.data[i] = static_cast<float>(r.reward);
  const double overlong = a.response_lengths.data ? overlong_penalty(a.response_lengths.data[i], a.params) : 0.0;
  a.rewards.data[i] = static_cast<float>(r.reward + overlong);
  a.valid.data[i] = r.valid;
}

void check_verdicts(const FapoPenalty& args);
void fapo_penalty(const FapoPenalty& args);

namespace cpu {
void fapo_penalty(const FapoPenalty& args);
}  // namespace cpu

}  // namespace fapo
