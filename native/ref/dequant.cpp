// Scalar dequantisation of every layout, bit-identical to the `gguf` Python package (NaN payloads aside).
#include <cstring>

#include "block_codes.h"
#include "kamado/layout.h"

namespace kamado {

namespace {

void decode_block(const LayoutInfo& info, const uint8_t* block, int* codes) {
  decode_codes(info.layout, block + info.fields.low, info.tile.high_planes > 0 ? block + info.fields.high : nullptr,
               codes);
}

void dequantize_block32(const LayoutInfo& info, const uint8_t* block, float* dst) {
  const float d = load_scale(info, block + info.fields.d);
  int codes[32];
  decode_block(info, block, codes);
  if (!info.has_min()) {
    for (int k = 0; k < 32; ++k) dst[k] = d * static_cast<float>(codes[k]);
  } else {
    const float m = f16_to_f32(load_u16(block + info.fields.dmin));
    for (int k = 0; k < 32; ++k) dst[k] = d * static_cast<float>(codes[k]) + m;
  }
}

void dequantize_block256(const LayoutInfo& info, const uint8_t* block, float* dst) {
  const float d = load_scale(info, block + info.fields.d);
  int codes[256], scales[16]{}, mins[16]{};
  decode_block(info, block, codes);
  decode_scales(info, block, scales, mins);
  const int sub = 256 / info.fields.sub_blocks;
  for (int s = 0; s < info.fields.sub_blocks; ++s) {
    const float ds = d * static_cast<float>(scales[s]);
    float* out = dst + s * sub;
    const int* q = codes + s * sub;
    if (!info.has_min()) {
      for (int k = 0; k < sub; ++k) out[k] = ds * static_cast<float>(q[k]);
    } else {
      const float ms = f16_to_f32(load_u16(block + info.fields.dmin)) * static_cast<float>(mins[s]);
      for (int k = 0; k < sub; ++k) out[k] = ds * static_cast<float>(q[k]) - ms;
    }
  }
}

}  // namespace

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
      dequantize_block32(*info, src, dst);
    } else {
      dequantize_block256(*info, src, dst);
    }
  }
}

}  // namespace kamado
