// Vector primitives of the linear kernels, AVX2: two registers hold a 4-byte word of each of the 16 rows, rows 0-7 and
// 8-15.
#pragma once
#include <immintrin.h>

#include "kernels/linear_common.inc.h"

namespace kamado {
namespace {

constexpr bool kHasVnni = false;
constexpr int kMaxTokens = kSmallBuild ? 2 : 4;       // widest register block of the quantised GEMM
constexpr int kMaxFusedTokens = kSmallBuild ? 2 : 4;  // up to here decoded in registers, from here into a buffer
constexpr int kMaxFusedWide = kMaxFusedTokens;        // the same for Q6_K, which has four code words a step
constexpr int kMaxFloatTokens = kSmallBuild ? 2 : 6;

struct Int2 {
  __m256i a, b;
};
using Bytes = Int2;     // 16 rows x 4 codes
using Acc = Int2;       // dot products under way: 2 x int16 a row
using I32 = Int2;       // int32 a row
using Pair = Int2;      // 16 rows x 2 int16
using Scale = Int2;     // the scale twice, as 2 x int16 a row
using Table = __m256i;  // 16 bytes, repeated
struct F32 {
  __m256 a, b;
};

INLINE __m256i load256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
INLINE __m128i load128(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
INLINE void store256(void* p, __m256i v) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), v);
}

INLINE Bytes load_bytes(const uint8_t* p) {
  return {load256(p), load256(p + 32)};
}
INLINE void store_bytes(uint8_t* p, Bytes v) {
  store256(p, v.a), store256(p + 32, v.b);
}
INLINE Bytes and_bytes(Bytes v, int mask) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_and_si256(v.a, m), _mm256_and_si256(v.b, m)};
}
template <int kShift>  // positive: right
INLINE Bytes shift_words(Bytes v) {
  if constexpr (kShift > 0) return {_mm256_srli_epi16(v.a, kShift), _mm256_srli_epi16(v.b, kShift)};
  if constexpr (kShift < 0) return {_mm256_slli_epi16(v.a, -kShift), _mm256_slli_epi16(v.b, -kShift)};
  return v;
}
// a | (b & mask)
INLINE Bytes or_and(Bytes a, Bytes b, int mask) {
  const Bytes m = and_bytes(b, mask);
  return {_mm256_or_si256(a.a, m.a), _mm256_or_si256(a.b, m.b)};
}
INLINE Bytes flip_bytes(Bytes v, int mask) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_xor_si256(v.a, m), _mm256_xor_si256(v.b, m)};
}
INLINE Table load_table(const int8_t* values, int offset) {
  return _mm256_broadcastsi128_si256(_mm_add_epi8(load128(values), _mm_set1_epi8(static_cast<char>(offset))));
}
INLINE Bytes lookup(Table t, Bytes i) {
  return {_mm256_shuffle_epi8(t, i.a), _mm256_shuffle_epi8(t, i.b)};
}

INLINE __m256i broadcast_word(const void* p) {
  int32_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return _mm256_set1_epi32(v);
}

// Stops GCC from turning a chain of integer additions into a tree, for which all products would be spilled first.
INLINE Acc keep_order(Acc v) {
  __asm__("" : "+x"(v.a), "+x"(v.b));
  return v;
}

INLINE Acc acc_zero() {
  return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
// Adds codes * 4 activations to each row, in 16 bits. The caller folds every fold_steps(kind) steps, before the worst
// case overflows: unsigned codes <= 15: 8 * 2*15*127 = 30480; <= 31: 4 * 2*31*127 = 31496; <= 63: 2 * 2*63*127 = 32004;
// signed 8-bit: |code| * (sign applied to x) <= 2*128*127 = 32512.
template <CodeKind kind>
INLINE Acc dot_step(Acc acc, Bytes codes, const int8_t* x) {
  const __m256i w = broadcast_word(x);
  if constexpr (kind == CodeKind::kSigned) {
    const __m256i pa = _mm256_maddubs_epi16(_mm256_abs_epi8(codes.a), _mm256_sign_epi8(w, codes.a));
    const __m256i pb = _mm256_maddubs_epi16(_mm256_abs_epi8(codes.b), _mm256_sign_epi8(w, codes.b));
    return keep_order({_mm256_add_epi16(acc.a, pa), _mm256_add_epi16(acc.b, pb)});
  } else {
    return keep_order({_mm256_add_epi16(acc.a, _mm256_maddubs_epi16(codes.a, w)),
                       _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(codes.b, w))});
  }
}

INLINE I32 i32_zero() {
  return acc_zero();
}
INLINE I32 fold(I32 sum, Acc acc, Scale s) {
  return keep_order(
      {_mm256_add_epi32(sum.a, _mm256_madd_epi16(acc.a, s.a)), _mm256_add_epi32(sum.b, _mm256_madd_epi16(acc.b, s.b))});
}
INLINE I32 fold(I32 sum, Acc acc) {
  const __m256i one = _mm256_set1_epi16(1);
  return fold(sum, acc, Scale{one, one});
}
INLINE I32 pair_dot(I32 sum, Pair p, const int16_t* x) {
  const __m256i w = broadcast_word(x);
  return fold(sum, p, Scale{w, w});
}
template <int kFactor>  // sum - kFactor * v, a power of two
INLINE I32 subtract_times(I32 sum, I32 v) {
  constexpr int kBits = __builtin_ctz(kFactor);
  return {_mm256_sub_epi32(sum.a, _mm256_slli_epi32(v.a, kBits)),
          _mm256_sub_epi32(sum.b, _mm256_slli_epi32(v.b, kBits))};
}
// sum - kFactor * *x for a value that fits 16 bits.
template <int kFactor>
INLINE I32 subtract_word(I32 sum, const int32_t* x) {
  const __m256i v = _mm256_madd_epi16(broadcast_word(x), _mm256_set1_epi32(kFactor));
  return {_mm256_sub_epi32(sum.a, v), _mm256_sub_epi32(sum.b, v)};
}

