// Row kernels for AVX2 + FMA + F16C.
#include "kernels/vector.inc.h"

const kamado::VectorKernels* kamado::vector_kernels_avx2() {
  return vector_table<F8x2, D16x256>();
}
