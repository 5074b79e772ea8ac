// Row kernels for AVX2 + FMA + F16C.
#include "kernels/vector.inc.h"

namespace kamado {
namespace {

using Tier = VectorTier<F8x2>;

constexpr VectorKernels kKernels = {
    Tier::rms_norm, Tier::layer_norm, Tier::rope,     Tier::gate,    Tier::add,
    Tier::scale,    Tier::axpy,       Tier::softcap,  Tier::softmax, Tier::log_sum_exp_with<D16x256>,
    Tier::to_f16,   Tier::from_f16,   Tier::is_finite};

}  // namespace

const VectorKernels* vector_kernels_avx2() {
  return &kKernels;
}

}  // namespace kamado
