// Errors whose messages are put together from texts and numbers. Not for files of an ISA tier: what is inline here may
// run on any processor.
#pragma once
#include <stdexcept>
#include <string>
#include <type_traits>

namespace kamado {

// The parts one after the other; numbers as std::to_string writes them.
template <class... Parts>
std::string joined(const Parts&... parts) {
  std::string text;
  const auto add = [&text]<class Part>(const Part& part) {
    if constexpr (std::is_arithmetic_v<Part> && !std::is_same_v<Part, char>) {
      text += std::to_string(part);
    } else {
      text += part;
    }
  };
  (add(parts), ...);
  return text;
}

// Throws Error with the parts as its message; std::invalid_argument is for what a caller gave.
template <class Error = std::invalid_argument, class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  throw Error(joined(parts...));
}

}  // namespace kamado
