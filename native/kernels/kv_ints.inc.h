// The integer registers that the KV codec is written over: Ints256 (AVX2) and Ints512 (AVX-512 with VNNI). Integer sums
// are exact, so tiers may cut them as they like. kHalves registers make the 64 codes of the format.
#pragma once
#include <cstdint>

#include "kernels/kv_codec_layout.h"
#include "kernels/simd.h"

namespace kamado {
namespace {

constexpr float kRoundingMagic = 0x1.8p23f;  // adding it leaves rint(x) in the low bits

// Gains of 16 tokens from `token` on, a multiple of 16, as bytes.
KAMADO_INLINE __m128i gain_bytes16(const uint8_t* group_gains, int32_t token) {
  const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(group_gains + gain_index(token)));
  const __m128i nibbles = _mm_and_si128(token < 64 ? pairs : _mm_srli_epi16(pairs, 4), _mm_set1_epi8(15));
  return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kGains)), nibbles);
}

struct Ints256 {
  static constexpr int kHalves = 2;
  static constexpr int32_t kKeyOffset8 = 0;  // what is added to a key's code of 8 bits before dot_keys
  using Int = __m256i;
  using Floats = F8x2;

  static KAMADO_INLINE Int zero() { return _mm256_setzero_si256(); }
  static KAMADO_INLINE Int load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static KAMADO_INLINE void store(void* p, Int x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
  static KAMADO_INLINE Int set1(int32_t x) { return _mm256_set1_epi32(x); }
  static KAMADO_INLINE Int set1_bytes(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
  static KAMADO_INLINE Int table(const int8_t* p) {  // 16 bytes
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static KAMADO_INLINE Int broadcast(const void* four) {
    int32_t word;
    memcpy(&word, four, 4);
    return _mm256_set1_epi32(word);
  }
  static KAMADO_INLINE Int lookup(Int table, Int index) { return _mm256_shuffle_epi8(table, index); }
  static KAMADO_INLINE Int right(Int x, int n) { return n ? _mm256_srli_epi16(x, n) : x; }
  static KAMADO_INLINE Int left(Int x, int n) { return _mm256_slli_epi16(x, n); }
  static KAMADO_INLINE Int bits(Int x, Int mask) { return _mm256_and_si256(x, mask); }
  static KAMADO_INLINE Int join(Int a, Int b) { return _mm256_or_si256(a, b); }
  static KAMADO_INLINE Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static KAMADO_INLINE Int multiply(Int a, Int b) { return _mm256_mullo_epi32(a, b); }
  // acc + sums of four products of unsigned and signed bytes; two products fit 16 bits.
  static KAMADO_INLINE Int dot(Int acc, Int unsigned_bytes, Int signed_bytes) {
    return add(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_bytes, signed_bytes), _mm256_set1_epi16(1)));
  }
  static KAMADO_INLINE Int key_code8(Int code) { return code; }
  static KAMADO_INLINE Int dot_key8(Int acc, Int code, Int query) {
    return dot(acc, _mm256_abs_epi8(code), _mm256_sign_epi8(query, code));
  }
  static KAMADO_INLINE Int gains(const uint8_t* group_gains, int32_t token, int half) {
    const __m128i bytes = gain_bytes16(group_gains, token);
    return _mm256_cvtepu8_epi32(half ? _mm_srli_si128(bytes, 8) : bytes);
  }

  static KAMADO_INLINE Floats float_bytes(__m128i bytes) {
    return {{_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))},
            {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))}};
  }
  // sum + (t >= border ? difference : 0) for whole numbers
  static KAMADO_INLINE Floats add_from(Floats sum, Floats t, Floats border, Floats difference) {
    const auto part = [](F8 a, F8 x, F8 y, F8 d) {
      return F8{_mm256_add_ps(a.v, _mm256_and_ps(_mm256_cmp_ps(x.v, y.v, _CMP_GE_OQ), d.v))};
    };
    return {part(sum.lo, t.lo, border.lo, difference.lo), part(sum.hi, t.hi, border.hi, difference.hi)};
  }
  // outcomes[the number of borders at or below t], of 7 borders: a search by halves.
  static KAMADO_INLINE Floats pick8(Floats t, const float* borders, const float* outcomes) {
    const auto part = [=](F8 x) {
      const __m256i rows = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 0);
      const __m256 table = _mm256_maskload_ps(borders, _mm256_cmpgt_epi32(_mm256_set1_epi32(7), rows));
      __m256i index = _mm256_set1_epi32(3);  // of the border to compare with
      for (int step = 2; step > 0; --step) {
        const __m256 is_above = _mm256_cmp_ps(x.v, _mm256_permutevar8x32_ps(table, index), _CMP_GE_OQ);
        const __m256i up = _mm256_and_si256(_mm256_castps_si256(is_above), _mm256_set1_epi32(2 * step));
        index = _mm256_add_epi32(index, _mm256_sub_epi32(up, _mm256_set1_epi32(step)));
      }
      const __m256 is_above = _mm256_cmp_ps(x.v, _mm256_permutevar8x32_ps(table, index), _CMP_GE_OQ);
      index = _mm256_sub_epi32(index, _mm256_castps_si256(is_above));
      return F8{_mm256_permutevar8x32_ps(_mm256_loadu_ps(outcomes), index)};
    };
    return {part(t.lo), part(t.hi)};
  }
  static KAMADO_INLINE Floats sqrt(Floats x) { return {{_mm256_sqrt_ps(x.lo.v)}, {_mm256_sqrt_ps(x.hi.v)}}; }
  static KAMADO_INLINE Floats load_ints(const int32_t* p) {
    return {{_mm256_cvtepi32_ps(load(p))}, {_mm256_cvtepi32_ps(load(p + 8))}};
  }
  // Bits [shift, shift + width) of every lane, to bytes; width <= 8.
  static KAMADO_INLINE void store_bytes(Floats x, int shift, int width, uint8_t* out) {
    const __m256i mask = _mm256_set1_epi32((1 << width) - 1);
    const __m256i lo = _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(x.lo.v), shift), mask);
    const __m256i hi = _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(x.hi.v), shift), mask);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }
};

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)

