// Row kernels for AVX-512 F, BW, DQ and VL.
#include "kernels/vector.inc.h"

const kamado::VectorKernels* kamado::vector_kernels_avx512() {
  return vector_table<F16, D16x512>();
}
