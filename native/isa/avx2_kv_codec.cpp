// The KV codec for AVX2 + FMA + F16C.
#include "kernels/kv_attend.inc.h"
#include "kernels/kv_encode.inc.h"

namespace kamado {
namespace {

struct Blocking {
  // 16 registers: sums, unpacked codes, masks.
  static constexpr int max_key_queries(int blocks) { return blocks == 2 ? 4 : 2; }
  static constexpr int kMaxValueQueries = 4;
  static constexpr int value_chains(int) { return 1; }  // a chain is one addition a step: no latency to hide
};

using Tier = CodeAttention<Ints256, Blocking>;

}  // namespace

const KvCodecKernels* kv_codec_kernels_avx2() {
  static const KvCodecKernels table = {CodeEncoder<Ints256>::encode_page, Tier::rotate_query, Tier::attend_page,
                                       Tier::unrotate, kv_codec_kernels_ref()->decode_page};
  return &table;
}

}  // namespace kamado
