#pragma once
// The exponent of a logit in float32: y(x) = log2 exp(z(x) - z(reference)), for loops over the vocabulary.
#include "native/math/logit_scale.h"

namespace fapo {

// Differences are taken before they are scaled, so that an offset common to all logits costs no digits.
struct ExpMap {
  float reference;
  float scale;  // log2(e) / temperature; times the cap under a cap
  // With a cap c: tanh(a) - tanh(b) = 2 p q m / (q + p E), E = exp(2 (a - b)), m = E - 1, p = 1 / (1 + exp(-2 b)),
  // q = 1 - p: small differences of tanh to full relative precision.
  float cap_limit;  // 20 c: beyond it tanh is 1 in float64
  float cap_scale;  // 2 log2(e) / c
  float p, q;

  FAPO_HD static ExpMap from(const LogitScale& scale, float reference) {
    if (!scale.capped()) return {reference, static_cast<float>(kLog2E / scale.temperature), 0, 0, 0, 0};
    const double limit = 20.0 * scale.softcap;
    const double inside = reference < -limit ? -limit : reference > limit ? limit : reference;  // NaN stays
    const double small = 1.0 / (exp_of(2.0 * fabs(inside) / scale.softcap) + 1.0);
    const double p = inside < 0.0 ? small : 1.0 - small;
    const double q = inside < 0.0 ? 1.0 - small : small;
    return {static_cast<float>(inside), static_cast<float>(kLog2E / scale.temperature * scale.softcap),
            static_cast<float>(limit),  static_cast<float>(2.0 * kLog2E / scale.softcap),
            static_cast<float>(p),      static_cast<float>(q)};
  }
};

// Measured from a logit in the saturation of the cap, others have exponents of up to 2^58 on their way, whose rounding
// alone is 2e-6 of the result. From the lower saturation it is better to go by the maximum, and in the upper one any
// point will do that is close to it in z: tanh(3) is 0.995.
FAPO_HD bool poor_reference(const LogitScale& scale, double x) {
  return !is_finite(x) || (scale.capped() && x < -2.0 * scale.softcap);
}
FAPO_HD float well_placed(const LogitScale& scale, float x) {
  const auto highest = static_cast<float>(3.0 * scale.softcap);
  if (!scale.capped() || !(x > highest)) return x;
  constexpr double kNear = 4.0;  // in base 2; farther where the temperature is far below the cap
  return scale.log2_ratio(x, highest) < kNear ? highest : x;
}

}  // namespace fapo
