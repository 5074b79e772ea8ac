#include "kamado/json_cost.h"

#include <algorithm>

namespace kamado {
namespace {

constexpr uint8_t kQuote = '"', kBackslash = '\\';
constexpr uint8_t kFirstOfMany = 0xC0;  // the first byte of a character of several
constexpr uint64_t kListBytes = 160, kObjectBytes = 384, kValueBytes = 48, kStringBytes = 56;
// By the time they take, which is time that the decoder holds the interpreter: a number 12 ns, a container four times
// that, a key 250 ns; an escape and a character that is not ASCII 3.
constexpr uint64_t kContainerWeight = 4, kKeyWeight = 16;

// CPython begins with one byte a character and copies when a wider one comes, so at the worst moment it holds both. By
// the first byte of a character: ASCII and Latin-1, the basic plane, beyond it.
uint64_t width_of(uint8_t byte) {
  return byte < 0xC4 ? 1 : byte < 0xF0 ? 3 : 5;
}

}  // namespace

void JsonCost::take(const uint8_t* data, size_t size) {
  const uint8_t* const end = data + size;
  const uint8_t* at = data;
  while (at != end) at = is_in_string_ ? take_string(at, end) : take_plain(at, end);
}

// From outside a string to the beginning of one, or the end of the piece.
const uint8_t* JsonCost::take_plain(const uint8_t* at, const uint8_t* end) {
  uint64_t lists = 0, objects = 0, commas = 0, colons = 0;
  int64_t level = level_, deepest = 0;
  while (at != end && !is_in_string_) {
    const uint8_t byte = *at++;
    lists += byte == '[';
    objects += byte == '{';
    commas += byte == ',';
    colons += byte == ':';
    level += (byte == '[') + (byte == '{') - (byte == ']') - (byte == '}');
    deepest = std::max(deepest, level);
    is_in_string_ = byte == kQuote;
  }
  level_ = level;
  depth_ = std::max(depth_, static_cast<uint64_t>(deepest));
  weight_ += kContainerWeight * (lists + objects) + kKeyWeight * colons + commas;
  bytes_ += kListBytes * lists + kObjectBytes * objects + kValueBytes * commas;
  return at;
}

// From within a string to its end, or that of the piece.
const uint8_t* JsonCost::take_string(const uint8_t* at, const uint8_t* end) {
  const uint8_t* const begin = at;
  while (at != end) {
    if (escape_ != 0) {
      if (escape_ == 'u') {  // \ud8 to \udf are halves of wide characters
        string_width_ = std::max<uint64_t>(string_width_, (*at | 0x20) == 'd' ? 5 : 3);
        escape_ = 0;
        continue;  // what it was is looked at again: it may be a quote
      }
      escape_ = *at++ == 'u' ? 'u' : 0;
      continue;
    }
    // Blocks without quotes and escapes, which compilers do with vectors.
    constexpr size_t kBlock = 64;
    while (static_cast<size_t>(end - at) >= kBlock) {
      uint8_t found = 0, widest = 0, num_wide = 0;
      for (size_t i = 0; i < kBlock; ++i) {
        found |= static_cast<uint8_t>((at[i] == kQuote) | (at[i] == kBackslash));
        widest = std::max(widest, at[i]);
        num_wide += at[i] >= kFirstOfMany;
      }
      if (found != 0) break;
      string_width_ = std::max(string_width_, width_of(widest));
      num_slow_ += num_wide;
      at += kBlock;
    }
    for (size_t i = 0; i < kBlock && at != end; ++i) {
      const uint8_t byte = *at++;
      if (byte == kQuote) {
        string_bytes_ += static_cast<uint64_t>(at - begin - 1);
        end_string();
        return at;
      }
      num_slow_ += byte == kBackslash || byte >= kFirstOfMany;
      if (byte == kBackslash) {
        if (at == end || *at == 'u') {
          escape_ = kBackslash;
          break;
        }
        ++at;
        continue;
      }
      string_width_ = std::max(string_width_, width_of(byte));
    }
  }
  string_bytes_ += static_cast<uint64_t>(at - begin);
  return at;
}

void JsonCost::end_string() {
  bytes_ += kStringBytes + string_bytes_ * string_width_;
  string_bytes_ = 0;
  string_width_ = 1;
  is_in_string_ = false;
}

}  // namespace kamado
