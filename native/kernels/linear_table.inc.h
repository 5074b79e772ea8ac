// Quantisation of activations and the entry points of a tier's LinearKernels.
#pragma once
#include "kernels/linear_float.inc.h"
#include "kernels/linear_quantised.inc.h"

namespace kamado {
namespace {

void quantize_row(ActKind kind, const float* x, int64_t cols, uint8_t* out) {
  if (kind == ActKind::kF32) {
    __builtin_memcpy(out, x, static_cast<size_t>(cols) * sizeof(float));
    return;
  }
  const int values = kind == ActKind::kQ8x32 ? 32 : 256;
  for (int64_t b = 0; b < cols / values; ++b, x += values) {
    const float amax = max_abs(x, values);
    const float scale = amax / 127.0f;
    const F32 inverse = f32_set1(amax != 0.0f ? 127.0f / amax : 0.0f);
    if (kind == ActKind::kQ8x32) {
      ActBlock32* block = reinterpret_cast<ActBlock32*>(out) + b;
      const int low = quantize_group(x, inverse, block->codes);
      block->sum = low + quantize_group(x + 16, inverse, block->codes + 16);
      block->scale = scale;
    } else {
      ActBlock256* block = reinterpret_cast<ActBlock256*>(out) + b;
      for (int s = 0; s < 8; ++s) {
        const int low = quantize_group(x + s * 32, inverse, block->codes + s * 32);
        const int high = quantize_group(x + s * 32 + 16, inverse, block->codes + s * 32 + 16);
        block->sums16[2 * s] = static_cast<int16_t>(low);
        block->sums16[2 * s + 1] = static_cast<int16_t>(high);
        block->sums32[s] = static_cast<int16_t>(low + high);
      }
      block->scale = scale;
      for (int32_t& word : block->unused) word = 0;
    }
  }
}

// Activation rows up to which a layout's kernels need no buffer. Those of the models we ship have some for a few rows;
// each costs compile time.
template <class L>
constexpr int kMaxFused = 1;
template <>
constexpr int kMaxFused<LayoutQ4_1> = kMaxFusedTokens;
template <>
constexpr int kMaxFused<LayoutQ5_0> = kMaxFusedTokens;
template <>
constexpr int kMaxFused<LayoutQ8_0> = kMaxFusedTokens;
template <>
constexpr int kMaxFused<LayoutQ4_K> = kMaxFusedTokens;
template <>
constexpr int kMaxFused<LayoutQ6_K> = kMaxFusedWide;

template <class L>
void multiply_layout(const Job& job) {
  if constexpr (requires { L::kInfo; }) {
    multiply_quantised<L, kMaxFused<L>>(job);
  } else {
    multiply_float<L>(job);
  }
}

void multiply(const PackedMatrix& w, int32_t tile_begin, int32_t tile_end, const uint8_t* const* act_rows, int32_t n,
              float* const* out_rows, uint8_t* scratch) {
  if (n <= 0 || tile_begin >= tile_end) return;
  const Job job{&w, tile_begin, tile_end, act_rows, n, out_rows, scratch};
  switch (w.layout) {
#define KAMADO_MULTIPLY(name, ...) \
  case Layout::name:               \
    return multiply_layout<Layout##name>(job);
    KAMADO_LAYOUTS(KAMADO_MULTIPLY)
#undef KAMADO_MULTIPLY
  }
}

constexpr LinearKernels kLinearTable{quantize_row, pack_tile_all_tiers, multiply};

}  // namespace
}  // namespace kamado
