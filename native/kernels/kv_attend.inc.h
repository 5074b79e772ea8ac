// Attention over encoded pages, over integer registers I (kv_ints.inc.h) and their 16-lane float type.
//
// A page goes through three walks: keys (integer dot products, lanes are keys), softmax and rounding of weights
// (floats, 16 virtual lanes), values (integer sums, lanes are dimensions). Codes are unpacked in registers, once for
// all the queries of a tile. With codes of 8 bits a query stands as two 8-bit vectors, which the walks treat as two
// queries.
#pragma once
#include "kernels/kv_ints.inc.h"
#include "kernels/kv_rotate.inc.h"
#include "kernels/softmax_page.inc.h"

// Tiles are functions of their own: inlined into their callers they lost a fifth of their speed to spilled registers.
#define KAMADO_NOINLINE __attribute__((noinline))

namespace kamado {
namespace {

// Blocking says how many queries share a register tile: max_key_queries(registers of keys), kMaxValueQueries.
template <class I, class Blocking>
struct CodeAttention {
  using Int = typename I::Int;
  using V = typename I::Floats;
  static constexpr int kMaxVectors = 2 * kCodeBlock;  // two passes of every query

  struct KeyVector {  // one int8 vector, and where its products go
    const int8_t* codes;
    const int32_t* sums;
    int32_t* totals;  // [128]
  };

  struct ValueVector {
    const uint8_t* weights;  // [groups][128]
    int32_t* sums;           // [v_dim]
  };

  // ---- keys ----

  // Products of kN vectors with one strip of keys.
  template <int kBits, int kN>
  KAMADO_NOINLINE static void key_tile(const uint8_t* codes, const uint8_t* gains, int32_t dim, int32_t token,
                                       const KeyVector* vectors, const char* fetch) {
    constexpr int kBlocks = strip_blocks(kBits), kQuads = kChunkRegisters / kBlocks;
    constexpr size_t kChunk = 64 * kBits;
    const Int table = I::table(kLevelTables.keys[kBits % 8]);
    for (int half = 0; half < I::kHalves; ++half) {
      Int total[kN][kBlocks];
      for (int q = 0; q < kN; ++q) {
        for (int b = 0; b < kBlocks; ++b) total[q][b] = I::zero();
      }
      const uint8_t* chunk = codes;
      const char* next = fetch;
      for (int32_t begin = 0; begin < dim; begin += kGroupDims) {
        const int32_t group = begin / kGroupDims, end = begin + group_width(dim, group);
        Int acc[kN][kBlocks];
        for (int q = 0; q < kN; ++q) {
          constexpr int32_t kOffset = kBits == 8 ? I::kKeyOffset8 : kKeyOffset;
          for (int b = 0; b < kBlocks; ++b) acc[q][b] = I::set1(-kOffset * vectors[q].sums[group]);
        }
        for (int32_t d = begin; d < end; d += 4 * kQuads, chunk += kChunk, next += kChunk) {
          if (half == 0) {
            for (size_t i = 0; i < kChunk; i += 64) __builtin_prefetch(next + i, 0, 2);
          }
#pragma GCC unroll 8
          for (int quad = 0; quad < kQuads; ++quad) {
            Int code[kBlocks];
#pragma GCC unroll 4
            for (int b = 0; b < kBlocks; ++b) {
              code[b] = unpack_register<I, kBits>(chunk, quad * kBlocks + b, half);
              code[b] = kBits == 8 ? I::key_code8(code[b]) : I::lookup(table, code[b]);
            }
#pragma GCC unroll 8
            for (int q = 0; q < kN; ++q) {
              const Int x = I::broadcast(vectors[q].codes + d + 4 * quad);
#pragma GCC unroll 4
              for (int b = 0; b < kBlocks; ++b) {
                acc[q][b] = kBits == 8 ? I::dot_key8(acc[q][b], code[b], x) : I::dot(acc[q][b], code[b], x);
              }
            }
          }
        }
        for (int b = 0; b < kBlocks; ++b) {
          const Int gain = I::gains(gains + static_cast<size_t>(group) * kGainBytes, token + 16 * b, half);
          for (int q = 0; q < kN; ++q) total[q][b] = I::add(total[q][b], I::multiply(acc[q][b], gain));
        }
      }
      for (int q = 0; q < kN; ++q) {
        for (int b = 0; b < kBlocks; ++b) I::store(vectors[q].totals + token + 16 * b + 8 * half, total[q][b]);
      }
    }
  }

