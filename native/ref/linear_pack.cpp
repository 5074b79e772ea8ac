// Packs rows of a file's blocks into tiles (see kernels/linear_tile.h), and the sizes that depend on the tile format.
#include <cstring>

#include "block_codes.h"
#include "kamado/align.h"
#include "kamado/linear.h"

namespace kamado {

namespace {

void store_u16(uint8_t* p, uint16_t v) {
  std::memcpy(p, &v, sizeof v);
}

// Bits k = 4g + j of a 32-bit word to byte j, bit g.
uint32_t spread_high_bits(uint32_t bits) {
  uint32_t out = 0;
  for (int g = 0; g < 8; ++g) {
    const uint32_t nibble = (bits >> (4 * g)) & 15u;
    out |= ((nibble * 0x00204081u) & 0x01010101u) << g;
  }
  return out;
}

// Word i of each row's field to plane plane_of(layout, i).
template <int (*plane_of)(Layout, int)>
void pack_field(Layout layout, const uint8_t* field, size_t row_stride, int n_rows, int words, uint8_t* planes) {
  for (int i = 0; i < words; ++i) {
    uint8_t* plane = planes + plane_of(layout, i) * kPlaneBytes;
    for (int r = 0; r < n_rows; ++r) {
      std::memcpy(plane + r * 4, field + static_cast<size_t>(r) * row_stride + i * 4, 4);
    }
  }
}

void pack_scales256(Layout layout, const uint8_t* block, int r, uint8_t* header) {
  const BlockFields f = block_fields(layout);
  store_u16(header + 2 * r, load_u16(block + f.d));
  if (f.dmin >= 0) store_u16(header + 32 + 2 * r, load_u16(block + f.dmin));
  uint8_t* pairs = header + 64;
  if (layout == Layout::Q2_K) {  // scale and minimum stay together in one byte
    for (int s = 0; s < 16; ++s) pairs[(s / 2 * 16 + r) * 2 + s % 2] = block[s];
    return;
  }
  int scales[16]{}, mins[16]{};
  decode_scales(layout, block, scales, mins);
  const int subs = layout == Layout::Q3_K || layout == Layout::Q6_K ? 16 : 8;
  for (int s = 0; s < subs; ++s) pairs[(s / 2 * 16 + r) * 2 + s % 2] = static_cast<uint8_t>(scales[s]);
  if (f.dmin >= 0) {
    for (int s = 0; s < subs; ++s) pairs[128 + (s / 2 * 16 + r) * 2 + s % 2] = static_cast<uint8_t>(mins[s]);
  }
}

void pack_header32(Layout layout, const uint8_t* block, int in_group, int r, uint8_t* header) {
  const BlockFields f = block_fields(layout);
  if (layout == Layout::MXFP4) {
    header[in_group * 16 + r] = block[0];
    return;
  }
  store_u16(header + in_group * 32 + 2 * r, load_u16(block + f.d));
  if (f.dmin >= 0) store_u16(header + 32 + 2 * r, load_u16(block + f.dmin));
}

template <typename Value>
void pack_values(const uint8_t* rows, size_t row_stride, int n_rows, int64_t cols, uint8_t* tile) {
  for (int64_t k = 0; k < cols; ++k) {
    for (int r = 0; r < n_rows; ++r) {
      std::memcpy(tile + (k * kTileRows + r) * static_cast<int64_t>(sizeof(Value)),
                  rows + static_cast<size_t>(r) * row_stride + static_cast<size_t>(k) * sizeof(Value), sizeof(Value));
    }
  }
}

}  // namespace

void pack_tile_all_tiers(Layout layout, const uint8_t* rows, size_t row_stride, int n_rows, int64_t cols,
                         uint8_t* tile) {
  std::memset(tile, 0, packed_tile_bytes(layout, cols));
  if (layout == Layout::F32) return pack_values<uint32_t>(rows, row_stride, n_rows, cols, tile);
  if (layout == Layout::F16 || layout == Layout::BF16)
    return pack_values<uint16_t>(rows, row_stride, n_rows, cols, tile);

  const TileGeometry g = tile_geometry(layout);
  const BlockFields f = block_fields(layout);
  const int high_words = high_bytes(layout) / 4;
  const size_t block_bytes = row_bytes(layout, g.block_values);
  for (int64_t b = 0; b < cols / g.block_values; ++b) {
    const uint8_t* block = rows + static_cast<size_t>(b) * block_bytes;
    uint8_t* header = tile + tile_header_offset(g, b);
    uint8_t* planes = tile + tile_planes_offset(g, b);
    for (int r = 0; r < n_rows; ++r) {
      const uint8_t* row_block = block + static_cast<size_t>(r) * row_stride;
      if (g.block_values == 256) {
        pack_scales256(layout, row_block, r, header);
      } else {
        pack_header32(layout, row_block, static_cast<int>(b % g.group_blocks), r, header);
      }
    }
    if (high_words == 1) {
      for (int r = 0; r < n_rows; ++r) {
        uint32_t bits;
        std::memcpy(&bits, block + static_cast<size_t>(r) * row_stride + f.high, 4);
        bits = spread_high_bits(bits);
        std::memcpy(planes + r * 4, &bits, 4);
      }
    } else if (high_words > 0) {
      pack_field<high_plane>(layout, block + f.high, row_stride, n_rows, high_words, planes);
    }
    pack_field<low_plane>(layout, block + f.low, row_stride, n_rows, g.planes - high_words, planes);
  }
}

ActKind act_kind(Layout layout) {
  switch (tile_geometry(layout).block_values) {
    case 32:
      return ActKind::kQ8x32;
    case 256:
      return ActKind::kQ8x256;
    default:
      return ActKind::kF32;
  }
}

size_t act_bytes(ActKind kind, int64_t cols) {
  const size_t n = static_cast<size_t>(cols);
  switch (kind) {
    case ActKind::kF32:
      return align_up(n * sizeof(float), 64);
    case ActKind::kQ8x32:
      return align_up(n / 32 * sizeof(ActBlock32), 64);
    case ActKind::kQ8x256:
      return n / 256 * sizeof(ActBlock256);
  }
  return 0;
}

size_t packed_tile_bytes(Layout layout, int64_t cols) {
  const TileGeometry g = tile_geometry(layout);
  if (g.planes == 0) return align_up(row_bytes(layout, cols) * kTileRows, 64);
  const int64_t blocks = cols / g.block_values;
  const int64_t groups = (blocks + g.group_blocks - 1) / g.group_blocks;
  return static_cast<size_t>(groups * g.header_bytes + blocks * g.planes * kPlaneBytes);
}

size_t linear_scratch_bytes(int64_t /*max_cols*/, int32_t max_rows) {
  const size_t chunk = static_cast<size_t>(max_rows < kMaxChunkRows ? max_rows : kMaxChunkRows);
  return align_up(kUnpackedBytes + chunk * kTileRows * sizeof(float), 64);
}

}  // namespace kamado
