// Fills the cache by repetition, for speed measurements: what the source's tokens are does not matter, only that pages
// are of the kinds that a long prompt would have left.
#pragma once
#include <cstdint>

#include "executor/sequences.h"
#include "kamado/kv_codec.h"

namespace kamado {

// Executor::tile_kv. `scratch`: of a kernel, encode_scratch_bytes of every codec.
void tile_kv(const Sequences& sequences, const KvCodecKernels& kernels, uint8_t* scratch, int32_t sequence,
             int64_t num_tokens);

}  // namespace kamado
