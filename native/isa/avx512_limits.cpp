// The limit loops for AVX-512: 512-bit loads, vpdpbusd (VNNI), and fma.
#include "kernels/limits.inc.h"

namespace kamado {
namespace {

struct Avx512 {
  using Int = __m512i;
  using Float = __m512;
  static constexpr int kChains = 16;
  static Int dot(Int sum, Int x, Int y) { return _mm512_dpbusd_epi32(sum, x, y); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace

const LimitKernels* limit_kernels_avx512() {
  return &LimitLoops<Avx512>::kTable;
}

}  // namespace kamado
