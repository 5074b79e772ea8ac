// What the attention tiers agree on besides the contract: how many queries go through a page at once, and the scratch
// memory that takes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kamado/attention.h"

namespace kamado {
namespace {

// Queries that share one walk over a strip of keys. 32 rows of 128 weights are 16 KiB: half of a usual first-level
// cache.
constexpr int32_t kAttendBlock = 32;

// Row length of the scratch copies: whole vectors.
constexpr size_t padded(int32_t n) {
  return (static_cast<size_t>(n) + 15) / 16 * 16;
}

// queries [block][padded(head_dim)], weights [block][kPageTokens], sums [block][padded(v_dim)]
constexpr size_t attend_scratch_floats(int32_t block, int32_t head_dim, int32_t v_dim) {
  return static_cast<size_t>(block) * (padded(head_dim) + static_cast<size_t>(kPageTokens) + padded(v_dim));
}

}  // namespace
}  // namespace kamado
