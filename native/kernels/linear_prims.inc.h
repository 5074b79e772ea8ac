// The vector primitives of the linear kernels, of the tier whose instructions this file is compiled for. They have the
// same names in both, so what includes this is written once.
#pragma once
#ifdef __AVX512VNNI__
#include "kernels/linear_prims_avx512.inc.h"
#else
#include "kernels/linear_prims_avx2.inc.h"
#endif
