// Vector primitives of the linear kernels, AVX-512 + VNNI: one register holds a 4-byte word of each of the 16 rows.
#pragma once
#include <immintrin.h>

#include "kernels/linear_common.inc.h"

namespace kamado {
namespace {

constexpr bool kHasVnni = true;
constexpr int kMaxTokens = kSmallBuild ? 2 : 8;       // widest register block of the quantised GEMM
constexpr int kMaxFusedTokens = kSmallBuild ? 2 : 8;  // up to here decoded in registers, from here into a buffer
constexpr int kMaxFusedWide = kSmallBuild ? 2 : 5;    // the same for Q6_K, which has four code words a step
constexpr int kMaxFloatTokens = kSmallBuild ? 2 : 8;

using Bytes = __m512i;  // 16 rows x 4 codes
using Acc = __m512i;    // dot products under way: int32 a row
using I32 = __m512i;
using F32 = __m512;
using Pair = __m512i;   // 16 rows x 2 int16
using Scale = __m512i;  // int32 a row
using Table = __m512i;  // 16 bytes, repeated

INLINE Bytes load_bytes(const uint8_t* p) {
  return _mm512_loadu_si512(p);
}
INLINE void store_bytes(uint8_t* p, Bytes v) {
  _mm512_storeu_si512(p, v);
}
INLINE Bytes and_bytes(Bytes v, int mask) {
  return _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(mask)));
}
template <int kShift>  // positive: right
INLINE Bytes shift_words(Bytes v) {
  if constexpr (kShift > 0) return _mm512_srli_epi16(v, kShift);
  if constexpr (kShift < 0) return _mm512_slli_epi16(v, -kShift);
  return v;
}
// a | (b & mask)
INLINE Bytes or_and(Bytes a, Bytes b, int mask) {
  return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi8(static_cast<char>(mask)), 0xF8);
}
INLINE Bytes flip_bytes(Bytes v, int mask) {
  return _mm512_xor_si512(v, _mm512_set1_epi8(static_cast<char>(mask)));
}
INLINE Table load_table(const int8_t* values, int offset) {
  const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  return _mm512_broadcast_i32x4(_mm_add_epi8(t, _mm_set1_epi8(static_cast<char>(offset))));
}
INLINE Bytes lookup(Table t, Bytes index) {
  return _mm512_shuffle_epi8(t, index);
}

INLINE __m512i broadcast_word(const void* p) {
  int32_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return _mm512_set1_epi32(v);
}

INLINE Acc acc_zero() {
  return _mm512_setzero_si512();
}
// Adds codes * 4 activations to each row. Codes are unsigned here, whatever the kind.
template <CodeKind kind>
INLINE Acc dot_step(Acc acc, Bytes codes, const int8_t* x) {
  return _mm512_dpbusd_epi32(acc, codes, broadcast_word(x));
}

INLINE I32 i32_zero() {
  return _mm512_setzero_si512();
}
INLINE I32 fold(I32 sum, Acc acc) {
  return _mm512_add_epi32(sum, acc);
}
INLINE I32 fold(I32 sum, Acc acc, Scale s) {
  return _mm512_add_epi32(sum, _mm512_mullo_epi32(acc, s));
}
INLINE I32 pair_dot(I32 sum, Pair p, const int16_t* x) {
  return _mm512_dpwssd_epi32(sum, p, broadcast_word(x));
}
template <int kFactor>  // sum - kFactor * v, a power of two
INLINE I32 subtract_times(I32 sum, I32 v) {
  return _mm512_sub_epi32(sum, _mm512_slli_epi32(v, __builtin_ctz(kFactor)));
}
// sum - kFactor * *x for a value that fits 16 bits.
template <int kFactor>
INLINE I32 subtract_word(I32 sum, const int32_t* x) {
  return _mm512_dpwssd_epi32(sum, broadcast_word(x), _mm512_set1_epi32(-kFactor & 0xffff));
}

INLINE Pair load_pairs_u8(const uint8_t* p) {
  return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
INLINE Pair load_pairs_s8(const uint8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
INLINE Pair and_pairs(Pair p, int mask) {
  return _mm512_and_si512(p, _mm512_set1_epi16(static_cast<short>(mask)));
}
template <int kShift>
INLINE Pair shift_pairs(Pair p) {
  return _mm512_srli_epi16(p, kShift);
}
INLINE Scale even_scale(Pair p) {
  return _mm512_srai_epi32(_mm512_slli_epi32(p, 16), 16);
}
INLINE Scale odd_scale(Pair p) {
  return _mm512_srai_epi32(p, 16);
}

INLINE F32 f32_zero() {
  return _mm512_setzero_ps();
}
INLINE F32 f32_set1(float v) {
  return _mm512_set1_ps(v);
}
INLINE F32 load_f32(const void* p) {
  return _mm512_loadu_ps(p);
}
INLINE void store_f32(void* p, F32 v) {
  _mm512_storeu_ps(p, v);
}
INLINE F32 load_f16(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
INLINE F32 load_bf16(const uint8_t* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
INLINE F32 load_e8m0_half(const uint8_t* p) {
  const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
  const __m512i subnormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
  return _mm512_castsi512_ps(
      _mm512_mask_blend_epi32(_mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2)), normal, subnormal));
}
INLINE F32 to_f32(I32 v) {
  return _mm512_cvtepi32_ps(v);
}
INLINE F32 mul(F32 a, F32 b) {
  return _mm512_mul_ps(a, b);
}
INLINE F32 fma(F32 a, F32 b, F32 c) {
  return _mm512_fmadd_ps(a, b, c);
}
INLINE F32 fnma(F32 a, F32 b, F32 c) {
  return _mm512_fnmadd_ps(a, b, c);
}
INLINE F32 broadcast_int(const int32_t* p) {
  return _mm512_cvtepi32_ps(_mm512_set1_epi32(*p));
}
INLINE void store_rows(float* out, F32 v, int rows) {
  if (rows >= 16) {
    _mm512_storeu_ps(out, v);
  } else {
    _mm512_mask_storeu_ps(out, static_cast<__mmask16>((1u << rows) - 1u), v);
  }
}

// 16 activations to codes: round to nearest even, NaN to 0, clamped to +-127.
INLINE __m512i quantize16(const float* x, F32 inverse) {
  const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x), inverse);
  const __mmask16 ordered = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
  const __m512 c = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-127.0f)), _mm512_set1_ps(127.0f));
  return _mm512_maskz_cvtps_epi32(ordered, c);
}
// Maximum of |x| over n (a multiple of 16) values; NaN is passed over.
INLINE float max_abs(const float* x, int n) {
  __m512 m = _mm512_setzero_ps();
  for (int k = 0; k < n; k += 16) m = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(x + k)), m);
  return _mm512_reduce_max_ps(m);
}
// Codes of 16 values; returns their sum.
INLINE int quantize_group(const float* x, F32 inverse, int8_t* codes) {
  const __m512i q = quantize16(x, inverse);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtepi32_epi8(q));
  return _mm512_reduce_add_epi32(q);
}

}  // namespace
}  // namespace kamado
