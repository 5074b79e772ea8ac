// The bits of one type read as another.
#pragma once

namespace kamado {

// std::bit_cast, which the standard libraries of older clangs (libc++ before 14, as in Debian 12's emscripten) lack;
// every compiler that knows C++20 has the built-in.
template <class To, class From>
constexpr To bit_cast(const From& from) {
  return __builtin_bit_cast(To, from);
}

}  // namespace kamado
