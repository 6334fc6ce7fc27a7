#pragma once
#include "native/ops/fapo_penalty.h"
#include "native/ops/group_advantage.h"

namespace fapo {

// Verdicts to advantages in one call. The rewards, valid and variance rewards of `advantage` are the outputs of
// `penalty`, and are not given.
struct FapoAdvantage {
  FapoPenalty penalty;
  GroupAdvantage advantage;

  template <typename Visitor>
  void fields(Visitor&& v) {
    v("penalty", penalty), v("advantage", advantage);
  }
};

void fapo_advantage(const FapoAdvantage& args);

namespace cpu {
void fapo_advantage(const FapoAdvantage& args);
}  // namespace cpu

}  // namespace fapo
