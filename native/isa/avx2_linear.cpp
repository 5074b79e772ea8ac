// The linear kernels compiled for AVX2 + FMA + F16C.
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
#include "../kernels/linear_prims_avx2.inc.h"
#include "../kernels/linear_layouts.inc.h"
#include "../kernels/linear_quantised.inc.h"
#include "../kernels/linear_float.inc.h"
#include "../kernels/linear_table.inc.h"
// clang-format on

}  // namespace

const LinearKernels* linear_kernels_avx2() {
  return &kLinearTable;
}

}  // namespace kamado
