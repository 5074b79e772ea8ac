// The page: what the cache keeps, shares and stores of a sequence is counted in it, and attention makes one partial of
// it.
#pragma once

namespace kamado {

constexpr int kPageTokens = 128;

}  // namespace kamado
