// Attention for AVX-512 F, BW, DQ and VL.
#include "kernels/attention.inc.h"

namespace kamado {
namespace {

struct Blocking {
  static constexpr int kMaxQueries = 8;
  // 32 registers: at most 24 sums, their columns and one weight.
  static constexpr int columns(int queries) { return queries <= 3 ? 8 : queries <= 6 ? 4 : 2; }
};

using Tier = AttentionTier<F16, F16, Blocking>;

}  // namespace

const AttentionKernels* attention_kernels_avx512() {
  return &Tier::kTable;
}

}  // namespace kamado
