// The one function-pointer table an ISA tier offers, and how it is chosen.
#pragma once
#include "kamado/attention.h"
#include "kamado/kv_codec.h"
#include "kamado/linear.h"
#include "kamado/scan.h"
#include "kamado/vector.h"

namespace kamado {

struct KernelTable {
  const char* tier;  // "scalar", "avx2", "avx512"
  const LinearKernels* linear;
  const VectorKernels* vector;
  const AttentionKernels* attention;
  const KvCodecKernels* kv_codec;
  const ScanKernels* scan;
};

// The best tier this CPU (and its OS) runs. The environment variable KAMADO_TIER can only lower it; an unknown value
// throws std::invalid_argument. A tier whose self-test against the reference fails is skipped (with a note in *why).
const KernelTable& best_table();
const KernelTable* table_by_name(const char* tier);  // nullptr if not compiled in or not supported by this CPU

}  // namespace kamado
