#pragma once
#include "native/math/group_advantage.h"
#include "native/tensor.h"

namespace fapo {

// Which responses answer the same prompt: groups of equal size in order, or offsets, or an id per response.
struct Grouping {
  int64_t sequences = 0;
  int64_t groups = 0;
  int64_t group_size = 0;              // 0 unless groups are equal
  Array<const int32_t> group_offsets;  // [groups + 1], optional
  Array<const int32_t> group_ids;      // [sequences], optional

  template <typename Visitor>
  void fields(Visitor&& v) {
    v("sequences", sequences), v("groups", groups), v("groupSize", group_size);
    v("groupOffsets", group_offsets), v("groupIds", group_ids);
  }
};

struct GroupAdvantage {
  int32_t device = kCpu;
  Grouping grouping;
  Array<const float> rewards;           // [sequences]
  Array<const uint8_t> valid;           // [sequences], optional
  Array<const float> variance_rewards;  // [sequences], optional
  GroupAdvantageParams params;
  Array<float> advantages;       // [sequences], out
  Array<float> group_mean;       // [groups], out
  Array<float> group_std;        // [groups], out
  Array<uint8_t> zero_variance;  // [groups], out

  template <typename Visitor>
  void fields(Visitor&& v) {
    v("device", device), v("grouping", grouping);
    v("rewards", rewards), v("valid", valid), v("varianceRewards", variance_rewards);
    v("baseline", params.baseline), v("scale", params.scale), v("ddof", params.ddof), v("epsilon", params.epsilon);
    v("singleton", params.singleton);
    v("advantages", advantages), v("groupMean", group_mean), v("groupStd", group_std);
    v("zeroVariance", zero_variance);
  }
};

void check_groups(const GroupAdvantage& args);
void group_advantage(const GroupAdvantage& args);

namespace cpu {
void group_advantage(const GroupAdvantage& args);
}  // namespace cpu

}  // namespace fapo
