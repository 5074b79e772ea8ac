// The limit loops for AVX2: 256-bit loads, maddubs + madd + add, and fma.
#include "kernels/limits.inc.h"

namespace kamado {
namespace {

struct Avx2 {
  using Int = __m256i;
  using Float = __m256;
  static constexpr int kChains = 12;  // two a cycle, four or five cycles each, and what fits in 16 registers
  static Int dot(Int sum, Int x, Int y) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), _mm256_set1_epi16(1)));
  }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace

const LimitKernels* limit_kernels_avx2() {
  return &LimitLoops<Avx2>::kTable;
}

}  // namespace kamado
