// All linear kernels of one tier, over the primitives of the header that the including file names.
#pragma once
#include <immintrin.h>

#include <type_traits>
#include <utility>

#include "../kernels/linear_tile.h"
#include "kamado/linear.h"

namespace kamado {
namespace {

// The only place that includes these files, in an order that they depend on: the layouts and products are written over
// one tier's primitives, which have the same names in both tiers, and those over what linear_common says. As each tier
// is compiled in a file of its own, they are the text of this anonymous namespace and no headers of their own.
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
