// How stored numbers are laid out: GGML's block formats, by GGML's type ids. Mirrors kamado.checkpoint.types.Layout.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kamado {

enum class Layout : int32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  IQ4_NL = 20,
  IQ4_XS = 23,
  BF16 = 30,
  MXFP4 = 39,
};

struct LayoutInfo {
  const char* name;
  int32_t block_values;  // values in one block
  int32_t block_bytes;   // bytes of one block
};

// nullptr for an id that is none of ours.
const LayoutInfo* layout_info(Layout layout);

// Bytes of one row of `cols` values; `cols` must be a multiple of block_values (checked by callers at load).
size_t row_bytes(Layout layout, int64_t cols);

// Scalar reference, bit-identical to the `gguf` package's dequantisation. n is a multiple of block_values.
void dequantize_row(Layout layout, const uint8_t* src, float* dst, int64_t n);

}  // namespace kamado