INLINE Pair load_pairs_u8(const uint8_t* p) {
  return {_mm256_cvtepu8_epi16(load128(p)), _mm256_cvtepu8_epi16(load128(p + 16))};
}
INLINE Pair load_pairs_s8(const uint8_t* p) {
  return {_mm256_cvtepi8_epi16(load128(p)), _mm256_cvtepi8_epi16(load128(p + 16))};
}
INLINE Pair and_pairs(Pair p, int mask) {
  const __m256i m = _mm256_set1_epi16(static_cast<short>(mask));
  return {_mm256_and_si256(p.a, m), _mm256_and_si256(p.b, m)};
}
template <int kShift>
INLINE Pair shift_pairs(Pair p) {
  return {_mm256_srli_epi16(p.a, kShift), _mm256_srli_epi16(p.b, kShift)};
}
INLINE Scale even_scale(Pair p) {
  const __m256i c = _mm256_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13, 0, 1, 0, 1, 4, 5, 4, 5, 8, 9,
                                     8, 9, 12, 13, 12, 13);
  return {_mm256_shuffle_epi8(p.a, c), _mm256_shuffle_epi8(p.b, c)};
}
INLINE Scale odd_scale(Pair p) {
  const __m256i c = _mm256_setr_epi8(2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15, 2, 3, 2, 3, 6, 7, 6, 7, 10,
                                     11, 10, 11, 14, 15, 14, 15);
  return {_mm256_shuffle_epi8(p.a, c), _mm256_shuffle_epi8(p.b, c)};
}

INLINE F32 f32_zero() {
  return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
INLINE F32 f32_set1(float v) {
  return {_mm256_set1_ps(v), _mm256_set1_ps(v)};
}
INLINE F32 load_f32(const void* p) {
  const float* f = static_cast<const float*>(p);
  return {_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8)};
}
INLINE void store_f32(void* p, F32 v) {
  float* f = static_cast<float*>(p);
  _mm256_storeu_ps(f, v.a), _mm256_storeu_ps(f + 8, v.b);
}
INLINE F32 load_f16(const uint8_t* p) {
  return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 16))};
}
INLINE F32 load_bf16(const uint8_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p)), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p + 16)), 16))};
}
INLINE __m256 e8m0_half8(const uint8_t* p) {
  const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
  const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
  return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
}
INLINE F32 load_e8m0_half(const uint8_t* p) {
  return {e8m0_half8(p), e8m0_half8(p + 8)};
}
INLINE F32 to_f32(I32 v) {
  return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)};
}
INLINE F32 mul(F32 x, F32 y) {
  return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
INLINE F32 fma(F32 x, F32 y, F32 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
INLINE F32 fnma(F32 x, F32 y, F32 z) {
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
INLINE F32 broadcast_int(const int32_t* p) {
  const __m256 v = _mm256_cvtepi32_ps(_mm256_set1_epi32(*p));
  return {v, v};
}
INLINE void store_rows(float* out, F32 v, int rows) {
  if (rows >= 16) return store_f32(out, v);
  alignas(32) float values[16];
  store_f32(values, v);
  for (int r = 0; r < rows; ++r) out[r] = values[r];
}

INLINE __m256 abs_ps(__m256 v) {
  return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
}
// 8 activations to codes: round to nearest even, NaN to 0, clamped to +-127.
INLINE __m256i quantize8(const float* x, __m256 inverse) {
  const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x), inverse);
  const __m256 ordered = _mm256_cmp_ps(v, v, _CMP_ORD_Q);
  const __m256 c = _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps(-127.0f)), _mm256_set1_ps(127.0f));
  return _mm256_and_si256(_mm256_cvtps_epi32(c), _mm256_castps_si256(ordered));
}
// Maximum of |x| over n (a multiple of 16) values; NaN is passed over.
INLINE float max_abs(const float* x, int n) {
  __m256 m0 = _mm256_setzero_ps(), m1 = m0;
  for (int k = 0; k < n; k += 16) {
    m0 = _mm256_max_ps(abs_ps(_mm256_loadu_ps(x + k)), m0);
    m1 = _mm256_max_ps(abs_ps(_mm256_loadu_ps(x + k + 8)), m1);
  }
  const __m256 m = _mm256_max_ps(m0, m1);
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}
// Codes of 16 values; returns their sum.
INLINE int quantize_group(const float* x, F32 inverse, int8_t* codes) {
  const __m256i q0 = quantize8(x, inverse.a), q1 = quantize8(x + 8, inverse.a);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(q0, q1), 0xD8);
  const __m128i lo = _mm256_castsi256_si128(words), hi = _mm256_extracti128_si256(words, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm_packs_epi16(lo, hi));
  __m128i s = _mm_madd_epi16(_mm_add_epi16(lo, hi), _mm_set1_epi16(1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
}

}  // namespace
}  // namespace kamado
