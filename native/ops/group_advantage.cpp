#include "native/ops/group_advantage.h"

#include <string>
#include <vector>

#include "native/error.h"
#include "native/ops/offsets.h"
#include "native/run_on.h"

namespace fapo {
namespace {

// The members of every group, in the order of their index. Kept per thread, so that a training loop allocates nothing.
struct Members {
  std::vector<int64_t> begin;  // [groups + 1] into order
  std::vector<int64_t> order;  // [sequences]; empty where every response stands in its group's place
};

const Members& members_of(const Grouping& g) {
  thread_local Members m;
  const auto groups = static_cast<size_t>(g.groups);
  m.begin.assign(groups + 1, 0);
  m.order.clear();
  if (g.group_ids) {
    // One read per id, kept in `order` meanwhile: what was counted is what is placed, whatever other threads write.
    m.order.resize(static_cast<size_t>(g.sequences));
    for (int64_t i = 0; i < g.sequences; ++i) {
      const int64_t id = load_once(g.group_ids[i]);
      check(id >= 0 && id < g.groups, "groupIds changed during the call");
      m.order[static_cast<size_t>(i)] = id;
      ++m.begin[static_cast<size_t>(id) + 1];
    }
    for (size_t k = 0; k < groups; ++k) m.begin[k + 1] += m.begin[k];
    thread_local std::vector<int64_t> next, placed;
    next.assign(m.begin.begin(), m.begin.end() - 1);
    placed.resize(m.order.size());
    for (size_t i = 0; i < m.order.size(); ++i) {
      placed[static_cast<size_t>(next[static_cast<size_t>(m.order[i])]++)] = static_cast<int64_t>(i);
    }
    m.order.swap(placed);
    return m;
  }
  for (size_t k = 0; k <= groups; ++k) {
    const auto group = static_cast<int64_t>(k);
    m.begin[k] = g.group_offsets ? load_once(g.group_offsets[group]) : group * g.group_size;
    check(m.begin[k] >= (k ? m.begin[k - 1] : 0) && m.begin[k] <= g.sequences, "groupOffsets changed during the call");
  }
  check(m.begin.front() == 0 && m.begin.back() == g.sequences, "groupOffsets changed during the call");
  return m;
}

// The op, compiled for responses in order or listed by group, all valid or some: in the common case its loops are over
// arrays, without a branch. Which responses are valid is as good as random.
template <bool kListed, bool kMasked>
class Groups {
 public:
  Groups(const GroupAdvantage& args, const Members& members) : a_(args), members_(members) {}

  void run() const {
    const int64_t groups = a_.grouping.groups;
    double batch_std = 0.0;
    if (a_.params.scale == AdvantageScale::batch_std) {
      double sum = 0.0, squares_sum = 0.0;
      int64_t count = 0;
      for (int64_t k = 0; k < groups; ++k) {
        const GroupStats s = first_pass(k);
        if (s.finite) sum += s.mean * static_cast<double>(s.count), count += s.count;
      }
      const double mean = count ? sum / static_cast<double>(count) : 0.0;
      for (int64_t k = 0; k < groups; ++k) {
        if (first_pass(k).finite) squares_sum += squares(k, mean);
      }
      batch_std = std_from(squares_sum, count, a_.params.ddof);
    }
    for (int64_t k = 0; k < groups; ++k) write(k, first_pass(k), batch_std);
  }

 private:
  template <typename Fn>
  void for_members(int64_t k, const Fn& fn) const {
    const int64_t end = members_.begin[static_cast<size_t>(k) + 1];
    for (int64_t n = members_.begin[static_cast<size_t>(k)]; n < end; ++n) {
      fn(kListed ? members_.order[static_cast<size_t>(n)] : n);
    }
  }

  bool valid(int64_t i) const { return !kMasked || a_.valid[i] != 0; }

  // A valid response of the group, or -1.
  int64_t first_valid(int64_t k) const {
    int64_t found = -1;
    for_members(k, [&](int64_t i) { found = found < 0 && valid(i) ? i : found; });
    return found;
  }

  // Whether all valid ones are equal; NaN is not equal to itself.
  bool constant(int64_t k, const Array<const float>& values, int64_t first) const {
    if (first < 0) return true;
    const float value = values[first];
    bool equal = true;
    for_members(k, [&](int64_t i) {
      const bool counts = valid(i), same = values[i] == value;
      equal &= !counts | same;
    });
    return equal;
  }

