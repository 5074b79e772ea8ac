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
  // Keeps compilers from adding up in another order: GCC sums the products of a whole loop body first, as a tree, and
  // every one of them waits in memory.
  static KAMADO_INLINE Int in_turn(Int x) {
    __asm__("" : "+x"(x));
    return x;
  }
  // acc + sums of four products of unsigned and signed bytes; two products fit 16 bits.
  static KAMADO_INLINE Int dot(Int acc, Int unsigned_bytes, Int signed_bytes) {
    return in_turn(
        add(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_bytes, signed_bytes), _mm256_set1_epi16(1))));
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
  // ---- 16 lanes of 32 bits ----
  struct Words {
    __m256i lo, hi;
  };
  static KAMADO_INLINE Words zero_words() { return {zero(), zero()}; }
  static KAMADO_INLINE Words load_words(const uint32_t* p) { return {load(p), load(p + 8)}; }
  static KAMADO_INLINE void store(uint32_t* p, Words x) { store(p, x.lo), store(p + 8, x.hi); }
  static KAMADO_INLINE Words as_words(Floats x) { return {_mm256_castps_si256(x.lo.v), _mm256_castps_si256(x.hi.v)}; }
  static KAMADO_INLINE Floats as_floats(Words x) { return {{_mm256_castsi256_ps(x.lo)}, {_mm256_castsi256_ps(x.hi)}}; }
  static KAMADO_INLINE Words whole(Floats x) { return {_mm256_cvtps_epi32(x.lo.v), _mm256_cvtps_epi32(x.hi.v)}; }
  template <int kBy>
  static KAMADO_INLINE Words right(Words x) {
    if constexpr (kBy == 0) return x;
    return {_mm256_srli_epi32(x.lo, kBy), _mm256_srli_epi32(x.hi, kBy)};
  }
  template <int kBy>
  static KAMADO_INLINE Words left(Words x) {
    return {_mm256_slli_epi32(x.lo, kBy), _mm256_slli_epi32(x.hi, kBy)};
  }
  static KAMADO_INLINE Words right_by(Words x, Words by) {
    return {_mm256_srlv_epi32(x.lo, by.lo), _mm256_srlv_epi32(x.hi, by.hi)};
  }
  // One of 16 words by the low four bits of an index.
  static KAMADO_INLINE Words look_up(const uint32_t* sixteen, Words index) {
    const __m256 low = _mm256_loadu_ps(reinterpret_cast<const float*>(sixteen));
    const __m256 high = _mm256_loadu_ps(reinterpret_cast<const float*>(sixteen + 8));
    const auto part = [=](__m256i i) {
      const __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28));
      return _mm256_castps_si256(
          _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, i), _mm256_permutevar8x32_ps(high, i), is_high));
    };
    return {part(index.lo), part(index.hi)};
  }
  // One of eight floats by the low four bits of an index below 8.
  static KAMADO_INLINE Floats pick(const float* eight, Words index) {
    const __m256 table = _mm256_loadu_ps(eight);
    return {{_mm256_permutevar8x32_ps(table, index.lo)}, {_mm256_permutevar8x32_ps(table, index.hi)}};
  }
  static KAMADO_INLINE Floats::Mask at_least(Floats a, Floats b) {
    return {_mm256_cmp_ps(a.lo.v, b.lo.v, _CMP_GE_OQ), _mm256_cmp_ps(a.hi.v, b.hi.v, _CMP_GE_OQ)};
  }
  static KAMADO_INLINE Words add_one_if(Words x, Floats::Mask m) {
    return {_mm256_sub_epi32(x.lo, _mm256_castps_si256(m.lo)), _mm256_sub_epi32(x.hi, _mm256_castps_si256(m.hi))};
  }
  static KAMADO_INLINE Floats::Mask is_odd(Words x) {  // of which only the sign is used
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x.lo, 31)), _mm256_castsi256_ps(_mm256_slli_epi32(x.hi, 31))};
  }
  static KAMADO_INLINE Words choose(Floats::Mask m, Words yes, Words no) {
    return as_words(select(m, as_floats(yes), as_floats(no)));
  }
  // Codes of signed levels: half + magnitude, or half - 1 - magnitude; the magnitude in the low three bits.
  static KAMADO_INLINE void store_codes(Words magnitude, Floats::Mask is_negative, int half, uint8_t* out) {
    const auto part = [half](__m256i x, __m256 m) {
      const __m256i kept = _mm256_and_si256(x, _mm256_set1_epi32(7));
      return _mm256_add_epi32(_mm256_xor_si256(kept, _mm256_castps_si256(m)), _mm256_set1_epi32(half));
    };
    store_low_bytes(part(magnitude.lo, is_negative.lo), part(magnitude.hi, is_negative.hi), out);
  }
  static KAMADO_INLINE void store_low_bytes(__m256i lo, __m256i hi, uint8_t* out) {  // of lanes from 0 to 255
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }
  static KAMADO_INLINE Floats sqrt(Floats x) { return {{_mm256_sqrt_ps(x.lo.v)}, {_mm256_sqrt_ps(x.hi.v)}}; }
  static KAMADO_INLINE Floats load_ints(const int32_t* p) {
    return {{_mm256_cvtepi32_ps(load(p))}, {_mm256_cvtepi32_ps(load(p + 8))}};
  }
  // Bits [shift, shift + width) of 32 lanes, to bytes; width <= 8.
  static KAMADO_INLINE void store_bytes(Floats a, Floats b, int shift, int width, uint8_t* out) {
    const auto part = [=](F8 x) {
      return _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(x.v), shift), _mm256_set1_epi32((1 << width) - 1));
    };
    const __m256i quads =
        _mm256_packus_epi16(_mm256_packs_epi32(part(a.lo), part(a.hi)), _mm256_packs_epi32(part(b.lo), part(b.hi)));
    store(out, _mm256_permutevar8x32_epi32(quads, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
  }
  // Bits [shift, shift + width) of every lane, to bytes; width <= 8.
  static KAMADO_INLINE void store_bytes(Floats x, int shift, int width, uint8_t* out) {
    const __m256i mask = _mm256_set1_epi32((1 << width) - 1);
    const __m256i lo = _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(x.lo.v), shift), mask);
    const __m256i hi = _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(x.hi.v), shift), mask);
    store_low_bytes(lo, hi, out);
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

  // ---- 16 lanes of 32 bits ----
  using Words = __m512i;
  static KAMADO_INLINE Words zero_words() { return zero(); }
  static KAMADO_INLINE Words load_words(const uint32_t* p) { return load(p); }
  static KAMADO_INLINE Words as_words(Floats x) { return _mm512_castps_si512(x.v); }
  static KAMADO_INLINE Floats as_floats(Words x) { return {_mm512_castsi512_ps(x)}; }
  static KAMADO_INLINE Words whole(Floats x) { return _mm512_cvtps_epi32(x.v); }
  template <int kBy>
  static KAMADO_INLINE Words right(Words x) {
    return kBy == 0 ? x : _mm512_srli_epi32(x, kBy);
  }
  template <int kBy>
  static KAMADO_INLINE Words left(Words x) {
    return _mm512_slli_epi32(x, kBy);
  }
  static KAMADO_INLINE Words right_by(Words x, Words by) { return _mm512_srlv_epi32(x, by); }
  static KAMADO_INLINE Words look_up(const uint32_t* sixteen, Words index) {
    return _mm512_permutexvar_epi32(index, load(sixteen));
  }
  static KAMADO_INLINE Floats pick(const float* eight, Words index) {
    return {_mm512_permutexvar_ps(index, _mm512_broadcast_f32x8(_mm256_loadu_ps(eight)))};
  }
  static KAMADO_INLINE Floats::Mask at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
  static KAMADO_INLINE Words add_one_if(Words x, Floats::Mask m) {
    return _mm512_mask_add_epi32(x, m, x, _mm512_set1_epi32(1));
  }
  static KAMADO_INLINE Floats::Mask is_odd(Words x) { return _mm512_test_epi32_mask(x, _mm512_set1_epi32(1)); }
  static KAMADO_INLINE Words choose(Floats::Mask m, Words yes, Words no) { return _mm512_mask_blend_epi32(m, no, yes); }
  static KAMADO_INLINE void store_codes(Words magnitude, Floats::Mask is_negative, int half, uint8_t* out) {
    const __m512i kept = _mm512_and_si512(magnitude, _mm512_set1_epi32(7));
    const __m512i turned = _mm512_mask_xor_epi32(kept, is_negative, kept, _mm512_set1_epi32(-1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm512_cvtepi32_epi8(_mm512_add_epi32(turned, _mm512_set1_epi32(half))));
  }
  static KAMADO_INLINE Floats sqrt(Floats x) { return {_mm512_sqrt_ps(x.v)}; }
  static KAMADO_INLINE Floats load_ints(const int32_t* p) { return {_mm512_cvtepi32_ps(load(p))}; }
  static KAMADO_INLINE void store_bytes(Floats a, Floats b, int shift, int width, uint8_t* out) {
    store_bytes(a, shift, width, out), store_bytes(b, shift, width, out + kVirtualLanes);
  }
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
