// 2^y where there is no vscalef: fraction in [-0.5, 0.5], the rest added to the exponent. Included by a vector_*.h.

// Clamped to what the exponent can hold: exactly 0 from -127 down, where the polynomial is 1; above 2^127 never needed.
// The clamps keep a NaN: max and min give their second operand then.
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
};

// factor * 2^y for results that are rounded to 16 bits: relative error below 2.9e-6, exactly 1 at 0. Adding to the
// exponent does not saturate, so the factor stays out of the coefficients.
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
