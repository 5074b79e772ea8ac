// What the linear kernels share, whatever the instruction set.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kamado/linear.h"
#include "kernels/linear_tile.h"

namespace kamado {
namespace {

// Instrumented code of every register block takes minutes and gigabytes to compile. Sanitizer builds run the same
// templates on small blocks, and leave out the undefined-behaviour checks here: what can go wrong in these files is an
// address.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSmallBuild = true;
#define INLINE_LAMBDA __attribute__((always_inline, no_sanitize("undefined")))
#else
constexpr bool kSmallBuild = false;
#define INLINE_LAMBDA __attribute__((always_inline))
#endif
#define INLINE inline INLINE_LAMBDA

// Range of the codes handed to dot_step: it decides how many steps fit in 16 bits (AVX2).
enum class CodeKind { kU4, kU5, kU6, kSigned };  // <= 15, <= 31, <= 63, any int8 (AVX-512: uint8, offset by 128)

// The number an unroll index stands for (GCC 12's decltype of a captured one is a reference).
template <class Index>
constexpr int value_of = std::remove_cvref_t<Index>::value;

// Calls f(integral_constant<int, 0>) ... f(integral_constant<int, N - 1>), so that arrays indexed by it stay in
// registers.
template <int... kI, class F>
INLINE void unroll_sequence(std::integer_sequence<int, kI...>, F&& f) {
  (f(std::integral_constant<int, kI>{}), ...);
}
template <int kCount, class F>
INLINE void unroll(F&& f) {
  unroll_sequence(std::make_integer_sequence<int, kCount>{}, static_cast<F&&>(f));
}

// One call of LinearKernels::multiply.
struct Job {
  const PackedMatrix* w;
  int32_t tile_begin, tile_end;
  const uint8_t* const* act_rows;
  int32_t n;
  float* const* out_rows;
  uint8_t* scratch;
};

// Activation rows per sweep: their stored bytes should stay in the L2 cache while tiles pass by, and be many enough to
// pay for decoding each tile once a sweep.
INLINE int32_t chunk_rows(size_t bytes_a_row, int32_t n) {
  constexpr size_t kSweepBytes = 512 * 1024;
  const size_t fit = kSweepBytes / (bytes_a_row + 1);
  const int32_t rows = fit < 48 ? 48 : fit > kMaxChunkRows ? kMaxChunkRows : static_cast<int32_t>(fit);
  const int32_t chunks = (n + rows - 1) / rows;
  return (n + chunks - 1) / chunks;
}

}  // namespace
}  // namespace kamado