struct Ints512 {
  static constexpr int kHalves = 1;
  static constexpr int32_t kKeyOffset8 = 128;
  using Int = __m512i;
  using Floats = F16;

  static KAMADO_INLINE Int zero() { return _mm512_setzero_si512(); }
  static KAMADO_INLINE Int load(const void* p) { return _mm512_loadu_si512(p); }
  static KAMADO_INLINE void store(void* p, Int x) { _mm512_storeu_si512(p, x); }
  static KAMADO_INLINE Int set1(int32_t x) { return _mm512_set1_epi32(x); }
  static KAMADO_INLINE Int set1_bytes(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
  static KAMADO_INLINE Int table(const int8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static KAMADO_INLINE Int broadcast(const void* four) {
    int32_t word;
    memcpy(&word, four, 4);
    return _mm512_set1_epi32(word);
  }
  static KAMADO_INLINE Int lookup(Int table, Int index) { return _mm512_shuffle_epi8(table, index); }
  static KAMADO_INLINE Int right(Int x, int n) { return n ? _mm512_srli_epi16(x, static_cast<unsigned>(n)) : x; }
  static KAMADO_INLINE Int left(Int x, int n) { return _mm512_slli_epi16(x, static_cast<unsigned>(n)); }
  static KAMADO_INLINE Int bits(Int x, Int mask) { return _mm512_and_si512(x, mask); }
  static KAMADO_INLINE Int join(Int a, Int b) { return _mm512_or_si512(a, b); }
  static KAMADO_INLINE Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static KAMADO_INLINE Int multiply(Int a, Int b) { return _mm512_mullo_epi32(a, b); }
  static KAMADO_INLINE Int dot(Int acc, Int unsigned_bytes, Int signed_bytes) {
    return _mm512_dpbusd_epi32(acc, unsigned_bytes, signed_bytes);
  }
  static KAMADO_INLINE Int key_code8(Int code) { return _mm512_xor_si512(code, set1_bytes(-128)); }
  static KAMADO_INLINE Int dot_key8(Int acc, Int code, Int query) { return dot(acc, code, query); }
  static KAMADO_INLINE Int gains(const uint8_t* group_gains, int32_t token, int) {
    return _mm512_cvtepu8_epi32(gain_bytes16(group_gains, token));
  }

  static KAMADO_INLINE Floats float_bytes(__m128i bytes) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))}; }
  static KAMADO_INLINE Floats add_from(Floats sum, Floats t, Floats border, Floats difference) {
    return {_mm512_mask_add_ps(sum.v, _mm512_cmp_ps_mask(t.v, border.v, _CMP_GE_OQ), sum.v, difference.v)};
  }
  // Seven comparisons into masks are as fast as a search by halves here.
  static KAMADO_INLINE Floats pick8(Floats t, const float* borders, const float* outcomes) {
    Floats sum = Floats::set1(outcomes[0]);
    for (int i = 0; i < 7; ++i) {
      sum = add_from(sum, t, Floats::set1(borders[i]), Floats::set1(outcomes[i + 1] - outcomes[i]));
    }
    return sum;
  }
  static KAMADO_INLINE Floats sqrt(Floats x) { return {_mm512_sqrt_ps(x.v)}; }
  static KAMADO_INLINE Floats load_ints(const int32_t* p) { return {_mm512_cvtepi32_ps(load(p))}; }
  static KAMADO_INLINE void store_bytes(Floats x, int shift, int width, uint8_t* out) {
    const __m512i shifted = _mm512_srli_epi32(_mm512_castps_si512(x.v), static_cast<unsigned>(shift));
    const __m512i kept = width == 8 ? shifted : _mm512_and_si512(shifted, _mm512_set1_epi32((1 << width) - 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(kept));
  }
};

