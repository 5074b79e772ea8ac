// Attention over one page, over a register type Vec (F8 or F16) and its 16-lane type V (F8x2 or F16).
//
// Both products, scores = K q and output = V p, are the same small matrix product: columns (keys or value dimensions) are
// lanes, the sum runs over rows (dimensions or keys) in ascending order in one fma chain a lane. A block of queries is held
// in registers, so that a row is loaded and widened once for all of them and nothing is summed across lanes.
#pragma once
#include <cfloat>
#include <cstddef>

#include "kernels/attention_layout.h"
#include "kernels/math.inc.h"

extern const char* g_next;
namespace kamado {
namespace {

// Policy of a tier: the most queries in one register block, and how many column registers go with nq queries.
template <class Vec, class V, class Blocking>
struct AttentionTier {
  static constexpr int kLanes = Vec::kLanes;
  static constexpr int kMaxQueries = Blocking::kMaxQueries;
  static constexpr size_t kCacheLine = 64;
  static constexpr int32_t kWalkBytes = WALK;

  // One matrix product a block of queries at a time: out[q][column] = fma chain over rows r, ascending, of
  // weight[q][r] * x[r][column]. Rows may come in several calls; the chain goes on from `out` then.
  struct Rows {
    int32_t begin, end;
    bool is_first;
    const char* next;  // fetched into the cache meanwhile: row r's columns at next + (r - begin) rows
  };

