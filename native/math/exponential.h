#pragma once
// exp(x) and exp(x) - 1 together, by additions and multiplications alone, so that vectors of numbers have them, too.
#include "native/math/host_device.h"

namespace fapo {

// 2^n of a normal number, n in the last bits of kRound + n.
constexpr double kRound = 0x1.8p52;
inline double power_of_two(double round_plus_n) {
  constexpr int kBias = 1023, kExponent = 52;
  return std::bit_cast<double>((std::bit_cast<uint64_t>(round_plus_n) + kBias) << kExponent);
}

template <typename Real>
struct Exponential {
  Real value;   // exp(x)
  Real less_1;  // exp(x) - 1, as precise where that is small
};

// To an ulp or two; NaN stays. Real: double, or a type that has its operators, choose and power_of_two. exp(x) is
// infinite above 709 and 0 below -708: a little before doubles end.
template <typename Real>
FAPO_HD Exponential<Real> exponential(Real x) {
#ifdef __CUDA_ARCH__
  // A GPU has its own, as functions that take few registers.
  const double less_1 = expm1(x);
  return {x < -8.0 ? exp_of(x) : less_1 + 1.0, less_1};
#else
  const auto small = x < -708.0;
  const auto large = x > 709.0;
  const Real inside = choose(small || large, Real(0.0), x);
  // x = n ln 2 + r, |r| <= ln 2 / 2. The upper part of ln 2 has 20 zeros at its end: its product with n is exact.
  constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  const Real shifted = inside * kLog2E + kRound;
  const Real n = shifted - kRound;
  const Real r = (inside - n * kLn2High) - n * kLn2Low;
  // exp(r) - 1 by its series, odd and even terms side by side; what follows r^13 / 13! is below 2e-17 of it.
  const Real s = r * r;
  Real even = s * (1.0 / 479001600.0) + 1.0 / 3628800.0, odd = s * (1.0 / 6227020800.0) + 1.0 / 39916800.0;
  even = even * s + 1.0 / 40320.0, odd = odd * s + 1.0 / 362880.0;
  even = even * s + 1.0 / 720.0, odd = odd * s + 1.0 / 5040.0;
  even = even * s + 1.0 / 24.0, odd = odd * s + 1.0 / 120.0;
  even = even * s + 0.5, odd = odd * s + 1.0 / 6.0;
  const Real part = (odd * r + even) * s + r;
  const Real power = power_of_two(shifted);
  const Real value = power * part + power, less_1 = power * part + (power - 1.0);
  return {choose(small, Real(0.0), choose(large, Real(INFINITY), value)),
          choose(small, Real(-1.0), choose(large, Real(INFINITY), less_1))};
#endif
}

}  // namespace fapo
