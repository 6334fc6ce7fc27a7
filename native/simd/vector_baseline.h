// 4 floats through GCC's and clang's vector extension: SSE2 on x86-64, NEON on arm64. Included inside an anonymous
// namespace. See vector_avx512.h for what each does.

typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));
typedef uint32_t U4 __attribute__((vector_size(16)));

struct Vec {
  static constexpr int kLanes = 4;
#if defined(__aarch64__)
  static constexpr bool kFusedMultiplyAdd = true;
#else
  static constexpr bool kFusedMultiplyAdd = false;
#endif
  F4 v;

  INLINE static Vec of(float x) { return {F4{x, x, x, x}}; }
};

INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
INLINE Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
INLINE Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
#if defined(__aarch64__)
INLINE Vec fmadd(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
#else
INLINE Vec fmadd(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
#endif
INLINE Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
INLINE Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
INLINE bool any_above(Vec a, Vec limit) {
  const I4 above = ~(a.v <= limit.v);
  return (above[0] | above[1] | above[2] | above[3]) != 0;
}
INLINE Vec select_below(Vec x, Vec limit, Vec a, Vec b) { return {x.v < limit.v ? a.v : b.v}; }
INLINE Vec abs(Vec a) { return {reinterpret_cast<F4>(reinterpret_cast<U4>(a.v) & 0x7fffffffu)}; }
INLINE float horizontal_max(Vec a) {
  float m = a.v[0];
  for (int i = 1; i < 4; ++i) m = a.v[i] > m ? a.v[i] : m;
  return m;
}
INLINE double horizontal_sum(Vec a) {
  return (static_cast<double>(a.v[0]) + a.v[1]) + (static_cast<double>(a.v[2]) + a.v[3]);
}

INLINE void load_pair(const float* p, Vec& a, Vec& b) {
  memcpy(&a.v, p, 16);
  memcpy(&b.v, p + 4, 16);
}
INLINE void load_pair(const bf16* p, Vec& a, Vec& b) {
  U4 w;
  memcpy(&w, p, 16);
  a.v = reinterpret_cast<F4>(w << 16);
  b.v = reinterpret_cast<F4>(w & 0xffff0000u);
}
INLINE void load_pair(const f16* p, Vec& a, Vec& b) {
#if defined(__aarch64__)
  float16x8_t h;
  memcpy(&h, p, 16);
  a.v = vcvt_f32_f16(vget_low_f16(h));
  b.v = vcvt_high_f32_f16(h);
#else
  a.v = F4{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
  b.v = F4{to_float(p[4]), to_float(p[5]), to_float(p[6]), to_float(p[7])};
#endif
}

template <bool kStreamed>
INLINE void store_pair(float* p, Vec a, Vec b) {
  memcpy(p, &a.v, 16);
  memcpy(p + 4, &b.v, 16);
}
// As in vector_avx512.h.
template <bool kStreamed>
INLINE void store_pair(bf16* p, Vec a, Vec b) {
  const U4 even = reinterpret_cast<U4>(a.v) + 0x8000u, odd = reinterpret_cast<U4>(b.v) + 0x8000u;
  const U4 w = (even >> 16) | (odd & 0xffff0000u);
  memcpy(p, &w, 16);
}
template <bool kStreamed>
INLINE void store_pair(f16* p, Vec a, Vec b) {
#if defined(__aarch64__)
  const float16x8_t h = vcvt_high_f16_f32(vcvt_f16_f32(a.v), b.v);
  memcpy(p, &h, 16);
#else
  for (int i = 0; i < 4; ++i) {
    p[i] = from_float<f16>(a.v[i]);
    p[i + 4] = from_float<f16>(b.v[i]);
  }
#endif
}

// Adding 1.5 * 2^23 leaves no room for a fraction; exact for |y| < 2^22.
INLINE Vec round_to_nearest(Vec y) {
  const Vec magic = Vec::of(12582912.0f);
  return (y + magic) - magic;
}
INLINE Vec scale_by_power(Vec r, Vec n) {
  return {reinterpret_cast<F4>(reinterpret_cast<I4>(r.v) + (__builtin_convertvector(n.v, I4) << 23))};
}

// 2^y: fraction in [-0.5, 0.5], the rest added to the exponent. Clamped to what that can hold: exactly 0 from -127
// down, where the polynomial is 1; above 2^127 never needed. The clamps keep a NaN: max and min give their second
// operand then.
template <int kDegree, int kCount>
INLINE void exp2_by(const Vec (&c)[kDegree + 1], Vec (&y)[kCount]) {
  Vec n[kCount], r[kCount];
  UNROLL for (int u = 0; u < kCount; ++u) y[u] = min(Vec::of(127.49f), max(Vec::of(-127.0f), y[u]));
  UNROLL for (int u = 0; u < kCount; ++u) n[u] = round_to_nearest(y[u]);
  UNROLL for (int u = 0; u < kCount; ++u) y[u] = y[u] - n[u];
  UNROLL for (int u = 0; u < kCount; ++u) r[u] = fmadd(c[kDegree], y[u], c[kDegree - 1]);
  UNROLL for (int d = kDegree - 2; d >= 0; --d) {
    UNROLL for (int u = 0; u < kCount; ++u) r[u] = fmadd(r[u], y[u], c[d]);
  }
  UNROLL for (int u = 0; u < kCount; ++u) y[u] = scale_by_power(r[u], n[u]);
}

// 2^y: relative error below 1.6e-7, exactly 1 at 0.
struct Exp2 {
  Vec c[6] = {Vec::of(1.0f),
              Vec::of(0.6931470036506653f),
              Vec::of(0.24022242426872253f),
              Vec::of(0.05550733581185341f),
              Vec::of(0.009671512991189957f),
              Vec::of(0.001326472731307149f)};

  template <int kCount>
  INLINE void operator()(Vec (&y)[kCount]) const {
    exp2_by<5>(c, y);
  }

  // sum += 2^y, in pairs; y becomes 2^y where that is asked for, anything where not.
  template <bool kKeep>
  INLINE void add(Vec (&y)[4], Vec (&sum)[2]) const {
    (*this)(y);
    UNROLL for (int u = 0; u < 2; ++u) sum[u] = sum[u] + (y[2 * u] + y[2 * u + 1]);
  }
};

// factor * 2^y for results that are rounded to 16 bits: relative error below 2.9e-6, exactly 1 at 0. Adding to the
// exponent does not saturate, so the factor stays out of the coefficients.
template <typename>
struct ShortExp2 {
  Vec factor;
  Vec c[5] = {Vec::of(1.0f), Vec::of(0.6931241750717163f), Vec::of(0.24024099111557007f),
              Vec::of(0.055906426161527634f), Vec::of(0.009582852944731712f)};

  INLINE explicit ShortExp2(Vec scale) : factor(scale) {}

  template <int kCount>
  INLINE void operator()(Vec (&y)[kCount]) const {
    exp2_by<4>(c, y);
    UNROLL for (int u = 0; u < kCount; ++u) y[u] = y[u] * factor;
  }
};

INLINE Vec power_of_two(Vec n) { return scale_by_power(Vec::of(1.0f), n); }
