#pragma once
// One row of a softmax, reduced to a few numbers: sums of powers of two measured from a reference logit, so that parts
// of a row merge exactly, and what is read off them.
#include "native/math/exp_map.h"

namespace fapo {

// sum = sum of 2^y and weighted = sum of 2^y * y over a part of a row, y = log2 exp(z(x) - z(reference)).
struct ExpSum {
  double sum = 0.0;
  double weighted = 0.0;

  // The same part measured from a reference that lies log2_shift (base 2) higher.
  FAPO_HD ExpSum rebased(double log2_shift) const { return rebased(log2_shift, exp2_of(-log2_shift)); }
  // factor: 2^-log2_shift
  FAPO_HD ExpSum rebased(double log2_shift, double factor) const {
    // Where the factor is 0 the shift may be infinite, and 0 * inf is NaN.
    return factor == 0.0 ? ExpSum{0.0 * sum, 0.0 * weighted}
                         : ExpSum{factor * sum, factor * (weighted - log2_shift * sum)};
  }

  FAPO_HD ExpSum operator+(const ExpSum& other) const { return {sum + other.sum, weighted + other.weighted}; }
};

// A whole row. The largest logit or the target's own is the reference, so sum >= 1.
struct SoftmaxRow {
  ExpSum exp_sum;
  double reference_z = 0.0;  // z(reference)
  double target_log2 = 0.0;  // log2 exp(z(target) - z(reference))

  static constexpr double kRounding = 4e-15;  // of exponents around 4, through exp2_of and back

  FAPO_HD double log2_sum() const { return log2_of(exp_sum.sum); }

  // log softmax(z)[target], never above 0; NaN stays. 0 where nothing but the rounding of its two terms is left.
  FAPO_HD double logprob() const {
    const double value = (target_log2 - log2_sum()) * kLn2;
    return value > -kRounding ? 0.0 : value;
  }

  FAPO_HD double lse() const { return reference_z + log2_sum() * kLn2; }

  // -sum p ln p; NaN stays. 0 where nothing but the rounding of its two terms is left.
  FAPO_HD double entropy() const {
    const double value = (log2_sum() - exp_sum.weighted / exp_sum.sum) * kLn2;
    return value < kRounding ? 0.0 : value;
  }
};

// A row from the outputs that were kept of it: p[j] = exp(z[j] - z[target] + logprob), which stays exact where a
// float32 lse cannot, or exp(z[j] - lse) where that logprob is -Infinity.
//
// Measured from where p = 1 the exponents are as small as they can be. Under a cap there may be no logit of that
// height: then from the target, or, if it is far, from the maximum, for which NaN stands here.
FAPO_HD double restored_reference(const LogitScale& scale, double target_logit, double logprob, double lse) {
  if (scale.capped()) return logprob > -5.0 && !poor_reference(scale, target_logit) ? target_logit : NAN;
  return logprob == -INFINITY ? lse * scale.temperature : target_logit - logprob * scale.temperature;
}

// The log2 of the sum of 2^y over such a row, y measured from `reference`, whose rounding is made good here.
FAPO_HD double restored_log2_sum(const LogitScale& scale, float reference, double target_logit, double logprob,
                                 double lse) {
  if (!is_finite(reference)) return NAN;
  if (logprob == -INFINITY) return (lse - scale.z(reference)) * kLog2E;
  return -scale.log2_ratio(reference, target_logit) - logprob * kLog2E;
}

// What the loss of one token pulls on: dL/dlogprob and dL/dentropy.
struct RowPull {
  double logprob = 0.0;
  double entropy = 0.0;

  FAPO_HD bool none() const { return logprob == 0.0 && entropy == 0.0; }
};

// The gradient of a row: dL/dx[j] = slope(x[j]) * 2^y[j] * (constant + linear * y[j]) off the target, from
// d logprob / dz[j] = [j = target] - p[j] and d entropy / dz[j] = -p[j] (ln p[j] + entropy).
struct RowGradient {
  double constant;
  double linear;

  // log2_sum: of 2^y over the row. entropy in nats.
  FAPO_HD static RowGradient from(const RowPull& pull, double log2_sum, double entropy, double temperature) {
    const double p0 = exp2_of(-log2_sum) / temperature;  // p / T = p0 * 2^y
    const double per_log2 = pull.entropy * kLn2;
    return {p0 * (per_log2 * log2_sum - pull.entropy * entropy - pull.logprob), -p0 * per_log2};
  }

  // The same at the target, where 1 - p is taken as -expm1(ln p): exact where p is near 1.
  FAPO_HD static double at_target(const RowPull& pull, double logprob, double entropy, double temperature) {
    double value = pull.logprob * -expm1(logprob);
    if (pull.entropy != 0.0 && logprob > -INFINITY) value -= pull.entropy * exp_of(logprob) * (logprob + entropy);
    return value / temperature;
  }
};

// Room for constant + linear * y in float32, |y| <= 1e4: an infinite factor would make NaN of probabilities of 0.
FAPO_HD float as_factor(double factor) {
  constexpr double kLargest = 8e33;
  return static_cast<float>(factor < -kLargest ? -kLargest : factor > kLargest ? kLargest : factor);
}

}  // namespace fapo