  template <int kBits>
  static void keys(const BlockView<const uint8_t>& block, int32_t dim, const KeyVector* vectors, int32_t n,
                   const char* fetch) {
    constexpr int kMax = Blocking::max_key_queries(strip_blocks(kBits));
    const size_t strip_bytes = static_cast<size_t>(dim) * strip_keys(kBits) / 8 * kBits;
    const int32_t num = (n + kMax - 1) / kMax;
    for (int32_t token = 0; token < kPageTokens; token += strip_keys(kBits)) {
      const size_t at = static_cast<size_t>(token / strip_keys(kBits)) * strip_bytes;
      for (int32_t i = 0; i < num; ++i) {  // tiles as even as they come
        const int32_t first = n * i / num;
        key_tile_n<kBits, kMax>(n * (i + 1) / num - first, block.codes + at, block.gains, dim, token, vectors + first,
                                fetch + at);
      }
    }
  }

  template <int kBits, int kN>
  static KAMADO_INLINE void key_tile_n(int32_t n, const uint8_t* codes, const uint8_t* gains, int32_t dim,
                                       int32_t token, const KeyVector* vectors, const char* fetch) {
    if constexpr (kN > 1) {
      if (n < kN) return key_tile_n<kBits, kN - 1>(n, codes, gains, dim, token, vectors, fetch);
    }
    key_tile<kBits, kN>(codes, gains, dim, token, vectors, fetch);
  }

  // ---- values ----

  // Sums of one group of 16 * kHalfGroups dimensions for kN vectors.
  template <int kBits, int kHalfGroups, int kN>
  KAMADO_NOINLINE static void value_tile(const uint8_t* codes, int32_t group, const ValueVector* vectors,
                                         const char* fetch) {
    constexpr int kQuads = kChunkRegisters / kHalfGroups;  // of tokens in a chunk
    constexpr int kChains = Blocking::value_chains(kN * kHalfGroups);
    constexpr size_t kChunk = 64 * kBits;
    const Int table = I::table(kLevelTables.values[kBits % 8]);
    for (int half = 0; half < I::kHalves; ++half) {
      Int acc[kN][kHalfGroups][kChains];
      for (int q = 0; q < kN; ++q) {
        for (int h = 0; h < kHalfGroups; ++h) {
          for (int c = 0; c < kChains; ++c) acc[q][h][c] = I::zero();
        }
      }
      const uint8_t* chunk = codes;
      const char* next = fetch;
      const size_t weights_at = static_cast<size_t>(group) * kPageTokens;
      for (int32_t token = 0; token < kPageTokens; token += 4 * kQuads, chunk += kChunk, next += kChunk) {
        if (half == 0) {
          for (size_t i = 0; i < kChunk; i += 64) __builtin_prefetch(next + i, 0, 2);
        }
#pragma GCC unroll 8
        for (int quad = 0; quad < kQuads; ++quad) {
          Int code[kHalfGroups];
#pragma GCC unroll 2
          for (int h = 0; h < kHalfGroups; ++h) {
            code[h] = unpack_register<I, kBits>(chunk, quad * kHalfGroups + h, half);
            if constexpr (kBits != 8) code[h] = I::lookup(table, code[h]);
          }
#pragma GCC unroll 8
          for (int q = 0; q < kN; ++q) {
            const Int w = I::broadcast(vectors[q].weights + weights_at + token + 4 * quad);
#pragma GCC unroll 2
            for (int h = 0; h < kHalfGroups; ++h) {
              Int& sum = acc[q][h][quad % kChains];
              sum = I::dot(sum, w, code[h]);
            }
          }
        }
      }
      for (int q = 0; q < kN; ++q) {
        for (int h = 0; h < kHalfGroups; ++h) {
          Int sum = acc[q][h][0];
          for (int c = 1; c < kChains; ++c) sum = I::add(sum, acc[q][h][c]);
          I::store(vectors[q].sums + group * kGroupDims + 16 * h + 8 * half, sum);
        }
      }
    }
  }

