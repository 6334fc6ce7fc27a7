// 2^y where there is no vscalef: fraction in [-0.5, 0.5], the rest added to the exponent. Included by a vector_*.h.

// Relative error below 1.6e-7. Clamped to what the exponent can hold: exactly 0 from -127 down, above 2^127 never
// needed. The clamps keep a NaN: max and min give their second operand then.
template <int kCount>
INLINE void exp2(Vec (&y)[kCount]) {
  constexpr float kC[] = {1.0f,
                          0.6931470036506653f,
                          0.24022242426872253f,
                          0.05550733581185341f,
                          0.009671512991189957f,
                          0.001326472731307149f};
  Vec n[kCount], r[kCount];
  UNROLL for (int u = 0; u < kCount; ++u) y[u] = min(Vec::of(127.49f), max(Vec::of(-127.0f), y[u]));
  UNROLL for (int u = 0; u < kCount; ++u) n[u] = round_to_nearest(y[u]);
  UNROLL for (int u = 0; u < kCount; ++u) y[u] = y[u] - n[u];
  UNROLL for (int u = 0; u < kCount; ++u) r[u] = fmadd(Vec::of(kC[5]), y[u], Vec::of(kC[4]));
  UNROLL for (int d = 3; d >= 0; --d) {
    UNROLL for (int u = 0; u < kCount; ++u) r[u] = fmadd(r[u], y[u], Vec::of(kC[d]));
  }
  UNROLL for (int u = 0; u < kCount; ++u) y[u] = scale_by_power(r[u], n[u]);
}

INLINE Vec power_of_two(Vec n) { return scale_by_power(Vec::of(1.0f), n); }
