// The contract of kamado/linear.h word for word: one output at a time, no vectors. The oracle of every tier.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "block_codes.h"
#include "kamado/linear.h"

namespace kamado {

namespace {

int8_t quantize_value(float x, float inverse) {
  const float v = x * inverse;
  if (std::isnan(v)) return 0;  // from a NaN, or from infinity times a zero inverse
  return static_cast<int8_t>(std::nearbyint(std::clamp(v, -127.0f, 127.0f)));
}

// Quantises `n` values; returns the scale. A NaN does not count towards the maximum.
float quantize_block(const float* x, int n, int8_t* codes) {
  float amax = 0.0f;
  for (int k = 0; k < n; ++k) {
    const float a = std::fabs(x[k]);
    if (a > amax) amax = a;
  }
  const float inverse = amax != 0.0f ? 127.0f / amax : 0.0f;
  for (int k = 0; k < n; ++k) codes[k] = quantize_value(x[k], inverse);
  return amax / 127.0f;
}

int sum_codes(const int8_t* codes, int n) {
  int sum = 0;
  for (int k = 0; k < n; ++k) sum += codes[k];
  return sum;
}

void quantize(ActKind kind, const float* x, int64_t cols, uint8_t* out) {
  std::memset(out, 0, act_bytes(kind, cols));
  switch (kind) {
    case ActKind::kF32:
      std::memcpy(out, x, static_cast<size_t>(cols) * sizeof(float));
      break;
    case ActKind::kQ8x32:
      for (int64_t b = 0; b < cols / 32; ++b) {
        ActBlock32 block{};
        block.scale = quantize_block(x + b * 32, 32, block.codes);
        block.sum = sum_codes(block.codes, 32);
        std::memcpy(out + static_cast<size_t>(b) * sizeof block, &block, sizeof block);
      }
      break;
    case ActKind::kQ8x256:
      for (int64_t b = 0; b < cols / 256; ++b) {
        ActBlock256 block{};
        block.scale = quantize_block(x + b * 256, 256, block.codes);
        for (int s = 0; s < 16; ++s) block.sums16[s] = static_cast<int16_t>(sum_codes(block.codes + s * 16, 16));
        for (int s = 0; s < 8; ++s) block.sums32[s] = static_cast<int16_t>(sum_codes(block.codes + s * 32, 32));
        std::memcpy(out + static_cast<size_t>(b) * sizeof block, &block, sizeof block);
      }
      break;
  }
}

// Codes of row r's block b, whose fields are gathered from the planes back into the file's order.
void read_codes(const LayoutInfo& info, const uint8_t* tile, int64_t b, int r, int* codes) {
  const uint8_t* planes = tile + tile_planes_offset(info.tile, b) + r * 4;
  const int high_words = info.tile.high_planes;
  uint8_t high[64], low[128];
  for (int i = 0; i < high_words; ++i) std::memcpy(high + 4 * i, planes + high_plane(info, i) * kPlaneBytes, 4);
  for (int i = 0; i < info.tile.planes - high_words; ++i) {
    std::memcpy(low + 4 * i, planes + low_plane(info, i) * kPlaneBytes, 4);
  }
  if (high_words == 1) {  // undo the spreading: byte j, bit g was bit 4g + j
    uint32_t bits = 0;
    for (int k = 0; k < 32; ++k) bits |= static_cast<uint32_t>((high[k % 4] >> (k / 4)) & 1) << k;
    std::memcpy(high, &bits, 4);
  }
  decode_codes(info.layout, low, high, codes);
}

float dot_f32(Layout layout, const uint8_t* tile, int r, int64_t cols, const float* x) {
  float acc = 0.0f;
  for (int64_t k = 0; k < cols; ++k) {
    const int64_t at = k * kTileRows + r;
    float w;
    if (layout == Layout::F32) {
      std::memcpy(&w, tile + 4 * at, sizeof w);
    } else {
      const uint16_t bits = load_u16(tile + 2 * at);
      w = layout == Layout::F16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
    acc = std::fma(w, x[k], acc);
  }
  return acc;
}

// acc and what row r's block b adds to it.
float add_block32(const LayoutInfo& info, const uint8_t* header, int64_t b, int r, const int* codes, const uint8_t* act,
                  float acc) {
  ActBlock32 x;
  std::memcpy(&x, act + static_cast<size_t>(b) * sizeof x, sizeof x);
  const float d = load_scale(info, header + (b % info.tile.group_blocks * kTileRows + r) * info.fields.d_bytes);
  int isum = 0;
  for (int k = 0; k < 32; ++k) isum += codes[k] * x.codes[k];
  acc = std::fma(d * x.scale, static_cast<float>(isum), acc);
  if (!info.has_min()) return acc;
  return std::fma(f16_to_f32(load_u16(header + 32 + 2 * r)) * x.scale, static_cast<float>(x.sum), acc);
}

// Worst |isum| and |msum| of a 256-value block, any bytes in the file: Q6_K 256 * 32 * 127 * 128 = 133 M, IQ4_XS
// 256 * 127 * 127 * 32 = 132 M, Q3_K 256 * 4 * 127 * 32, Q5_K 256 * 31 * 127 * 63 = 63 M, mins 256 * 127 * 63: all <
// 2^31.
float add_block256(const LayoutInfo& info, const uint8_t* header, int64_t b, int r, const int* codes,
                   const uint8_t* act, float acc) {
  const bool shares_bytes = has_shared_mins(info);
  const int sub = 256 / info.fields.sub_blocks;
  ActBlock256 x;
  std::memcpy(&x, act + static_cast<size_t>(b) * sizeof x, sizeof x);
  int isum = 0, msum = 0;
  for (int s = 0; s < info.fields.sub_blocks; ++s) {
    const uint8_t* byte = header + 64 + (s / 2 * kTileRows + r) * 2 + s % 2;
    const int scale = shares_bytes ? *byte & 15 : info.has_min() ? *byte : static_cast<int8_t>(*byte);
    int dot = 0, xsum = 0;
    for (int k = s * sub; k < (s + 1) * sub; ++k) dot += codes[k] * x.codes[k], xsum += x.codes[k];
    isum += scale * dot;
    if (info.has_min()) msum += (shares_bytes ? *byte >> 4 : byte[kTileRows * info.fields.sub_blocks]) * xsum;
  }
  acc = std::fma(load_scale(info, header + 2 * r) * x.scale, static_cast<float>(isum), acc);
  if (!info.has_min()) return acc;
  return std::fma(-(f16_to_f32(load_u16(header + 32 + 2 * r)) * x.scale), static_cast<float>(msum), acc);
}

float dot_quantised(const LayoutInfo& info, const uint8_t* tile, int r, int64_t cols, const uint8_t* act) {
  const auto add_block = info.block_values == 32 ? add_block32 : add_block256;
  float acc = 0.0f;
  for (int64_t b = 0; b < cols / info.block_values; ++b) {
    int codes[256];
    read_codes(info, tile, b, r, codes);
    acc = add_block(info, tile + tile_header_offset(info.tile, b), b, r, codes, act, acc);
  }
  return acc;
}

void multiply(const PackedMatrix& w, int32_t tile_begin, int32_t tile_end, const uint8_t* const* act_rows, int32_t n,
              float* const* out_rows, uint8_t* /*scratch*/) {
  const LayoutInfo& info = *layout_info(w.layout);
  const int32_t row_end = std::min(tile_end * kTileRows, w.rows);
  for (int32_t i = 0; i < n; ++i) {
    for (int32_t row = tile_begin * kTileRows; row < row_end; ++row) {
      const uint8_t* tile = w.data + static_cast<size_t>(row / kTileRows) * w.tile_bytes;
      const int r = row % kTileRows;
      if (info.is_float()) {
        out_rows[i][row] = dot_f32(w.layout, tile, r, w.cols, reinterpret_cast<const float*>(act_rows[i]));
      } else {
        out_rows[i][row] = dot_quantised(info, tile, r, w.cols, act_rows[i]);
      }
    }
  }
}

}  // namespace

const LinearKernels* linear_kernels_ref() {
  static constexpr LinearKernels kTable{quantize, pack_tile_all_tiers, multiply};
  return &kTable;
}

}  // namespace kamado
