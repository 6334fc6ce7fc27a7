#pragma once
// Sums over the counted tokens of a part of a batch. Parts merge in a fixed order, so that a result does not depend on
// how many threads made them.
#include "native/math/policy_loss.h"

namespace fapo {

struct PolicySums {
  double loss = 0.0;
  double clipped_high = 0.0;
  double clipped_low = 0.0;
  double clipped_dual = 0.0;
  double ratio = 0.0;
  double ratio_max = 0.0;
  double approx_kl = 0.0;
  double kl = 0.0;
  double entropy = 0.0;

  FAPO_HD void add(const TokenLoss& t, double weight, double token_entropy, double entropy_coef) {
    loss += weight * (entropy_coef == 0.0 ? t.loss.value : t.loss.value - entropy_coef * token_entropy);
    const double poison = t.loss.value != t.loss.value ? NAN : 0.0;  // a NaN token shows in every metric
    clipped_high += t.clipped_high + poison;
    clipped_low += t.clipped_low + poison;
    clipped_dual += t.clipped_dual + poison;
    ratio += t.ratio;
    raise_max(t.ratio);
    approx_kl += t.approx_kl;
    kl += t.kl;
    entropy += token_entropy;
  }

  FAPO_HD void merge(const PolicySums& other) {
    loss += other.loss;
    clipped_high += other.clipped_high;
    clipped_low += other.clipped_low;
    clipped_dual += other.clipped_dual;
    ratio += other.ratio;
    raise_max(other.ratio_max);
    approx_kl += other.approx_kl;
    kl += other.kl;
    entropy += other.entropy;
  }

 private:
  FAPO_HD void raise_max(double value) {
    if (value > ratio_max || value != value) ratio_max = value;  // a NaN stays
  }
};

// The order of the float metrics in memory; lib/ops/policyLoss.ts names them in the same order.
constexpr int kPolicyMetrics = 8;

FAPO_HD void write_metrics(const PolicySums& s, double tokens, float* metrics) {
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
