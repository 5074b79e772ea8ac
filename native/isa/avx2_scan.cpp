// Kernels of operations with a record for AVX2 + FMA + F16C.
#include "kernels/scan.inc.h"

const kamado::ScanKernels* kamado::scan_kernels_avx2() {
  return scan_table<F8x2, 1>();
}
