#pragma once
// The loss of one token and its derivative, together, so that they cannot drift apart. Real: double for one token, or a
// vector of them for some at a time, with choose() in the place of branches.
#include "native/math/exponential.h"

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
template <typename Real>
struct Dual {
  Real value;
  Real grad;
};

// Selects, not fmin and fmax: those drop a NaN.
template <typename Real>
FAPO_HD Dual<Real> clamped(Real x, double low, double high) {
  const auto below = x < low;
  const auto above = x > high;
  return {choose(below, Real(low), choose(above, Real(high), x)), choose(below || above, Real(0.0), Real(1.0))};
}

// KL(policy || reference) estimators of Schulman, http://joschu.net/blog/kl-approx.html, with verl's clamps: the
// log-ratio to +-20, k3's value to +-10.
template <typename Real>
FAPO_HD Dual<Real> kl_estimate(KlEstimator estimator, Real logprob, Real ref_logprob) {
  const Dual<Real> q = clamped(ref_logprob - logprob, -20.0, 20.0);  // dq/dlogprob = -q.grad
  switch (estimator) {
    case KlEstimator::k1:
      return {-q.value, q.grad};
    case KlEstimator::k2:
      return {q.value * q.value * 0.5, -q.value * q.grad};
    case KlEstimator::k3: {
      const Real ref_ratio_less_1 = exponential(q.value).less_1;
      const Dual<Real> k3 = clamped(ref_ratio_less_1 - q.value, -10.0, 10.0);
      return {k3.value, -ref_ratio_less_1 * q.grad * k3.grad};
    }
    case KlEstimator::none:
      break;
  }
  return {Real(0.0), Real(0.0)};
}

// One token. What it weighs in the loss is decided elsewhere (loss_agg.h).
template <typename Real>
struct TokenLoss {
  Dual<Real> loss;
  Real ratio;                                    // exp(clamped log-ratio)
  Real approx_kl;                                // ratio - 1 - log-ratio: k3 of the old policy
  Real kl;                                       // the chosen estimator, unweighted
  Real clipped_high, clipped_low, clipped_dual;  // 1 or 0
};

// Without old log-probs they are the current ones: the ratio is 1, also for a log-prob of -Infinity; NaN stays.
template <typename Real>
FAPO_HD Real log_ratio_of(Real logprob, Real old_logprob, bool has_old) {
  return has_old ? logprob - old_logprob : choose(is_nan(logprob), logprob, Real(0.0));
}

// max(-A r, -A clip(r, 1 - low, 1 + high)), at most -A c where A < 0, times the importance weight, + klCoef * KL.
// FAPO (arXiv 2510.22543) eq. 3 with clip-higher of DAPO (2503.14476) and dual clip (1912.09729).
// At the exact bound of a clip the gradient passes.
template <typename Real>
FAPO_HD TokenLoss<Real> token_loss(Real logprob, Real unclamped_log_ratio, Real advantage, Real importance_weight,
                                   Real ref_logprob, const PolicyLossParams& p) {
  const Dual<Real> log_ratio = clamped(unclamped_log_ratio, -p.log_ratio_clamp, p.log_ratio_clamp);
  const Exponential<Real> ratio = exponential(log_ratio.value);
  const Real unclipped = -advantage * ratio.value;
  const Real clipped = -advantage * clamped(ratio.value, 1.0 - p.clip_ratio_low, 1.0 + p.clip_ratio_high).value;
  const Real cap = -advantage * p.clip_ratio_c;
  const Real none(0.0), one(1.0);

  // d(-A r)/dlogprob = -A r, because dr/dlogprob = r; a clipped term is flat.
  const auto is_clipped = clipped > unclipped;
  const Dual<Real> once{choose(is_clipped, clipped, unclipped), choose(is_clipped, none, unclipped * log_ratio.grad)};
  const auto is_capped = advantage < 0.0 && once.value > cap;
  const Dual<Real> surrogate{choose(is_capped, cap, once.value), choose(is_capped, none, once.grad)};
  const Dual<Real> kl = kl_estimate(p.kl_estimator, logprob, ref_logprob);

  TokenLoss<Real> t{{surrogate.value * importance_weight, surrogate.grad * importance_weight},
                    ratio.value,
                    ratio.less_1 - log_ratio.value,
                    kl.value,
                    choose(is_clipped && advantage > 0.0, one, none),
                    choose(is_clipped && !(advantage > 0.0), one, none),
                    choose(is_capped, one, none)};
  if (p.kl_coef != 0.0) {
    t.loss.value = t.loss.value + kl.value * p.kl_coef;
    t.loss.grad = t.loss.grad + kl.grad * p.kl_coef;
  }
  return t;
}

}  // namespace fapo