  // Count, mean, and whether all are equal or any is no number.
  GroupStats first_pass(int64_t k) const {
    GroupStats s;
    double sum = 0.0;
    for_members(k, [&](int64_t i) {
      sum += choose(valid(i), a_.rewards[i], 0.0);
      s.count += valid(i);
    });
    const int64_t first = first_valid(k);
    s.finite = is_finite(sum);  // float32 values add up to an infinite sum only if one is
    s.constant = constant(k, a_.rewards, first);
    s.mean = !s.finite ? NAN : s.count == 0 ? 0.0 : s.constant ? a_.rewards[first] : sum / static_cast<double>(s.count);
    return s;
  }

  double squares(int64_t k, double around) const {
    double sum = 0.0;
    for_members(k, [&](int64_t i) {
      const double distance = a_.rewards[i] - around;
      sum += choose(valid(i), distance * distance, 0.0);
    });
    return sum;
  }

  void write(int64_t k, GroupStats s, double batch_std) const {
    s.std = !s.finite ? NAN : s.constant ? 0.0 : std_from(squares(k, s.mean), s.count, a_.params.ddof);
    const bool raw = s.finite && s.count == 1 && a_.params.singleton == Singleton::raw;
    a_.group_mean[k] = static_cast<float>(raw ? 0.0 : s.mean);
    a_.group_std[k] = static_cast<float>(raw ? 1.0 : s.std);
    a_.zero_variance[k] = a_.variance_rewards ? constant(k, a_.variance_rewards, first_valid(k)) : s.constant;
    const AdvantageMap advantage = AdvantageMap::from(s, batch_std, a_.params);
    for_members(
        k, [&](int64_t i) { a_.advantages[i] = static_cast<float>(choose(valid(i), advantage(a_.rewards[i]), 0.0)); });
  }

  const GroupAdvantage a_;  // a copy, which what is written cannot alias
  const Members& members_;
};

}  // namespace

void check_groups(const GroupAdvantage& a) {
  const Grouping& g = a.grouping;
  check(a.rewards.size == g.sequences, "rewards.length != sequences");
  check(!a.valid || a.valid.size == g.sequences, "valid.length != sequences");
  check(!a.variance_rewards || a.variance_rewards.size == g.sequences, "varianceRewards.length != sequences");
  check(a.advantages.size == g.sequences, "advantages.length != sequences");
  check(a.group_mean.size == g.groups && a.group_std.size == g.groups && a.zero_variance.size == g.groups,
        "group outputs != groups");
  check(!g.group_ids || g.group_ids.size == g.sequences, "groupIds.length != sequences");
  check(!g.group_offsets || g.group_offsets.size == g.groups + 1, "groupOffsets.length != groups + 1");
  check(g.group_ids || g.group_offsets || g.group_size * g.groups == g.sequences, "groupSize * groups != sequences");
  // What lies on a GPU is checked there.
  if (g.group_ids && g.group_ids.device == kCpu) {
    for (int64_t i = 0; i < g.sequences; ++i) {
      const int32_t id = load_once(g.group_ids[i]);
      if (id >= 0 && id < g.groups) continue;
      throw Error("ERR_INVALID_ARGUMENT", "expected groupIds[" + std::to_string(i) + "] to be in 0.." +
                                              std::to_string(g.groups - 1) + ", got " + std::to_string(id));
    }
  } else if (g.group_offsets && g.group_offsets.device == kCpu) {
    check_offsets("groupOffsets", g.group_offsets, g.sequences, "the number of responses");
  }
}

void group_advantage(const GroupAdvantage& args) {
  check_groups(args);
  run_on(args.device, &Backend::group_advantage, args);
}

void cpu::group_advantage(const GroupAdvantage& args) {
  const Members& members = members_of(args.grouping);
  const bool listed = !members.order.empty(), masked = static_cast<bool>(args.valid);
  if (listed && masked) return Groups<true, true>(args, members).run();
  if (listed) return Groups<true, false>(args, members).run();
  if (masked) return Groups<false, true>(args, members).run();
  Groups<false, false>(args, members).run();
}

}  // namespace fapo