  template <int kBits, int kN>
  static KAMADO_INLINE void value_tile_n(int32_t n, bool is_whole, const uint8_t* codes, int32_t group,
                                         const ValueVector* vectors, const char* fetch) {
    if constexpr (kN > 1) {
      if (n < kN) return value_tile_n<kBits, kN - 1>(n, is_whole, codes, group, vectors, fetch);
    }
    is_whole ? value_tile<kBits, 2, kN>(codes, group, vectors, fetch)
             : value_tile<kBits, 1, kN>(codes, group, vectors, fetch);
  }

  template <int kBits>
  static void values(const BlockView<const uint8_t>& block, int32_t dim, const ValueVector* vectors, int32_t n,
                     const char* fetch) {
    constexpr int kMax = Blocking::kMaxValueQueries;
    constexpr size_t kGroupBytes = kGroupDims * kPageTokens / 8 * kBits;
    const int32_t num = (n + kMax - 1) / kMax;
    for (int32_t group = 0; group < num_groups(dim); ++group) {
      const size_t at = static_cast<size_t>(group) * kGroupBytes;
      for (int32_t i = 0; i < num; ++i) {
        const int32_t first = n * i / num;
        value_tile_n<kBits, kMax>(n * (i + 1) / num - first, group_width(dim, group) == kGroupDims, block.codes + at,
                                  group, vectors + first, fetch + at);
      }
    }
  }

  // ---- floats ----

  struct Page {
    const KvCodec* codec;
    BlockView<const uint8_t> k, v;
    const uint8_t* sinks;
    float scale, softcap;
    float* k_scales;  // [128]
    float* v_scales;
    float* top_gains;  // the largest gain of a token's value
    float* gains;      // of values, [groups][128]
  };

  struct Query {
    const CodeQuery* given;
    int32_t* totals;   // [passes][128], then as floats the weights of the first
    uint8_t* weights;  // [passes][groups][128]
    int32_t* sums;     // [passes][v_dim]
  };

  static void prepare(const Page& page) {
    const V unit = V::set1(1.0f / kScaleUnit);
    for (int32_t j = 0; j < kPageTokens; j += kVirtualLanes) {
      (V::load(reinterpret_cast<const uint16_t*>(page.k.scales) + j) * unit).store(page.k_scales + j);
      (V::load(reinterpret_cast<const uint16_t*>(page.v.scales) + j) * unit).store(page.v_scales + j);
      V top = V::set1(0.0f);
      for (int32_t g = 0; g < num_groups(page.codec->v_dim); ++g) {
        const V gain = I::float_bytes(gain_bytes16(page.v.gains + static_cast<size_t>(g) * kGainBytes, j));
        gain.store(page.gains + g * kPageTokens + j);
        top = max(gain, top);
      }
      top.store(page.top_gains + j);
    }
  }

  // Dot products with the exact keys of the first tokens: four chains, as the exact pages sum.
  static void sink_scores(const Page& page, const float* q, float* scores) {
    const auto* keys = reinterpret_cast<const uint16_t*>(page.sinks);
    __m128 sum = _mm_setzero_ps();
    for (int32_t d = 0; d < page.codec->head_dim; ++d) {
      const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(keys + d * kSinkTokens));
      sum = _mm_fmadd_ps(_mm_set1_ps(q[d]), _mm_cvtph_ps(halves), sum);
    }
    _mm_storeu_ps(scores, sum);
  }

