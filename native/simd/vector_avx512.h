// 16 floats, AVX-512 F, BW, DQ, VL. 2^y takes no clamps: vscalef overflows to infinity and underflows to 0 by itself.
// Included inside an anonymous namespace.

struct Vec {
  static constexpr int kLanes = 16;
  static constexpr bool kFusedMultiplyAdd = true;
  __m512 v;

  INLINE static Vec of(float x) { return {_mm512_set1_ps(x)}; }
};

INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
INLINE Vec fmadd(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c
// max and min give their second operand where either is NaN.
INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
INLINE bool any_above(Vec a, Vec limit) {  // a NaN counts
  return _mm512_cmp_ps_mask(a.v, limit.v, _CMP_NLE_UQ) != 0;
}
// x < limit ? a : b
INLINE Vec select_below(Vec x, Vec limit, Vec a, Vec b) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_LT_OQ), b.v, a.v)};
}
INLINE Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
INLINE float horizontal_max(Vec a) { return _mm512_reduce_max_ps(a.v); }
INLINE double horizontal_sum(Vec a) {
  return _mm512_reduce_add_pd(
      _mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(a.v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))));
}

// 2 kLanes consecutive elements. Which lane holds which element is the pair's own affair: 16-bit types are neither
// shuffled apart nor together.
INLINE void load_pair(const float* p, Vec& a, Vec& b) {
  a = {_mm512_loadu_ps(p)};
  b = {_mm512_loadu_ps(p + 16)};
}
INLINE void load_pair(const bf16* p, Vec& a, Vec& b) {
  const __m512i w = _mm512_loadu_si512(p);
  a = {_mm512_castsi512_ps(_mm512_slli_epi32(w, 16))};
  b = {_mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
INLINE void load_pair(const f16* p, Vec& a, Vec& b) {
  a = {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  b = {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + 1))};
}

template <bool kStreamed>
INLINE void put(void* p, __m512i w) {
  if constexpr (kStreamed) {
    _mm512_stream_si512(static_cast<__m512i*>(p), w);
  } else {
    _mm512_storeu_si512(p, w);
  }
}

template <bool kStreamed>
INLINE void store_pair(float* p, Vec a, Vec b) {
  put<kStreamed>(p, _mm512_castps_si512(a.v));
  put<kStreamed>(p + 16, _mm512_castps_si512(b.v));
}
// To nearest: half of the last bit is added, and the upper half is the result. NaNs that come of arithmetic on bfloat16
// have a lower half of 0, and stay NaNs. To nearest even would differ in ties alone, which of numbers that were rounded
// on their way are mostly chance, and took a seventh of the gradient's time.
template <bool kStreamed>
INLINE void store_pair(bf16* p, Vec a, Vec b) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i even = _mm512_add_epi32(_mm512_castps_si512(a.v), half);
  const __m512i odd = _mm512_add_epi32(_mm512_castps_si512(b.v), half);
  const __m512i upper = _mm512_broadcast_i32x4(_mm_setr_epi8(2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15));
  put<kStreamed>(p, _mm512_mask_shuffle_epi8(odd, 0x3333333333333333u, even, upper));
}
template <bool kStreamed>
INLINE void store_pair(f16* p, Vec a, Vec b) {
  put<kStreamed>(p, _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT)),
                                       _mm512_cvtps_ph(b.v, _MM_FROUND_TO_NEAREST_INT), 1));
}

// polynomial(fraction of y) * 2^floor(y): vreduce leaves the fraction in [0, 1), vscalef adds floor(y) to the exponent.
template <int kDegree, int kCount>
INLINE void exp2_by(const Vec (&c)[kDegree + 1], Vec (&y)[kCount]) {
  Vec f[kCount], r[kCount];
  UNROLL for (int u = 0; u < kCount; ++u) f[u] = {_mm512_reduce_ps(y[u].v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
  UNROLL for (int u = 0; u < kCount; ++u) r[u] = fmadd(c[kDegree], f[u], c[kDegree - 1]);
  UNROLL for (int d = kDegree - 2; d >= 0; --d) {
    UNROLL for (int u = 0; u < kCount; ++u) r[u] = fmadd(r[u], f[u], c[d]);
  }
  UNROLL for (int u = 0; u < kCount; ++u) y[u] = {_mm512_scalef_ps(r[u].v, y[u].v)};
}

// 2^y: relative error below 1.5e-7, exactly 1 at 0.
struct Exp2 {
  Vec c[6] = {Vec::of(1.0f),
              Vec::of(0.6931512951850891f),
              Vec::of(0.24016444385051727f),
              Vec::of(0.05579991266131401f),
              Vec::of(0.009017030708491802f),
              Vec::of(0.0018671300495043397f)};

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

// factor * 2^y for results that are rounded to 16 bits: relative error below 2.7e-6, the factor in the coefficients.
template <typename>
struct ShortExp2 {
  Vec c[5];

  INLINE explicit ShortExp2(Vec factor)
      : c{factor * Vec::of(1.0000026226043701f), factor * Vec::of(0.6930038332939148f),
          factor * Vec::of(0.2414427548646927f), factor * Vec::of(0.052011460065841675f),
          factor * Vec::of(0.013534167781472206f)} {}

  template <int kCount>
  INLINE void operator()(Vec (&y)[kCount]) const {
    exp2_by<4>(c, y);
  }
};

// 2^n for whole n
INLINE Vec power_of_two(Vec n) { return {_mm512_scalef_ps(_mm512_set1_ps(1.0f), n.v)}; }
INLINE Vec round_to_nearest(Vec y) {
  return {_mm512_roundscale_ps(y.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
