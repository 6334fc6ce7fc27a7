// 8 floats, AVX2 with FMA and F16C. Included inside an anonymous namespace. See vector_avx512.h for what each does.

struct Vec {
  static constexpr int kLanes = 8;
  static constexpr bool kFusedMultiplyAdd = true;
  __m256 v;

  INLINE static Vec of(float x) { return {_mm256_set1_ps(x)}; }
};

INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
INLINE Vec fmadd(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
INLINE bool any_above(Vec a, Vec limit) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, limit.v, _CMP_NLE_UQ)) != 0; }
INLINE Vec select_below(Vec x, Vec limit, Vec a, Vec b) {
  return {_mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(x.v, limit.v, _CMP_LT_OQ))};
}
INLINE Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
INLINE float horizontal_max(Vec a) {
  float lane[8];
  _mm256_storeu_ps(lane, a.v);
  float m = lane[0];
  for (int i = 1; i < 8; ++i) m = lane[i] > m ? lane[i] : m;
  return m;
}
INLINE double horizontal_sum(Vec a) {
  const __m256d halves =
      _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(a.v)), _mm256_cvtps_pd(_mm256_extractf128_ps(a.v, 1)));
  double lane[4];
  _mm256_storeu_pd(lane, halves);
  return (lane[0] + lane[1]) + (lane[2] + lane[3]);
}

INLINE void load_pair(const float* p, Vec& a, Vec& b) {
  a = {_mm256_loadu_ps(p)};
  b = {_mm256_loadu_ps(p + 8)};
}
INLINE void load_pair(const bf16* p, Vec& a, Vec& b) {
  const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  a = {_mm256_castsi256_ps(_mm256_slli_epi32(w, 16))};
  b = {_mm256_castsi256_ps(_mm256_blend_epi16(_mm256_setzero_si256(), w, 0xaa))};
}
INLINE void load_pair(const f16* p, Vec& a, Vec& b) {
  a = {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  b = {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + 1))};
}

template <bool kStreamed>
INLINE void put(void* p, __m256i w) {
  if constexpr (kStreamed) {
    _mm256_stream_si256(static_cast<__m256i*>(p), w);
  } else {
    _mm256_storeu_si256(static_cast<__m256i*>(p), w);
  }
}

template <bool kStreamed>
INLINE void store_pair(float* p, Vec a, Vec b) {
  put<kStreamed>(p, _mm256_castps_si256(a.v));
  put<kStreamed>(p + 8, _mm256_castps_si256(b.v));
}
// As in vector_avx512.h.
template <bool kStreamed>
INLINE void store_pair(bf16* p, Vec a, Vec b) {
  const __m256i half = _mm256_set1_epi32(0x8000);
  const __m256i even = _mm256_add_epi32(_mm256_castps_si256(a.v), half);
  const __m256i odd = _mm256_add_epi32(_mm256_castps_si256(b.v), half);
  put<kStreamed>(p, _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa));
}
template <bool kStreamed>
INLINE void store_pair(f16* p, Vec a, Vec b) {
  put<kStreamed>(p, _mm256_set_m128i(_mm256_cvtps_ph(b.v, _MM_FROUND_TO_NEAREST_INT),
                                     _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT)));
}

INLINE Vec round_to_nearest(Vec y) { return {_mm256_round_ps(y.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

// 2^n for whole n of -127 (which gives 0) to 127
INLINE Vec power_of_two(Vec n) {
  return {_mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(_mm256_set1_ps(1.0f)), _mm256_slli_epi32(_mm256_cvtps_epi32(n.v), 23)))};
}

// 2^y = polynomial(f) * 2^k, where k is y to the nearest eighth: shorter than to the nearest whole, which needs two
// degrees more, and multiplications are what there are too few ports for.
struct Eighths {
  // Leaves a number of eighths in the last bits, the whole ones above the last three.
  static constexpr float kMagic = 0x1.8p20f;
  // Bits of 2^(j / 8), less the j that ends up below the exponent.
  __m256i powers = _mm256_setr_epi32(0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,  //
                                     0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7);

  // 2^k of k + kMagic; for k = -127 exactly 0.
  INLINE Vec power(Vec with_magic) const {
    const __m256i eighths = _mm256_castps_si256(with_magic.v);
    return {_mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_permutevar8x32_epi32(powers, eighths), _mm256_slli_epi32(eighths, 20)))};
  }
};

