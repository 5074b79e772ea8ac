// The tile format and the stored activations: private to the linear kernels, shared by packing and by every tier.
//
// A tile holds 16 output rows. Its blocks follow each other along the row; `group_blocks` of them share one header (so
// that everything stays 64-byte aligned), then come their planes. A plane is one 4-byte word of each row's block, in
// the file's own order: 16 rows x 4 bytes = 64 bytes = one AVX-512 register or two AVX2 registers, in which a 4-byte
// word of activations is broadcast against all rows. Planes are stored in the order in which the kernels first read
// them (see high_plane, low_plane): only one ascending stream of addresses gets the full bandwidth of memory. Packed
// bits keep the file's positions; only Q5_0's and Q5_1's high bits move (value k = 4g + j from bit k to byte j, bit g),
// so that one shift serves a plane.
//
//   block_values  header                                                                    planes
//   1 (floats)    none; column k is 16 consecutive values
//   32            of each block that shares it: d[16] f16 (MXFP4: e[16] u8); m[16] f16      1 high bits, low bits
//   256           d[16], dmin[16] f16 (or 32 unused); n x 16 x 2 scales (u8, s8 without     high bits, low bits
//                 minimums), then as many minimums unless both share a byte (Q2_K)
//
// "n x 16 x 2": the scales of sub-blocks 2j and 2j+1 of a row side by side, because the corrections (minimums, code
// offsets) multiply pairs of 16-bit numbers.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kamado/layout.h"
#include "kamado/linear.h"

namespace kamado {

constexpr int32_t kPlaneBytes = kTileRows * 4;

// Plane of word i of a block's high-bit field, and of word i of its low-bit field: high bits first, or, where a pass
// over the high field serves several passes over the low one, each of its words before the low words that need it
// first.
constexpr int high_plane(const LayoutInfo& info, int i) {
  switch (info.layout) {
    case Layout::Q3_K:
    case Layout::Q5_K:
      return 2 * i;  // 8 words, between the first 8 of the low field
    case Layout::Q6_K:
      return 3 * i;  // before the two words of the low field that need it
    default:
      return i;
  }
}
constexpr int low_plane(const LayoutInfo& info, int i) {
  switch (info.layout) {
    case Layout::Q3_K:
    case Layout::Q5_K:
      return i < 8 ? 2 * i + 1 : 8 + i;
    case Layout::Q6_K:
      return 3 * (i / 16 * 8 + i % 8) + 1 + i / 8 % 2;
    default:
      return info.tile.high_planes + i;
  }
}

// Whether a sub-block's scale and minimum share a byte (4 bits each), in a tile's header too.
constexpr bool has_shared_mins(const LayoutInfo& info) {
  return info.has_min() && info.tile.header_bytes == 64 + kTileRows * info.fields.sub_blocks;
}

// Where block b's group header and block b's planes begin within a tile.
constexpr size_t tile_header_offset(TileGeometry g, int64_t b) {
  return static_cast<size_t>(b / g.group_blocks) *
         static_cast<size_t>(g.header_bytes + g.group_blocks * g.planes * kPlaneBytes);
}
constexpr size_t tile_planes_offset(TileGeometry g, int64_t b) {
  return tile_header_offset(g, b) + static_cast<size_t>(g.header_bytes + (b % g.group_blocks) * g.planes * kPlaneBytes);
}

// Stored activations (ActKind::kQ8x32 and kQ8x256): blocks of one row follow each other.
struct ActBlock32 {
  int8_t codes[32];
  float scale;
  int32_t sum;  // of the 32 codes, |sum| <= 4064
};
static_assert(sizeof(ActBlock32) == 40);

struct ActBlock256 {
  int8_t codes[256];
  int16_t sums16[16];  // of 16 codes each
  int16_t sums32[8];   // of 32 codes each
  float scale;
  int32_t unused[3];
};
static_assert(sizeof(ActBlock256) == 320);

// The values behind 4-bit codes of IQ4_NL, IQ4_XS, and MXFP4 (doubled there).
constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kMxfp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// LinearKernels::pack_tile of every tier.
void pack_tile_all_tiers(Layout layout, const uint8_t* rows, size_t row_stride, int n_rows, int64_t cols,
                         uint8_t* tile);

// Scratch of one thread (linear_scratch_bytes): one unpacked block of 256 values x 16 rows, then float accumulators.
constexpr size_t kUnpackedBytes = 4096 + 1024 + 512 + 128;
constexpr int32_t kMaxChunkRows = 256;  // activation rows that share one sweep over the tiles

}  // namespace kamado
