// Attention over one page, over a register type Vec (F8 or F16) and its 16-lane type V (F8x2 or F16).
//
// Both products, scores = K q and output = V p, are the same small matrix product: columns (keys or value dimensions)
// are lanes, the sum runs over rows (dimensions or keys) in ascending order in one fma chain a lane. A block of queries
// is held in registers, so that a row is loaded and widened once for all of them and nothing is summed across lanes.
//
// Rows are walked kWalkBytes at a time, through all columns and query blocks, while the next ones are fetched. Measured
// on Zen 4 from memory, GB/s of one thread, groups of 6 x 128 / 3 x 64 / 1 x 64: whole pages without fetching 5 / 6 /
// 12; fetching a walk's own columns ahead 8 / 9 / 12; in the order of addresses (which the hardware's own prefetcher
// follows) 10 / 12 / 13; into the second-level cache, whose misses are not limited to the first level's 24: 13 / 21
// / 22.
#pragma once
#include <cfloat>
#include <cstddef>

#include "kernels/attention_layout.h"
#include "kernels/softmax_page.inc.h"

namespace kamado {
namespace {

// Blocking says how many queries go in registers at most (kMaxQueries) and how many column registers with them
// (columns).
template <class Vec, class V, class Blocking>
struct AttentionTier {
  static constexpr int kLanes = Vec::kLanes;
  static constexpr int kMaxQueries = Blocking::kMaxQueries;
  static constexpr size_t kCacheLine = 64;
  static constexpr size_t kWalkBytes = 8192;  // 4 to 16 KiB are within 10 %

  struct Matrix {  // [row][stride] of elements T, and what is fetched while its rows are walked
    const char* next;
    int32_t begin, end;  // rows
    bool is_first;       // else the sums go on from `out`
  };

  // out[q][column] = fma chain over rows r of weight[q][r] * x[r][column], for NQ queries and NV registers of columns;
  // only `width` columns of the one register are read when kPartial.
  template <int NQ, int NV, bool kPartial, class T>
  static KAMADO_INLINE void product(const Matrix& rows, const T* x, size_t ldx, const float* weight, size_t ldw,
                                    float* out, size_t ldo, int32_t width) {
    constexpr size_t kStep = NV * kLanes * sizeof(T);
    Vec acc[NQ][NV];
    for (int q = 0; q < NQ; ++q) {
      for (int v = 0; v < NV; ++v) {
        acc[q][v] = rows.is_first ? Vec::set1(0.0f) : Vec::load(out + static_cast<size_t>(q) * ldo + v * kLanes);
      }
    }
    const T* row = x + static_cast<size_t>(rows.begin) * ldx;
    const char* next = rows.next;
    for (int32_t r = rows.begin; r < rows.end; ++r, row += ldx, next += kStep) {
      for (size_t i = 0; i < kStep; i += kCacheLine) __builtin_prefetch(next + i, 0, 2);
      // The fewer of the two kinds of operand stay in registers beside the sums; the others pass through one.
      if constexpr (NQ < NV) {
        Vec w[NQ];
#pragma GCC unroll 16
        for (int q = 0; q < NQ; ++q) w[q] = Vec::set1(weight[static_cast<size_t>(q) * ldw + static_cast<size_t>(r)]);
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) {
          const Vec a = Vec::load(row + v * kLanes);
#pragma GCC unroll 16
          for (int q = 0; q < NQ; ++q) acc[q][v] = fma(w[q], a, acc[q][v]);
        }
      } else {
        Vec a[NV];
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) a[v] = kPartial ? Vec::load_first(row, width) : Vec::load(row + v * kLanes);
#pragma GCC unroll 16
        for (int q = 0; q < NQ; ++q) {
          const Vec w = Vec::set1(weight[static_cast<size_t>(q) * ldw + static_cast<size_t>(r)]);
#pragma GCC unroll 16
          for (int v = 0; v < NV; ++v) acc[q][v] = fma(w, a[v], acc[q][v]);
        }
      }
    }
    for (int q = 0; q < NQ; ++q) {
      for (int v = 0; v < NV; ++v) acc[q][v].store(out + static_cast<size_t>(q) * ldo + v * kLanes);
    }
  }

