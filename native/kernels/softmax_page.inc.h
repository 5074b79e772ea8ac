// The softmax of one query over one page, for exact and for encoded pages.
#pragma once
#include "kamado/attention.h"
#include "kernels/math.inc.h"

namespace kamado {
namespace {

// Scores of 16 tokens from j on, score(j) before scale and cap -> weights p[kPageTokens], 0 outside [lo, hi); their
// maximum and sum -> partial[0] and [1]. score(j) may read where p[j] to p[j + 15] will be.
template <class V, class Score>
KAMADO_INLINE void softmax_page(int32_t lo, int32_t hi, float scale_by, float softcap, float* p, float* partial,
                                Score&& score) {
  const V scale = V::set1(scale_by), cap = V::set1(softcap), zero = V::set1(0.0f);
  const int32_t begin = lo / kVirtualLanes * kVirtualLanes;
  const auto is_whole = [lo, hi](int32_t j) { return lo <= j && j + kVirtualLanes <= hi; };
  V top = V::set1(-__builtin_inff());
  for (int32_t j = begin; j < hi; j += kVirtualLanes) {
    V s = score(j) * scale;
    if (softcap > 0.0f) s = softcap_f32(s, cap);
    s.store(p + j);
    const V higher = max(top, s);
    top = is_whole(j) ? higher : select(V::lanes_between(lo - j, hi - j), higher, top);
  }
  const float m = reduce_max(top);
  const V shift = V::set1(m);
  V sum = zero;
  for (int32_t j = 0; j < kPageTokens; j += kVirtualLanes) {
    V e = zero;
    if (j >= begin && j < hi) {
      e = exp_f32(V::load(p + j) - shift);
      if (!is_whole(j)) e = select(V::lanes_between(lo - j, hi - j), e, zero);
      sum = sum + e;
    }
    e.store(p + j);
  }
  partial[0] = m;
  partial[1] = reduce_sum(sum);
}

}  // namespace
}  // namespace kamado
