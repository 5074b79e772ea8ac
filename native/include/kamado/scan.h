// Kernels of operations with a record: a convolution over a sequence's rows and the gated delta rule. Their order is
// the contract that docs/state.md writes down: token by token, in float32, so that the bits depend neither on how rows
// were cut into steps nor on how columns are shared out. All tiers give the same bits.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kamado {

// Columns of a head's matrix S (k_dim rows, v_dim columns) that lie together and are worked on together: a record has
// S head by head, block by block of so many columns (the last one of what is left), each [k_dim][columns].
constexpr int32_t kScanColumns = 32;

// One block of columns of one head, and the rows of one sequence that go through it.
struct DeltaBlock {
  int32_t num_rows, k_dim, num_columns;  // columns: at most kScanColumns
  // Of row 0; q and k of the head, v and out at the block's first column. Strides in floats, from row to row.
  const float *q, *k, *v;
  float* out;
  size_t q_stride, k_stride, v_stride, out_stride;
  // How much of S stays: one factor a row of the sequence, or one for each row of S ([num_rows][k_dim]); then
  // `reads` is [num_rows][k_dim] too: k times those factors.
  const float *kept, *reads;
  const float* beta;  // [num_rows]
  bool has_channels;  // whether `kept` has k_dim factors a row
  bool streams;       // `after` will not be read soon
  float scale;
};

struct ScanKernels {
  // out = sum over taps j of weight[j] * rows[j], ascending from 0, each a fused multiply-add; then + bias, which may
  // be nullptr. weight is [num_taps][weight_stride]; out is none of the rows.
  void (*conv)(const float* const* rows, const float* weight, size_t weight_stride, int32_t num_taps, const float* bias,
               int32_t n, float* out);
  // out[i] = e^(rate * steps[i])
  void (*decay)(const float* steps, float rate, int32_t n, float* out);
  // S of `before` through the rows into `after`, each [k_dim][num_columns]; they may be the same.
  // For each row, a column c for itself, with i over the rows of S and e = kept (e_i with channels):
  //   m = sum of S[i][c] * k[i]      two chains from 0, of even and of odd i, each a fused multiply-add a term; then
  //   one
  //                                  addition. With channels reads[i] instead of k[i].
  //   d = beta * fma(m, -e, v[c])    with channels beta * (v[c] - m)
  //   S[i][c] = fma(k[i], d, S[i][c] * e)
  //   out[c] = scale * sum of S[i][c] * q[i]   by two chains as m
  void (*delta)(const DeltaBlock& block, const float* before, float* after);
};

// ln(1 + e^x): x itself above 20, else worked out in double and rounded once.
float softplus(float x);

const ScanKernels* scan_kernels_ref();
const ScanKernels* scan_kernels_avx2();
const ScanKernels* scan_kernels_avx512();

}  // namespace kamado
