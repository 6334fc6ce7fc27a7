#pragma once
#include "cuda/device.cuh"
#include "cuda/device.h"
#include "native/ops/fapo_penalty.h"

namespace fapo::cuda {

// One response. What the CPU refuses beforehand is NaN here, and reported.
FAPO_DEVICE void penalise(const FapoPenalty& a, int64_t i, const Faults& faults) {
  fapo_penalty_sequence(a, i);
  const bool bad_verdict = a.correct[i] != 0 && (a.flawed[i] < -1 || a.flawed[i] > 1);
  const bool bad_length = a.response_lengths && a.response_lengths[i] < 0;
  if (bad_verdict) faults.report(Fault::verdict, i);
  if (bad_length) faults.report(Fault::response_length, i);
  if (bad_verdict) a.fapo_rewards[i] = NAN;
  if (bad_verdict || bad_length) a.rewards[i] = NAN;
}

}  // namespace fapo::cuda