  // The product for columns [begin, end). Rows of `out` are whole registers long; x is not read past `end`.
  template <int NQ, class T>
  static void columns(Matrix rows, const T* x, size_t ldx, const float* weight, size_t ldw, float* out, size_t ldo,
                      int32_t begin, int32_t end) {
    constexpr int kWide = Blocking::columns(NQ);
    const size_t column_bytes =
        static_cast<size_t>(rows.end - rows.begin) * sizeof(T);  // fetched a column of this walk
    int32_t c = begin;
    for (; c + kWide * kLanes <= end; c += kWide * kLanes, rows.next += kWide * kLanes * column_bytes) {
      product<NQ, kWide, false>(rows, x + c, ldx, weight, ldw, out + c, ldo, kLanes);
    }
    for (; c + kLanes <= end; c += kLanes, rows.next += kLanes * column_bytes) {
      product<NQ, 1, false>(rows, x + c, ldx, weight, ldw, out + c, ldo, kLanes);
    }
    if (c < end) product<NQ, 1, true>(rows, x + c, ldx, weight, ldw, out + c, ldo, end - c);
  }

  template <class T>
  static void columns_n(int n, const Matrix& rows, const T* x, size_t ldx, const float* weight, size_t ldw, float* out,
                        size_t ldo, int32_t begin, int32_t end) {
    switch (n) {
      case 1:
        return columns<1>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
      case 2:
        return columns<2>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
      case 3:
        return columns<3>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
      case 4:
        return columns<4>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
      case 5:
        return columns<5>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
      case 6:
        return columns<6>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
      default:
        if constexpr (kMaxQueries >= 8) {
          if (n == 7) return columns<7>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
          return columns<8>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
        }
    }
  }

  struct Call {  // one attend_page of at most kAttendBlock queries
    int32_t head_dim, v_dim;
    float scale, softcap;
    const AttendQuery* queries;
    int32_t n;
    const char* next;
    float* q;  // [n][ldq] copies of the queries
    float* p;  // [n][kPageTokens] scores, then weights
    float* o;  // [n][ldo]
    size_t ldq, ldo;

    int32_t num_blocks() const { return (n + kMaxQueries - 1) / kMaxQueries; }
  };

  struct Block {  // queries that go through registers together, and the keys that any of them sees
    int32_t first, count, lo, hi;
  };

  static KAMADO_INLINE Block block_of(const Call& call, int32_t index) {
    const int32_t num = call.num_blocks(),
                  first = call.n * index / num;  // as even as they come: 8 are 4 + 4, not 6 + 2
    Block block{first, call.n * (index + 1) / num - first, kPageTokens, 0};
    for (int32_t i = first; i < first + block.count; ++i) {
      if (call.queries[i].lo < block.lo) block.lo = call.queries[i].lo;
      if (call.queries[i].hi > block.hi) block.hi = call.queries[i].hi;
    }
    return block;
  }

  // Rows of one walk when `num_rows` rows of row_bytes are cut into walks of about kWalkBytes and equal length.
  static KAMADO_INLINE int32_t walk_rows(int32_t num_rows, size_t row_bytes) {
    const auto walks = static_cast<int32_t>((static_cast<size_t>(num_rows) * row_bytes + kWalkBytes - 1) / kWalkBytes);
    return (num_rows + walks - 1) / walks;
  }

  template <class T>
  static void scores(const Call& call, const T* k, const T* v) {
    const int32_t step = walk_rows(call.head_dim, kPageTokens * sizeof(T));
    for (int32_t begin = 0; begin < call.head_dim; begin += step) {
      const bool is_last = begin + step >= call.head_dim;
      const T* next = is_last ? v : k + static_cast<size_t>(begin + step) * kPageTokens;
      const Matrix rows{reinterpret_cast<const char*>(next), begin, is_last ? call.head_dim : begin + step, begin == 0};
      for (int32_t b = 0; b < call.num_blocks(); ++b) {
        const Block block = block_of(call, b);
        const auto row = static_cast<size_t>(block.first);
        columns_n(block.count, rows, k, kPageTokens, call.q + row * call.ldq, call.ldq, call.p + row * kPageTokens,
                  kPageTokens, block.lo / kLanes * kLanes, (block.hi + kLanes - 1) / kLanes * kLanes);
      }
    }
  }

