// Row kernels over a 16-lane vector type V (F8x2 or F16); the same operations in the same order as ref/vector_ref.cpp.
// Tails load zeros into the lanes past the end; where a zero would change a sum or a maximum, those lanes are masked.
#pragma once
#include "kamado/vector.h"
#include "kernels/math.inc.h"

namespace kamado {
namespace {

template <class V>
struct VectorTier {
  static_assert(V::kLanes == kVirtualLanes);

  // out[i] = f(x[i])
  template <class Fn>
  static KAMADO_INLINE void map(const float* x, int32_t n, float* out, Fn f) {
    int32_t i = 0;
    for (; i + kVirtualLanes <= n; i += kVirtualLanes) f(V::load(x + i)).store(out + i);
    if (i < n) f(V::load_first(x + i, n - i)).store_first(out + i, n - i);
  }

  // out[i] = f(x[i], y[i])
  template <class Fn>
  static KAMADO_INLINE void map(const float* x, const float* y, int32_t n, float* out, Fn f) {
    int32_t i = 0;
    for (; i + kVirtualLanes <= n; i += kVirtualLanes) f(V::load(x + i), V::load(y + i)).store(out + i);
    if (i < n) f(V::load_first(x + i, n - i), V::load_first(y + i, n - i)).store_first(out + i, n - i);
  }

  // total = f(x[i], total) by lanes; those past the end keep what they have.
  template <class Fn>
  static KAMADO_INLINE V fold(const float* x, int32_t n, V total, Fn f) {
    int32_t i = 0;
    for (; i + kVirtualLanes <= n; i += kVirtualLanes) total = f(V::load(x + i), total);
    if (i < n) total = select(V::lanes_between(0, n - i), f(V::load_first(x + i, n - i), total), total);
    return total;
  }

  static void rms_norm(const float* x, const float* weight, int32_t n, float eps, float* out) {
    norm_by(static_cast<float>(n), x, weight, n, eps, out);
  }

  static void l2_norm(const float* x, const float* weight, int32_t n, float eps, float* out) {
    norm_by(1.0f, x, weight, n, eps, out);
  }

  // By the root of the sum of squares / divisor + eps.
  static KAMADO_INLINE void norm_by(float divisor, const float* x, const float* weight, int32_t n, float eps,
                                    float* out) {
    const V sum = fold(x, n, V::set1(0.0f), [](V v, V total) { return fma(v, v, total); });
    const V inverse = V::set1(1.0f / __builtin_sqrtf(reduce_sum(sum) / divisor + eps));
    if (weight) {
      map(x, weight, n, out, [inverse](V v, V w) { return v * inverse * w; });
    } else {
      map(x, n, out, [inverse](V v) { return v * inverse; });
    }
  }

  static void layer_norm(const float* x, const float* weight, const float* bias, int32_t n, float eps, float* out) {
    const V zero = V::set1(0.0f);
    const V sum = fold(x, n, zero, [](V v, V total) { return total + v; });
    const V mean = V::set1(reduce_sum(sum) / static_cast<float>(n));
    const V square = fold(x, n, zero, [mean](V v, V total) {
      const V d = v - mean;
      return fma(d, d, total);
    });
    const V inverse = V::set1(1.0f / __builtin_sqrtf(reduce_sum(square) / static_cast<float>(n) + eps));
    if (weight) {
      map(x, weight, n, out, [mean, inverse](V v, V w) { return (v - mean) * inverse * w; });
    } else {
      map(x, n, out, [mean, inverse](V v) { return (v - mean) * inverse; });
    }
    if (bias) add(out, bias, n, out);
  }

