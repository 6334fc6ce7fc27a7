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
  b = {_mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
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
  const __m256i even = _mm256_castps_si256(a.v), odd = _mm256_castps_si256(b.v);
  const __m256i high = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
  const __m256i low = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
  const __m256i below = _mm256_subs_epu16(low, _mm256_andnot_si256(high, _mm256_set1_epi16(1)));
  put<kStreamed>(p, _mm256_add_epi16(high, _mm256_srli_epi16(below, 15)));
}
template <bool kStreamed>
INLINE void store_pair(f16* p, Vec a, Vec b) {
  put<kStreamed>(p, _mm256_set_m128i(_mm256_cvtps_ph(b.v, _MM_FROUND_TO_NEAREST_INT),
                                     _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT)));
}

INLINE Vec round_to_nearest(Vec y) { return {_mm256_round_ps(y.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// r * 2^n by adding n to the exponent; for n = -127 and r = 1 exactly 0.
INLINE Vec scale_by_power(Vec r, Vec n) {
  return {
      _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(r.v), _mm256_slli_epi32(_mm256_cvtps_epi32(n.v), 23)))};
}
INLINE void stream_fence() { _mm_sfence(); }

#include "native/simd/exp2_by_rounding.h"
