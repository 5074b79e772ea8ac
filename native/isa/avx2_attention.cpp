// Attention for AVX2 + FMA + F16C.
#include "kernels/attention.inc.h"

namespace kamado {
namespace {

struct Blocking {
  static constexpr int kMaxQueries = 6;
  // 16 registers: at most 12 sums, 2 to 4 columns and one weight.
  static constexpr int columns(int queries) { return queries == 1 ? 8 : queries <= 3 ? 4 : 2; }
};

using Tier = AttentionTier<F8, F8x2, Blocking>;

}  // namespace

const AttentionKernels* attention_kernels_avx2() {
  return &Tier::kTable;
}

}  // namespace kamado