  // Integer products -> scores -> weights p in place (as floats); m and l go to the partial.
  static void softmax(const Page& page, const Query& query) {
    const CodeQuery& given = *query.given;
    const RotatedQuery q = view_query(const_cast<uint8_t*>(given.rotated), page.codec->head_dim);
    V mean = V::set1(0.0f);
    for (int32_t d = 0; d < page.codec->head_dim; d += kVirtualLanes) {
      mean = fma(V::load(q.rotated + d), V::load(reinterpret_cast<const uint16_t*>(page.k.mean) + d), mean);
    }
    const V with_mean = V::set1(reduce_sum(mean)), query_scale = V::set1(*q.scale), high = V::set1(128.0f);
    float sinks[kVirtualLanes];
    if (page.sinks) sink_scores(page, given.q, sinks);
    softmax_page<V>(given.lo, given.hi, page.scale, page.softcap, reinterpret_cast<float*>(query.totals), given.partial,
                    [&](int32_t j) {
                      V dot = I::load_ints(query.totals + j);
                      if (num_passes(page.codec->k_bits) == 2) {
                        dot = fma(dot, high, I::load_ints(query.totals + kPageTokens + j));
                      }
                      const V s = fma(dot, V::load(page.k_scales + j) * query_scale, with_mean);
                      return page.sinks && j == 0 ? select(V::lanes_between(0, kSinkTokens), V::load(sinks), s) : s;
                    });
  }

  // Every group's carry goes from addition to addition: several groups side by side hide the wait.
  static constexpr int kRoundedGroups = 4;

  template <int kN>
  static KAMADO_INLINE void round_groups_n(int32_t n, const Page& page, const Query& query, const float* weighted,
                                           V inverse, int32_t group) {
    if constexpr (kN > 1) {
      if (n < kN) return round_groups_n<kN - 1>(n, page, query, weighted, inverse, group);
    }
    const bool has_one_pass = num_passes(page.codec->v_bits) == 1;
    has_one_pass ? round_groups<kN, 1>(page, query, weighted, inverse, group)
                 : round_groups<kN, 2>(page, query, weighted, inverse, group);
  }

  // The weights of groups `group` to group + kN.
  template <int kN, int kPasses>
  static void round_groups(const Page& page, const Query& query, const float* weighted, V inverse, int32_t group) {
    const V magic = V::set1(kRoundingMagic);
    const float* gains = page.gains + group * kPageTokens;
    uint8_t* out = query.weights + group * kPageTokens;
    V carry[kN];
    for (int g = 0; g < kN; ++g) carry[g] = V::load(kDither);
    for (int32_t j = 0; j < kPageTokens; j += 2 * kVirtualLanes) {
      const V first = V::load(weighted + j) * inverse, second = V::load(weighted + j + kVirtualLanes) * inverse;
#pragma GCC unroll 4
      for (int g = 0; g < kN; ++g) {
        const auto whole = [&](V weight, int32_t token) {
          const V exact = fma(weight, V::load(gains + g * kPageTokens + token), carry[g]);
          const V shifted = exact + magic;
          carry[g] = exact - (shifted - magic);
          return shifted;
        };
        const V a = whole(first, j), b = whole(second, j + kVirtualLanes);
        uint8_t* to = out + g * kPageTokens + j;
        if constexpr (kPasses == 1) {
          I::store_bytes(a, b, 0, 8, to);
        } else {
          I::store_bytes(a, b, 7, 7, to);
          I::store_bytes(a, b, 0, 7, to + num_groups(page.codec->v_dim) * kPageTokens);
        }
      }
    }
  }

  // p -> whole steps of the largest p * scale * gain; returns that step, 0 when there is nothing to sum.
  static float round_weights(const Page& page, const Query& query) {
    const float* p = reinterpret_cast<const float*>(query.totals);
    const int32_t groups = num_groups(page.codec->v_dim), passes = num_passes(page.codec->v_bits);
    float weighted[kPageTokens];
    V top = V::set1(0.0f);
    for (int32_t j = 0; j < kPageTokens; j += kVirtualLanes) {
      const V w = V::load(p + j) * V::load(page.v_scales + j);
      w.store(weighted + j);
      top = max(w * V::load(page.top_gains + j), top);
    }
    const float largest = reduce_max(top), l = query.given->partial[1];
    if (l != l || !(largest > kTinyWeight)) {
      memset(query.weights, 0, static_cast<size_t>(passes * groups * kPageTokens));
      return 0.0f;
    }
    const V inverse = V::set1(kWeightTop[passes - 1] / largest);
    for (int32_t g = 0; g < groups; g += kRoundedGroups) {
      round_groups_n<kRoundedGroups>(groups - g, page, query, weighted, inverse, g);
    }
    return largest / kWeightTop[passes - 1];
  }

