// Kernels of operations with a record for AVX-512 F, BW, DQ and VL.
#include "kernels/scan.inc.h"

const kamado::ScanKernels* kamado::scan_kernels_avx512() {
  return scan_table<F16, 2>();
}
