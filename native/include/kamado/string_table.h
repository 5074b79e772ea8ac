// Strings of a GGUF array, scanned once and kept as bytes: a vocabulary of 150 000 is usable after a millisecond.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace kamado {

// Strings in one block of memory. Bytes are kept as they came; nothing here assumes that they are UTF-8.
class StringTable {
 public:
  StringTable() : begins_{0} {}

  size_t size() const { return begins_.size() - 1; }
  std::string_view operator[](size_t i) const { return {bytes_.data() + begins_[i], begins_[i + 1] - begins_[i]}; }

  void reserve(size_t strings, size_t bytes);
  void append(std::string_view text);

 private:
  std::vector<char> bytes_;
  std::vector<size_t> begins_;  // one more than there are strings
};

// How far scan_strings came. When the data ended too early (`is_complete` false), `begin` is where the string or the
// length that did not fit starts and `length` how many bytes it needs from there; no sum of the two is formed here,
// since a lying length may be anything.
struct StringScan {
  bool is_complete = false;
  uint64_t begin = 0;   // complete: the end of the last string
  uint64_t length = 0;  // complete: 0
};

// Reads `count` strings (8 bytes of little-endian length, then the bytes) that start at data[begin] into `table`.
// Never reads outside data[0, size) and holds no more than a small multiple of `size`, whatever the lengths claim.
StringScan scan_strings(const uint8_t* data, size_t size, size_t begin, uint64_t count, StringTable& table);

}  // namespace kamado
