// Sizes in whole units.
#pragma once
#include <cstddef>

namespace kamado {

// By default whole cache lines.
constexpr size_t align_up(size_t value, size_t to = 64) {
  return (value + to - 1) / to * to;
}

}  // namespace kamado
