// The limit loops of both instruction sets, over a Tier: its registers Int and Float, kChains (sums under way in
// multiply_add: what hides the latency and fits the registers), dot(sum, unsigned bytes, signed bytes) and fma.
#pragma once
#include <immintrin.h>

#include "kamado/limits.h"

namespace kamado {
namespace {

template <class Tier>
struct LimitLoops {
  using Int = typename Tier::Int;
  using Float = typename Tier::Float;
  static constexpr size_t kBytes = sizeof(Int);

  static inline __attribute__((always_inline)) Int load(const void* p) {
    Int x;
    __builtin_memcpy(&x, p, kBytes);
    return x;
  }

  static uint64_t read(const uint8_t* data, size_t bytes) {
    Int sum[8] = {};
    for (size_t i = 0; i < bytes; i += sizeof sum) {
#pragma GCC unroll 8
      for (size_t l = 0; l < 8; ++l) sum[l] ^= load(data + i + l * kBytes);
    }
    for (int l = 1; l < 8; ++l) sum[0] ^= sum[l];
    return static_cast<uint64_t>(sum[0][0]);
  }

  static int32_t int8_dot(const uint8_t* a, const int8_t* b, int64_t rounds) {
    Int sum[4][2] = {};
    for (int64_t round = 0; round < rounds; ++round) {
      asm volatile("" ::: "memory");
      for (size_t i = 0; i < kDotBytes; i += kBytes) {
        const Int y[2] = {load(b + i), load(b + kDotBytes + i)};
#pragma GCC unroll 4
        for (size_t r = 0; r < 4; ++r) {
          const Int x = load(a + r * kDotBytes + i);
#pragma GCC unroll 2
          for (size_t c = 0; c < 2; ++c) sum[r][c] = Tier::dot(sum[r][c], x, y[c]);
        }
      }
    }
    for (int r = 1; r < 8; ++r) sum[0][0] ^= sum[r / 2][r % 2];
    return static_cast<int32_t>(sum[0][0][0]);
  }

  static float multiply_add(int64_t rounds) {
    constexpr int kChains = Tier::kChains;
    const Float half = Float{} + 0.5f;
    Float x = Float{} + 1e-3f;
    Float sum[kChains] = {};
    for (Float& s : sum)
      asm volatile("" : "+x"(s));  // else the compiler sees that all chains are the same, and runs one
    const int64_t steps = rounds * kFmaPerRound / (static_cast<int64_t>(sizeof(Float) / sizeof(float)) * kChains);
    for (int64_t i = 0; i < steps; ++i) {
      asm volatile("" : "+x"(x));
#pragma GCC unroll 16
      for (int c = 0; c < kChains; ++c) sum[c] = Tier::fma(sum[c], half, x);
    }
    for (int c = 1; c < kChains; ++c) sum[0] += sum[c];
    return sum[0][0];
  }

  static constexpr LimitKernels kTable = {read, int8_dot, multiply_add};
};

}  // namespace
}  // namespace kamado
