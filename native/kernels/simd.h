// The vector types that the float kernels are written over. Every type offers the same operations with the same
// meaning a lane, so that one template gives the same bits in the scalar, AVX2 and AVX-512 builds:
//   F1    one float, std::fma semantics; the scalar reference
//   F8    one AVX2 register                  (only where __AVX2__, __FMA__ and __F16C__ are on)
//   F8x2  two of them: 16 virtual lanes
//   F16   one AVX-512 register: 16 lanes     (only where AVX-512 F, BW, DQ and VL are on)
//
// max(a, b) is "a > b ? a : b", so b when either is NaN, in every type. Included by per-ISA files: everything is in an
// anonymous namespace, and nothing from the standard library that could be emitted as a shared inline function.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX2__
#pragma GCC diagnostic push  // GCC 12 takes its own _mm512_undefined_ps() for an uninitialised variable
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#define KAMADO_INLINE __attribute__((always_inline)) inline

namespace kamado {
namespace {

constexpr int kVirtualLanes = 16;

// ---- F1 ----

struct F1 {
  static constexpr int kLanes = 1;
  using Mask = bool;
  float v;

  static KAMADO_INLINE F1 set1(float x) { return {x}; }
  static KAMADO_INLINE F1 load(const float* p) { return {*p}; }
};

KAMADO_INLINE F1 operator+(F1 a, F1 b) {
  return {a.v + b.v};
}
KAMADO_INLINE F1 operator-(F1 a, F1 b) {
  return {a.v - b.v};
}
KAMADO_INLINE F1 operator*(F1 a, F1 b) {
  return {a.v * b.v};
}
KAMADO_INLINE F1 operator/(F1 a, F1 b) {
  return {a.v / b.v};
}
KAMADO_INLINE F1 fma(F1 a, F1 b, F1 c) {
  return {__builtin_fmaf(a.v, b.v, c.v)};
}
KAMADO_INLINE F1 max(F1 a, F1 b) {
  return {a.v > b.v ? a.v : b.v};
}
KAMADO_INLINE F1 min(F1 a, F1 b) {
  return {a.v < b.v ? a.v : b.v};
}
KAMADO_INLINE bool less(F1 a, F1 b) {
  return a.v < b.v;
}
KAMADO_INLINE bool is_nan(F1 a) {
  return a.v != a.v;
}
KAMADO_INLINE F1 select(bool m, F1 yes, F1 no) {
  return m ? yes : no;
}

KAMADO_INLINE uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

KAMADO_INLINE float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

KAMADO_INLINE F1 abs(F1 a) {
  return {bits_float(float_bits(a.v) & 0x7fffffffu)};
}
KAMADO_INLINE F1 copy_sign(F1 magnitude, F1 sign) {
  return {bits_float((float_bits(magnitude.v) & 0x7fffffffu) | (float_bits(sign.v) & 0x80000000u))};
}
// p * 2^n for the n in the low bits of `shifted` = n + 1.5 * 2^23; right when p and the product are normal.
KAMADO_INLINE F1 scale_exponent(F1 p, F1 shifted) {
  return {bits_float(float_bits(p.v) + (float_bits(shifted.v) << 23))};
}

// ---- f16, scalar ----

// Round to nearest even; NaN gives +0 and what is beyond +-65504 is clamped, so the result is finite.
KAMADO_INLINE uint16_t f16_from_f32(float x) {
  uint32_t bits = float_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return 0;
  if (bits > 0x477fe000u) bits = 0x477fe000u;   // 65504
  if (bits < 0x38800000u) {                     // below 2^-14: the sum's unit is 2^-24, a subnormal's step
    const float sum = bits_float(bits) + 0.5f;  // its addition rounds to nearest even
    return static_cast<uint16_t>(sign | (float_bits(sum) - 0x3f000000u));
  }
  const uint32_t odd = (bits >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + odd) >> 13));
}