  template <class T>
  static void values(const Call& call, const T* v) {
    const auto ldv = static_cast<size_t>(call.v_dim);
    const int32_t step = walk_rows(kPageTokens, ldv * sizeof(T));
    for (int32_t begin = 0; begin < kPageTokens; begin += step) {
      const bool is_last = begin + step >= kPageTokens;
      const int32_t end = is_last ? kPageTokens : begin + step;
      const char* next = is_last ? call.next : reinterpret_cast<const char*>(v + static_cast<size_t>(end) * ldv);
      for (int32_t b = 0; b < call.num_blocks(); ++b) {
        const Block block = block_of(call, b);
        const int32_t lo = begin > block.lo ? begin : block.lo, hi = end < block.hi ? end : block.hi;
        if (lo >= hi) continue;
        const auto row = static_cast<size_t>(block.first);
        columns_n(block.count, Matrix{next, lo, hi, lo == block.lo}, v, ldv, call.p + row * kPageTokens, kPageTokens,
                  call.o + row * call.ldo, call.ldo, 0, call.v_dim);
      }
    }
  }

  // Scores of one query -> weights, in place; m and l go to its partial. Weights outside [lo, hi) become 0.
  static void softmax(const Call& call, int32_t index) {
    const AttendQuery& query = call.queries[index];
    float* p = call.p + static_cast<size_t>(index) * kPageTokens;
    softmax_page<V>(query.lo, query.hi, call.scale, call.softcap, p, query.partial,
                    [p](int32_t j) { return V::load(p + j); });
  }

  template <class T>
  static void attend_block(const Call& call, const T* k, const T* v) {
    for (int32_t i = 0; i < call.n; ++i) {
      memcpy(call.q + static_cast<size_t>(i) * call.ldq, call.queries[i].q,
             static_cast<size_t>(call.head_dim) * sizeof(float));
    }
    scores(call, k, v);
    for (int32_t i = 0; i < call.n; ++i) softmax(call, i);
    values(call, v);
    const V zero = V::set1(0.0f);  // + 0: a sum that underflowed to -0 must not depend on masked keys
    for (int32_t i = 0; i < call.n; ++i) {
      const float* o = call.o + static_cast<size_t>(i) * call.ldo;
      float* out = call.queries[i].partial + 2;
      int32_t d = 0;
      for (; d + kVirtualLanes <= call.v_dim; d += kVirtualLanes) (V::load(o + d) + zero).store(out + d);
      if (d < call.v_dim) (V::load(o + d) + zero).store_first(out + d, call.v_dim - d);
    }
  }

  static void attend_page_then(KvType type, const void* k, const void* v, int32_t head_dim, int32_t v_dim, float scale,
                               float softcap, const AttendQuery* queries, int32_t n, uint8_t* scratch,
                               const void* next_k) {
    Call call{};
    call.head_dim = head_dim;
    call.v_dim = v_dim;
    call.scale = scale;
    call.softcap = softcap;
    call.ldq = padded(head_dim);
    call.ldo = padded(v_dim);
    call.q = reinterpret_cast<float*>(scratch);
    for (int32_t i = 0; i < n; i += kAttendBlock) {
      call.queries = queries + i;
      call.n = n - i < kAttendBlock ? n - i : kAttendBlock;
      call.p = call.q + static_cast<size_t>(call.n) * call.ldq;
      call.o = call.p + static_cast<size_t>(call.n) * kPageTokens;
      // The last rows of the page fetch what comes next: this page again, or the caller's hint.
      const bool is_last = i + call.n >= n;
      call.next = static_cast<const char*>(is_last && next_k ? next_k : k);
      if (type == KvType::kF16) {
        attend_block(call, static_cast<const uint16_t*>(k), static_cast<const uint16_t*>(v));
      } else {
        attend_block(call, static_cast<const float*>(k), static_cast<const float*>(v));
      }
    }
  }

