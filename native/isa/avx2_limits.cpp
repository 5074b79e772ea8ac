// The limit loops for AVX2: 256-bit loads, maddubs + madd + add, and fma.
#include <immintrin.h>

#include "kamado/limits.h"

namespace kamado {
namespace {

uint64_t read(const uint8_t* data, size_t bytes) {
  __m256i sum[8];
  for (auto& s : sum) s = _mm256_setzero_si256();
  for (size_t i = 0; i < bytes; i += sizeof sum) {
    const auto* p = reinterpret_cast<const __m256i*>(data + i);
#pragma GCC unroll 8
    for (int l = 0; l < 8; ++l) sum[l] = _mm256_xor_si256(sum[l], _mm256_load_si256(p + l));
  }
  for (int l = 1; l < 8; ++l) sum[0] = _mm256_xor_si256(sum[0], sum[l]);
  return static_cast<uint64_t>(_mm256_extract_epi64(sum[0], 0));
}

int32_t int8_dot(const uint8_t* a, const int8_t* b, int64_t rounds) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum[4][2];
  for (auto& row : sum) row[0] = row[1] = _mm256_setzero_si256();
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" ::: "memory");
    for (size_t i = 0; i < kDotBytes; i += 32) {
      __m256i y[2];
      for (size_t c = 0; c < 2; ++c) y[c] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + c * kDotBytes + i));
#pragma GCC unroll 4
      for (size_t r = 0; r < 4; ++r) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + r * kDotBytes + i));
#pragma GCC unroll 2
        for (size_t c = 0; c < 2; ++c) {
          sum[r][c] = _mm256_add_epi32(sum[r][c], _mm256_madd_epi16(_mm256_maddubs_epi16(x, y[c]), ones));
        }
      }
    }
  }
  for (int r = 1; r < 8; ++r) sum[0][0] = _mm256_xor_si256(sum[0][0], sum[r / 2][r % 2]);
  return _mm256_extract_epi32(sum[0][0], 0);
}

float multiply_add(int64_t rounds) {
  constexpr int kChains = 12;  // two a cycle, four or five cycles each, and what fits in 16 registers
  const __m256 half = _mm256_set1_ps(0.5f);
  __m256 x = _mm256_set1_ps(1e-3f);
  __m256 sum[kChains];
  for (auto& s : sum) s = _mm256_setzero_ps();
  const int64_t steps = rounds * kFmaPerRound / (8 * kChains);
  for (int64_t i = 0; i < steps; ++i) {
    asm volatile("" : "+x"(x));
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sum[c] = _mm256_fmadd_ps(sum[c], half, x);
  }
  for (int c = 1; c < kChains; ++c) sum[0] = _mm256_add_ps(sum[0], sum[c]);
  return _mm256_cvtss_f32(sum[0]);
}

constexpr LimitKernels kKernels = {read, int8_dot, multiply_add};

}  // namespace

const LimitKernels* limit_kernels_avx2() {
  return &kKernels;
}

}  // namespace kamado
