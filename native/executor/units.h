// Which keys a query sees, by positions alone.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kamado/attention.h"

namespace kamado {

struct KeyRange {
  int64_t begin, end;  // key positions
};

// The keys that a query at `position` sees, of `total` cached ones.
inline KeyRange visible(int64_t position, int64_t total, int32_t window, bool is_causal) {
  const int64_t begin = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
  int64_t end = is_causal ? position + 1 : total;
  if (!is_causal && window > 0) end = std::min(end, position + window);
  return {begin, end};
}

// Pages below are read as codes by a query of an encoded layer.
inline int64_t code_pages(int64_t position) {
  return std::max<int64_t>(0, position / kPageTokens - 1);
}

}  // namespace kamado
