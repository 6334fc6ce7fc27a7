#pragma once
// z(x) = cap * tanh(x / cap) / T, or x / T without a cap: the logit that the softmax sees, and differences of it.
#include "native/math/host_device.h"

namespace fapo {

struct LogitScale {
  double temperature = 1.0;
  double softcap = 0.0;  // 0: none

  FAPO_HD bool capped() const { return softcap > 0.0; }

  FAPO_HD double z(double x) const {
    // A masked vocabulary entry stays masked under a cap; an infinite one is as invalid as NaN.
    if (!capped() || x == -INFINITY) return x / temperature;
    return x == INFINITY ? NAN : softcap * tanh(x / softcap) / temperature;
  }

  // log2 of exp(z(x) - z(reference)).
  FAPO_HD double log2_ratio(double x, double reference) const {
    if (!capped()) return (x - reference) / temperature * kLog2E;
    return (z(x) - z(reference)) * kLog2E;
  }

  // dz/dx times the temperature.
  FAPO_HD double slope(double x) const {
    if (!capped()) return 1.0;
    const double t = tanh(x / softcap);
    return 1.0 - t * t;
  }
};

}  // namespace fapo
