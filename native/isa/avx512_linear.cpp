// The linear kernels compiled for AVX-512 (F, BW, VL, DQ) + VNNI.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own _mm512_undefined_ps (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include "kernels/linear_table.inc.h"

const kamado::LinearKernels* kamado::linear_kernels_avx512() {
  return &kLinearTable;
}
