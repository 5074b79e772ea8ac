// Quantisation of activations and the entry points of a tier's LinearKernels.

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

void multiply(const PackedMatrix& w, int32_t tile_begin, int32_t tile_end, const uint8_t* const* act_rows, int32_t n,
              float* const* out_rows, uint8_t* scratch) {
  if (n <= 0 || tile_begin >= tile_end) return;
  // The layouts of the models we ship get kernels for a few rows without a buffer; each costs compile time.
  const Job job{&w, tile_begin, tile_end, act_rows, n, out_rows, scratch};
  switch (w.layout) {
    case Layout::F32:
      return multiply_float<WeightsF32>(job);
    case Layout::F16:
      return multiply_float<WeightsF16>(job);
    case Layout::BF16:
      return multiply_float<WeightsBF16>(job);
    case Layout::Q4_0:
      return multiply_quantised<LayoutQ4_0, 1>(job);
    case Layout::Q4_1:
      return multiply_quantised<LayoutQ4_1, kMaxFusedTokens>(job);
    case Layout::Q5_0:
      return multiply_quantised<LayoutQ5_0, kMaxFusedTokens>(job);
    case Layout::Q5_1:
      return multiply_quantised<LayoutQ5_1, 1>(job);
    case Layout::Q8_0:
      return multiply_quantised<LayoutQ8_0, kMaxFusedTokens>(job);
    case Layout::IQ4_NL:
      return multiply_quantised<LayoutIQ4_NL, 1>(job);
    case Layout::MXFP4:
      return multiply_quantised<LayoutMXFP4, 1>(job);
    case Layout::Q2_K:
      return multiply_quantised<LayoutQ2_K, 1>(job);
    case Layout::Q3_K:
      return multiply_quantised<LayoutQ3_K, 1>(job);
    case Layout::Q4_K:
      return multiply_quantised<LayoutQ4_K, kMaxFusedTokens>(job);
    case Layout::Q5_K:
      return multiply_quantised<LayoutQ5_K, 1>(job);
    case Layout::Q6_K:
      return multiply_quantised<LayoutQ6_K, kMaxFusedWide>(job);
    case Layout::IQ4_XS:
      return multiply_quantised<LayoutIQ4_XS, 1>(job);
  }
}

constexpr LinearKernels kLinearTable{quantize_row, pack_tile_all_tiers, multiply};
