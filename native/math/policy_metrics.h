#pragma once
// Sums over the counted tokens of a part of a batch. Parts merge in a fixed order, so that a result does not depend on
// how many threads made them.
#include "native/math/policy_loss.h"

namespace fapo {

template <typename Real>
struct PolicySums {
  Real loss = Real(0.0);
  Real clipped_high = Real(0.0);
  Real clipped_low = Real(0.0);
  Real clipped_dual = Real(0.0);
  Real ratio = Real(0.0);
  Real ratio_max = Real(0.0);
  Real approx_kl = Real(0.0);
  Real kl = Real(0.0);
  Real entropy = Real(0.0);

  FAPO_HD void add(const TokenLoss<Real>& t, Real weight, Real token_entropy, double entropy_coef) {
    const Real own = entropy_coef == 0.0 ? t.loss.value : t.loss.value - token_entropy * entropy_coef;
    // A NaN token shows in every metric.
    const Real poison = choose(is_nan(t.loss.value), Real(NAN), Real(0.0));
    merge({weight * own, t.clipped_high + poison, t.clipped_low + poison, t.clipped_dual + poison, t.ratio, t.ratio,
           t.approx_kl, t.kl, token_entropy});
  }

  FAPO_HD void merge(const PolicySums& other) {
    loss = loss + other.loss;
    clipped_high = clipped_high + other.clipped_high;
    clipped_low = clipped_low + other.clipped_low;
    clipped_dual = clipped_dual + other.clipped_dual;
    ratio = ratio + other.ratio;
    // A NaN stays.
    ratio_max = choose(other.ratio_max <= ratio_max || is_nan(ratio_max), ratio_max, other.ratio_max);
    approx_kl = approx_kl + other.approx_kl;
    kl = kl + other.kl;
    entropy = entropy + other.entropy;
  }
};

// The order of the float metrics in memory; lib/ops/policyLoss.ts names them in the same order.
constexpr int kPolicyMetrics = 8;

FAPO_HD void write_metrics(const PolicySums<double>& s, double tokens, float* metrics) {
  const double per_token = tokens > 0.0 ? 1.0 / tokens : 0.0;
  metrics[0] = static_cast<float>(s.clipped_high * per_token);
  metrics[1] = static_cast<float>(s.clipped_low * per_token);
  metrics[2] = static_cast<float>(s.clipped_dual * per_token);
  metrics[3] = static_cast<float>(s.ratio * per_token);
  metrics[4] = static_cast<float>(s.ratio_max);
  metrics[5] = static_cast<float>(s.approx_kl * per_token);
  metrics[6] = static_cast<float>(s.kl * per_token);
  metrics[7] = static_cast<float>(s.entropy * per_token);
}

}  // namespace fapo