#endif  // AVX-512 VNNI

// Register r of a chunk as codes, unpacked. Called with r known after unrolling.
template <class I, int kBits>
KAMADO_INLINE typename I::Int unpack_register(const uint8_t* chunk, int r, int half) {
  constexpr int kPerByte = kBits == 3 ? 4 : 8 / kBits;
  const uint8_t* at = chunk + r / kPerByte * 64 + half * 32;
  if constexpr (kBits == 8) {
    return I::load(at);
  } else if constexpr (kBits == 3) {
    const auto low = I::bits(I::right(I::load(at), 2 * (r % 4)), I::set1_bytes(3));
    const auto plane = I::load(chunk + 128 + half * 32);
    return I::join(low, I::bits(r < 2 ? I::left(plane, 2 - r) : I::right(plane, r - 2), I::set1_bytes(4)));
  } else {
    return I::bits(I::right(I::load(at), kBits * (r % kPerByte)), I::set1_bytes((1 << kBits) - 1));
  }
}

struct LevelTables {
  int8_t keys[5][16];    // level + 64, unsigned
  int8_t values[5][16];  // level
};

constexpr LevelTables make_level_tables() {
  LevelTables tables{};
  for (int32_t bits = 1; bits <= 4; ++bits) {
    for (int32_t i = 0; i < 16; ++i) {
      const int32_t level = code_level(bits, i % (1 << bits));
      tables.keys[bits][i] = static_cast<int8_t>(level + 64);
      tables.values[bits][i] = static_cast<int8_t>(level);
    }
  }
  return tables;
}
constexpr LevelTables kLevelTables = make_level_tables();
constexpr int32_t kKeyOffset = 64;

}  // namespace
}  // namespace kamado
