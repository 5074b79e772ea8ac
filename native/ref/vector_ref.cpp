// Scalar reference of the row kernels: the contract of vector.h as plain loops. The oracle of the other tiers.
#include "kamado/vector.h"

#include <cmath>
#include <limits>

#include "kernels/math.inc.h"

namespace kamado {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// The fixed tree: lane l += lane l + 8, then + 4, + 2, + 1.
template <class T>
T sum_lanes(T (&lane)[kVirtualLanes]) {
  for (int width = kVirtualLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lane[l] += lane[l + width];
  }
  return lane[0];
}

float max_of(const float* x, int32_t n) {
  float lane[kVirtualLanes];
  for (float& v : lane) v = kNegativeInfinity;
  for (int32_t i = 0; i < n; ++i) lane[i % kVirtualLanes] = max(F1{lane[i % kVirtualLanes]}, F1{x[i]}).v;
  for (int width = kVirtualLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lane[l] = max(F1{lane[l]}, F1{lane[l + width]}).v;
  }
  return lane[0];
}

struct Scalar {
  static void rms_norm(const float* x, const float* weight, int32_t n, float eps, float* out) {
    norm_by(static_cast<float>(n), x, weight, n, eps, out);
  }

  static void l2_norm(const float* x, const float* weight, int32_t n, float eps, float* out) {
    norm_by(1.0f, x, weight, n, eps, out);
  }

  // By the root of the sum of squares / divisor + eps.
  static void norm_by(float divisor, const float* x, const float* weight, int32_t n, float eps, float* out) {
    float lane[kVirtualLanes] = {};
    for (int32_t i = 0; i < n; ++i) lane[i % kVirtualLanes] = std::fma(x[i], x[i], lane[i % kVirtualLanes]);
    const float inverse = 1.0f / std::sqrt(sum_lanes(lane) / divisor + eps);
    for (int32_t i = 0; i < n; ++i) out[i] = weight ? x[i] * inverse * weight[i] : x[i] * inverse;
  }

  static void layer_norm(const float* x, const float* weight, const float* bias, int32_t n, float eps, float* out) {
    float lane[kVirtualLanes] = {};
    for (int32_t i = 0; i < n; ++i) lane[i % kVirtualLanes] += x[i];
    const float mean = sum_lanes(lane) / static_cast<float>(n);
    float square[kVirtualLanes] = {};
    for (int32_t i = 0; i < n; ++i) {
      const float d = x[i] - mean;
      square[i % kVirtualLanes] = std::fma(d, d, square[i % kVirtualLanes]);
    }
    const float inverse = 1.0f / std::sqrt(sum_lanes(square) / static_cast<float>(n) + eps);
    for (int32_t i = 0; i < n; ++i) {
      float y = (x[i] - mean) * inverse;
      if (weight) y *= weight[i];
      if (bias) y += bias[i];
      out[i] = y;
    }
  }

  static void rope(float* x, int32_t n_heads, int32_t head_dim, int32_t rot_dim, const float* cos, const float* sin,
                   bool interleaved) {
    const int32_t half = rot_dim / 2;
    for (int32_t head = 0; head < n_heads; ++head, x += head_dim) {
      for (int32_t i = 0; i < half; ++i) {
        float& a = interleaved ? x[2 * i] : x[i];
        float& b = interleaved ? x[2 * i + 1] : x[i + half];
        const float first = a * cos[i] - b * sin[i];
        const float second = b * cos[i] + a * sin[i];
        a = first;
        b = second;
      }
    }
  }

  static F1 activate(Activation act, F1 x) {
    switch (act) {
      case Activation::kNone:
        return x;
      case Activation::kSilu:
        return silu_f32(x);
      case Activation::kGeluTanh:
        return gelu_tanh_f32(x);
      case Activation::kGeluErf:
        return gelu_erf_f32(x);
      case Activation::kRelu:
        return max(F1{0.0f}, x);  // in this order NaN comes through
      case Activation::kRelu2:
        return relu2_f32(x);
      case Activation::kSigmoid:
        return sigmoid_f32(x);
    }
    return x;
  }

  static void gate(const float* a, const float* b, Activation act, float limit, int32_t group, float alpha, int32_t n,
                   float* out) {
    const F1 top{limit}, bottom{-limit};
    if (alpha > 0 && b) {
      for (int32_t i = 0; i < n; ++i) {
        const F1 g = limit > 0 ? min(top, F1{a[i]}) : F1{a[i]};
        const F1 u = limit > 0 ? min(top, max(bottom, F1{b[i]})) : F1{b[i]};
        out[i] = swish_f32(g, F1{alpha}).v * (u.v + 1.0f);
      }
      return;
    }
    for (int32_t i = 0; i < n; ++i) {
      F1 y = activate(act, F1{a[group > 1 ? i / group : i]});
      F1 other{b ? b[i] : 1.0f};
      if (limit > 0) {  // NaN comes through
        y = min(top, y);
        other = min(top, max(bottom, other));
      }
      out[i] = b ? y.v * other.v : y.v;
    }
  }

  static void add(const float* a, const float* b, int32_t n, float* out) {
    for (int32_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
  }

  static void scale(const float* x, float factor, int32_t n, float* out) {
    for (int32_t i = 0; i < n; ++i) out[i] = x[i] * factor;
  }

  static void axpy(float factor, const float* x, int32_t n, float* inout) {
    for (int32_t i = 0; i < n; ++i) inout[i] = std::fma(factor, x[i], inout[i]);
  }

  static void softcap(const float* x, float cap, int32_t n, float* out) {
    for (int32_t i = 0; i < n; ++i) out[i] = softcap_f32(F1{x[i]}, F1{cap}).v;
  }

  static void accumulate(const float* before, const float* x, float decay, int32_t n, float* after) {
    for (int32_t i = 0; i < n; ++i) after[i] = before[i] * decay + x[i];
  }

  static void softmax(const float* x, int32_t n, float* out) {
    const float top = max_of(x, n);
    float lane[kVirtualLanes] = {};
    for (int32_t i = 0; i < n; ++i) {
      out[i] = exp_f32(F1{x[i] - top}).v;
      lane[i % kVirtualLanes] += out[i];
    }
    const float sum = sum_lanes(lane);
    for (int32_t i = 0; i < n; ++i) out[i] /= sum;
  }

  static double log_sum_exp(const float* x, int32_t n) {
    const float top = max_of(x, n);
    double lane[kVirtualLanes] = {};
    for (int32_t i = 0; i < n; ++i) lane[i % kVirtualLanes] += static_cast<double>(exp_f32(F1{x[i] - top}).v);
    return std::log(sum_lanes(lane)) + static_cast<double>(top);
  }

  static void to_f16(const float* x, int32_t n, uint16_t* out) {
    for (int32_t i = 0; i < n; ++i) out[i] = f16_from_f32(x[i]);
  }

  static void from_f16(const uint16_t* x, int32_t n, float* out) {
    for (int32_t i = 0; i < n; ++i) out[i] = f32_from_f16(x[i]);
  }

  static bool is_finite(const float* x, int32_t n) {
    bool all = true;
    for (int32_t i = 0; i < n; ++i) all &= std::isfinite(x[i]);
    return all;
  }
};

constexpr VectorKernels kKernels = vector_kernels<Scalar, Scalar::log_sum_exp>();

}  // namespace

const VectorKernels* vector_kernels_ref() {
  return &kKernels;
}

}  // namespace kamado
