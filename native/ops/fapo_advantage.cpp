#include "native/ops/fapo_advantage.h"

#include "native/run_on.h"

namespace fapo {
namespace {

template <typename T>
Array<const T> as_input(const Array<T>& output) {
  return {output.data, output.size, output.device};
}

}  // namespace

void fapo_advantage(const FapoAdvantage& args) {
  FapoAdvantage linked = args;
  linked.advantage.device = args.penalty.device;
  linked.advantage.rewards = as_input(args.penalty.rewards);
  linked.advantage.valid = as_input(args.penalty.valid);
  // Groups that differ in length alone have nothing to teach: the flag looks at the rewards before the overlong term.
  linked.advantage.variance_rewards = as_input(args.penalty.fapo_rewards);
  check_verdicts(linked.penalty);
  check_groups(linked.advantage);
  run_on(args.penalty.device, &Backend::fapo_advantage, linked);
}

void cpu::fapo_advantage(const FapoAdvantage& args) {
  cpu::fapo_penalty(args.penalty);
  cpu::group_advantage(args.advantage);
}

}  // namespace fapo
