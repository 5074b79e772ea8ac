// The KV codec for AVX-512 F, BW, DQ, VL and VNNI.
#include "kernels/kv_attend.inc.h"
#include "kernels/kv_encode.inc.h"

namespace kamado {
namespace {

struct Blocking {
  // 32 registers: at most 16 sums, unpacked codes, masks, and gained totals that may wait in memory.
  static constexpr int max_key_queries(int blocks) { return blocks == 2 ? 8 : 4; }
  static constexpr int kMaxValueQueries = 8;
  // vpdpbusd takes 4 cycles and one starts a cycle or two: eight chains are enough.
  static constexpr int value_chains(int sums) { return sums >= 8 ? 1 : sums >= 4 ? 2 : 4; }
};

}  // namespace

const KvCodecKernels* kv_codec_kernels_avx512() {
  return kv_codec_table<CodeEncoder<Ints512>, CodeAttention<Ints512, Blocking>>();
}

}  // namespace kamado