  static void attend_page(KvType type, const void* k, const void* v, int32_t head_dim, int32_t v_dim, float scale,
                          float softcap, const AttendQuery* queries, int32_t n, uint8_t* scratch) {
    attend_page_then(type, k, v, head_dim, v_dim, scale, softcap, queries, n, scratch, nullptr);
  }

  static void merge(float* running, const float* next, int32_t v_dim) {
    const float m = max(F1{running[0]}, F1{next[0]}).v;
    const float fa = exp_f32(F1{running[0] - m}).v, fb = exp_f32(F1{next[0] - m}).v;
    running[0] = m;
    const V wide_a = V::set1(fa), wide_b = V::set1(fb);
    const int32_t n = v_dim + 1;  // l is treated as o is
    float* a = running + 1;
    const float* b = next + 1;
    int32_t i = 0;
    for (; i + kVirtualLanes <= n; i += kVirtualLanes)
      fma(V::load(b + i), wide_b, V::load(a + i) * wide_a).store(a + i);
    if (i < n) fma(V::load_first(b + i, n - i), wide_b, V::load_first(a + i, n - i) * wide_a).store_first(a + i, n - i);
  }

  static void finish(const float* running, int32_t v_dim, float* out) {
    const V l = V::set1(running[1]);
    const float* o = running + 2;
    int32_t i = 0;
    for (; i + kVirtualLanes <= v_dim; i += kVirtualLanes) (V::load(o + i) / l).store(out + i);
    if (i < v_dim) (V::load_first(o + i, v_dim - i) / l).store_first(out + i, v_dim - i);
  }

  // What a cache may hold: NaN becomes 0, the rest is clamped to +-limit.
  static KAMADO_INLINE V finite(V x, float limit) {
    return max(min(select(is_nan(x), V::set1(0.0f), x), V::set1(limit)), V::set1(-limit));
  }

  static KAMADO_INLINE void convert(V x, uint16_t* out) { finite(x, 65504.0f).store_f16(out); }
  static KAMADO_INLINE void convert(V x, float* out) { finite(x, FLT_MAX).store(out); }

  template <class T>
  static void store_as(T* k_block, T* v_block, int32_t head_dim, int32_t v_dim, int32_t slot, const float* k,
                       const float* v) {
    T part[kVirtualLanes];
    T* column = k_block + slot;
    for (int32_t d = 0; d < head_dim; d += kVirtualLanes) {
      const int32_t count = head_dim - d < kVirtualLanes ? head_dim - d : kVirtualLanes;
      convert(V::load_first(k + d, count), part);
      for (int32_t i = 0; i < count; ++i) column[static_cast<size_t>(d + i) * kPageTokens] = part[i];
    }
    T* row = v_block + static_cast<size_t>(slot) * static_cast<size_t>(v_dim);
    int32_t d = 0;
    for (; d + kVirtualLanes <= v_dim; d += kVirtualLanes) convert(V::load(v + d), row + d);
    if (d < v_dim) {
      convert(V::load_first(v + d, v_dim - d), part);
      memcpy(row + d, part, static_cast<size_t>(v_dim - d) * sizeof(T));
    }
  }

  static void store(KvType type, void* k_block, void* v_block, int32_t head_dim, int32_t v_dim, int32_t slot,
                    const float* k, const float* v) {
    if (type == KvType::kF16) {
      store_as(static_cast<uint16_t*>(k_block), static_cast<uint16_t*>(v_block), head_dim, v_dim, slot, k, v);
    } else {
      store_as(static_cast<float*>(k_block), static_cast<float*>(v_block), head_dim, v_dim, slot, k, v);
    }
  }

  static constexpr AttentionKernels kTable = {attend_page, merge, finish, store, attend_page_then};
};

}  // namespace
}  // namespace kamado