  static void rope(float* x, int32_t n_heads, int32_t head_dim, int32_t rot_dim, const float* cos, const float* sin,
                   bool interleaved) {
    const int32_t half = rot_dim / 2;
    const int32_t whole = half - half % kVirtualLanes;
    for (int32_t head = 0; head < n_heads; ++head, x += head_dim) {
      for (int32_t i = 0; i < whole; i += kVirtualLanes) {
        const V c = V::load(cos + i), s = V::load(sin + i);
        if (interleaved) {
          V a, b;
          load_pairs(x + 2 * i, &a, &b);
          store_pairs(x + 2 * i, a * c - b * s, b * c + a * s);
        } else {
          const V a = V::load(x + i), b = V::load(x + i + half);
          (a * c - b * s).store(x + i);
          (b * c + a * s).store(x + i + half);
        }
      }
      for (int32_t i = whole; i < half; ++i) {
        float* a = interleaved ? x + 2 * i : x + i;
        float* b = interleaved ? x + 2 * i + 1 : x + i + half;
        const float first = *a * cos[i] - *b * sin[i];
        const float second = *b * cos[i] + *a * sin[i];
        *a = first;
        *b = second;
      }
    }
  }

  // out[i] = act(a[i / group]) * other(b[i]), which is 1 without b
  template <class Act, class Other>
  static KAMADO_INLINE void gate_groups(const float* a, const float* b, int32_t group, int32_t n, float* out, Act act,
                                        Other other) {
    if (group > 1) {
      for (int32_t begin = 0; begin < n; begin += group, ++a) {
        const V y = act(V::set1(*a));
        const int32_t count = group < n - begin ? group : n - begin;
        const float* values = b ? b + begin : out + begin;  // without b what is read does not count
        map(values, count, out + begin, [&](V x) { return b ? y * other(x) : y; });
      }
    } else if (b) {
      map(a, b, n, out, [&](V x, V y) { return act(x) * other(y); });
    } else {
      map(a, n, out, act);
    }
  }

  template <class Act>
  static KAMADO_INLINE void gate_with(const float* a, const float* b, float limit, int32_t group, int32_t n, float* out,
                                      Act act) {
    if (limit > 0) {
      const V top = V::set1(limit), bottom = V::set1(-limit);
      gate_groups(
          a, b, group, n, out, [&](V x) { return min(top, act(x)); }, [&](V y) { return min(top, max(bottom, y)); });
    } else {
      gate_groups(a, b, group, n, out, act, [](V y) { return y; });
    }
  }

  // Clamped before the activation; b counts one more.
  static void swish_gate(const float* a, const float* b, float limit, float alpha, int32_t n, float* out) {
    const V top = V::set1(limit > 0 ? limit : __builtin_inff()), bottom = V::set1(0.0f) - top, factor = V::set1(alpha);
    map(a, b, n, out,
        [&](V x, V y) { return swish_f32(min(top, x), factor) * (min(top, max(bottom, y)) + V::set1(1.0f)); });
  }

  static void gate(const float* a, const float* b, Activation act, float limit, int32_t group, float alpha, int32_t n,
                   float* out) {
    if (alpha > 0 && b) return swish_gate(a, b, limit, alpha, n, out);
    switch (act) {
      case Activation::kNone:
        return gate_with(a, b, limit, group, n, out, [](V x) { return x; });
      case Activation::kSilu:
        return gate_with(a, b, limit, group, n, out, [](V x) { return silu_f32(x); });
      case Activation::kGeluTanh:
        return gate_with(a, b, limit, group, n, out, [](V x) { return gelu_tanh_f32(x); });
      case Activation::kGeluErf:
        return gate_with(a, b, limit, group, n, out, [](V x) { return gelu_erf_f32(x); });
      case Activation::kRelu:
        return gate_with(a, b, limit, group, n, out, [](V x) { return max(V::set1(0.0f), x); });
      case Activation::kRelu2:
        return gate_with(a, b, limit, group, n, out, [](V x) { return relu2_f32(x); });
      case Activation::kSigmoid:
        return gate_with(a, b, limit, group, n, out, [](V x) { return sigmoid_f32(x); });
    }
  }

  static void add(const float* a, const float* b, int32_t n, float* out) {
    map(a, b, n, out, [](V x, V y) { return x + y; });
  }

