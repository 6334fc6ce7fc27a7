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
    penalty.fields(v);
    advantage.grouping.fields(v);
    v("baseline", advantage.params.baseline), v("scale", advantage.params.scale);
    v("ddof", advantage.params.ddof), v("epsilon", advantage.params.epsilon);
    v("singleton", advantage.params.singleton);
    v("advantages", advantage.advantages), v("groupMean", advantage.group_mean);
    v("groupStd", advantage.group_std), v("zeroVariance", advantage.zero_variance);
  }
};

void fapo_advantage(const FapoAdvantage& args);

namespace cpu {
void fapo_advantage(const FapoAdvantage& args);
}  // namespace cpu

}  // namespace fapo
