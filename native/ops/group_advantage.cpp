#include "native/ops/group_advantage.h"

#include <cmath>
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
  std::vector<int64_t> order;  // [sequences]
};

const Members& members_of(const Grouping& g) {
  thread_local Members m;
  const auto groups = static_cast<size_t>(g.groups);
  m.begin.assign(groups + 1, 0);
  m.order.resize(static_cast<size_t>(g.sequences));
  if (g.group_ids) {
    // One read per id, kept in `order` meanwhile: what was counted is what is placed, whatever other threads write.
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
  for (size_t i = 0; i < m.order.size(); ++i) m.order[i] = static_cast<int64_t>(i);
  return m;
}

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
  const GroupAdvantage a = args;  // which what is written cannot alias
  const Members& members = members_of(a.grouping);
  thread_local std::vector<GroupStats> stats;
  const auto groups = static_cast<size_t>(a.grouping.groups);
  stats.resize(groups);
  const auto is_valid = [&](int64_t i) { return !a.valid || a.valid[i] != 0; };
  const auto for_valid = [&](size_t k, auto&& fn) {
    for (int64_t n = members.begin[k]; n < members.begin[k + 1]; ++n) {
      const int64_t i = members.order[static_cast<size_t>(n)];
      if (is_valid(i)) fn(i);
    }
  };

  int64_t batch_count = 0;
  double batch_sum = 0.0;
  for (size_t k = 0; k < groups; ++k) {
    GroupStats s;
    double sum = 0.0, first = 0.0;
    for_valid(k, [&](int64_t i) {
      const double reward = a.rewards[i];
      if (s.count == 0) first = reward;
      s.constant = s.constant && reward == first;
      s.finite = s.finite && std::isfinite(reward);
      sum += reward;
      ++s.count;
    });
    if (s.finite) batch_sum += sum, batch_count += s.count;
    s.mean = !s.finite ? NAN : s.count == 0 ? 0.0 : s.constant ? first : sum / static_cast<double>(s.count);
    stats[k] = s;
  }

  const double batch_mean = batch_count ? batch_sum / static_cast<double>(batch_count) : 0.0;
  double batch_squares = 0.0;
  for (size_t k = 0; k < groups; ++k) {
    GroupStats& s = stats[k];
    double squares = 0.0;
    for_valid(k, [&](int64_t i) {
      const double own = a.rewards[i] - s.mean, of_batch = a.rewards[i] - batch_mean;
      squares += own * own;
      if (s.finite) batch_squares += of_batch * of_batch;
    });
    s.std = !s.finite ? NAN : s.constant ? 0.0 : std_from(squares, s.count, a.params.ddof);
  }
  const double batch_std = std_from(batch_squares, batch_count, a.params.ddof);

  for (size_t k = 0; k < groups; ++k) {
    const auto group = static_cast<int64_t>(k);
    const GroupStats s = stats[k];
    const bool raw = s.finite && s.count == 1 && a.params.singleton == Singleton::raw;
    a.group_mean[group] = static_cast<float>(raw ? 0.0 : s.mean);
    a.group_std[group] = static_cast<float>(raw ? 1.0 : s.std);

    const Array<const float>& judged = a.variance_rewards ? a.variance_rewards : a.rewards;
    bool constant = true, any = false;
    float first = 0.0f;
    for_valid(k, [&](int64_t i) {
      if (!any) first = judged[i];
      any = true;
      constant = constant && judged[i] == first;
    });
    a.zero_variance[group] = constant;

    for (int64_t n = members.begin[k]; n < members.begin[k + 1]; ++n) {
      const int64_t i = members.order[static_cast<size_t>(n)];
      a.advantages[i] = is_valid(i) ? static_cast<float>(advantage_of(a.rewards[i], s, batch_std, a.params)) : 0.0f;
    }
  }
}

}  // namespace fapo
