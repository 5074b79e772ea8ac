// The elementwise maths, written once over the vector types of simd.h. Each function is one fixed sequence of correctly
// rounded operations, so its bits do not depend on the tier. Coefficients are our own minimax fits (relative error of
// the polynomial in brackets); the errors of the whole functions are held by tests/test_vector.cpp.
#pragma once
#include <cstdint>

#include "kernels/simd.h"

namespace kamado {
namespace {

// e^x for every input: NaN stays NaN, 0 below ln(2^-126) (no subnormal results), +inf above ln(FLT_MAX).
template <class V>
KAMADO_INLINE V exp_f32(V x) {
  const V magic = V::set1(0x1.8p23f);  // adding it leaves rint(y) in the low mantissa bits
  const V shifted = fma(x, V::set1(0x1.715476p+0f), magic);
  const V n = shifted - magic;
  V r = fma(n, V::set1(-0x1.62e400p-1f), x);  // ln 2 in two parts; the first has 15 bits, so n * it is exact
  r = fma(n, V::set1(-0x1.7f7d1cp-20f), r);
  V q = V::set1(0x1.6a2430p-10f);  // e^r = 1 + r + r^2 q(r) on |r| <= ln 2 / 2  [3.1e-9]
  q = fma(q, r, V::set1(0x1.1239e4p-7f));
  q = fma(q, r, V::set1(0x1.5558f2p-5f));
  q = fma(q, r, V::set1(0x1.555492p-3f));
  q = fma(q, r, V::set1(0x1.fffffcp-2f));
  const V p = fma(r * r, q, r) + V::set1(1.0f);
  V y = scale_exponent(p, shifted);
  y = select(less(x, V::set1(-0x1.5d589ep+6f)), V::set1(0.0f), y);             // -87.33654
  y = select(less(V::set1(0x1.62e42ep+6f), x), V::set1(__builtin_inff()), y);  // 88.72283
  return select(is_nan(x), x, y);
}

template <class V>
KAMADO_INLINE V sigmoid_f32(V x) {
  return V::set1(1.0f) / (V::set1(1.0f) + exp_f32(V::set1(0.0f) - x));
}

template <class V>
KAMADO_INLINE V tanh_f32(V x) {
  const V a = abs(x);
  const V z = x * x;
  V q = V::set1(-0.0057049785f);  // tanh x = x + x^3 q(x^2) on |x| < 0.625  [4.4e-9]
  q = fma(q, z, V::set1(0.020639079f));
  q = fma(q, z, V::set1(-0.05373971f));
  q = fma(q, z, V::set1(0.13331442f));
  q = fma(q, z, V::set1(-0.3333328f));
  const V small = fma(x * z, q, x);
  const V large = V::set1(1.0f) - V::set1(2.0f) / (exp_f32(a + a) + V::set1(1.0f));
  return select(less(a, V::set1(0.625f)), small, select(is_nan(x), x, copy_sign(large, x)));
}

// erfc(a) for a >= 0: e^(-a^2) * t * g(t), t = 1 / (1 + 0.4 a)  [1.6e-9 for a <= 9.5; 0 beyond]
template <class V>
KAMADO_INLINE V erfc_positive_f32(V a) {
  const V t = V::set1(1.0f) / fma(a, V::set1(0.4f), V::set1(1.0f));
  V g = V::set1(-0.017402869f);
  g = fma(g, t, V::set1(0.07150599f));
  g = fma(g, t, V::set1(-0.05934271f));
  g = fma(g, t, V::set1(-0.12151799f));
  g = fma(g, t, V::set1(0.19534436f));
  g = fma(g, t, V::set1(-0.06624511f));
  g = fma(g, t, V::set1(0.18138586f));
  g = fma(g, t, V::set1(0.15462008f));
  g = fma(g, t, V::set1(0.21058157f));
  g = fma(g, t, V::set1(0.2253824f));
  g = fma(g, t, V::set1(0.22568841f));
  return exp_f32(V::set1(0.0f) - a * a) * (t * g);
}

template <class V>
KAMADO_INLINE V relu2_f32(V x) {
  const V y = max(V::set1(0.0f), x);  // in this order NaN comes through
  return y * y;
}

template <class V>
KAMADO_INLINE V silu_f32(V x) {
  return x / (V::set1(1.0f) + exp_f32(V::set1(0.0f) - x));
}

// x * sigmoid(alpha x)
template <class V>
KAMADO_INLINE V swish_f32(V x, V alpha) {
  return x / (V::set1(1.0f) + exp_f32(V::set1(0.0f) - alpha * x));
}

// 0.5 x (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3), written as x / (1 + e^(-2u)): no cancellation for x < 0.
template <class V>
KAMADO_INLINE V gelu_tanh_f32(V x) {
  const V inner = fma(x * x * x, V::set1(0.044715f), x);
  return x / (V::set1(1.0f) + exp_f32(inner * V::set1(-1.5957691216057308f)));
}

// 0.5 x (1 + erf(x / sqrt 2)), by erfc(|x| / sqrt 2) so that both tails keep their relative accuracy.
template <class V>
KAMADO_INLINE V gelu_erf_f32(V x) {
  const V half_tail = V::set1(0.5f) * x * erfc_positive_f32(abs(x) * V::set1(0.70710678118654752f));
  return select(less(x, V::set1(0.0f)), half_tail, x - half_tail);
}

template <class V>
KAMADO_INLINE V softcap_f32(V x, V cap) {
  return cap * tanh_f32(x / cap);
}

}  // namespace
}  // namespace kamado
