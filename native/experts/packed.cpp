// What `kamado pack` writes: a record is a slot's bytes, so nothing is left to do when it arrives.
#include <algorithm>
#include <bit>
#include <cstring>

#include "kamado/experts.h"
#include "kamado/tables.h"

namespace kamado {

uint64_t checksum(const uint8_t* data, size_t count) {
  // Four chains of FNV-1a's step on 8-byte words, with a rotation so that high bits reach low ones: one chain would
  // wait for its multiplication, four keep up with memory.
  constexpr uint64_t kPrime = 0x100000001b3u;
  uint64_t lanes[4] = {0xcbf29ce484222325u, 0x9e3779b97f4a7c15u, 0xc2b2ae3d27d4eb4fu, 0x165667b19e3779f9u};
  constexpr size_t kStride = sizeof lanes;
  size_t at = 0;
  for (; at + kStride <= count; at += kStride) {
    uint64_t words[4];
    std::memcpy(words, data + at, kStride);
    for (int i = 0; i < 4; ++i) lanes[i] = std::rotl((lanes[i] ^ words[i]) * kPrime, 29);
  }
  uint64_t state = count;
  for (; at < count; ++at) state = std::rotl((state ^ data[at]) * kPrime, 29);
  for (const uint64_t lane : lanes) state = std::rotl((state ^ lane) * kPrime, 29);
  return std::max<uint64_t>(state, 1);
}

void pack_matrix(Layout layout, const uint8_t* stored, int32_t rows, int32_t cols, uint8_t* out) {
  const LinearKernels& kernels = *best_table().linear;
  const size_t stride = row_bytes(layout, cols), tile_bytes = packed_tile_bytes(layout, cols);
  for (int32_t row = 0; row < rows; row += kTileRows) {
    kernels.pack_tile(layout, stored + static_cast<size_t>(row) * stride, stride, std::min(kTileRows, rows - row), cols,
                      out);
    out += tile_bytes;
  }
}

}  // namespace kamado
