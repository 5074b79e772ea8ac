// Products with float weights: one chain of fused multiply-adds an output, in ascending k. Several tiles (n = 1) or
// several activation rows are under way at once to hide the latency of the chains.
#pragma once
#include "kernels/linear_prims.inc.h"

namespace kamado {
namespace {

struct LayoutF32 {
  static constexpr size_t kBytes = 64;  // of one column of a tile
  static INLINE F32 load(const uint8_t* p) { return load_f32(p); }
};
struct LayoutF16 {
  static constexpr size_t kBytes = 32;
  static INLINE F32 load(const uint8_t* p) { return load_f16(p); }
};
struct LayoutBF16 {
  static constexpr size_t kBytes = 32;
  static INLINE F32 load(const uint8_t* p) { return load_bf16(p); }
};

// kTiles tiles by T activation rows.
template <class W, int kTiles, int T>
void multiply_float_block(const Job& job, int32_t tile_index, int32_t first_row) {
  const float* x[T];
  const uint8_t* w[kTiles];
  F32 acc[kTiles][T];
  unroll<T>([&](auto t) INLINE_LAMBDA { x[t] = reinterpret_cast<const float*>(job.act_rows[first_row + t]); });
  unroll<kTiles>([&](auto i) INLINE_LAMBDA {
    w[i] = job.w->data + static_cast<size_t>(tile_index + i) * job.w->tile_bytes;
    unroll<T>([&](auto t) INLINE_LAMBDA { acc[i][t] = f32_zero(); });
  });
  const int64_t cols = job.w->cols;
  for (int64_t k = 0; k < cols; ++k) {
    F32 weights[kTiles];
    unroll<kTiles>([&](auto i) INLINE_LAMBDA { weights[i] = W::load(w[i] + static_cast<size_t>(k) * W::kBytes); });
    unroll<T>([&](auto t) INLINE_LAMBDA {
      const F32 v = f32_set1(x[t][k]);
      unroll<kTiles>([&](auto i) INLINE_LAMBDA { acc[i][t] = fma(weights[i], v, acc[i][t]); });
    });
  }
  unroll<kTiles>([&](auto i) INLINE_LAMBDA {
    const int32_t row = (tile_index + i) * kTileRows;
    unroll<T>([&](auto t)
                  INLINE_LAMBDA { store_rows(job.out_rows[first_row + t] + row, acc[i][t], job.w->rows - row); });
  });
}

template <class W>
void multiply_float(const Job& job) {
  constexpr int kManyTiles = 4;
  if (job.n == 1) {
    int32_t tile = job.tile_begin;
    for (; tile + kManyTiles <= job.tile_end; tile += kManyTiles) multiply_float_block<W, kManyTiles, 1>(job, tile, 0);
    for (; tile < job.tile_end; ++tile) multiply_float_block<W, 1, 1>(job, tile, 0);
    return;
  }
  using Kernel = void (*)(const Job&, int32_t, int32_t);
  static constexpr auto kKernels = []<int... kT>(std::integer_sequence<int, kT...>) {
    struct {
      Kernel at[sizeof...(kT)];
    } table{{multiply_float_block<W, 1, kT + 1>...}};
    return table;
  }(std::make_integer_sequence<int, kMaxFloatTokens>{});
  const int32_t rows = chunk_rows(static_cast<size_t>(job.w->cols) * sizeof(float), job.n);
  for (int32_t first = 0; first < job.n; first += rows) {
    const int32_t n = job.n - first < rows ? job.n - first : rows;
    const int32_t groups = (n + kMaxFloatTokens - 1) / kMaxFloatTokens;
    for (int32_t tile = job.tile_begin; tile < job.tile_end; ++tile) {
      for (int32_t group = 0; group < groups; ++group) {
        const int32_t begin = n * group / groups, end = n * (group + 1) / groups;
        kKernels.at[end - begin - 1](job, tile, first + begin);
      }
    }
  }
}

}  // namespace
}  // namespace kamado
