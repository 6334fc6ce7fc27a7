// 16 floats, AVX-512 F, BW, DQ, VL. 2^y takes no clamps: vscalef overflows to infinity and underflows to 0 by itself.
// Included inside an anonymous namespace.

struct Vec {
  static constexpr int kLanes = 16;
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

// To nearest even in the upper half; a NaN stays a NaN.
INLINE __m512i rounded_bf16(Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), bits, _mm512_set1_epi32(0x400000));
}

template <bool kStreamed>
INLINE void store_pair(float* p, Vec a, Vec b) {
  put<kStreamed>(p, _mm512_castps_si512(a.v));
  put<kStreamed>(p + 16, _mm512_castps_si512(b.v));
}
template <bool kStreamed>
INLINE void store_pair(bf16* p, Vec a, Vec b) {
  const __m512i even = _mm512_srli_epi32(rounded_bf16(a), 16);
  const __m512i odd = rounded_bf16(b);
  put<kStreamed>(p, _mm512_mask_blend_epi16(0xaaaaaaaau, even, odd));
}
template <bool kStreamed>
INLINE void store_pair(f16* p, Vec a, Vec b) {
  put<kStreamed>(p, _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT)),
                                       _mm512_cvtps_ph(b.v, _MM_FROUND_TO_NEAREST_INT), 1));
}

// 2^y, relative error below 1.5e-7: fraction in [0, 1), where the polynomial starts at exactly 1, and vscalef adds
// floor(y) to the exponent.
template <int kCount>
INLINE void exp2(Vec (&y)[kCount]) {
  constexpr float kC[] = {1.0f,
                          0.6931512951850891f,
                          0.24016444385051727f,
                          0.05579991266131401f,
                          0.009017030708491802f,
                          0.0018671300495043397f};
  Vec f[kCount], r[kCount];
  UNROLL for (int u = 0; u < kCount; ++u) f[u] = {_mm512_reduce_ps(y[u].v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
  UNROLL for (int u = 0; u < kCount; ++u) r[u] = fmadd(Vec::of(kC[5]), f[u], Vec::of(kC[4]));
  UNROLL for (int d = 3; d >= 0; --d) {
    UNROLL for (int u = 0; u < kCount; ++u) r[u] = fmadd(r[u], f[u], Vec::of(kC[d]));
  }
  UNROLL for (int u = 0; u < kCount; ++u) y[u] = {_mm512_scalef_ps(r[u].v, y[u].v)};
}

// 2^n for whole n
INLINE Vec power_of_two(Vec n) { return {_mm512_scalef_ps(_mm512_set1_ps(1.0f), n.v)}; }
INLINE Vec round_to_nearest(Vec y) {
  return {_mm512_roundscale_ps(y.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
INLINE void stream_fence() { _mm_sfence(); }
