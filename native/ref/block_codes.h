// Integer codes and scales of one stored block, spelled out once for dequantisation, packing and the scalar reference.
#pragma once
#include <cstdint>
#include <cstring>

#include "kamado/bits.h"
#include "kamado/layout.h"
#include "kernels/linear_tile.h"

namespace kamado {

inline uint16_t load_u16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Exact; a signalling NaN stays one (hardware conversion would quieten it).
inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 31u;
  uint32_t mantissa = h & 0x3ffu;
  if (exponent == 31) return bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  // Subnormal: mantissa * 2^-24, exact in float.
  return bit_cast<float>(sign | bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-24f));
}

inline float bf16_to_f32(uint16_t h) {
  return bit_cast<float>(static_cast<uint32_t>(h) << 16);
}

// 2^(e - 128), down to the subnormals.
inline float e8m0_half(uint8_t e) {
  return bit_cast<float>(e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23);
}

// The scale of a block, where the block or a tile's header has it.
inline float load_scale(const LayoutInfo& info, const uint8_t* p) {
  return info.fields.d_bytes == 1 ? e8m0_half(*p) : f16_to_f32(load_u16(p));
}

// Signed codes (offset or table applied) of one block from its low and high fields in the file's order.
inline void decode_codes(Layout layout, const uint8_t* low, const uint8_t* high, int* codes) {
  switch (layout) {
    case Layout::Q4_0:
    case Layout::Q4_1:
    case Layout::IQ4_NL:
    case Layout::MXFP4:
      for (int k = 0; k < 32; ++k) {
        const int q = k < 16 ? low[k] & 15 : low[k - 16] >> 4;
        codes[k] = layout == Layout::Q4_0     ? q - 8
                   : layout == Layout::Q4_1   ? q
                   : layout == Layout::IQ4_NL ? kIq4Values[q]
                                              : kMxfp4Values[q];
      }
      break;
    case Layout::Q5_0:
    case Layout::Q5_1:
      for (int k = 0; k < 32; ++k) {
        const int q = k < 16 ? low[k] & 15 : low[k - 16] >> 4;
        const int bit = (high[k / 8] >> (k % 8)) & 1;
        codes[k] = (q | bit << 4) - (layout == Layout::Q5_0 ? 16 : 0);
      }
      break;
    case Layout::Q8_0:
      for (int k = 0; k < 32; ++k) codes[k] = static_cast<int8_t>(low[k]);
      break;
    case Layout::Q2_K:
    case Layout::Q3_K:
      // Halves of 128 values; within one, byte l holds values l, l + 32, l + 64, l + 96.
      for (int k = 0; k < 256; ++k) {
        const int l = k % 32, quarter = (k / 32) % 4;
        const int q = (low[k / 128 * 32 + l] >> (2 * quarter)) & 3;
        codes[k] = layout == Layout::Q2_K ? q : q - ((high[l] >> (k / 32) & 1) ? 0 : 4);
      }
      break;
    case Layout::Q4_K:
    case Layout::Q5_K:
      // Pairs of sub-blocks share 32 bytes: the even one the low nibbles, the odd one the high nibbles.
      for (int k = 0; k < 256; ++k) {
        const int q = (low[k / 64 * 32 + k % 32] >> (k / 32 % 2 * 4)) & 15;
        codes[k] = layout == Layout::Q4_K ? q : q | ((high[k % 32] >> (k / 32)) & 1) << 4;
      }
      break;
    case Layout::Q6_K:
      for (int k = 0; k < 256; ++k) {
        const int half = k / 128, l = k % 32, quarter = (k / 32) % 4;
        const int q = (low[half * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4)) & 15;
        const int h = (high[half * 32 + l] >> (2 * quarter)) & 3;
        codes[k] = (q | h << 4) - 32;
      }
      break;
    case Layout::IQ4_XS:
      for (int k = 0; k < 256; ++k) {
        const int within = k % 32;
        codes[k] = kIq4Values[(low[k / 32 * 16 + within % 16] >> (within / 16 * 4)) & 15];
      }
      break;
    default:
      break;
  }
}

// Integer scales and minimums of the sub-blocks of a 256-value block.
inline void decode_scales(const LayoutInfo& info, const uint8_t* block, int* scales, int* mins) {
  const uint8_t* s = block + info.fields.scales;
  switch (info.layout) {
    case Layout::Q2_K:
      for (int i = 0; i < 16; ++i) scales[i] = s[i] & 15, mins[i] = s[i] >> 4;
      break;
    case Layout::Q3_K:
      for (int i = 0; i < 16; ++i) {
        const int low = (s[i % 8] >> (i / 8 * 4)) & 15;
        scales[i] = (low | ((s[8 + i % 4] >> (i / 4 * 2)) & 3) << 4) - 32;
      }
      break;
    case Layout::Q4_K:
    case Layout::Q5_K:
      for (int i = 0; i < 4; ++i) {
        scales[i] = s[i] & 63;
        mins[i] = s[4 + i] & 63;
        scales[4 + i] = (s[8 + i] & 15) | ((s[i] >> 2) & 0x30);
        mins[4 + i] = (s[8 + i] >> 4) | ((s[4 + i] >> 2) & 0x30);
      }
      break;
    case Layout::Q6_K:
      for (int i = 0; i < 16; ++i) scales[i] = static_cast<int8_t>(s[i]);
      break;
    case Layout::IQ4_XS: {
      const unsigned high = load_u16(block + 2);
      for (int i = 0; i < 8; ++i) {
        const unsigned low = (s[i / 2] >> (i % 2 * 4)) & 15u;
        scales[i] = static_cast<int>(low | ((high >> (2 * i)) & 3u) << 4) - 32;
      }
      break;
    }
    default:
      break;
  }
}

}  // namespace kamado