  static void write_output(const Page& page, const Query& query, float step) {
    const CodeQuery& given = *query.given;
    const int32_t dim = page.codec->v_dim;
    float* out = given.partial + 2;
    const float l = given.partial[1];
    const V unit = V::set1(l != l ? l : step), high = V::set1(128.0f);
    for (int32_t d = 0; d < dim; d += kVirtualLanes) {
      V sum = I::load_ints(query.sums + d);
      if (num_passes(page.codec->v_bits) == 2) sum = fma(sum, high, I::load_ints(query.sums + dim + d));
      (sum * unit).store(out + d);
    }
    if (!page.sinks || given.lo >= kSinkTokens) return;
    const float* p = reinterpret_cast<const float*>(query.totals);
    const uint16_t* values = reinterpret_cast<const uint16_t*>(page.sinks) + page.codec->head_dim * kSinkTokens;
    float exact[kMaxDim];
    for (int32_t d = 0; d < dim; d += kVirtualLanes) {
      V sum = V::set1(0.0f);
      for (int32_t j = given.lo; j < kSinkTokens && j < given.hi; ++j) {
        sum = fma(V::set1(p[j]), V::load(values + j * dim + d), sum);
      }
      sum.store(exact + d);
    }
    rotate(exact, dim);
    for (int32_t d = 0; d < dim; d += kVirtualLanes) (V::load(out + d) + V::load(exact + d)).store(out + d);
  }

  // ---- entry points ----

  static void attend_block(const Page& page, const CodeQuery* queries, int32_t n, uint8_t* scratch, const void* next) {
    const KvCodec& codec = *page.codec;
    const int32_t k_passes = num_passes(codec.k_bits), v_passes = num_passes(codec.v_bits);
    Query list[kCodeBlock];
    KeyVector keys_of[kMaxVectors];
    ValueVector values_of[kMaxVectors];
    const size_t weights_bytes = static_cast<size_t>(num_groups(codec.v_dim)) * kPageTokens;
    for (int32_t i = 0; i < n; ++i, scratch += code_query_scratch(codec)) {
      uint8_t* at = scratch;
      list[i] = {queries + i, reinterpret_cast<int32_t*>(at), nullptr, nullptr};
      at += static_cast<size_t>(k_passes) * kPageTokens * 4;
      list[i].weights = at;
      at += static_cast<size_t>(v_passes) * weights_bytes;
      list[i].sums = reinterpret_cast<int32_t*>(at);
      const RotatedQuery q = view_query(const_cast<uint8_t*>(queries[i].rotated), codec.head_dim);
      for (int32_t pass = 0; pass < k_passes; ++pass) {
        keys_of[i * k_passes + pass] = {q.codes + pass * codec.head_dim, q.sums + pass * kMaxGroups,
                                        list[i].totals + pass * kPageTokens};
      }
      for (int32_t pass = 0; pass < v_passes; ++pass) {
        values_of[i * v_passes + pass] = {list[i].weights + static_cast<size_t>(pass) * weights_bytes,
                                          list[i].sums + pass * codec.v_dim};
      }
    }
    // While a walk goes through its codes, the same of the next page come into the second-level cache: a page ahead, as
    // the walks take less time than memory needs to answer.
    const auto* fetch = static_cast<const char*>(next);
    const size_t k_head = static_cast<size_t>(page.k.codes - page.k.mean);
    for (size_t i = 0; i < k_head; i += 64) __builtin_prefetch(fetch + i, 0, 2);
    fetch += k_head;
    const int32_t num_keys = n * k_passes, num_values = n * v_passes;
    with_bits(codec.k_bits, [&](auto bits) { keys<bits()>(page.k, codec.head_dim, keys_of, num_keys, fetch); });
    float steps[kCodeBlock];
    for (int32_t i = 0; i < n; ++i) {
      softmax(page, list[i]);
      steps[i] = round_weights(page, list[i]);
    }
    fetch += code_bytes(codec.head_dim, codec.k_bits);
    const size_t v_head = static_cast<size_t>(page.v.codes - page.v.scales);
    for (size_t i = 0; i < v_head; i += 64) __builtin_prefetch(fetch + i, 0, 2);
    fetch += v_head;
    with_bits(codec.v_bits, [&](auto bits) { values<bits()>(page.v, codec.v_dim, values_of, num_values, fetch); });
    for (int32_t i = 0; i < n; ++i) write_output(page, list[i], steps[i]);
  }

