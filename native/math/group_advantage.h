#pragma once
// The advantage of one response within its group: GRPO (arXiv 2402.03300), Dr. GRPO (2503.20783), RLOO (2402.14740).
#include "native/math/host_device.h"

namespace fapo {

enum class Baseline : int32_t { mean, leave_one_out, none };
enum class AdvantageScale : int32_t { group_std, batch_std, none };
enum class Singleton : int32_t { zero, raw };

struct GroupAdvantageParams {
  Baseline baseline = Baseline::mean;
  AdvantageScale scale = AdvantageScale::group_std;
  int32_t ddof = 1;
  double epsilon = 1e-6;
  Singleton singleton = Singleton::zero;
};

// The valid rewards of a group. Mean and variance come from two passes in float64: one pass over squares loses a small
// spread around a large mean altogether.
struct GroupStats {
  int64_t count = 0;
  double mean = 0.0;
  double std = 0.0;
  bool constant = true;  // all equal: then the spread is 0 exactly, not a residue of rounding
  bool finite = true;
};

FAPO_HD double std_from(double squares, int64_t count, int32_t ddof) {
  return count > ddof ? sqrt(squares / static_cast<double>(count - ddof)) : 0.0;
}

// The advantages of the responses of one group: (reward - centre) * stretch / spread, or 0 for all.
struct AdvantageMap {
  double centre = 0.0;
  double stretch = 1.0;
  double spread = 1.0;
  bool zero = false;

  FAPO_HD static AdvantageMap from(const GroupStats& group, double batch_std, const GroupAdvantageParams& p) {
    AdvantageMap map;
    if (!group.finite) {
      map.spread = NAN;
      return map;
    }
    const bool raw = group.count == 1 && p.singleton == Singleton::raw;  // verl: mean 0, std 1
    map.zero = !raw && (group.count == 1 || (group.constant && p.baseline != Baseline::none));
    if (!raw && p.baseline != Baseline::none) map.centre = group.mean;
    if (!raw && p.baseline == Baseline::leave_one_out && group.count > 1) {
      // reward - (sum - reward) / (n - 1) = (reward - mean) * n / (n - 1)
      const auto n = static_cast<double>(group.count);
      map.stretch = n / (n - 1.0);
    }
    if (p.scale == AdvantageScale::group_std) map.spread = (raw ? 1.0 : group.std) + p.epsilon;
    // Where a whole batch has no spread, a raw singleton is not blown up by 1 / epsilon.
    if (p.scale == AdvantageScale::batch_std) map.spread = (raw && batch_std == 0.0 ? 1.0 : batch_std) + p.epsilon;
    return map;
  }

  FAPO_HD double operator()(double reward) const { return zero ? 0.0 : (reward - centre) * stretch / spread; }
};

}  // namespace fapo
