// The policy kernel. Compiled once per instruction set, with FAPO_ISA naming the namespace; see policy_kernel.h.
#include <string.h>

#include "native/simd/policy_kernel.h"

#define INLINE __attribute__((always_inline)) inline
#define UNROLL _Pragma("GCC unroll 8")

namespace fapo::FAPO_ISA {
namespace {

#if FAPO_ISA_LEVEL == 4
constexpr int kBytes = 64;
#elif FAPO_ISA_LEVEL == 3
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kWide = kBytes / sizeof(double), kParts = kPolicyLanes / kWide;

// What fits a register: the compiler makes single numbers of larger ones.
using Doubles = double __attribute__((vector_size(kBytes)));
using Longs = int64_t __attribute__((vector_size(kBytes)));
using Floats = float __attribute__((vector_size(kBytes / 2)));

struct Mask {
  Longs v[kParts];  // -1 or 0
};

struct Reals {
  Doubles v[kParts];

  INLINE Reals() {}
  INLINE Reals(double x) { UNROLL for (Doubles& part : v) part = x - Doubles{}; }
  INLINE static Reals load(const float* p) {
    Reals x;
    UNROLL for (int k = 0; k < kParts; ++k) {
      Floats part;
      memcpy(&part, p + k * kWide, sizeof part);
      x.v[k] = __builtin_convertvector(part, Doubles);
    }
    return x;
  }
  INLINE static Reals load(const double* p) {
    Reals x;
    memcpy(x.v, p, sizeof x.v);
    return x;
  }
  INLINE void store(float* p) const {
    UNROLL for (int k = 0; k < kParts; ++k) {
      const Floats part = __builtin_convertvector(v[k], Floats);
      memcpy(p + k * kWide, &part, sizeof part);
    }
  }
};

// To(fn of each part)
template <typename To, typename Fn>
INLINE To each(const Fn& fn) {
  To to;
  UNROLL for (int k = 0; k < kParts; ++k) to.v[k] = fn(k);
  return to;
}

#define EACH(To, expression) each<To>([&](int k) __attribute__((always_inline)) { return expression; })
INLINE Reals operator+(const Reals& a, const Reals& b) { return EACH(Reals, a.v[k] + b.v[k]); }
INLINE Reals operator-(const Reals& a, const Reals& b) { return EACH(Reals, a.v[k] - b.v[k]); }
INLINE Reals operator*(const Reals& a, const Reals& b) { return EACH(Reals, a.v[k] * b.v[k]); }
INLINE Reals operator-(const Reals& a) { return EACH(Reals, -a.v[k]); }
INLINE Mask operator<(const Reals& a, const Reals& b) { return EACH(Mask, a.v[k] < b.v[k]); }
INLINE Mask operator>(const Reals& a, const Reals& b) { return EACH(Mask, a.v[k] > b.v[k]); }
INLINE Mask operator<=(const Reals& a, const Reals& b) { return EACH(Mask, a.v[k] <= b.v[k]); }
INLINE Mask operator!=(const Reals& a, const Reals& b) { return EACH(Mask, a.v[k] != b.v[k]); }
INLINE Mask is_nan(const Reals& a) { return a != a; }
INLINE Mask operator&&(const Mask& a, const Mask& b) { return EACH(Mask, a.v[k] & b.v[k]); }
INLINE Mask operator||(const Mask& a, const Mask& b) { return EACH(Mask, a.v[k] | b.v[k]); }
INLINE Mask operator!(const Mask& a) { return EACH(Mask, ~a.v[k]); }
INLINE Reals choose(const Mask& which, const Reals& yes, const Reals& no) {
  return EACH(Reals, which.v[k] ? yes.v[k] : no.v[k]);
}
INLINE Reals power_of_two(const Reals& round_plus_n) {
  return EACH(Reals, reinterpret_cast<Doubles>((reinterpret_cast<Longs>(round_plus_n.v[k]) + 1023) << 52));
}

// Nothing of a token that does not count.
INLINE TokenLoss<Reals> if_counted(Mask counted, const TokenLoss<Reals>& t) {
  const auto keep = [=](Reals x) __attribute__((always_inline)) { return choose(counted, x, Reals(0.0)); };
  return {{keep(t.loss.value), keep(t.loss.grad)},
          keep(t.ratio),
          keep(t.approx_kl),
          keep(t.kl),
          keep(t.clipped_high),
          keep(t.clipped_low),
          keep(t.clipped_dual)};
}

}  // namespace

void policy_kernel(PolicyBlock& block, int64_t tokens, const PolicyBlockParams& params, PolicyLanes& lanes);
void policy_kernel(PolicyBlock& block, int64_t tokens, const PolicyBlockParams& params, PolicyLanes& lanes) {
  const PolicyBlockParams p = params;
  PolicySums<Reals> sums;
  for (int64_t i = 0; i < tokens; i += kPolicyLanes) {
    const Reals logprob = Reals::load(block.logprob + i);
    const Reals log_ratio = log_ratio_of(logprob, Reals::load(block.old_logprob + i), p.has_old_logprobs);
    const Mask counted = Reals::load(block.counted + i) != Reals(0.0);
    const TokenLoss<Reals> token = if_counted(
        counted, token_loss(logprob, log_ratio, Reals::load(block.advantage + i),
                            Reals::load(block.importance_weight + i), Reals::load(block.ref_logprob + i), p.loss));
    // Where nothing counts it is infinite.
    const Reals weight = choose(counted, Reals::load(block.weight + i), Reals(0.0));
    sums.add(token, weight, choose(counted, Reals::load(block.entropy + i), Reals(0.0)), p.entropy_coef);
    (token.loss.grad * weight * p.grad_scale).store(block.grad + i);
  }
  static_assert(sizeof sums == sizeof lanes.sums);
  memcpy(lanes.sums, &sums, sizeof sums);
}

}  // namespace fapo::FAPO_ISA
