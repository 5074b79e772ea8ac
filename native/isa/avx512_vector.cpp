// Row kernels for AVX-512 F, BW, DQ and VL.
#include "kernels/vector.inc.h"

namespace kamado {
namespace {

using Tier = VectorTier<F16>;

constexpr VectorKernels kKernels = vector_kernels<Tier, Tier::log_sum_exp_with<D16x512>>();

}  // namespace

const VectorKernels* vector_kernels_avx512() {
  return &kKernels;
}

}  // namespace kamado
