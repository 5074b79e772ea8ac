// The linear kernels compiled for AVX2 + FMA + F16C.
#include "kernels/linear_table.inc.h"

const kamado::LinearKernels* kamado::linear_kernels_avx2() {
  return &kLinearTable;
}
