#include "kamado/checksum.h"

#include <bit>
#include <cstring>

namespace kamado {
namespace {

constexpr uint64_t kPrime1 = 0x9e3779b185ebca87, kPrime2 = 0xc2b2ae3d27d4eb4f, kPrime3 = 0x165667b19e3779f9,
                   kPrime4 = 0x85ebca77c2b2ae63, kPrime5 = 0x27d4eb2f165667c5;
constexpr size_t kLanes = 4, kStripe = kLanes * sizeof(uint64_t);

// Little-endian.
template <class Value>
uint64_t read(const uint8_t* at) {
  Value value;
  std::memcpy(&value, at, sizeof(Value));
  if constexpr (std::endian::native == std::endian::big) {
    return sizeof(Value) == 8 ? __builtin_bswap64(value) : __builtin_bswap32(static_cast<uint32_t>(value));
  }
  return value;
}

uint64_t round(uint64_t lane, uint64_t value) {
  return std::rotl(lane + value * kPrime2, 31) * kPrime1;
}

}  // namespace

uint64_t xxh64(const uint8_t* data, size_t num_bytes, uint64_t seed) {
  const uint8_t* const end = data + num_bytes;
  uint64_t hash = seed + kPrime5;
  if (num_bytes >= kStripe) {
    uint64_t lanes[kLanes] = {seed + kPrime1 + kPrime2, seed + kPrime2, seed, seed - kPrime1};
    for (; static_cast<size_t>(end - data) >= kStripe; data += kStripe) {
      for (size_t i = 0; i < kLanes; ++i) lanes[i] = round(lanes[i], read<uint64_t>(data + i * sizeof(uint64_t)));
    }
    hash = std::rotl(lanes[0], 1) + std::rotl(lanes[1], 7) + std::rotl(lanes[2], 12) + std::rotl(lanes[3], 18);
    for (const uint64_t lane : lanes) hash = (hash ^ round(0, lane)) * kPrime1 + kPrime4;
  }
  hash += num_bytes;
  for (; end - data >= 8; data += 8) hash = std::rotl(hash ^ round(0, read<uint64_t>(data)), 27) * kPrime1 + kPrime4;
  for (; end - data >= 4; data += 4) hash = std::rotl(hash ^ (read<uint32_t>(data) * kPrime1), 23) * kPrime2 + kPrime3;
  for (; data < end; ++data) hash = std::rotl(hash ^ (*data * kPrime5), 11) * kPrime1;
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

}  // namespace kamado
