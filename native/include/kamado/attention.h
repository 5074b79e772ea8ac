// Attention over one 128-token page of one key-value head, and the merge of pages. All tiers give the same bits, and a
// query gives the same bits whatever other queries are in the call.
//
// Page block of one KV head, element type f16 or f32:   K [head_dim][128] (transposed: lanes are keys, so no horizontal
// sums and a key is loaded once for all query heads of its group), V [128][v_dim] (lanes are value dimensions).
//
//   s_j = (for d ascending: fma(q_d, k_dj, acc)) * scale, soft-capped if cap > 0; keys outside [lo, hi) are masked
//   m = max s_j;  p_j = exp(s_j - m);  l = sum p_j (16 virtual lanes, fixed tree; masked: 0)
//   o_d = for j ascending in [lo, hi): fma(p_j, v_jd, acc), a final -0 made +0   (masked j add exactly 0)
// merge(a, b): M = max(a.m, b.m); fa = exp(a.m - M); fb = exp(b.m - M); x = fma(b.x, fb, a.x*fa) for l
// and every o_d
// A fully masked page is skipped by the caller (it depends on positions only).
#pragma once
#include <cstddef>
#include <cstdint>

#include "kamado/page.h"

namespace kamado {

enum class KvType : int32_t { kF32 = 0, kF16 = 1 };

struct AttendQuery {
  const float* q;  // head_dim
  int32_t lo, hi;  // visible keys within the page: [lo, hi), not empty
  float* partial;  // out: {m, l, o[v_dim]}
};

struct AttentionKernels {
  // scratch: private to the thread, attention_scratch_bytes(n) long, 64-byte aligned. Any n >= 1: blocks inside.
  void (*attend_page)(KvType type, const void* k, const void* v, int32_t head_dim, int32_t v_dim, float scale,
                      float softcap, const AttendQuery* queries, int32_t n, uint8_t* scratch);
  // running {m, l, o} merged with the next page's; running.m = -inf, l = 0, o = 0 at the start.
  void (*merge)(float* running, const float* next, int32_t v_dim);
  // out = o / l
  void (*finish)(const float* running, int32_t v_dim, float* out);
  // Writes one token's k (head_dim) and v (v_dim) at `slot` (0..127) of a page block.
  void (*store)(KvType type, void* k_block, void* v_block, int32_t head_dim, int32_t v_dim, int32_t slot,
                const float* k, const float* v);
  // attend_page, and towards its end it fetches the first KiB of `next_k`, the K block that this thread attends to next
  // (nullptr: none). A fifth faster when pages come from memory.
  void (*attend_page_then)(KvType type, const void* k, const void* v, int32_t head_dim, int32_t v_dim, float scale,
                           float softcap, const AttendQuery* queries, int32_t n, uint8_t* scratch, const void* next_k);
};

size_t attention_scratch_bytes(int32_t n_queries, int32_t head_dim, int32_t v_dim);

const AttentionKernels* attention_kernels_ref();
const AttentionKernels* attention_kernels_avx2();
const AttentionKernels* attention_kernels_avx512();

}  // namespace kamado
