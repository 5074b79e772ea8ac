#include "kamado/string_table.h"

#include <cstring>

namespace kamado {
namespace {

constexpr size_t kLengthBytes = 8;

uint64_t load_length(const uint8_t* at) {
  uint64_t value = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) value |= static_cast<uint64_t>(at[i]) << (8 * i);
  return value;
}

}  // namespace

void StringTable::reserve(size_t strings, size_t bytes) {
  begins_.reserve(strings + 1);
  bytes_.reserve(bytes);
}

void StringTable::append(std::string_view text) {
  bytes_.insert(bytes_.end(), text.begin(), text.end());
  begins_.push_back(bytes_.size());
}

StringScan scan_strings(const uint8_t* data, size_t size, size_t begin, uint64_t count, StringTable& table) {
  if (begin > size) return {false, begin, 0};
  // First the lengths alone: nothing is allocated for strings that are not there.
  size_t at = begin, bytes = 0;
  for (uint64_t i = 0; i < count; ++i) {
    if (size - at < kLengthBytes) return {false, at, kLengthBytes};
    const uint64_t length = load_length(data + at);
    at += kLengthBytes;
    if (length > size - at) return {false, at, length};
    at += static_cast<size_t>(length);
    bytes += static_cast<size_t>(length);
  }
  table = StringTable();
  table.reserve(static_cast<size_t>(count), bytes);
  at = begin;
  for (uint64_t i = 0; i < count; ++i) {
    const auto length = static_cast<size_t>(load_length(data + at));
    at += kLengthBytes;
    table.append({reinterpret_cast<const char*>(data + at), length});
    at += length;
  }
  return {true, at, 0};
}

}  // namespace kamado
