#pragma once
#include "cuda/device.h"
#include "native/ops/fapo_advantage.h"

namespace fapo::cuda {

// groupAdvantage, after the penalty in the same launch when there is one.
void launch_group_advantage(Call& call, const GroupAdvantage& args, const FapoPenalty* penalty);

}  // namespace fapo::cuda