// y becomes 2^k, r the polynomial. Clamped to what the exponent can hold: exactly 0 from -127 down; above 2^127 never
// needed. The clamps keep a NaN: max and min give their second operand then.
template <int kDegree, int kCount>
INLINE void exp2_by(const Vec (&c)[kDegree + 1], const Eighths& eighths, Vec (&y)[kCount], Vec (&r)[kCount]) {
  const Vec magic = Vec::of(Eighths::kMagic);
  Vec k[kCount];
  UNROLL for (int u = 0; u < kCount; ++u) y[u] = min(Vec::of(127.49f), max(Vec::of(-127.0f), y[u]));
  UNROLL for (int u = 0; u < kCount; ++u) k[u] = y[u] + magic;
  UNROLL for (int u = 0; u < kCount; ++u) y[u] = y[u] - (k[u] - magic);
  UNROLL for (int u = 0; u < kCount; ++u) r[u] = fmadd(c[kDegree], y[u], c[kDegree - 1]);
  UNROLL for (int d = kDegree - 2; d >= 0; --d) {
    UNROLL for (int u = 0; u < kCount; ++u) r[u] = fmadd(r[u], y[u], c[d]);
  }
  UNROLL for (int u = 0; u < kCount; ++u) y[u] = eighths.power(k[u]);
}

// 2^y: relative error below 1.6e-7, exactly 1 at 0.
struct Exp2 {
  Vec c[4] = {Vec::of(1.0f), Vec::of(0.6931472420692444f), Vec::of(0.2402576357126236f), Vec::of(0.0554962195456028f)};
  Eighths eighths;

  template <int kCount>
  INLINE void operator()(Vec (&y)[kCount]) const {
    Vec r[kCount];
    exp2_by<3>(c, eighths, y, r);
    UNROLL for (int u = 0; u < kCount; ++u) y[u] = r[u] * y[u];
  }

  // The same sum whether the powers are kept or not.
  template <bool kKeep>
  INLINE void add(Vec (&y)[4], Vec (&sum)[2]) const {
    Vec r[4];
    exp2_by<3>(c, eighths, y, r);
    UNROLL for (int u = 0; u < 4; u += 2) sum[u / 2] = sum[u / 2] + fmadd(r[u + 1], y[u + 1], r[u] * y[u]);
    if constexpr (kKeep) {
      UNROLL for (int u = 0; u < 4; ++u) y[u] = r[u] * y[u];
    }
  }
};

// factor * 2^y for results that are rounded to T, the factor in the coefficients: for bfloat16 with a relative error
// below 3.6e-6, a thousandth of what its rounding is.
template <typename T>
struct ShortExp2 {
  Exp2 exp2;

  INLINE explicit ShortExp2(Vec factor) { UNROLL for (Vec& c : exp2.c) c = factor * c; }

  template <int kCount>
  INLINE void operator()(Vec (&y)[kCount]) const {
    exp2(y);
  }
};
template <>
struct ShortExp2<bf16> {
  Vec c[3];
  Eighths eighths;

  INLINE explicit ShortExp2(Vec factor)
      : c{factor * Vec::of(1.0000001192092896f), factor * Vec::of(0.6933097839355469f),
          factor * Vec::of(0.24019832909107208f)} {}

  template <int kCount>
  INLINE void operator()(Vec (&y)[kCount]) const {
    Vec r[kCount];
    exp2_by<2>(c, eighths, y, r);
    UNROLL for (int u = 0; u < kCount; ++u) y[u] = r[u] * y[u];
  }
};
