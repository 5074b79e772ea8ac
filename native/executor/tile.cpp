#include "executor/tile.h"

#include <algorithm>
#include <cstring>

#include "kamado/refuse.h"

namespace kamado {
namespace {

class Tiler {
 public:
  Tiler(const Sequences& sequences, const KvCodecKernels& kernels, uint8_t* scratch)
      : sequences_(sequences), cache_(sequences.cache()), kernels_(kernels), scratch_(scratch) {}

  void run(int32_t sequence, int64_t num_tokens);

 private:
  void tile_page(int32_t sequence, int64_t page, int64_t begin, int64_t end, int64_t source, int64_t period) const;
  void tile_codes(int32_t sequence, int64_t page, int64_t same_page);

  const Sequences& sequences_;
  StateCache& cache_;
  const KvCodecKernels& kernels_;
  uint8_t* const scratch_;
};

void Tiler::run(int32_t sequence, int64_t num_tokens) {
  const int64_t start = cache_.length(sequence);
  if (start == 0) refuse("sequence ", sequence, " is empty: nothing to repeat");
  if (num_tokens <= start) return;
  // What is repeated must stay, in every layer, while pages come after it: the tokens that a reuse point keeps.
  const ReuseHere here(cache_, sequence);
  int64_t source = 0;
  for (const KvLayerShape& shape : sequences_.shapes()) {
    if (shape.k_bits > 0) source = std::max(source, settled_pages(start) * kPageTokens);
    if (shape.window > 0) {
      const int64_t first = std::max<int64_t>(0, start - shape.window + 1);
      source = std::max(source, std::min(start - 1, (first + kPageTokens - 1) / kPageTokens * kPageTokens));
    }
  }
  const int64_t period = start - source;
  const bool is_whole = source % kPageTokens == 0 && period % kPageTokens == 0;
  for (int64_t done_tokens = start; done_tokens < num_tokens;) {
    const int64_t page = done_tokens / kPageTokens, end = std::min(num_tokens, (page + 1) * kPageTokens);
    cache_.reserve_pages(sequence, end);
    tile_page(sequence, page, done_tokens, end, source, period);
    for (const int32_t coded : cache_.encodes(sequence)) {
      const int64_t same = coded - period / kPageTokens;
      tile_codes(sequence, coded, is_whole && same >= std::max<int64_t>(1, source / kPageTokens) ? same : -1);
    }
    cache_.commit(sequence, end);
    done_tokens = end;
  }
}

// Tokens [begin, end) of a page, as those of [source, source + period) repeated.
void Tiler::tile_page(int32_t sequence, int64_t page, int64_t begin, int64_t end, int64_t source,
                      int64_t period) const {
  const size_t element = cache_.type() == KvType::kF16 ? sizeof(uint16_t) : sizeof(float);
  const int64_t from_first = source + (begin - source) % period;
  // Whole pages from whole pages; else token by token.
  const bool is_whole = begin % kPageTokens == 0 && end % kPageTokens == 0 && from_first % kPageTokens == 0 &&
                        from_first + kPageTokens <= source + period;
  for (size_t layer = 0; layer < static_cast<size_t>(sequences_.num_layers()); ++layer) {
    const KvLayerShape& shape = sequences_.shapes()[layer];
    const size_t v_row = static_cast<size_t>(shape.v_dim) * element;
    const auto id = static_cast<int32_t>(layer);
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      auto* k = static_cast<uint8_t*>(cache_.k_block(sequence, page, id, head));
      auto* v = static_cast<uint8_t*>(cache_.v_block(sequence, page, id, head));
      if (is_whole) {
        const int64_t from = from_first / kPageTokens;
        std::memcpy(k, cache_.k_block(sequence, from, id, head),
                    static_cast<size_t>(shape.k_dim) * kPageTokens * element);
        std::memcpy(v, cache_.v_block(sequence, from, id, head), kPageTokens * v_row);
        continue;
      }
      for (int64_t token = begin; token < end; ++token) {
        const int64_t from = source + (token - source) % period;
        const auto* from_k = static_cast<const uint8_t*>(cache_.k_block(sequence, from / kPageTokens, id, head));
        const auto* from_v = static_cast<const uint8_t*>(cache_.v_block(sequence, from / kPageTokens, id, head));
        const auto slot = static_cast<size_t>(token % kPageTokens), from_slot = static_cast<size_t>(from % kPageTokens);
        std::memcpy(v + slot * v_row, from_v + from_slot * v_row, v_row);
        for (size_t d = 0; d < static_cast<size_t>(shape.k_dim); ++d)
          std::memcpy(k + (d * kPageTokens + slot) * element, from_k + (d * kPageTokens + from_slot) * element,
                      element);
      }
    }
  }
}

// Codes of a page: those of same_page, which has the same tokens, unless that is -1.
void Tiler::tile_codes(int32_t sequence, int64_t page, int64_t same_page) {
  for (size_t layer = 0; layer < sequences_.codecs().size(); ++layer) {
    const KvCodec& codec = sequences_.codecs()[layer];
    if (codec.k_bits == 0) continue;
    const auto id = static_cast<int32_t>(layer);
    for (int32_t head = 0; head < sequences_.shapes()[layer].num_kv_heads; ++head) {
      const KvCodeBlock to = cache_.codes(sequence, page, id, head);
      if (same_page == -1) {
        kernels_.encode_page(codec, static_cast<const uint16_t*>(cache_.k_block(sequence, page, id, head)),
                             static_cast<const uint16_t*>(cache_.v_block(sequence, page, id, head)), to.k, to.v,
                             to.sinks, scratch_);
        continue;
      }
      const KvCodeBlock from = cache_.codes(sequence, same_page, id, head);
      std::memcpy(to.k, from.k, encoded_k_page_bytes(codec.head_dim, codec.k_bits));
      std::memcpy(to.v, from.v, encoded_v_page_bytes(codec.v_dim, codec.v_bits));
    }
  }
}

}  // namespace

void tile_kv(const Sequences& sequences, const KvCodecKernels& kernels, uint8_t* scratch, int32_t sequence,
             int64_t num_tokens) {
  Tiler(sequences, kernels, scratch).run(sequence, num_tokens);
}

}  // namespace kamado
