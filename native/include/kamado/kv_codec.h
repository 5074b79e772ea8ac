// Encoded pages of the KV cache: 128 tokens of one key-value head as codes of 2, 3, 4 or 8 bits (1 bit: a control for
// quality tests), and attention that works on the codes. All tiers give the same bits, and a query gives the same bits
// whatever other queries are in the call. docs/kv-codec.md explains the method and its measured errors.
//
//   rotate      R x = H (s . x) / sqrt(dim): fixed random signs s, Hadamard matrix H of order dim
//   keys        centred: minus the page's mean (kept as f16 and added back exactly as q . mean), sinks left out
//   codes       Lloyd-Max levels of the normal law as int8 (8 bits: uniform +-127), one 4-bit gain per 32 values, one
//               f16 scale a vector, chosen so that <x, x'> = |x|^2 (an unbiased product with any query)
//   sinks       the first kSinkTokens tokens of a sequence are kept exact beside page 0
//
// Encoded pages give the partial {m, l, o} of attention.h, but with o in the ROTATED space of values. A query's
// encoded pages all lie before its exact ones, so a row's result is, in this fixed order:
//   running = {-inf, 0, 0}; for every encoded page, ascending: attend_page, AttentionKernels::merge
//   unrotate(running) once, if there was an encoded page
//   for every exact page, ascending: AttentionKernels::attend_page, merge;   AttentionKernels::finish
#pragma once
#include <cstddef>
#include <cstdint>

#include "kamado/attention.h"

namespace kamado {

constexpr int kSinkTokens = 4;

struct KvCodec {
  int32_t head_dim, v_dim;  // each 64, 80, 96, 128, 192, 256 or 512
  int32_t k_bits, v_bits;   // each 1, 2, 3, 4 or 8
};

struct CodeQuery {
  const float* q;          // head_dim; read for sinks only
  const uint8_t* rotated;  // from rotate_query
  int32_t lo, hi;          // visible keys within the page: [lo, hi), not empty
  float* partial;          // out: {m, l, o[v_dim]}, o rotated
};

struct KvCodecKernels {
  // Encodes a full page from the f16 block of attention.h (K [head_dim][128], V [128][v_dim]; finite, as `store` leaves
  // it). `sinks` is nullptr except for page 0 of a sequence, whose first kSinkTokens tokens it receives.
  // scratch: encode_scratch_bytes(), 64-byte aligned.
  void (*encode_page)(const KvCodec& codec, const uint16_t* k, const uint16_t* v, uint8_t* k_codes, uint8_t* v_codes,
                      uint8_t* sinks, uint8_t* scratch);
  // Rotates and quantises one query, once for all pages. rotated: rotated_query_bytes(), 64-byte aligned.
  void (*rotate_query)(const KvCodec& codec, const float* q, uint8_t* rotated);
  // Attention of n >= 1 queries over one encoded page. `sinks` as in encode_page: nullptr except for page 0. While
  // it works it fetches the page that this thread attends to next: the K block at `next` and a V block right behind it
  // (a hint; nullptr: none). Half again as fast with few queries.
  // scratch: attend_codes_scratch_bytes(), 64-byte aligned, private to the thread.
  void (*attend_page)(const KvCodec& codec, const uint8_t* k_codes, const uint8_t* v_codes, const uint8_t* sinks,
                      float scale, float softcap, const CodeQuery* queries, int32_t n, uint8_t* scratch,
                      const void* next);
  // o of {m, l, o[v_dim]} back from the rotated space, in place.
  void (*unrotate)(const KvCodec& codec, float* running);
  // What the codes stand for, in the original space: k [128][head_dim], v [128][v_dim]. For tests and measurements.
  void (*decode_page)(const KvCodec& codec, const uint8_t* k_codes, const uint8_t* v_codes, const uint8_t* sinks,
                      float* k, float* v);
};

bool is_valid_codec(const KvCodec& codec);  // sizes and bits are among those above
bool is_codec_dim(int32_t dim);             // a head size that can be rotated

// Bytes of one KV head's block; multiples of 64. The blocks must be 64-byte aligned. K: codes, f16 scales, 4-bit gains
// and the f16 mean; V: the same without a mean. 128 values at 4 bits: 70 and 68 bytes a token.
size_t encoded_k_page_bytes(int32_t head_dim, int32_t bits);
size_t encoded_v_page_bytes(int32_t v_dim, int32_t bits);
size_t encoded_sink_bytes(const KvCodec& codec);  // once a sequence and KV head: kSinkTokens exact keys and values
size_t rotated_query_bytes(const KvCodec& codec);
size_t attend_codes_scratch_bytes(const KvCodec& codec, int32_t n_queries);
size_t encode_scratch_bytes(const KvCodec& codec);

const KvCodecKernels* kv_codec_kernels_ref();
const KvCodecKernels* kv_codec_kernels_avx2();
const KvCodecKernels* kv_codec_kernels_avx512();

}  // namespace kamado
