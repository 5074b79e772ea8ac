// The rotation of single vectors, for AVX2 and up: the same sums and differences as the reference, eight at a time.
#pragma once
#include "kernels/kv_codec_layout.h"
#include "kernels/simd.h"

namespace kamado {
namespace {

constexpr uint32_t kSignBit = 0x80000000u;

struct SignMasks {
  uint32_t mask[kMaxDim];
};
constexpr SignMasks make_sign_masks() {
  SignMasks masks{};
  for (int32_t i = 0; i < kMaxDim; ++i) masks.mask[i] = kSigns.is_negative[i] ? kSignBit : 0;
  return masks;
}
constexpr SignMasks kSignMasks = make_sign_masks();

KAMADO_INLINE void flip_signs(float* x, int32_t dim) {
  for (int32_t i = 0; i < dim; i += 8) {
    const __m256 mask = _mm256_loadu_ps(reinterpret_cast<const float*>(kSignMasks.mask + i));
    _mm256_storeu_ps(x + i, _mm256_xor_ps(_mm256_loadu_ps(x + i), mask));
  }
}

// Partner lanes l and l ^ h: a sum in the lower one, lower minus upper in the upper one.
template <int kDistance>
KAMADO_INLINE __m256 butterfly(__m256 x) {
  __m256 partner, sign;
  if constexpr (kDistance == 1) {
    partner = _mm256_permute_ps(x, 0xb1);
    sign = _mm256_setr_ps(0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f);
  } else if constexpr (kDistance == 2) {
    partner = _mm256_permute_ps(x, 0x4e);
    sign = _mm256_setr_ps(0.0f, 0.0f, -0.0f, -0.0f, 0.0f, 0.0f, -0.0f, -0.0f);
  } else {
    partner = _mm256_permute2f128_ps(x, x, 1);
    sign = _mm256_setr_ps(0.0f, 0.0f, 0.0f, 0.0f, -0.0f, -0.0f, -0.0f, -0.0f);
  }
  return _mm256_add_ps(partner, _mm256_xor_ps(x, sign));
}

// The dense factor on `power` columns of `order` rows, one register type wide.
template <int kOrder, int kPower, bool kIsInverse>
KAMADO_INLINE void multiply_paley(float* x) {
  constexpr const PaleyMatrix& m = kOrder == 12 ? kPaley12 : kPaley20;
  float in[kOrder * kPower];
  memcpy(in, x, sizeof in);
  for (int r = 0; r < kOrder; ++r) {
    float sum[kPower] = {};
    for (int s = 0; s < kOrder; ++s) {
      const bool is_negative = kIsInverse ? m.is_negative[s][r] : m.is_negative[r][s];
      const float factor = is_negative ? -1.0f : 1.0f;  // a product with +-1 is exact
      for (int c = 0; c < kPower; ++c) sum[c] += factor * in[s * kPower + c];
    }
    memcpy(x + r * kPower, sum, sizeof sum);
  }
}

template <bool kIsInverse>
KAMADO_INLINE void hadamard(float* x, int32_t dim) {
  const HadamardShape shape = hadamard_shape(dim);
  for (int32_t i = 0; i < dim; i += 8) {
    __m256 row = butterfly<2>(butterfly<1>(_mm256_loadu_ps(x + i)));
    if (shape.power > 4) row = butterfly<4>(row);
    _mm256_storeu_ps(x + i, row);
  }
  for (int32_t h = 8; h < shape.power; h *= 2) {
    for (int32_t i = 0; i < dim; i += 2 * h) {
      for (int32_t j = i; j < i + h; j += 8) {
        const __m256 a = _mm256_loadu_ps(x + j), b = _mm256_loadu_ps(x + j + h);
        _mm256_storeu_ps(x + j, _mm256_add_ps(a, b));
        _mm256_storeu_ps(x + j + h, _mm256_sub_ps(a, b));
      }
    }
  }
  if (shape.power == 4) multiply_paley<20, 4, kIsInverse>(x);
  if (shape.power == 8) multiply_paley<12, 8, kIsInverse>(x);
  if (shape.power == 16) multiply_paley<12, 16, kIsInverse>(x);
  const __m256 scale = _mm256_set1_ps(hadamard_scale(dim));
  for (int32_t i = 0; i < dim; i += 8) _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), scale));
}

KAMADO_INLINE void rotate(float* x, int32_t dim) {
  flip_signs(x, dim);
  hadamard<false>(x, dim);
}

KAMADO_INLINE void rotate_back(float* x, int32_t dim) {
  hadamard<true>(x, dim);
  flip_signs(x, dim);
}

}  // namespace
}  // namespace kamado