  template <int NQ, int NV, bool kPartial, class T>
  static KAMADO_INLINE void product(const Rows& rows, const T* x, size_t ldx, const float* weight, size_t ldw, float* out,
                                    size_t ldo, int32_t width) {
    Vec acc[NQ][NV];
    for (int q = 0; q < NQ; ++q) {
      for (int v = 0; v < NV; ++v) {
        acc[q][v] = rows.is_first ? Vec::set1(0.0f) : Vec::load(out + static_cast<size_t>(q) * ldo + v * kLanes);
      }
    }
    const T* row = x + static_cast<size_t>(rows.begin) * ldx;
    const char* next = rows.next;
    constexpr size_t kStep = NV * kLanes * sizeof(T);
    for (int32_t r = rows.begin; r < rows.end; ++r, row += ldx, next += kStep) {
      for (size_t i = 0; i < kStep; i += kCacheLine) __builtin_prefetch(next + i, 0, PFH);
      // The fewer of the two kinds of operand stay in registers beside the sums, the others pass through one.
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

  // The product for columns [begin, end); `out` and the scratch rows behind it are whole registers wide.
  template <int NQ, class T>
  static void columns(Rows rows, const T* x, size_t ldx, const float* weight, size_t ldw, float* out, size_t ldo,
                      int32_t begin, int32_t end) {
    constexpr int kWide = Blocking::columns(NQ);
    const char* next = rows.next;
    int32_t c = begin;
    for (; c + kWide * kLanes <= end; c += kWide * kLanes) {
      rows.next = next + static_cast<size_t>(c - begin) * static_cast<size_t>(rows.end - rows.begin) * sizeof(T);
      product<NQ, kWide, false>(rows, x + c, ldx, weight, ldw, out + c, ldo, kLanes);
    }
    for (; c + kLanes <= end; c += kLanes) {
      rows.next = next + static_cast<size_t>(c - begin) * static_cast<size_t>(rows.end - rows.begin) * sizeof(T);
      product<NQ, 1, false>(rows, x + c, ldx, weight, ldw, out + c, ldo, kLanes);
    }
    if (c < end) {
      rows.next = next + static_cast<size_t>(c - begin) * static_cast<size_t>(rows.end - rows.begin) * sizeof(T);
      product<NQ, 1, true>(rows, x + c, ldx, weight, ldw, out + c, ldo, end - c);
    }
  }

  template <class T>
  static void columns_n(int n, const Rows& rows, const T* x, size_t ldx, const float* weight, size_t ldw, float* out,
                        size_t ldo, int32_t begin, int32_t end) {
    switch (n) {
      case 1: return columns<1>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
      case 2: return columns<2>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
      case 3: return columns<3>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
      case 4: return columns<4>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
      case 5: return columns<5>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
      case 6: return columns<6>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
      default:
        if constexpr (kMaxQueries >= 8) {
          return n == 7 ? columns<7>(rows, x, ldx, weight, ldw, out, ldo, begin, end)
                        : columns<8>(rows, x, ldx, weight, ldw, out, ldo, begin, end);
        }
    }
  }

  struct Call {  // one attend_page of at most kAttendBlock queries
    int32_t head_dim, v_dim;
    float scale, softcap;
    const AttendQuery* queries;
    float* q;  // [n][ldq] copies of the queries
    size_t ldq;
    float* p;  // [n][kPageTokens] scores, then weights
    float* o;  // [n][ldo]
    size_t ldo;
  };

  // Scores of one query -> weights, in place; m and l go to its partial. Weights outside [lo, hi) become 0.
  static void softmax(const Call& call, int32_t index) {
    const AttendQuery& query = call.queries[index];
    float* p = call.p + static_cast<size_t>(index) * kPageTokens;
    const V scale = V::set1(call.scale), cap = V::set1(call.softcap), zero = V::set1(0.0f);
    const int32_t begin = query.lo / kVirtualLanes * kVirtualLanes;
    const auto is_whole = [&query](int32_t j) { return query.lo <= j && j + kVirtualLanes <= query.hi; };
    V top = V::set1(-__builtin_inff());
    for (int32_t j = begin; j < query.hi; j += kVirtualLanes) {
      V s = V::load(p + j) * scale;
      if (call.softcap > 0.0f) s = softcap_f32(s, cap);
      s.store(p + j);
      const V higher = max(top, s);
      top = is_whole(j) ? higher : select(V::lanes_between(query.lo - j, query.hi - j), higher, top);
    }
    const float m = reduce_max(top);
    const V shift = V::set1(m);
    V sum = zero;
    for (int32_t j = 0; j < kPageTokens; j += kVirtualLanes) {
      V e = zero;
      if (j >= begin && j < query.hi) {
        e = exp_f32(V::load(p + j) - shift);
        if (!is_whole(j)) e = select(V::lanes_between(query.lo - j, query.hi - j), e, zero);
        sum = sum + e;
      }
      e.store(p + j);
    }
    query.partial[0] = m;
    query.partial[1] = reduce_sum(sum);
  }

  static KAMADO_INLINE void range(const Call& call, int32_t first, int32_t n, int32_t* lo, int32_t* hi) {
    *lo = kPageTokens;
    *hi = 0;
    for (int32_t i = first; i < first + n; ++i) {
      if (call.queries[i].lo < *lo) *lo = call.queries[i].lo;
      if (call.queries[i].hi > *hi) *hi = call.queries[i].hi;
    }
  }

  // Few queries: bound by memory. Rows are walked a few KiB at a time, through all columns, while the next ones are fetched
  // in the order of their addresses, which is what the hardware's own prefetcher follows.
  template <class T>
  static void attend_few(const Call& call, const T* k, const T* v, int32_t n) {
    const int32_t blocks = (n + kMaxQueries - 1) / kMaxQueries;
    int32_t lo, hi;
    range(call, 0, n, &lo, &hi);
    const int32_t begin = lo / kLanes * kLanes, end = (hi + kLanes - 1) / kLanes * kLanes;
    const auto ldv = static_cast<size_t>(call.v_dim);
    const char* v_first = reinterpret_cast<const char*>(v + static_cast<size_t>(lo) * ldv);
    constexpr int32_t kKeyRows = kWalkBytes / (kPageTokens * static_cast<int32_t>(sizeof(T)));
    for (int32_t d = 0; d < call.head_dim; d += kKeyRows) {
      const bool is_last = d + kKeyRows >= call.head_dim;
      const char* next = is_last ? v_first : reinterpret_cast<const char*>(k + static_cast<size_t>(d + kKeyRows) * kPageTokens);
      Rows rows{d, is_last ? call.head_dim : d + kKeyRows, d == 0, next};
      for (int32_t b = 0; b < blocks; ++b) {
        const int32_t first = n * b / blocks, count = n * (b + 1) / blocks - first;
        const auto row = static_cast<size_t>(first);
        columns_n(count, rows, k, kPageTokens, call.q + row * call.ldq, call.ldq, call.p + row * kPageTokens, kPageTokens, begin, end);
      }
    }
    for (int32_t i = 0; i < n; ++i) softmax(call, i);
    int32_t value_rows = kWalkBytes / (call.v_dim * static_cast<int32_t>(sizeof(T)));
    if (value_rows < 8) value_rows = 8;
    for (int32_t j = lo; j < hi; j += value_rows) {
      const bool is_last = j + value_rows >= hi;
      const char* next = is_last ? g_next : reinterpret_cast<const char*>(v + static_cast<size_t>(j + value_rows) * ldv);
      Rows rows{j, is_last ? hi : j + value_rows, j == lo, next};
      for (int32_t b = 0; b < blocks; ++b) {
        const int32_t first = n * b / blocks, count = n * (b + 1) / blocks - first;
        const auto row = static_cast<size_t>(first);
        columns_n(count, rows, v, ldv, call.p + row * kPageTokens, kPageTokens, call.o + row * call.ldo, call.ldo, 0, call.v_dim);
      }
    }
  }

  // Several blocks of queries: bound by arithmetic. A strip of columns stays in the first-level cache for all of them.
  template <class T>
  static void attend_many(const Call& call, const T* k, const T* v, int32_t n) {
    constexpr int32_t kStrip = 64;
    const int32_t blocks = (n + kMaxQueries - 1) / kMaxQueries;
    for (int32_t strip = 0; strip < kPageTokens; strip += kStrip) {
      for (int32_t b = 0; b < blocks; ++b) {
        const int32_t first = n * b / blocks, count = n * (b + 1) / blocks - first;
        int32_t lo, hi;
        range(call, first, count, &lo, &hi);
        lo = lo / kLanes * kLanes;
        hi = (hi + kLanes - 1) / kLanes * kLanes;
        if (lo < strip) lo = strip;
        if (hi > strip + kStrip) hi = strip + kStrip;
        const Rows rows{0, call.head_dim, true, reinterpret_cast<const char*>(k)};
        const auto row = static_cast<size_t>(first);
        if (lo < hi) columns_n(count, rows, k, kPageTokens, call.q + row * call.ldq, call.ldq, call.p + row * kPageTokens, kPageTokens, lo, hi);
      }
    }
    for (int32_t i = 0; i < n; ++i) softmax(call, i);
    const auto ldv = static_cast<size_t>(call.v_dim);
    for (int32_t strip = 0; strip < call.v_dim; strip += kStrip) {
      const int32_t end = call.v_dim < strip + kStrip ? call.v_dim : strip + kStrip;
      for (int32_t b = 0; b < blocks; ++b) {
        const int32_t first = n * b / blocks, count = n * (b + 1) / blocks - first;
        int32_t lo, hi;
        range(call, first, count, &lo, &hi);
        const auto row = static_cast<size_t>(first);
        const Rows rows{lo, hi, true, reinterpret_cast<const char*>(v + static_cast<size_t>(lo) * ldv)};
        columns_n(count, rows, v, ldv, call.p + row * kPageTokens, kPageTokens, call.o + row * call.ldo, call.ldo, strip, end);
      }
    }
  }

  template <class T>
  static void attend_block(const Call& call, const T* k, const T* v, int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
      memcpy(call.q + static_cast<size_t>(i) * call.ldq, call.queries[i].q, static_cast<size_t>(call.head_dim) * sizeof(float));
    }
    if (n <= FEW) {
      attend_few(call, k, v, n);
    } else {
      attend_many(call, k, v, n);
    }
    const V zero = V::set1(0.0f);  // + 0: a sum that underflowed to -0 must not depend on masked keys
    for (int32_t i = 0; i < n; ++i) {
      const float* o = call.o + static_cast<size_t>(i) * call.ldo;
      float* out = call.queries[i].partial + 2;
      int32_t d = 0;
      for (; d + kVirtualLanes <= call.v_dim; d += kVirtualLanes) (V::load(o + d) + zero).store(out + d);
      if (d < call.v_dim) (V::load(o + d) + zero).store_first(out + d, call.v_dim - d);
    }
  }

  static void attend_page(KvType type, const void* k, const void* v, int32_t head_dim, int32_t v_dim, float scale,
                          float softcap, const AttendQuery* queries, int32_t n, uint8_t* scratch) {
    Call call{head_dim, v_dim, scale, softcap, queries, reinterpret_cast<float*>(scratch), padded(head_dim), nullptr,
              nullptr, padded(v_dim)};
    for (int32_t i = 0; i < n; i += kAttendBlock) {
      const int32_t count = n - i < kAttendBlock ? n - i : kAttendBlock;
      call.queries = queries + i;
      call.p = call.q + static_cast<size_t>(count) * call.ldq;
      call.o = call.p + static_cast<size_t>(count) * kPageTokens;
      if (type == KvType::kF16) {
        attend_block(call, static_cast<const uint16_t*>(k), static_cast<const uint16_t*>(v), count);
      } else {
        attend_block(call, static_cast<const float*>(k), static_cast<const float*>(v), count);
      }
    }
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
    for (; i + kVirtualLanes <= n; i += kVirtualLanes) fma(V::load(b + i), wide_b, V::load(a + i) * wide_a).store(a + i);
    if (i < n) fma(V::load_first(b + i, n - i), wide_b, V::load_first(a + i, n - i) * wide_a).store_first(a + i, n - i);
  }

  static void finish(const float* running, int32_t v_dim, float* out) {
    const V l = V::set1(running[1]);
    const float* o = running + 2;
    int32_t i = 0;
    for (; i + kVirtualLanes <= v_dim; i += kVirtualLanes) (V::load(o + i) / l).store(out + i);
    if (i < v_dim) (V::load_first(o + i, v_dim - i) / l).store_first(out + i, v_dim - i);
  }

  static KAMADO_INLINE V finite(V x, float limit) {
    return max(min(select(is_nan(x), V::set1(0.0f), x), V::set1(limit)), V::set1(-limit));
  }

  static KAMADO_INLINE void convert(V x, uint16_t* out) { finite(x, 65504.0f).store_f16(out); }
  static KAMADO_INLINE void convert(V x, float* out) { finite(x, FLT_MAX).store(out); }

  template <class T>
  static void store_as(T* k_block, T* v_block, int32_t head_dim, int32_t v_dim, int32_t slot, const float* k, const float* v) {
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
};

}  // namespace
}  // namespace kamado