  static void scale(const float* x, float factor, int32_t n, float* out) {
    const V f = V::set1(factor);
    map(x, n, out, [f](V v) { return v * f; });
  }

  static void axpy(float factor, const float* x, int32_t n, float* inout) {
    const V f = V::set1(factor);
    map(x, inout, n, inout, [f](V v, V sum) { return fma(f, v, sum); });
  }

  static void accumulate(const float* before, const float* x, float decay, int32_t n, float* after) {
    const V d = V::set1(decay);
    map(before, x, n, after, [d](V b, V v) { return b * d + v; });
  }

  static void softcap(const float* x, float cap, int32_t n, float* out) {
    const V c = V::set1(cap);
    map(x, n, out, [c](V v) { return softcap_f32(v, c); });
  }

  static KAMADO_INLINE float max_of(const float* x, int32_t n) {
    return reduce_max(fold(x, n, V::set1(-__builtin_inff()), [](V v, V top) { return max(top, v); }));
  }

  static void softmax(const float* x, int32_t n, float* out) {
    const V top = V::set1(max_of(x, n));
    map(x, n, out, [top](V v) { return exp_f32(v - top); });
    const V total = V::set1(reduce_sum(fold(out, n, V::set1(0.0f), [](V e, V sum) { return sum + e; })));
    map(out, n, out, [total](V e) { return e / total; });
  }

  template <class Double>
  static double log_sum_exp_with(const float* x, int32_t n) {
    const float top = max_of(x, n);
    const V shift = V::set1(top);
    Double sum = Double::zero();
    int32_t i = 0;
    for (; i + kVirtualLanes <= n; i += kVirtualLanes) sum.add(exp_f32(V::load(x + i) - shift));
    if (i < n) {
      const V e = exp_f32(V::load_first(x + i, n - i) - shift);
      sum.add(select(V::lanes_between(0, n - i), e, V::set1(0.0f)));
    }
    return __builtin_log(sum.sum()) + static_cast<double>(top);
  }

  // What a cache may hold: NaN becomes 0, the rest is clamped to +-limit.
  static KAMADO_INLINE V finite(V x, float limit) {
    return max(min(select(is_nan(x), V::set1(0.0f), x), V::set1(limit)), V::set1(-limit));
  }

  static void to_f16(const float* x, int32_t n, uint16_t* out) {
    int32_t i = 0;
    for (; i + kVirtualLanes <= n; i += kVirtualLanes) finite(V::load(x + i), 65504.0f).store_f16(out + i);
    if (i < n) {
      uint16_t last[kVirtualLanes];
      finite(V::load_first(x + i, n - i), 65504.0f).store_f16(last);
      memcpy(out + i, last, static_cast<size_t>(n - i) * sizeof *out);
    }
  }

  static void from_f16(const uint16_t* x, int32_t n, float* out) {
    int32_t i = 0;
    for (; i + kVirtualLanes <= n; i += kVirtualLanes) V::load(x + i).store(out + i);
    if (i < n) {
      uint16_t last[kVirtualLanes] = {};
      memcpy(last, x + i, static_cast<size_t>(n - i) * sizeof *x);
      V::load(last).store_first(out + i, n - i);
    }
  }

  // x - x is 0, or NaN where x is not finite; a sum with a NaN in it is NaN.
  static bool is_finite(const float* x, int32_t n) {
    return reduce_sum(fold(x, n, V::set1(0.0f), [](V v, V sum) { return sum + (v - v); })) == 0.0f;
  }
};

// The table of a tier; Sum adds 16 lanes up in double.
template <class V, class Sum>
const VectorKernels* vector_table() {
  using Tier = VectorTier<V>;
  static constexpr VectorKernels kTable = vector_kernels<Tier, Tier::template log_sum_exp_with<Sum>>();
  return &kTable;
}

}  // namespace
}  // namespace kamado
