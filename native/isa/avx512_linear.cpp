// The linear kernels compiled for AVX-512 (F, BW, VL, DQ) + VNNI.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own _mm512_undefined_ps (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <type_traits>
#include <utility>

#include "../kernels/linear_tile.h"
#include "kamado/linear.h"

namespace kamado {

namespace {

// Each needs what stands before it.
// clang-format off
#include "../kernels/linear_common.inc.h"
#include "../kernels/linear_prims_avx512.inc.h"
#include "../kernels/linear_layouts.inc.h"
#include "../kernels/linear_quantised.inc.h"
#include "../kernels/linear_float.inc.h"
#include "../kernels/linear_table.inc.h"
// clang-format on

}  // namespace

const LinearKernels* linear_kernels_avx512() {
  return &kLinearTable;
}

}  // namespace kamado
