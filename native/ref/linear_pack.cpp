// Packs rows of a file's blocks into tiles (see kernels/linear_tile.h), and the sizes that depend on the tile format.
#include <cstring>

#include "block_codes.h"
#include "kamado/align.h"
#include "kamado/linear.h"

namespace kamado {

namespace {

// Bits k = 4g + j of a 32-bit word to byte j, bit g.
uint32_t spread_high_bits(uint32_t bits) {
  uint32_t out = 0;
  for (int g = 0; g < 8; ++g) {
    const uint32_t nibble = (bits >> (4 * g)) & 15u;
    out |= ((nibble * 0x00204081u) & 0x01010101u) << g;
  }
  return out;
}

// Word i of each row's field to plane plane_of(info, i).
template <Layout kLayout, int (*plane_of)(const LayoutInfo&, int)>
void pack_field(const uint8_t* field, size_t row_stride, int n_rows, int words, uint8_t* planes) {
  for (int i = 0; i < words; ++i) {
    uint8_t* plane = planes + plane_of(*layout_info(kLayout), i) * kPlaneBytes;
    for (int r = 0; r < n_rows; ++r) {
      std::memcpy(plane + r * 4, field + static_cast<size_t>(r) * row_stride + i * 4, 4);
    }
  }
}

template <Layout kLayout>
void pack_header(const uint8_t* block, int in_group, int r, uint8_t* header) {
  constexpr const LayoutInfo& kInfo = *layout_info(kLayout);
  constexpr int kScaleBytes = kInfo.fields.d_bytes, kSubs = kInfo.fields.sub_blocks;
  std::memcpy(header + (in_group * kTileRows + r) * kScaleBytes, block + kInfo.fields.d, kScaleBytes);
  if constexpr (kInfo.has_min()) std::memcpy(header + 32 + 2 * r, block + kInfo.fields.dmin, 2);
  if constexpr (kSubs > 0) {
    constexpr bool kSharesBytes = has_shared_mins(kInfo);
    int scales[kSubs], mins[kSubs];
    decode_scales(kInfo, block, scales, mins);
    for (int s = 0; s < kSubs; ++s) {
      uint8_t* byte = header + 64 + (s / 2 * kTileRows + r) * 2 + s % 2;
      *byte = static_cast<uint8_t>(kSharesBytes ? scales[s] | mins[s] << 4 : scales[s]);
      if constexpr (kInfo.has_min() && !kSharesBytes) byte[kTileRows * kSubs] = static_cast<uint8_t>(mins[s]);
    }
  }
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

// One function a layout: with offsets read at run time, packing took up to 1.4 times as many instructions.
template <Layout kLayout>
void pack_blocks(const uint8_t* rows, size_t row_stride, int n_rows, int64_t cols, uint8_t* tile) {
  constexpr const LayoutInfo& kInfo = *layout_info(kLayout);
  constexpr TileGeometry g = kInfo.tile;
  for (int64_t b = 0; b < cols / kInfo.block_values; ++b) {
    const uint8_t* block = rows + b * kInfo.block_bytes;
    uint8_t* header = tile + tile_header_offset(g, b);
    uint8_t* planes = tile + tile_planes_offset(g, b);
    for (int r = 0; r < n_rows; ++r) {
      const uint8_t* row_block = block + static_cast<size_t>(r) * row_stride;
      pack_header<kLayout>(row_block, static_cast<int>(b % g.group_blocks), r, header);
      if constexpr (g.high_planes == 1) {
        uint32_t bits;
        std::memcpy(&bits, row_block + kInfo.fields.high, 4);
        bits = spread_high_bits(bits);
        std::memcpy(planes + r * 4, &bits, 4);
      }
    }
    if constexpr (g.high_planes > 1) {
      pack_field<kLayout, high_plane>(block + kInfo.fields.high, row_stride, n_rows, g.high_planes, planes);
    }
    pack_field<kLayout, low_plane>(block + kInfo.fields.low, row_stride, n_rows, g.planes - g.high_planes, planes);
  }
}

template <Layout kLayout>
void pack_layout(const uint8_t* rows, size_t row_stride, int n_rows, int64_t cols, uint8_t* tile) {
  constexpr const LayoutInfo& kInfo = *layout_info(kLayout);
  if constexpr (!kInfo.is_float()) {
    pack_blocks<kLayout>(rows, row_stride, n_rows, cols, tile);
  } else if constexpr (kInfo.block_bytes == 4) {
    pack_values<uint32_t>(rows, row_stride, n_rows, cols, tile);
  } else {
    pack_values<uint16_t>(rows, row_stride, n_rows, cols, tile);
  }
}

}  // namespace

void pack_tile_all_tiers(Layout layout, const uint8_t* rows, size_t row_stride, int n_rows, int64_t cols,
                         uint8_t* tile) {
  std::memset(tile, 0, packed_tile_bytes(layout, cols));
  switch (layout) {
#define KAMADO_PACK(name, ...) \
  case Layout::name:           \
    return pack_layout<Layout::name>(rows, row_stride, n_rows, cols, tile);
    KAMADO_LAYOUTS(KAMADO_PACK)
#undef KAMADO_PACK
  }
}

void pack_paired_codes(Layout layout, const uint8_t* rows, size_t row_stride, int n_rows, int64_t cols, uint8_t* tile) {
  const LayoutInfo& info = *layout_info(layout);
  uint8_t codes[kTileRows][16] = {};  // missing rows stay zero
  for (int64_t b = 0; b < cols / 32; ++b) {
    for (int r = 0; r < n_rows; ++r) {
      const uint8_t* pairs = rows + static_cast<size_t>(r) * row_stride + b * 16;
      const auto code = [pairs](int k) { return pairs[k / 2] >> (k % 2 * 4) & 15; };
      for (int k = 0; k < 16; ++k) codes[r][k] = static_cast<uint8_t>(code(k) | code(k + 16) << 4);
    }
    uint8_t* planes = tile + tile_planes_offset(info.tile, b);
    pack_field<Layout::MXFP4, low_plane>(codes[0], sizeof codes[0], kTileRows, 4, planes);
  }
}

void pack_scales(Layout layout, const uint8_t* rows, size_t row_stride, int n_rows, int64_t cols, uint8_t* tile) {
  const TileGeometry& g = layout_info(layout)->tile;
  const int64_t blocks = cols / 32, groups = (blocks + g.group_blocks - 1) / g.group_blocks;
  for (int64_t b = 0; b < groups * g.group_blocks; ++b) {
    uint8_t* header = tile + tile_header_offset(g, b) + b % g.group_blocks * kTileRows;
    for (int r = 0; r < kTileRows; ++r)
      header[r] = b < blocks && r < n_rows ? rows[static_cast<size_t>(r) * row_stride + static_cast<size_t>(b)] : 0;
  }
}

void pack_column(Layout layout, const uint8_t* values, size_t stride, int32_t rows, int64_t cols, int64_t col,
                 uint8_t* tiles) {
  const size_t bytes = row_bytes(layout, 1), tile_bytes = packed_tile_bytes(layout, cols);
  const auto at = static_cast<size_t>(col) * kTileRows * bytes;
  for (int32_t row = 0; row < rows; row += kTileRows, tiles += tile_bytes) {
    for (int32_t r = 0; r < kTileRows; ++r) {
      uint8_t* out = tiles + at + static_cast<size_t>(r) * bytes;
      if (row + r < rows) {
        std::memcpy(out, values + static_cast<size_t>(row + r) * stride, bytes);
      } else {
        std::memset(out, 0, bytes);
      }
    }
    const size_t end = at + kTileRows * bytes;  // what fills the last line
    if (col + 1 == cols) std::memset(tiles + end, 0, tile_bytes - end);
  }
}

ActKind act_kind(Layout layout) {
  switch (layout_info(layout)->block_values) {
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
  const LayoutInfo& info = *layout_info(layout);
  const TileGeometry& g = info.tile;
  if (info.is_float()) return align_up(row_bytes(layout, cols) * kTileRows, 64);
  const int64_t blocks = cols / info.block_values;
  const int64_t groups = (blocks + g.group_blocks - 1) / g.group_blocks;
  return static_cast<size_t>(groups * g.header_bytes + blocks * g.planes * kPlaneBytes);
}

size_t linear_scratch_bytes(int64_t /*max_cols*/, int32_t max_rows) {
  const size_t chunk = static_cast<size_t>(max_rows < kMaxChunkRows ? max_rows : kMaxChunkRows);
  return align_up(kUnpackedBytes + chunk * kTileRows * sizeof(float), 64);
}

}  // namespace kamado
