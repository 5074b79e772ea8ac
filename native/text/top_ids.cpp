#include "kamado/top_ids.h"

#include <algorithm>
#include <vector>

namespace kamado {
namespace {

constexpr size_t kBlock = 64;

struct Entry {
  float value;
  int64_t id;
};

// Whether `a` comes before `b` in the result. As a heap's order it puts the last of the result on top.
bool comes_before(const Entry& a, const Entry& b) {
  return a.value != b.value ? a.value > b.value : a.id < b.id;
}

// Without a branch in the loop, so that the compiler makes vector code of it.
bool any_above(const float* values, float bound) {
  int32_t found = 0;
  for (size_t i = 0; i < kBlock; ++i) found |= values[i] > bound;
  return found != 0;
}

}  // namespace

void top_ids(const float* values, size_t size, size_t k, int64_t* ids) {
  std::vector<Entry> best;
  best.reserve(k);
  for (size_t i = 0; i < k; ++i) best.push_back({values[i], static_cast<int64_t>(i)});
  std::make_heap(best.begin(), best.end(), comes_before);
  // Ids ascend, so a value equal to the least that is kept comes too late.
  const auto offer = [&](size_t i) {
    if (!(values[i] > best.front().value)) return;
    std::pop_heap(best.begin(), best.end(), comes_before);
    best.back() = {values[i], static_cast<int64_t>(i)};
    std::push_heap(best.begin(), best.end(), comes_before);
  };
  size_t i = k;
  for (; i + kBlock <= size; i += kBlock) {
    if (!any_above(values + i, best.front().value)) continue;
    for (size_t j = i; j < i + kBlock; ++j) offer(j);
  }
  for (; i < size; ++i) offer(i);
  std::sort_heap(best.begin(), best.end(), comes_before);
  for (size_t j = 0; j < k; ++j) ids[j] = best[j].id;
}

}  // namespace kamado
