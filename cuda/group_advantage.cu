// A warp per group, in one launch. One deviation over the whole batch is known only when every group has been seen:
// that scale runs in a single block.
#include "cuda/fapo_penalty.cuh"
#include "cuda/group_advantage.cuh"
#include "cuda/library.h"
#include "cuda/reduce.cuh"

namespace fapo::cuda {
namespace {

constexpr unsigned kThreads = 1024;
constexpr unsigned kWarps = kThreads / kWarp;

// Sums over the valid rewards of groups without NaN.
struct BatchSum {
  double sum = 0.0;
  double count = 0.0;
  FAPO_DEVICE void merge(const BatchSum& other) { sum += other.sum, count += other.count; }
};

struct AdvantageArgs {
  GroupAdvantage a;
  FapoPenalty penalty;  // used when there is one
};

class Groups {
 public:
  FAPO_DEVICE explicit Groups(const GroupAdvantage& args) : a_(args) {}

  // fn(i) for the members of group k, by the lanes of the calling warp.
  template <typename Fn>
  FAPO_DEVICE void for_members(int64_t k, const Fn& fn) const {
    const Grouping& g = a_.grouping;
    if (g.group_ids) {
      for (int64_t i = lane_index(); i < g.sequences; i += kWarp) {
        if (g.group_ids[i] == k) fn(i);
      }
      return;
    }
    const int64_t begin = g.group_offsets ? g.group_offsets[k] : k * g.group_size;
    const int64_t end = g.group_offsets ? g.group_offsets[k + 1] : begin + g.group_size;
    for (int64_t i = begin + lane_index(); i < end; i += kWarp) fn(i);
  }

  template <typename Fn>
  FAPO_DEVICE void for_valid(int64_t k, const Fn& fn) const {
    for_members(k, [&](int64_t i) {
      if (valid(i)) fn(i);
    });
  }

  FAPO_DEVICE bool valid(int64_t i) const { return !a_.valid || a_.valid[i] != 0; }

  // Count, mean, and whether all are equal or any is no number.
  FAPO_DEVICE GroupStats first_pass(int64_t k) const {
    double sum = 0.0, count = 0.0;
    float low = INFINITY, high = -INFINITY;
    bool finite = true;
    for_valid(k, [&](int64_t i) {
      const float reward = a_.rewards[i];
      finite = finite && is_finite(reward);
      low = reward < low ? reward : low;
      high = reward > high ? reward : high;
      sum += reward;
      count += 1.0;
    });
    GroupStats s;
    s.count = static_cast<int64_t>(warp_sum(count));
    s.finite = __all_sync(kAllLanes, finite);
    low = -warp_max(-low);
    high = warp_max(high);
    s.constant = s.count == 0 || low == high;
    sum = warp_sum(sum);
    s.mean = !s.finite ? NAN : s.count == 0 ? 0.0 : s.constant ? low : sum / static_cast<double>(s.count);
    return s;
  }

  FAPO_DEVICE double squares(int64_t k, double around) const {
    double mine = 0.0;
    for_valid(k, [&](int64_t i) {
      const double distance = a_.rewards[i] - around;
      mine += distance * distance;
    });
    return warp_sum(mine);
  }

  FAPO_DEVICE void write(int64_t k, GroupStats s, double batch_std) const {
    s.std = !s.finite ? NAN : s.constant ? 0.0 : std_from(squares(k, s.mean), s.count, a_.params.ddof);
    const Array<const float>& judged = a_.variance_rewards ? a_.variance_rewards : a_.rewards;
    float low = INFINITY, high = -INFINITY;
    bool number = true;
    for_valid(k, [&](int64_t i) {
      number = number && judged[i] == judged[i];
      low = judged[i] < low ? judged[i] : low;
      high = judged[i] > high ? judged[i] : high;
    });
    low = -warp_max(-low);
    high = warp_max(high);
    number = __all_sync(kAllLanes, number);
    if (lane_index() == 0) {
      const bool raw = s.finite && s.count == 1 && a_.params.singleton == Singleton::raw;
      a_.group_mean[k] = static_cast<float>(raw ? 0.0 : s.mean);
      a_.group_std[k] = static_cast<float>(raw ? 1.0 : s.std);
      a_.zero_variance[k] = s.count == 0 || (number && low == high);
    }
    const AdvantageMap advantage = AdvantageMap::from(s, batch_std, a_.params);
    for_members(k,
                [&](int64_t i) { a_.advantages[i] = valid(i) ? static_cast<float>(advantage(a_.rewards[i])) : 0.0f; });
  }

