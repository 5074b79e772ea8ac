// How stored numbers are laid out: GGML's block formats, by GGML's type ids. The rows are those of
// src/kamado/files/layouts.py, from which layout_table.h is written when the library is built.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kamado/layout_table.h"

namespace kamado {

#define KAMADO_ENUMERATOR(name, type_id, ...) name = type_id,
enum class Layout : int32_t { KAMADO_LAYOUTS(KAMADO_ENUMERATOR) };
#undef KAMADO_ENUMERATOR

// Where the fields of a stored block lie: bytes from its start, -1 for a field that the layout does not have.
struct BlockFields {
  int32_t d, dmin, scales, high, low;
  int32_t d_bytes;     // 2: d is a float16; 1: the exponent e of 2^(e - 128)
  int32_t sub_blocks;  // that have an integer scale each; 0 without
};

// What blocks take in a packed tile (kernels/linear_tile.h). No planes: a layout of plain floats.
struct TileGeometry {
  int32_t group_blocks;  // that share a header
  int32_t header_bytes;
  int32_t planes;       // of one block
  int32_t high_planes;  // of them, those of the high bits
};

struct LayoutInfo {
  Layout layout;
  const char* name;
  int32_t block_values;  // values in one block
  int32_t block_bytes;   // bytes of one block
  BlockFields fields;
  TileGeometry tile;
  constexpr bool is_float() const { return tile.planes == 0; }
  constexpr bool has_min() const { return fields.dmin >= 0; }
};

#define KAMADO_ROW(name, type_id, ...) {Layout::name, #name, __VA_ARGS__},
inline constexpr LayoutInfo kLayouts[] = {KAMADO_LAYOUTS(KAMADO_ROW)};
#undef KAMADO_ROW

// nullptr for an id that is none of ours.
constexpr const LayoutInfo* layout_info(Layout layout) {
  for (const LayoutInfo& info : kLayouts) {
    if (info.layout == layout) return &info;
  }
  return nullptr;
}

// Bytes of one row of `cols` values; `cols` must be a multiple of block_values (checked by callers at load).
size_t row_bytes(Layout layout, int64_t cols);

// Scalar reference, bit-identical to the `gguf` package's dequantisation. n is a multiple of block_values.
void dequantize_row(Layout layout, const uint8_t* src, float* dst, int64_t n);

}  // namespace kamado