KAMADO_INLINE float f32_from_f16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 31u;
  const uint32_t mantissa = h & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: an exact multiple of 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return bits_float(sign | float_bits(magnitude));
  }
  if (exponent == 31) return bits_float(sign | 0x7f800000u | (mantissa ? (mantissa << 13) | 0x400000u : 0u));
  return bits_float(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

// What registers of both widths (W bits) do by instructions of one name.
#define KAMADO_ARITHMETIC(F, W)                                                                  \
  KAMADO_INLINE F operator+(F a, F b) {                                                          \
    return {_mm##W##_add_ps(a.v, b.v)};                                                          \
  }                                                                                              \
  KAMADO_INLINE F operator-(F a, F b) {                                                          \
    return {_mm##W##_sub_ps(a.v, b.v)};                                                          \
  }                                                                                              \
  KAMADO_INLINE F operator*(F a, F b) {                                                          \
    return {_mm##W##_mul_ps(a.v, b.v)};                                                          \
  }                                                                                              \
  KAMADO_INLINE F operator/(F a, F b) {                                                          \
    return {_mm##W##_div_ps(a.v, b.v)};                                                          \
  }                                                                                              \
  KAMADO_INLINE F max(F a, F b) {                                                                \
    return {_mm##W##_max_ps(a.v, b.v)};                                                          \
  }                                                                                              \
  KAMADO_INLINE F min(F a, F b) {                                                                \
    return {_mm##W##_min_ps(a.v, b.v)};                                                          \
  }                                                                                              \
  KAMADO_INLINE F fma(F a, F b, F c) {                                                           \
    return {_mm##W##_fmadd_ps(a.v, b.v, c.v)};                                                   \
  }                                                                                              \
  KAMADO_INLINE F abs(F a) {                                                                     \
    return {_mm##W##_andnot_ps(_mm##W##_set1_ps(-0.0f), a.v)};                                   \
  }                                                                                              \
  KAMADO_INLINE F copy_sign(F magnitude, F sign) {                                               \
    const auto bit = _mm##W##_set1_ps(-0.0f);                                                    \
    return {_mm##W##_or_ps(_mm##W##_andnot_ps(bit, magnitude.v), _mm##W##_and_ps(bit, sign.v))}; \
  }                                                                                              \
  KAMADO_INLINE F scale_exponent(F p, F shifted) {                                               \
    const auto n = _mm##W##_slli_epi32(_mm##W##_castps_si##W(shifted.v), 23);                    \
    return {_mm##W##_castsi##W##_ps(_mm##W##_add_epi32(_mm##W##_castps_si##W(p.v), n))};         \
  }

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

// ---- F8 ----

// Before what was streamed may be read by another thread.
KAMADO_INLINE void stream_fence() {
  _mm_sfence();
}

// Lane l is all ones for l < n.
KAMADO_INLINE __m256i first_lanes8(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

struct F8 {
  static constexpr int kLanes = 8;
  using Mask = __m256;
  __m256 v;

  static KAMADO_INLINE F8 set1(float x) { return {_mm256_set1_ps(x)}; }
  static KAMADO_INLINE F8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static KAMADO_INLINE F8 load(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static KAMADO_INLINE F8 load_first(const float* p, int n) { return {_mm256_maskload_ps(p, first_lanes8(n))}; }
  static KAMADO_INLINE F8 load_first(const uint16_t* p, int n) {
    alignas(16) uint16_t copy[8] = {};
    for (int i = 0; i < n && i < 8; ++i) copy[i] = p[i];
    return load(copy);
  }
  KAMADO_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  KAMADO_INLINE void store_first(float* p, int n) const { _mm256_maskstore_ps(p, first_lanes8(n), v); }
  KAMADO_INLINE void stream(float* p) const { _mm256_stream_ps(p, v); }  // past the caches; aligned
};

KAMADO_ARITHMETIC(F8, 256)

KAMADO_INLINE __m256 less(F8 a, F8 b) {
  return _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ);
}
KAMADO_INLINE __m256 is_nan(F8 a) {
  return _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q);
}
KAMADO_INLINE F8 select(__m256 m, F8 yes, F8 no) {
  return {_mm256_blendv_ps(no.v, yes.v, m)};
}

// ---- F8x2 ----

struct F8x2 {
  static constexpr int kLanes = 16;
  struct Mask {
    __m256 lo, hi;
  };
  F8 lo, hi;

  static KAMADO_INLINE F8x2 set1(float x) { return {F8::set1(x), F8::set1(x)}; }
  static KAMADO_INLINE F8x2 load(const float* p) { return {F8::load(p), F8::load(p + 8)}; }
  static KAMADO_INLINE F8x2 load(const uint16_t* p) { return {F8::load(p), F8::load(p + 8)}; }
  static KAMADO_INLINE F8x2 load_first(const float* p, int n) {
    return {F8::load_first(p, n), n > 8 ? F8::load_first(p + 8, n - 8) : F8::set1(0.0f)};
  }
  KAMADO_INLINE void store(float* p) const {
    lo.store(p);
    hi.store(p + 8);
  }
  KAMADO_INLINE void store_first(float* p, int n) const {
    lo.store_first(p, n);
    if (n > 8) hi.store_first(p + 8, n - 8);
  }
  KAMADO_INLINE void stream(float* p) const {
    lo.stream(p);
    hi.stream(p + 8);
  }
  KAMADO_INLINE void store_f16(uint16_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(lo.v, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(hi.v, _MM_FROUND_TO_NEAREST_INT));
  }
  // Lanes l with begin <= l < end.
  static KAMADO_INLINE Mask lanes_between(int begin, int end) {
    return {_mm256_castsi256_ps(_mm256_andnot_si256(first_lanes8(begin), first_lanes8(end))),
            _mm256_castsi256_ps(_mm256_andnot_si256(first_lanes8(begin - 8), first_lanes8(end - 8)))};
  }
};

KAMADO_INLINE F8x2 operator+(F8x2 a, F8x2 b) {
  return {a.lo + b.lo, a.hi + b.hi};
}
KAMADO_INLINE F8x2 operator-(F8x2 a, F8x2 b) {
  return {a.lo - b.lo, a.hi - b.hi};
}
KAMADO_INLINE F8x2 operator*(F8x2 a, F8x2 b) {
  return {a.lo * b.lo, a.hi * b.hi};
}
KAMADO_INLINE F8x2 operator/(F8x2 a, F8x2 b) {
  return {a.lo / b.lo, a.hi / b.hi};
}
KAMADO_INLINE F8x2 fma(F8x2 a, F8x2 b, F8x2 c) {
  return {fma(a.lo, b.lo, c.lo), fma(a.hi, b.hi, c.hi)};
}
KAMADO_INLINE F8x2 max(F8x2 a, F8x2 b) {
  return {max(a.lo, b.lo), max(a.hi, b.hi)};
}
KAMADO_INLINE F8x2 min(F8x2 a, F8x2 b) {
  return {min(a.lo, b.lo), min(a.hi, b.hi)};
}
KAMADO_INLINE F8x2::Mask less(F8x2 a, F8x2 b) {
  return {less(a.lo, b.lo), less(a.hi, b.hi)};
}
KAMADO_INLINE F8x2::Mask is_nan(F8x2 a) {
  return {is_nan(a.lo), is_nan(a.hi)};
}
KAMADO_INLINE F8x2 select(F8x2::Mask m, F8x2 yes, F8x2 no) {
  return {select(m.lo, yes.lo, no.lo), select(m.hi, yes.hi, no.hi)};
}
KAMADO_INLINE F8x2 abs(F8x2 a) {
  return {abs(a.lo), abs(a.hi)};
}
KAMADO_INLINE F8x2 copy_sign(F8x2 m, F8x2 s) {
  return {copy_sign(m.lo, s.lo), copy_sign(m.hi, s.hi)};
}
KAMADO_INLINE F8x2 scale_exponent(F8x2 p, F8x2 s) {
  return {scale_exponent(p.lo, s.lo), scale_exponent(p.hi, s.hi)};
}

KAMADO_INLINE float reduce_sum8(__m256 half) {  // the tree from 8 lanes down: + 4, + 2, + 1
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}

KAMADO_INLINE float reduce_max8(__m256 half) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}

KAMADO_INLINE float reduce_sum(F8x2 a) {
  return reduce_sum8((a.lo + a.hi).v);
}
KAMADO_INLINE float reduce_max(F8x2 a) {
  return reduce_max8(max(a.lo, a.hi).v);
}

// (x0 x1 x2 … x31) at p -> even and odd elements.
KAMADO_INLINE void load_pairs(const float* p, F8x2* even, F8x2* odd) {
  const __m256i order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
  F8* e[2] = {&even->lo, &even->hi};
  F8* o[2] = {&odd->lo, &odd->hi};
  for (int i = 0; i < 2; ++i) {
    const __m256 a = _mm256_loadu_ps(p + 16 * i), b = _mm256_loadu_ps(p + 16 * i + 8);
    e[i]->v = _mm256_permutevar8x32_ps(_mm256_shuffle_ps(a, b, 0x88), order);
    o[i]->v = _mm256_permutevar8x32_ps(_mm256_shuffle_ps(a, b, 0xdd), order);
  }
}

KAMADO_INLINE void store_pairs(float* p, F8x2 even, F8x2 odd) {
  const __m256 e[2] = {even.lo.v, even.hi.v}, o[2] = {odd.lo.v, odd.hi.v};
  for (int i = 0; i < 2; ++i) {
    const __m256 lo = _mm256_unpacklo_ps(e[i], o[i]), hi = _mm256_unpackhi_ps(e[i], o[i]);
    _mm256_storeu_ps(p + 16 * i, _mm256_permute2f128_ps(lo, hi, 0x20));
    _mm256_storeu_ps(p + 16 * i + 8, _mm256_permute2f128_ps(lo, hi, 0x31));
  }
}

// 16 sums in double; lane l of the floats goes to lane l.
struct D16x256 {
  __m256d q[4];

  static KAMADO_INLINE D16x256 zero() {
    return {{_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()}};
  }
  KAMADO_INLINE void add(F8x2 x) {
    const __m128 parts[4] = {_mm256_castps256_ps128(x.lo.v), _mm256_extractf128_ps(x.lo.v, 1),
                             _mm256_castps256_ps128(x.hi.v), _mm256_extractf128_ps(x.hi.v, 1)};
    for (int i = 0; i < 4; ++i) q[i] = _mm256_add_pd(q[i], _mm256_cvtps_pd(parts[i]));
  }
  KAMADO_INLINE double sum() const {
    const __m256d x = _mm256_add_pd(_mm256_add_pd(q[0], q[2]), _mm256_add_pd(q[1], q[3]));
    const __m128d y = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
    return _mm_cvtsd_f64(_mm_add_sd(y, _mm_unpackhi_pd(y, y)));
  }
};

#endif  // AVX2

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

// ---- F16 ----

KAMADO_INLINE __mmask16 first_lanes16(int n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1u);
}

struct F16 {
  static constexpr int kLanes = 16;
  using Mask = __mmask16;
  __m512 v;

  static KAMADO_INLINE F16 set1(float x) { return {_mm512_set1_ps(x)}; }
  static KAMADO_INLINE F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static KAMADO_INLINE F16 load(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static KAMADO_INLINE F16 load_first(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes16(n), p)}; }
  static KAMADO_INLINE F16 load_first(const uint16_t* p, int n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes16(n), p))};
  }
  KAMADO_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  KAMADO_INLINE void store_first(float* p, int n) const { _mm512_mask_storeu_ps(p, first_lanes16(n), v); }
  KAMADO_INLINE void stream(float* p) const { _mm512_stream_ps(p, v); }
  KAMADO_INLINE void store_f16(uint16_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static KAMADO_INLINE Mask lanes_between(int begin, int end) {
    return static_cast<__mmask16>(first_lanes16(end) & ~first_lanes16(begin));
  }
};

KAMADO_ARITHMETIC(F16, 512)

KAMADO_INLINE __mmask16 less(F16 a, F16 b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ);
}
KAMADO_INLINE __mmask16 is_nan(F16 a) {
  return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
}
KAMADO_INLINE F16 select(__mmask16 m, F16 yes, F16 no) {
  return {_mm512_mask_blend_ps(m, no.v, yes.v)};
}
KAMADO_INLINE float reduce_sum(F16 a) {
  return reduce_sum8(_mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1)));
}
KAMADO_INLINE float reduce_max(F16 a) {
  return reduce_max8(_mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1)));
}

KAMADO_INLINE void load_pairs(const float* p, F16* even, F16* odd) {
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
  const __m512 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + 16);
  even->v = _mm512_permutex2var_ps(a, evens, b);
  odd->v = _mm512_permutex2var_ps(a, odds, b);
}

KAMADO_INLINE void store_pairs(float* p, F16 even, F16 odd) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  _mm512_storeu_ps(p, _mm512_permutex2var_ps(even.v, first, odd.v));
  _mm512_storeu_ps(p + 16, _mm512_permutex2var_ps(even.v, second, odd.v));
}

struct D16x512 {
  __m512d lo, hi;

  static KAMADO_INLINE D16x512 zero() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
  KAMADO_INLINE void add(F16 x) {
    lo = _mm512_add_pd(lo, _mm512_cvtps_pd(_mm512_castps512_ps256(x.v)));
    hi = _mm512_add_pd(hi, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1)));
  }
  KAMADO_INLINE double sum() const {
    const __m512d x = _mm512_add_pd(lo, hi);
    const __m256d y = _mm256_add_pd(_mm512_castpd512_pd256(x), _mm512_extractf64x4_pd(x, 1));
    const __m128d z = _mm_add_pd(_mm256_castpd256_pd128(y), _mm256_extractf128_pd(y, 1));
    return _mm_cvtsd_f64(_mm_add_sd(z, _mm_unpackhi_pd(z, z)));
  }
};

#endif  // AVX-512

}  // namespace
}  // namespace kamado
