// The KV cache: fixed pages of 128 tokens, reference-counted, shared between sequences that were forked. The naive
// first form: exact pages (f16 or f32) in one reserved arena whose pages the kernel fills in on first touch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kamado/attention.h"

namespace kamado {

struct KvLayerShape {
  int32_t num_kv_heads;
  int32_t k_dim;
  int32_t v_dim;
};

class KvCache {
 public:
  // Reserves address space for max_pages pages; no memory is used until tokens are written.
  KvCache(std::vector<KvLayerShape> layers, KvType type, int64_t max_pages, int32_t max_sequences);
  ~KvCache();

  int32_t create();                               // new empty sequence id; throws std::length_error when none is free
  void free(int32_t seq);                         // throws std::out_of_range for an id that is not live (all calls do)
  int32_t fork(int32_t seq, int64_t num_tokens);  // shares full pages, copies the partial one
  void truncate(int32_t seq, int64_t num_tokens);
  int64_t length(int32_t seq) const;              // tokens cached
  void reserve(int32_t seq, int64_t num_tokens);  // makes pages for positions < num_tokens; throws std::length_error if
                                                  // none left; copies a shared partial page before it is written
  void commit(int32_t seq, int64_t num_tokens);   // sets the length after a step succeeded

  void* k_block(int32_t seq, int64_t page, int32_t layer, int32_t head) const;
  void* v_block(int32_t seq, int64_t page, int32_t layer, int32_t head) const;

  KvType type() const;
  size_t page_bytes() const;  // all layers, one page
  int64_t pages_used() const;
  int64_t pages_free() const;
  size_t bytes_used() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kamado
