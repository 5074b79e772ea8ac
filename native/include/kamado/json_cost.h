// What decoding a JSON text would cost, found in its bytes before anything is made of them.
//
// The text comes in pieces, and need not be valid JSON: what is wrong with it is the decoder's to say.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kamado {

// Upper estimates. `weight`: values, a container as four, a key as sixteen, and four characters of texts that are
// escaped or not ASCII as one. `bytes`: memory while it is decoded (CPython 3.11: objects with the slot that holds
// them, plain first, then their Struct beside them).
class JsonCost {
 public:
  // The next bytes.
  void take(const uint8_t* data, size_t size);

  uint64_t depth() const { return depth_; }
  uint64_t weight() const { return weight_ + num_slow_ / 4; }
  // With the string that the text so far ends in.
  uint64_t bytes() const { return bytes_ + string_bytes_ * string_width_; }

 private:
  const uint8_t* take_plain(const uint8_t* at, const uint8_t* end);
  const uint8_t* take_string(const uint8_t* at, const uint8_t* end);
  void end_string();

  uint64_t depth_ = 0, weight_ = 0, bytes_ = 0;
  uint64_t num_slow_ = 0;  // characters of strings that are escaped or not ASCII
  int64_t level_ = 0;
  uint64_t string_bytes_ = 0;  // of the string that is open
  uint64_t string_width_ = 1;  // bytes a character that its widest one makes CPython take
  bool is_in_string_ = false;
  uint8_t escape_ = 0;  // what came of an escape sequence: nothing, a backslash, \u
};

}  // namespace kamado
