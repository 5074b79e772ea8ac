// A checksum for what is written and read by the gigabyte: XXH64 by its specification (doc/xxhash_spec.md of
// Cyan4973/xxHash). Finds damage, not forgery; the same on all machines.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kamado {

uint64_t xxh64(const uint8_t* data, size_t num_bytes, uint64_t seed);

}  // namespace kamado
