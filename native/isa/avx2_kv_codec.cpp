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

}  // namespace

const KvCodecKernels* kv_codec_kernels_avx2() {
  return kv_codec_table<CodeEncoder<Ints256>, CodeAttention<Ints256, Blocking>>();
}

}  // namespace kamado
