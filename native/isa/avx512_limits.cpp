// The limit loops for AVX-512: 512-bit loads, vpdpbusd (VNNI), and fma.
#include "kamado/limits.h"
#include "kernels/simd.h"

namespace kamado {
namespace {

uint64_t read(const uint8_t* data, size_t bytes) {
  __m512i sum[8];
  for (auto& s : sum) s = _mm512_setzero_si512();
  for (size_t i = 0; i < bytes; i += sizeof sum) {
    const uint8_t* p = data + i;
#pragma GCC unroll 8
    for (int l = 0; l < 8; ++l) sum[l] = _mm512_xor_si512(sum[l], _mm512_load_si512(p + 64 * l));
  }
  for (int l = 1; l < 8; ++l) sum[0] = _mm512_xor_si512(sum[0], sum[l]);
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm512_castsi512_si128(sum[0])));
}

int32_t int8_dot(const uint8_t* a, const int8_t* b, int64_t rounds) {
  __m512i sum[4][2];
  for (auto& row : sum) row[0] = row[1] = _mm512_setzero_si512();
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" ::: "memory");
    for (size_t i = 0; i < kDotBytes; i += 64) {
      __m512i y[2];
      for (size_t c = 0; c < 2; ++c) y[c] = _mm512_loadu_si512(b + c * kDotBytes + i);
#pragma GCC unroll 4
      for (size_t r = 0; r < 4; ++r) {
        const __m512i x = _mm512_loadu_si512(a + r * kDotBytes + i);
#pragma GCC unroll 2
        for (size_t c = 0; c < 2; ++c) sum[r][c] = _mm512_dpbusd_epi32(sum[r][c], x, y[c]);
      }
    }
  }
  for (int r = 1; r < 8; ++r) sum[0][0] = _mm512_xor_si512(sum[0][0], sum[r / 2][r % 2]);
  return _mm_cvtsi128_si32(_mm512_castsi512_si128(sum[0][0]));
}

float multiply_add(int64_t rounds) {
  constexpr int kChains = 16;
  const __m512 half = _mm512_set1_ps(0.5f);
  __m512 x = _mm512_set1_ps(1e-3f);
  __m512 sum[kChains];
  for (auto& s : sum) s = _mm512_setzero_ps();
  const int64_t steps = rounds * kFmaPerRound / (16 * kChains);
  for (int64_t i = 0; i < steps; ++i) {
    asm volatile("" : "+x"(x));
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) sum[c] = _mm512_fmadd_ps(sum[c], half, x);
  }
  for (int c = 1; c < kChains; ++c) sum[0] = _mm512_add_ps(sum[0], sum[c]);
  return _mm512_cvtss_f32(sum[0]);
}

constexpr LimitKernels kKernels = {read, int8_dot, multiply_add};

}  // namespace

const LimitKernels* limit_kernels_avx512() {
  return &kKernels;
}

}  // namespace kamado
