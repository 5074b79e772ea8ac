// The linear kernels compiled for AVX2 + FMA + F16C.
#define KAMADO_LINEAR_PRIMS "linear_prims_avx2.inc.h"
#include "../kernels/linear_tier.inc.h"

const kamado::LinearKernels* kamado::linear_kernels_avx2() {
  return &kLinearTable;
}
