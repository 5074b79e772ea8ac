// Matrix products out = x * W^T for stored layouts. Contract shared by the scalar reference and every ISA tier;
// all tiers give the SAME BITS (tests compare with memcmp), and one row gives the same bits alone or in a batch.
//
// Why that is possible: (1) integer dot products are exact in any order; (2) lanes are output rows, never positions
// within a row, so the float chain of one output is the same scalar sequence of fma's whatever the vector width:
//
//   F32/F16/BF16 weights:  acc = 0; for k ascending: acc = fma(w[k], x[k], acc)            (w widened to f32 exactly)
//   32-value blocks        for b ascending: acc = fma(d_w[b] * d_x[b], float(isum[b]), acc)
//   (Q4_0 Q5_0 Q8_0          with isum the exact integer dot of signed codes (Q4_0: q-8, Q5_0: q-16, IQ4_NL and
//    IQ4_NL MXFP4)           MXFP4: table values; MXFP4's d_w is 2^(e-128), the table holds doubled values)
//   Q4_1 Q5_1                then also acc = fma(m_w[b] * d_x[b], float(xsum[b]), acc), xsum = sum of x's codes
//   256-value blocks       for b ascending: acc = fma(d_w[b] * d_x[b], float(isum[b]), acc)
//   (K layouts, IQ4_XS)      with isum = sum over sub-blocks of scale_s * dot_s (exact int32; Q6_K codes q-32,
//                            Q3_K q-4, IQ4_XS table values and scale-32); layouts with minimums (Q2_K Q4_K Q5_K)
//                            then: acc = fma(-(dmin_w[b] * d_x[b]), float(sum over s of min_s * xsum_s), acc)
//
// Products like d_w * d_x are rounded to f32 once. No other rounding anywhere.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kamado/layout.h"

namespace kamado {

// How the activations of one row are stored for a product.
enum class ActKind : int32_t {
  kF32,     // as they are
  kQ8x32,   // int8 codes with one f32 scale per 32 values
  kQ8x256,  // int8 codes with one f32 scale per 256 values and int16 sums per 16 values
};
// Quantisation, per block: amax = max|x|; d = amax / 127; id = amax ? 127 / amax : 0; code = clamp(rint(x * id), -127,
// 127), rint to nearest even. A non-finite input gives code 0 for NaN and a clamped code else; never undefined
// behaviour.

constexpr int kTileRows = 16;  // output rows interleaved in one tile

// A matrix repacked into tiles of kTileRows rows (the last one zero-padded). The tile format is private to linear;
// its size is within 4 % of the file's for the fast layouts. Bits of the result do not depend on packing.
struct PackedMatrix {
  Layout layout;
  int32_t rows;         // output width
  int32_t cols;         // input width, multiple of the layout's block_values
  const uint8_t* data;  // num_tiles * tile_bytes, 64-byte aligned
  size_t tile_bytes;
  int32_t num_tiles() const { return (rows + kTileRows - 1) / kTileRows; }
};

ActKind act_kind(Layout layout);
size_t act_bytes(ActKind kind, int64_t cols);           // bytes of one quantised row, multiple of 64
size_t packed_tile_bytes(Layout layout, int64_t cols);  // multiple of 64

// Tiles from what lies otherwise in a file than row after row of whole blocks; the same bits as from those.
// MXFP4: 16 bytes for each 32 values, two values beside each other in a byte, without the scales ...
void pack_paired_codes(Layout layout, const uint8_t* rows, size_t row_stride, int n_rows, int64_t cols, uint8_t* tile);
// ... and the scales, a byte each.
void pack_scales(Layout layout, const uint8_t* rows, size_t row_stride, int n_rows, int64_t cols, uint8_t* tile);
// Column `col` of an unquantised matrix into all of its tiles.
void pack_column(Layout layout, const uint8_t* values, size_t stride, int32_t rows, int64_t cols, int64_t col,
                 uint8_t* tiles);

struct LinearKernels {
  // Quantises one row of `cols` floats into act_bytes(kind, cols) bytes (64-byte aligned). kF32 copies.
  void (*quantize)(ActKind kind, const float* x, int64_t cols, uint8_t* out);

  // Packs n_rows (1..16) consecutive rows of the file's own blocks into one tile; missing rows are zero.
  void (*pack_tile)(Layout layout, const uint8_t* rows, size_t row_stride, int n_rows, int64_t cols, uint8_t* tile);

  // out_rows[i][r] = dot(x_i, W_r) for r in [tile_begin*16, min(tile_end*16, rows)), i in [0, n). `scratch` is
  // private to the calling thread, scratch_bytes() long, 64-byte aligned. Pointers are per row so that callers can
  // gather (experts) without copying. GEMV (n = 1) and GEMM are the same function.
  void (*multiply)(const PackedMatrix& w, int32_t tile_begin, int32_t tile_end, const uint8_t* const* act_rows,
                   int32_t n, float* const* out_rows, uint8_t* scratch);
};

size_t linear_scratch_bytes(int64_t max_cols, int32_t max_rows);

// One table a tier. nullptr when the tier was not compiled in; whether the CPU has it is dispatch's business.
const LinearKernels* linear_kernels_ref();
const LinearKernels* linear_kernels_avx2();
const LinearKernels* linear_kernels_avx512();  // AVX-512 F/BW/VL/DQ + VNNI

}  // namespace kamado
