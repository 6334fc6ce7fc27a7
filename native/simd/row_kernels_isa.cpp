// The row kernels. Compiled once per instruction set, with FAPO_ISA naming the namespace and FAPO_ISA_LEVEL the vector
// type; see row_kernels.h.
#include <float.h>
#include <math.h>
#include <string.h>

#include "native/half.h"
#include "native/simd/row_kernels.h"

#define INLINE __attribute__((always_inline)) inline
#define UNROLL _Pragma("GCC unroll 16")
#define ROLLED _Pragma("GCC unroll 1")

#if FAPO_ISA_LEVEL > 0
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fapo::FAPO_ISA {
namespace {

#if FAPO_ISA_LEVEL == 4
#include "native/simd/vector_avx512.h"
#elif FAPO_ISA_LEVEL == 3
#include "native/simd/vector_avx2.h"
#else
#include "native/simd/vector_baseline.h"
#endif

constexpr int kUnroll = 4;  // vectors in lockstep: enough to hide the latency of the polynomial
constexpr int64_t kGroup = kUnroll * Vec::kLanes;
// Vectors are added in pairs, those of kShort groups make a short sum and kShort of those a block, all in float32, and
// blocks add up in float64: 2 kShort + 2 roundings of 6e-8 at the most, also where all of them go the same way, as
// behind one likely token they do.
constexpr int64_t kShort = 6;
constexpr int64_t kBlock = kShort * kShort * kGroup;

// How far above the reference the exponent of a term may be. It is rounded by 2^-21 at the most then; the entropy is a
// difference of numbers as large as that.
constexpr float kHighest = 10.0f, kHighestTerm = 0x1p10f;

constexpr float kNegInf = -HUGE_VALF;

template <typename T>
INLINE void load(const T* p, Vec (&x)[kUnroll]) {
  UNROLL for (int u = 0; u < kUnroll; u += 2) load_pair(p + u * Vec::kLanes, x[u], x[u + 1]);
}

// Asks for a group some bytes after p, which may lie beyond everything.
template <typename T>
INLINE void prefetch(const T* p, uintptr_t distance) {
  constexpr uintptr_t kLine = 64;
  const uintptr_t address = reinterpret_cast<uintptr_t>(p) + distance;
  UNROLL for (uintptr_t byte = 0; byte < kGroup * sizeof(T); byte += kLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(address + byte));
  }
}

// Asks for the first line of the next KB of what a loop stores past the caches; see Asking. As if to read it: asking
// as if to write (PREFETCHW) is no better, 3 % slower in a gradient.
INLINE void ask_for_output(const void* p, bool asks) {
  constexpr uintptr_t kKilobyte = 1024;
  if (!asks) return;
  const uintptr_t next = (reinterpret_cast<uintptr_t>(p) & ~(kKilobyte - 1)) + kKilobyte;
  __builtin_prefetch(reinterpret_cast<const void*>(next));
}

template <bool kStreamed, typename T>
INLINE void store(T* p, Vec (&x)[kUnroll]) {
  UNROLL for (int u = 0; u < kUnroll; u += 2) store_pair<kStreamed>(p + u * Vec::kLanes, x[u], x[u + 1]);
}

template <typename T>
T neg_inf();
template <>
INLINE float neg_inf<float>() {
  return kNegInf;
}
template <>
INLINE bf16 neg_inf<bf16>() {
  return {0xff80};
}
template <>
INLINE f16 neg_inf<f16>() {
  return {0xfc00};
}

// The last group of a row, filled up with logits of no weight.
template <typename T>
struct Tail {
  alignas(64) T x[kGroup];

  INLINE Tail(const T* p, int64_t n) {
    for (int64_t i = 0; i < kGroup; ++i) x[i] = i < n ? p[i] : neg_inf<T>();
  }
};

enum class Map { fused, difference, capped };  // see RowMap

struct Mapping {
  Vec reference, scale, minus_offset, limit, cap_scale, p, q, two_pq;

  INLINE explicit Mapping(const RowMap& m)
      : reference(Vec::of(m.reference)),
        scale(Vec::of(m.scale)),
        minus_offset(Vec::of(-m.offset)),
        limit(Vec::of(m.cap_limit)),
        cap_scale(Vec::of(m.cap_scale)),
        p(Vec::of(m.p)),
        q(Vec::of(m.q)),
        two_pq(Vec::of(2.0f * m.p * m.q)) {}
};

// 2^w and 2^w - 1, the latter to full relative precision.
INLINE void exp2_and_expm1(Vec w, Vec& e, Vec& m) {
  constexpr float kC[] = {1.0f,
                          0.6931471824645996f,
                          0.24022647738456726f,
                          0.05550362169742584f,
                          0.009618526324629784f,
                          0.0013390161329880357f,
                          0.00015321154205594212f};
  const Vec n = round_to_nearest(w);
  const Vec f = w - n;
  Vec r = Vec::of(kC[6]);
  UNROLL for (int d = 5; d >= 1; --d) r = fmadd(r, f, Vec::of(kC[d]));
  r = r * f;  // 2^f - 1
  const Vec power = power_of_two(n);
  e = power * (r + Vec::of(1.0f));
  m = select_below(abs(n), Vec::of(0.5f), r, e - Vec::of(1.0f));
}

// x -> y, and under a cap the slope 4 p q E / (q + p E)^2 = 1 - tanh^2.
template <Map kMap>
INLINE void map_logits(Vec (&x)[kUnroll], Vec (&slope)[kUnroll], const Mapping& map) {
  if constexpr (kMap == Map::fused) {
    UNROLL for (int u = 0; u < kUnroll; ++u) x[u] = fmadd(x[u], map.scale, map.minus_offset);
  } else if constexpr (kMap == Map::difference) {
    UNROLL for (int u = 0; u < kUnroll; ++u) x[u] = (x[u] - map.reference) * map.scale;
  } else {
    UNROLL for (int u = 0; u < kUnroll; ++u) {
      const Vec raw = x[u];
      const Vec inside = min(map.limit, max(Vec::of(0.0f) - map.limit, raw));
      Vec e, m;
      exp2_and_expm1((inside - map.reference) * map.cap_scale, e, m);
      const Vec denominator = fmadd(map.p, e, map.q);
      const Vec y = map.two_pq * m / denominator * map.scale;
      slope[u] = (map.two_pq + map.two_pq) * e / (denominator * denominator);
      // -Infinity stays (a masked entry), +Infinity is as invalid as NaN.
      const Vec masked = select_below(raw, Vec::of(-FLT_MAX), Vec::of(kNegInf), y);
      x[u] = select_below(Vec::of(FLT_MAX), raw, Vec::of(NAN), masked);
    }
  }
}

// Of `groups` groups. A NaN may be overlooked.
template <typename T>
INLINE Vec greatest(const T* p, int64_t groups) {
  const uintptr_t distance = asking().ahead;
  Vec top[kUnroll];
  UNROLL for (int u = 0; u < kUnroll; ++u) top[u] = Vec::of(kNegInf);
  for (int64_t g = 0; g < groups; ++g, p += kGroup) {
    Vec v[kUnroll];
    prefetch(p, distance);
    load(p, v);
    UNROLL for (int u = 0; u < kUnroll; ++u) top[u] = max(v[u], top[u]);
  }
  return max(max(top[0], top[1]), max(top[2], top[3]));
}

// Stops, where `kChecked`, before the first group with an exponent beyond kHighest: at the same one in place or not,
// with entropy or without. Asks `distance` bytes ahead; beside(groups) comes after so many groups.
template <typename T, Map kMap, bool kEntropy, bool kChecked, bool kInPlace, typename Beside>
INLINE PartialSum sum_exp_loop(T* x, int64_t n, const RowMap& row_map, uintptr_t distance, const Beside& beside) {
  const Mapping map(row_map);
  const Exp2 exp2;
  PartialSum total{0.0, 0.0, n};
  bool masked = false;  // whether a logit of -Infinity has been seen, or is likely
  bool guarded = kChecked && kInPlace;
  constexpr bool kKeep = kInPlace || kEntropy;
  for (int64_t block = 0; block < n; block += kBlock) {
    const int64_t end = block + kBlock < n ? block + kBlock : n;
    Vec sum[2], weighted[2], long_sum[2], long_weighted[2];

    // How many of the groups were added. kGuarded: before the first that does not fit.
    const auto add_run = [&]<bool kGuarded, bool kMasked>(T * p, int64_t groups) __attribute__((always_inline)) {
      UNROLL for (int u = 0; u < 2; ++u) sum[u] = weighted[u] = Vec::of(0.0f);
      // Unrolled, it would have two dozen places that load, each far from its next: prefetchers follow few.
      ROLLED for (int64_t g = 0; g < groups; ++g, p += kGroup) {
        Vec y[kUnroll], unused[kUnroll], exponent[kUnroll];
        prefetch(p, distance);
        load(p, y);
        map_logits<kMap>(y, unused, map);
        if constexpr (kGuarded) {
          const Vec top = max(max(y[0], y[1]), max(y[2], y[3]));
          if (__builtin_expect(any_above(top, Vec::of(kHighest)), 0)) return g;
        }
        if constexpr (kEntropy) {
          // 0 * -inf is NaN; 2^-1000 is 0 as well.
          UNROLL for (int u = 0; u < kUnroll; ++u) exponent[u] = kMasked ? max(Vec::of(-1000.0f), y[u]) : y[u];
        }
        exp2.template add<kKeep>(y, sum);
        if constexpr (kInPlace) store<false>(p, y);
        if constexpr (kEntropy) {
          UNROLL for (int u = 0; u < kUnroll; u += 2) {
            weighted[u / 2] = weighted[u / 2] + fmadd(y[u + 1], exponent[u + 1], y[u] * exponent[u]);
          }
        }
      }
      return groups;
    };
    const auto take = [&]<bool kGuarded>(T * p, int64_t groups) __attribute__((always_inline)) {
      int64_t done = kEntropy && masked ? add_run.template operator()<kGuarded, kEntropy>(p, groups)
                                        : add_run.template operator()<kGuarded, false>(p, groups);
      if constexpr (kEntropy) {
        if (__builtin_expect(!masked && any_above(weighted[0] + weighted[1], Vec::of(FLT_MAX)), 0)) {
          masked = true;
          done = add_run.template operator()<kGuarded, true>(p, groups);
        }
      }
      UNROLL for (int u = 0; u < 2; ++u) {
        long_sum[u] = long_sum[u] + sum[u];
        if constexpr (kEntropy) long_weighted[u] = long_weighted[u] + weighted[u];
      }
      beside(groups);
      return done;
    };
    // Where it stopped.
    const auto add_block = [&]<bool kGuarded>() __attribute__((always_inline)) {
      UNROLL for (int u = 0; u < 2; ++u) long_sum[u] = long_weighted[u] = Vec::of(0.0f);
      int64_t i = block;
      while (i + kGroup <= end) {
        const int64_t whole = (end - i) / kGroup;
        const int64_t groups = whole < kShort ? whole : kShort;
        const int64_t done = take.template operator()<kGuarded>(x + i, groups);
        i += done * kGroup;
        if (done != groups) return i;
      }
      if (i < end) {
        Tail<T> tail(x + i, end - i);
        masked = true;
        if (take.template operator()<kGuarded>(tail.x, 1) != 1) return i;
        if (kInPlace) memcpy(x + i, tail.x, static_cast<size_t>(end - i) * sizeof(T));
      }
      return end;
    };

    // Where nothing is overwritten it is cheaper to look afterwards: such a term alone makes a lane as large. Many
    // lesser ones do, too, in every block of a row that is flat above an unlikely target: there it is cheaper to guard.
    int64_t reached = end;
    if (!guarded) {
      reached = add_block.template operator()<false>();
      guarded = kChecked && __builtin_expect(any_above(max(long_sum[0], long_sum[1]), Vec::of(kHighestTerm)), 0);
    }
    if (guarded) reached = add_block.template operator()<true>();
    total.sum += horizontal_sum(long_sum[0] + long_sum[1]);
    if constexpr (kEntropy) total.weighted += horizontal_sum(long_weighted[0] + long_weighted[1]);
    if (reached != end) {
      total.end = reached;
      return total;
    }
  }
  return total;
}

// Calls fn with the way in which logits are mapped.
template <bool kCapped, typename Fn>
INLINE auto with_map(const RowMap& map, const Fn& fn) {
  if constexpr (kCapped) return fn.template operator()<Map::capped>();
  if constexpr (Vec::kFusedMultiplyAdd) {
    if (map.fused) return fn.template operator()<Map::fused>();
  }
  return fn.template operator()<Map::difference>();
}

struct Nothing {
  INLINE void operator()(int64_t) const {}
};

template <typename T, bool kCapped, bool kEntropy, bool kChecked>
PartialSum sum_exp(const T* x, int64_t n, const RowMap& map) {
  return with_map<kCapped>(
      map, [&]<Map kMap>() __attribute__((always_inline)) {
        // Only the in-place variant writes.
        T* const logits = const_cast<T*>(x);
        return sum_exp_loop<T, kMap, kEntropy, kChecked, false>(logits, n, map, asking().ahead, Nothing());
      });
}

template <bool kCapped>
PartialSum term(float x, const RowMap& row_map) {
  return with_map<kCapped>(
      row_map, [&]<Map kMap>() __attribute__((always_inline)) {
        const Vec none = Vec::of(kNegInf);
        Vec y[kUnroll] = {Vec::of(x), none, none, none}, unused[kUnroll];
        map_logits<kMap>(y, unused, Mapping(row_map));
        const Vec exponent = max(Vec::of(-1000.0f), y[0]);
        Vec sum[2] = {Vec::of(0.0f), Vec::of(0.0f)};
        Exp2().template add<true>(y, sum);
        return PartialSum{horizontal_max(sum[0]), horizontal_max(y[0] * exponent), 1};
      });
}

template <bool kChecked>
PartialSum sum_exp_in_place(float* x, int64_t n, const RowMap& map) {
  return with_map<false>(
      map, [&]<Map kMap>() __attribute__((always_inline)) {
        return sum_exp_loop<float, kMap, false, kChecked, true>(x, n, map, asking().ahead, Nothing());
      });
}

template <typename T>
float max_of(const T* x, int64_t n) {
  const int64_t groups = n / kGroup, rest = n % kGroup;
  Vec top = greatest(x, groups);
  if (rest > 0) top = max(greatest(Tail<T>(x + groups * kGroup, rest).x, 1), top);
  return horizontal_max(top);
}

// How many of n elements come before the first at a whole cache line, or at as much of one as a group fills: fewer than
// a group. JavaScript's arrays begin 16 bytes past a line: each store of 64 bytes would be two.
template <typename T>
int64_t before_line(const T* p, int64_t n) {
  constexpr uintptr_t kGroupBytes = kGroup * sizeof(T), kWhole = kGroupBytes < 64 ? kGroupBytes : 64;
  const auto head = static_cast<int64_t>((0 - reinterpret_cast<uintptr_t>(p)) % kWhole / sizeof(T));
  return head < n ? head : n;
}

// Logits to their gradient, a group at a time. Its constants stay in registers as long as nothing has its address: what
// a function has the address of, a compiler reads again after every store. Stores past the caches wait in line, and
// such a read waits behind any of them at the same place of another page.
template <typename T, Map kMap, bool kEntropy>
struct GradientStep {
  // Of float32 the product is taken last, as scale() takes it: in place and out of place give the same bits.
  static constexpr bool kCapped = kMap == Map::capped;
  static constexpr bool kRounded = sizeof(T) == 2 && !kEntropy && !kCapped;

  Mapping map;
  Vec constant, linear;
  Exp2 exp2;
  ShortExp2<T> short_exp2;

  INLINE GradientStep(const RowMap& row_map, GradientMap gradient)
      : map(row_map), constant(Vec::of(gradient.constant)), linear(Vec::of(gradient.linear)), short_exp2(constant) {}

  INLINE void operator()(const T* from, Vec (&y)[kUnroll]) const {
    Vec slope[kUnroll], factor[kUnroll];
    load(from, y);
    map_logits<kMap>(y, slope, map);
    if constexpr (kRounded) {
      short_exp2(y);
    } else {
      UNROLL for (int u = 0; u < kUnroll; ++u) {
        factor[u] = kEntropy ? fmadd(linear, max(Vec::of(-1000.0f), y[u]), constant) : constant;
      }
      exp2(y);
      UNROLL for (int u = 0; u < kUnroll; ++u) {
        y[u] = y[u] * factor[u];
        if constexpr (kCapped) y[u] = y[u] * slope[u];
      }
    }
  }
};

// `count` elements from `begin` on, fewer than a group: a part of the group at `group`, which lies within the n
// elements where there are so many. What is read beyond that part is of no matter.
template <typename T, Map kMap, bool kEntropy>
__attribute__((noinline)) void gradient_of_some(T* out, const T* x, int64_t n, const RowMap& row_map,
                                                GradientMap gradient, int64_t begin, int64_t count, int64_t group) {
  const GradientStep<T, kMap, kEntropy> step(row_map, gradient);
  alignas(64) T some[kGroup];
  Vec y[kUnroll];
  if (n >= kGroup) {
    step(x + group, y);
  } else {
    step(Tail<T>(x + begin, count).x, y);
    group = begin;
  }
  store<false>(some, y);
  memcpy(out + begin, some + (begin - group), static_cast<size_t>(count) * sizeof(T));
}

// drive(advance) may do other things meanwhile, and call advance(groups) for so many more groups of the gradient; what
// it leaves is done after it.
template <typename T, Map kMap, bool kEntropy, bool kStreamed, typename Drive>
INLINE void gradient_loop(T* out, const T* x, int64_t n, const RowMap& row_map, GradientMap gradient, const T* ahead,
                          const Drive& drive) {
  constexpr auto some = gradient_of_some<T, kMap, kEntropy>;
  const uintptr_t distance = ahead == nullptr ? (kStreamed ? asking().streamed_ahead : asking().ahead) : 0;
  const T* const wanted = ahead == nullptr ? x : ahead;
  const bool asks = kStreamed && asking().outputs;
  int64_t i = before_line(out, n);
  if (i > 0) some(out, x, n, row_map, gradient, 0, i, 0);
  const GradientStep<T, kMap, kEntropy> step(row_map, gradient);
  const auto advance = [&](int64_t groups) __attribute__((always_inline)) {
    const int64_t left = (n - i) / kGroup, end = i + (groups < left ? groups : left) * kGroup;
    ROLLED for (; i < end; i += kGroup) {
      Vec y[kUnroll];
      prefetch(wanted + i, distance);
      ask_for_output(out + i, asks);
      step(x + i, y);
      store<kStreamed>(out + i, y);
    }
  };
  drive(advance);
  advance(n / kGroup);
  if (i < n) some(out, x, n, row_map, gradient, i, n - i, n - kGroup);
}

template <typename T, bool kCapped, bool kEntropy>
void gradient(T* out, const T* x, int64_t n, const RowMap& row_map, GradientMap g, const GradientMemory<T>& memory) {
  with_map<kCapped>(
      row_map, [&]<Map kMap>() __attribute__((always_inline)) {
        const auto alone = [](const auto&) __attribute__((always_inline)){};
        if (memory.streamed) return gradient_loop<T, kMap, kEntropy, true>(out, x, n, row_map, g, memory.ahead, alone);
        gradient_loop<T, kMap, kEntropy, false>(out, x, n, row_map, g, memory.ahead, alone);
      });
}

// It goes to and fro between two rows, which prefetchers do not follow by themselves: of 2 to 16 KB ahead 4 is best on
// Zen 5, for the row that is read first.
PartialSum sum_exp_beside(const float* x, int64_t n, const RowMap& map, const StreamedGradient<float>& other) {
  constexpr uintptr_t kAhead = 4096;
  PartialSum sum{};
  const auto drive = [&](const auto& advance) __attribute__((always_inline)) {
    sum = sum_exp_loop<float, Map::fused, false, true, false>(const_cast<float*>(x), n, map, kAhead, advance);
  };
  gradient_loop<float, Map::fused, false, true>(other.out, other.x, other.n, other.map, other.gradient, other.x, drive);
  return sum;
}

void scale(float* x, int64_t n, float factor) {
  const Vec f = Vec::of(factor);
  const uintptr_t distance = asking().ahead;
  int64_t i = 0;
  for (const int64_t head = before_line(x, n); i < head; ++i) x[i] *= factor;
  for (; i + kGroup <= n; i += kGroup) {
    Vec y[kUnroll];
    prefetch(x + i, distance);
    load(x + i, y);
    UNROLL for (int u = 0; u < kUnroll; ++u) y[u] = y[u] * f;
    store<false>(x + i, y);
  }
  for (; i < n; ++i) x[i] *= factor;
}

void copy_streamed(float* out, const float* x, int64_t n, const Asking& asking) {
  const uintptr_t distance = asking.streamed_ahead;
  const bool asks = asking.outputs;
  int64_t i = 0;
  for (const int64_t head = before_line(out, n); i < head; ++i) out[i] = x[i];
  for (; i + kGroup <= n; i += kGroup) {
    Vec y[kUnroll];
    prefetch(x + i, distance);
    ask_for_output(out + i, asks);
    load(x + i, y);
    store<true>(out + i, y);
  }
  for (; i < n; ++i) out[i] = x[i];
}

template <typename T>
void zero_streamed(T* out, int64_t n) {
  const bool asks = asking().outputs;
  int64_t i = before_line(out, n);
  memset(static_cast<void*>(out), 0, static_cast<size_t>(i) * sizeof(T));
  Vec zero[kUnroll];
  UNROLL for (int u = 0; u < kUnroll; ++u) zero[u] = Vec::of(0.0f);
  for (; i + kGroup <= n; i += kGroup) {
    ask_for_output(out + i, asks);
    store<true>(out + i, zero);
  }
  memset(static_cast<void*>(out + i), 0, static_cast<size_t>(n - i) * sizeof(T));
}

// half.h's conversions, as wide as the compiler makes them here.
template <typename To, typename From>
void cast(To* out, const From* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = from_float<To>(to_float(x[i]));
}

template <typename T>
constexpr RowKernels<T> kernels_of() {
  RowKernels<T> k{};
  k.sum_exp[0][0][0] = sum_exp<T, false, false, false>;
  k.sum_exp[0][0][1] = sum_exp<T, false, false, true>;
  k.sum_exp[0][1][0] = sum_exp<T, false, true, false>;
  k.sum_exp[0][1][1] = sum_exp<T, false, true, true>;
  k.sum_exp[1][0][0] = sum_exp<T, true, false, false>;
  k.sum_exp[1][0][1] = sum_exp<T, true, false, true>;
  k.sum_exp[1][1][0] = sum_exp<T, true, true, false>;
  k.sum_exp[1][1][1] = sum_exp<T, true, true, true>;
  k.term[0] = term<false>;
  k.term[1] = term<true>;
  k.max = max_of<T>;
  k.gradient[0][0] = gradient<T, false, false>;
  k.gradient[0][1] = gradient<T, false, true>;
  k.gradient[1][0] = gradient<T, true, false>;
  k.gradient[1][1] = gradient<T, true, true>;
  k.zero_streamed = zero_streamed<T>;
  k.to_float32 = cast<float, T>;
  k.to_bfloat16 = cast<bf16, T>;
  k.to_float16 = cast<f16, T>;
  return k;
}

constexpr RowKernels<float> float_kernels() {
  RowKernels<float> k = kernels_of<float>();
  k.sum_exp_in_place[0] = sum_exp_in_place<false>;
  k.sum_exp_in_place[1] = sum_exp_in_place<true>;
  k.scale = scale;
  k.copy_streamed = copy_streamed;
  // Where arithmetic alone takes as long as both, nothing is gained: AVX2 on Zen 5, 16 bits with any.
  if (FAPO_ISA_LEVEL == 4) k.sum_exp_beside = sum_exp_beside;
  return k;
}

#define FAPO_TEXT_OF(x) #x
#define FAPO_TEXT(x) FAPO_TEXT_OF(x)

}  // namespace

void policy_kernel(PolicyBlock& block, int64_t tokens, const PolicyBlockParams& params, PolicyLanes& lanes);

extern const IsaKernels kernels;
const IsaKernels kernels = {FAPO_TEXT(FAPO_ISA), Vec::kFusedMultiplyAdd, float_kernels(),
                            kernels_of<bf16>(),  kernels_of<f16>(),      policy_kernel};

}  // namespace fapo::FAPO_ISA
