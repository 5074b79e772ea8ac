// All linear kernels of one tier, over the primitives of the header that the including file names.
#pragma once
#include <immintrin.h>

#include <type_traits>
#include <utility>

#include "../kernels/linear_tile.h"
#include "kamado/linear.h"

namespace kamado {
namespace {

// Each needs what stands before it.
// clang-format off
#include "linear_common.inc.h"
#include KAMADO_LINEAR_PRIMS
#include "linear_layouts.inc.h"
#include "linear_quantised.inc.h"
#include "linear_float.inc.h"
#include "linear_table.inc.h"
// clang-format on

}  // namespace
}  // namespace kamado
