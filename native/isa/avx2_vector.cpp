// Row kernels for AVX2 + FMA + F16C.
#include "kernels/vector.inc.h"

namespace kamado {
namespace {

using Tier = VectorTier<F8x2>;

constexpr VectorKernels kKernels = vector_kernels<Tier, Tier::log_sum_exp_with<D16x256>>();

}  // namespace

const VectorKernels* vector_kernels_avx2() {
  return &kKernels;
}

}  // namespace kamado
