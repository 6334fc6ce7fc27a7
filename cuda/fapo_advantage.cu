// The launch of group_advantage.cu, which makes the rewards of a group's members before it looks at them.
#include "cuda/group_advantage.cuh"
#include "cuda/library.h"

namespace fapo::cuda {

void fapo_advantage(const FapoAdvantage& args) {
  Call call(args.penalty.device, "fapoAdvantage");
  launch_group_advantage(call, args.advantage, &args.penalty);
}

}  // namespace fapo::cuda
