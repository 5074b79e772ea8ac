// Scalar dequantisation of every layout, bit-identical to the `gguf` Python package (NaN payloads aside).
#include <cstring>

#include "block_codes.h"
#include "kamado/layout.h"

namespace kamado {

namespace {

void dequantize_block32(Layout layout, const uint8_t* block, float* dst) {
  const BlockFields f = block_fields(layout);
  const float d = layout == Layout::MXFP4 ? e8m0_half(block[0]) : f16_to_f32(load_u16(block));
  int codes[32];
  decode_codes(layout, block + f.low, f.high < 0 ? nullptr : block + f.high, codes);
  if (f.dmin < 0) {
    for (int k = 0; k < 32; ++k) dst[k] = d * static_cast<float>(codes[k]);
  } else {
    const float m = f16_to_f32(load_u16(block + f.dmin));
    for (int k = 0; k < 32; ++k) dst[k] = d * static_cast<float>(codes[k]) + m;
  }
}

void dequantize_block256(Layout layout, const uint8_t* block, float* dst) {
  const BlockFields f = block_fields(layout);
  const float d = f16_to_f32(load_u16(block + f.d));
  int codes[256], scales[16]{}, mins[16]{};
  decode_codes(layout, block + f.low, f.high < 0 ? nullptr : block + f.high, codes);
  decode_scales(layout, block, scales, mins);
  const int sub = layout == Layout::Q2_K || layout == Layout::Q3_K || layout == Layout::Q6_K ? 16 : 32;
  for (int s = 0; s < 256 / sub; ++s) {
    const float ds = d * static_cast<float>(scales[s]);
    float* out = dst + s * sub;
    const int* q = codes + s * sub;
    if (f.dmin < 0) {
      for (int k = 0; k < sub; ++k) out[k] = ds * static_cast<float>(q[k]);
    } else {
      const float ms = f16_to_f32(load_u16(block + f.dmin)) * static_cast<float>(mins[s]);
      for (int k = 0; k < sub; ++k) out[k] = ds * static_cast<float>(q[k]) - ms;
    }
  }
}

}  // namespace

const LayoutInfo* layout_info(Layout layout) {
  static constexpr LayoutInfo kF32{"F32", 1, 4}, kF16{"F16", 1, 2}, kBF16{"BF16", 1, 2}, kQ4_0{"Q4_0", 32, 18},
      kQ4_1{"Q4_1", 32, 20}, kQ5_0{"Q5_0", 32, 22}, kQ5_1{"Q5_1", 32, 24}, kQ8_0{"Q8_0", 32, 34},
      kQ2_K{"Q2_K", 256, 84}, kQ3_K{"Q3_K", 256, 110}, kQ4_K{"Q4_K", 256, 144}, kQ5_K{"Q5_K", 256, 176},
      kQ6_K{"Q6_K", 256, 210}, kIQ4_NL{"IQ4_NL", 32, 18}, kIQ4_XS{"IQ4_XS", 256, 136}, kMXFP4{"MXFP4", 32, 17};
  switch (layout) {
    case Layout::F32:
      return &kF32;
    case Layout::F16:
      return &kF16;
    case Layout::BF16:
      return &kBF16;
    case Layout::Q4_0:
      return &kQ4_0;
    case Layout::Q4_1:
      return &kQ4_1;
    case Layout::Q5_0:
      return &kQ5_0;
    case Layout::Q5_1:
      return &kQ5_1;
    case Layout::Q8_0:
      return &kQ8_0;
    case Layout::Q2_K:
      return &kQ2_K;
    case Layout::Q3_K:
      return &kQ3_K;
    case Layout::Q4_K:
      return &kQ4_K;
    case Layout::Q5_K:
      return &kQ5_K;
    case Layout::Q6_K:
      return &kQ6_K;
    case Layout::IQ4_NL:
      return &kIQ4_NL;
    case Layout::IQ4_XS:
      return &kIQ4_XS;
    case Layout::MXFP4:
      return &kMXFP4;
  }
  return nullptr;
}

size_t row_bytes(Layout layout, int64_t cols) {
  const LayoutInfo* info = layout_info(layout);
  if (info == nullptr || cols <= 0) return 0;
  return static_cast<size_t>(cols / info->block_values) * static_cast<size_t>(info->block_bytes);
}

void dequantize_row(Layout layout, const uint8_t* src, float* dst, int64_t n) {
  const LayoutInfo* info = layout_info(layout);
  if (info == nullptr || n <= 0) return;
  switch (layout) {
    case Layout::F32:
      std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
      return;
    case Layout::F16:
      for (int64_t k = 0; k < n; ++k) dst[k] = f16_to_f32(load_u16(src + 2 * k));
      return;
    case Layout::BF16:
      for (int64_t k = 0; k < n; ++k) dst[k] = bf16_to_f32(load_u16(src + 2 * k));
      return;
    default:
      break;
  }
  for (int64_t b = 0; b < n / info->block_values; ++b, src += info->block_bytes, dst += info->block_values) {
    if (info->block_values == 32) {
      dequantize_block32(layout, src, dst);
    } else {
      dequantize_block256(layout, src, dst);
    }
  }
}

}  // namespace kamado