  static void attend_page(const KvCodec& codec, const uint8_t* k_codes, const uint8_t* v_codes, const uint8_t* sinks,
                          float scale, float softcap, const CodeQuery* queries, int32_t n, uint8_t* scratch,
                          const void* next) {
    Page page{};
    page.codec = &codec;
    page.k = view_block(k_codes, codec.head_dim, true);
    page.v = view_block(v_codes, codec.v_dim, false);
    page.sinks = sinks;
    page.scale = scale;
    page.softcap = softcap;
    page.k_scales = reinterpret_cast<float*>(scratch);
    page.v_scales = page.k_scales + kPageTokens;
    page.top_gains = page.v_scales + kPageTokens;
    page.gains = page.top_gains + kPageTokens;
    prepare(page);
    scratch += code_page_scratch(codec);
    for (int32_t i = 0; i < n; i += kCodeBlock) {
      const bool is_last = i + kCodeBlock >= n;
      attend_block(page, queries + i, is_last ? n - i : kCodeBlock, scratch, is_last && next ? next : k_codes);
    }
  }

  static void rotate_query(const KvCodec& codec, const float* given, uint8_t* rotated) {
    const int32_t dim = codec.head_dim, passes = num_passes(codec.k_bits);
    memset(rotated, 0, query_bytes(dim));
    const RotatedQuery out = view_query(rotated, dim);
    memcpy(out.rotated, given, static_cast<size_t>(dim) * sizeof(float));
    rotate(out.rotated, dim);
    V top = V::set1(0.0f), nothing = top;
    for (int32_t d = 0; d < dim; d += kVirtualLanes) {
      const V x = V::load(out.rotated + d);
      top = max(abs(x), top);
      nothing = fma(x, V::set1(0.0f), nothing);  // NaN if any is not finite
    }
    const float largest = reduce_max(top), check = reduce_sum(nothing);
    if (check != check) {
      *out.scale = __builtin_nanf("");
      return;
    }
    if (largest < kTinyWeight) return;
    const V inverse = V::set1(kQueryTop[passes - 1] / largest), magic = V::set1(kRoundingMagic);
    *out.scale = largest / kQueryTop[passes - 1];
    for (int32_t d = 0; d < dim; d += kVirtualLanes) {
      float whole[kVirtualLanes];
      (V::load(out.rotated + d) * inverse + magic - magic).store(whole);
      for (int32_t i = 0; i < kVirtualLanes; ++i) {
        const auto code = static_cast<int32_t>(whole[i]);
        const int32_t high = passes == 2 ? (code + 64) >> 7 : code;
        out.codes[d + i] = static_cast<int8_t>(high);
        out.sums[d / kGroupDims] += high;
        if (passes == 1) continue;
        out.codes[dim + d + i] = static_cast<int8_t>(code - high * 128);
        out.sums[kMaxGroups + d / kGroupDims] += code - high * 128;
      }
    }
  }

  static void unrotate(const KvCodec& codec, float* running) { rotate_back(running + 2, codec.v_dim); }
};

template <class Encoder, class Attention>
const KvCodecKernels* kv_codec_table() {
  static const KvCodecKernels table = {Encoder::encode_page, Attention::rotate_query, Attention::attend_page,
                                       Attention::unrotate, kv_codec_kernels_ref()->decode_page};
  return &table;
}

}  // namespace
}  // namespace kamado
