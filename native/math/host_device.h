#pragma once
// Functions marked FAPO_HD compile for the CPU and, under nvcc, for the GPU as well. Everything in native/math is per
// row, token or response, and computes in float64: there are rows of them, against rows times vocabulary logits.
//
// exp and log are written as expm1 and log1p: more exact where ratios are near 1, and, unlike glibc's exp and log, not
// tied to glibc 2.29 or newer.
#ifdef __CUDACC__
#define FAPO_HD __host__ __device__ inline
#else
#define FAPO_HD inline
#endif

#include <bit>
#include <cmath>
#include <cstdint>

namespace fapo {

constexpr double kLn2 = 0.6931471805599453;
constexpr double kLog2E = 1.4426950408889634;

FAPO_HD bool is_nan(double x) { return x != x; }
FAPO_HD bool is_finite(double x) { return x - x == 0.0; }

// which ? yes : no, on the CPU without a branch, too: for what is as good as random, where a wrong guess costs more.
FAPO_HD double choose(bool which, double yes, double no) {
#ifdef __CUDA_ARCH__
  return which ? yes : no;
#else
  const auto mask = -static_cast<uint64_t>(which);
  return std::bit_cast<double>((std::bit_cast<uint64_t>(yes) & mask) | (std::bit_cast<uint64_t>(no) & ~mask));
#endif
}

// 2^x to full relative precision; NaN stays.
FAPO_HD double exp2_of(double x) {
  if (x != x) return x;
  if (x < -1100.0) return 0.0;
  if (x > 1100.0) return INFINITY;
  const double whole = floor(x + 0.5);
  return ldexp(expm1((x - whole) * kLn2) + 1.0, static_cast<int>(whole));
}

FAPO_HD double exp_of(double x) { return exp2_of(x * kLog2E); }

// For x of about 1 and above.
FAPO_HD double log2_of(double x) { return log1p(x - 1.0) * kLog2E; }

}  // namespace fapo
