// Row kernels for AVX-512 F, BW, DQ and VL.
#include "kernels/vector.inc.h"

namespace kamado {
namespace {

using Tier = VectorTier<F16>;

constexpr VectorKernels kKernels = {
    Tier::rms_norm, Tier::layer_norm, Tier::rope,     Tier::gate,    Tier::add,
    Tier::scale,    Tier::axpy,       Tier::softcap,  Tier::softmax, Tier::log_sum_exp_with<D16x512>,
    Tier::to_f16,   Tier::from_f16,   Tier::is_finite};

}  // namespace

const VectorKernels* vector_kernels_avx512() {
  return &kKernels;
}

}  // namespace kamado