 private:
  const GroupAdvantage& a_;
};

template <bool kPenalty, bool kBatchStd>
__global__ void __launch_bounds__(kThreads)
    group_advantage_kernel(const __grid_constant__ AdvantageArgs args, Faults faults) {
  BlockSlots<BatchSum>& slots = shared<BlockSlots<BatchSum>>();
  const GroupAdvantage& a = args.a;
  const Grouping& g = a.grouping;
  const int64_t warp = int64_t{blockIdx.x} * kWarps + warp_index();
  const int64_t warps = int64_t{gridDim.x} * kWarps;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kThreads;

  if (g.group_offsets) {
    // Offsets that fall or end elsewhere would lead out of the arrays: nobody has a group then.
    bool good = true;
    for (int64_t k = threadIdx.x; k <= g.groups; k += kThreads) {
      const int64_t offset = g.group_offsets[k], before = k > 0 ? g.group_offsets[k - 1] : 0;
      const bool fine = offset >= before && offset <= g.sequences && (k > 0 || offset == 0) &&
                        (k < g.groups || offset == g.sequences);
      if (!fine && blockIdx.x == 0) faults.report(Fault::group_offset, k);
      good = good && fine;
    }
    if (!__syncthreads_and(good)) {
      for (int64_t i = thread; i < g.sequences; i += threads) {
        if constexpr (kPenalty) penalise(args.penalty, i, faults);
        a.advantages[i] = NAN;
      }
      for (int64_t k = thread; k < g.groups; k += threads) {
        a.group_mean[k] = a.group_std[k] = NAN;
        a.zero_variance[k] = 0;
      }
      return;
    }
  }
  if (g.group_ids) {
    for (int64_t i = thread; i < g.sequences; i += threads) {
      const int64_t id = g.group_ids[i];
      if (id >= 0 && id < g.groups) continue;
      faults.report(Fault::group_id, i);
      if constexpr (kPenalty) penalise(args.penalty, i, faults);
      a.advantages[i] = NAN;
    }
  }

  const Groups groups(a);
  if constexpr (kPenalty) {
    for (int64_t k = warp; k < g.groups; k += warps) {
      groups.for_members(k, [&](int64_t i) { penalise(args.penalty, i, faults); });
    }
    __syncwarp();  // the warp's own groups are what it reads from here on
  }
  double batch_std = 0.0;
  if constexpr (kBatchStd) {
    BatchSum mine;
    for (int64_t k = warp; k < g.groups; k += warps) {
      const GroupStats s = groups.first_pass(k);
      if (s.finite) mine.merge({s.mean * static_cast<double>(s.count), static_cast<double>(s.count)});
    }
    if (lane_index() != 0) mine = {};
    const BatchSum total = block_merge(mine, slots);
    const double batch_mean = total.count > 0.0 ? total.sum / total.count : 0.0;
    BatchSum squares;
    for (int64_t k = warp; k < g.groups; k += warps) {
      if (groups.first_pass(k).finite) squares.sum += groups.squares(k, batch_mean);
    }
    if (lane_index() != 0) squares = {};
    batch_std = std_from(block_merge(squares, slots).sum, static_cast<int64_t>(total.count), a.params.ddof);
  }
  for (int64_t k = warp; k < g.groups; k += warps) groups.write(k, groups.first_pass(k), batch_std);
}

}  // namespace

void launch_group_advantage(Call& call, const GroupAdvantage& args, const FapoPenalty* penalty) {
  const bool batch_std = args.params.scale == AdvantageScale::batch_std;
  const int64_t wanted = (args.grouping.groups + kWarps - 1) / kWarps;
  const int64_t most = 2 * call.limits().multiprocessors;
  const int64_t blocks = batch_std || wanted < 1 ? 1 : wanted < most ? wanted : most;
  const auto kernel = penalty     ? batch_std ? group_advantage_kernel<true, true> : group_advantage_kernel<true, false>
                          : batch_std ? group_advantage_kernel<false, true>
                                  : group_advantage_kernel<false, false>;
  call.launch(kernel, {blocks, kThreads}, AdvantageArgs{args, penalty ? *penalty : FapoPenalty{}}, call.faults());
}

void group_advantage(const GroupAdvantage& args) {
  Call call(args.device, "groupAdvantage");
  launch_group_advantage(call, args, nullptr);
}

}  // namespace fapo::cuda
