#pragma once
// The loss of one token and its derivative, together, so that they cannot drift apart.
#include "native/math/host_device.h"

namespace fapo {

enum class KlEstimator : int32_t { none, k1, k2, k3 };

struct PolicyLossParams {
  double clip_ratio_low = 0.2;
  double clip_ratio_high = 0.28;
  double clip_ratio_c = 10.0;  // dual clip: where the advantage is negative the loss is at most -advantage * c
  double log_ratio_clamp = 20.0;
  KlEstimator kl_estimator = KlEstimator::none;
  double kl_coef = 0.0;
};

// A value and its derivative with respect to the current policy's logprob.
struct Dual {
  double value;
  double grad;
};

// Selects, not fmin and fmax: those drop a NaN.
FAPO_HD Dual clamped(double x, double low, double high) {
  if (x < low) return {low, 0.0};
  if (x > high) return {high, 0.0};
  return {x, 1.0};
}

// KL(policy || reference) estimators of Schulman, http://joschu.net/blog/kl-approx.html, with verl's clamps: the
// log-ratio to +-20, k3's value to +-10.
FAPO_HD Dual kl_estimate(KlEstimator estimator, double logprob, double ref_logprob) {
  const Dual q = clamped(ref_logprob - logprob, -20.0, 20.0);  // dq/dlogprob = -q.grad
  switch (estimator) {
    case KlEstimator::k1:
      return {-q.value, q.grad};
    case KlEstimator::k2:
      return {0.5 * q.value * q.value, -q.value * q.grad};
    case KlEstimator::k3: {
      const double ref_ratio_less_1 = expm1(q.value);
      const Dual k3 = clamped(ref_ratio_less_1 - q.value, -10.0, 10.0);
      return {k3.value, -ref_ratio_less_1 * q.grad * k3.grad};
    }
    case KlEstimator::none:
      break;
  }
  return {0.0, 0.0};
}

// One token. What it weighs in the loss is decided elsewhere (loss_agg.h).
struct TokenLoss {
  Dual loss;
  double ratio;      // exp(clamped log-ratio)
  double approx_kl;  // ratio - 1 - log-ratio: k3 of the old policy
  double kl;         // the chosen estimator, unweighted
  bool clipped_high;
  bool clipped_low;
  bool clipped_dual;
};

// max(-A r, -A clip(r, 1 - low, 1 + high)), at most -A c where A < 0, times the importance weight, + klCoef * KL.
// FAPO (arXiv 2510.22543) eq. 3 with clip-higher of DAPO (2503.14476) and dual clip (1912.09729).
// At the exact bound of a clip the gradient passes.
FAPO_HD TokenLoss token_loss(double logprob, double unclamped_log_ratio, double advantage, double importance_weight,
                             double ref_logprob, const PolicyLossParams& p) {
  const Dual log_ratio = clamped(unclamped_log_ratio, -p.log_ratio_clamp, p.log_ratio_clamp);
  const double ratio_less_1 = expm1(log_ratio.value);
  // Small ratios by exp itself: 1e-16 of 1 is much of them.
  const double ratio = log_ratio.value < -8.0 ? exp_of(log_ratio.value) : ratio_less_1 + 1.0;
  const double unclipped = -advantage * ratio;
  const double clipped = -advantage * clamped(ratio, 1.0 - p.clip_ratio_low, 1.0 + p.clip_ratio_high).value;
  const double cap = -advantage * p.clip_ratio_c;

  TokenLoss t{};
  t.ratio = ratio;
  t.approx_kl = ratio_less_1 - log_ratio.value;
  // d(-A r)/dlogprob = -A r, because dr/dlogprob = r; a clipped term is flat.
  Dual surrogate{unclipped, unclipped * log_ratio.grad};
  if (clipped > unclipped) {
    surrogate = {clipped, 0.0};
    t.clipped_high = advantage > 0.0;
    t.clipped_low = !t.clipped_high;
  }
  if (advantage < 0.0 && surrogate.value > cap) {
    surrogate = {cap, 0.0};
    t.clipped_dual = true;
  }

  const Dual kl = kl_estimate(p.kl_estimator, logprob, ref_logprob);
  t.kl = kl.value;
  t.loss = {surrogate.value * importance_weight, surrogate.grad * importance_weight};
  if (p.kl_coef != 0.0) {
    t.loss.value += p.kl_coef * kl.value;
    t.loss.grad += p.kl_coef * kl.grad;
  }
  return t;
}

}  // namespace fapo
