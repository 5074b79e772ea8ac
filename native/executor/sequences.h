// What sequences keep from step to step: the cache, what the program and the options say of its layers, and the calls
// of the executor that fill, store and read back what is in it.
#pragma once
#include <memory>
#include <vector>

#include "kamado/executor.h"
#include "kamado/state.h"
#include "kamado/tables.h"

namespace kamado {

class Sequences {
 public:
  Sequences(const Program& program, const ExecutorOptions& options);

  StateCache& cache() const { return *cache_; }
  const std::vector<KvLayerShape>& shapes() const { return shapes_; }  // pages and windows, then sources
  int32_t num_layers() const { return num_layers_; }                   // of them pages and windows
  const std::vector<KvCodec>& codecs() const { return codecs_; }       // by layer; k_bits 0: exact
  bool has_codes() const { return has_codes_; }

  int64_t num_pages() const { return num_pages_; }  // that max_kv_tokens fill
  int64_t num_free_pages() const;
  bool reserve(int32_t sequence, int64_t num_tokens);
  // Throws std::invalid_argument while a source of the sequence is not set.
  void require_sources(int32_t sequence) const;
  const KvLayerShape& source_shape(int32_t state) const;  // throws std::invalid_argument when it is no source
  void set_source(const KernelTable& kernels, int32_t sequence, int32_t state, const float* k, const float* v,
                  int64_t num_tokens);

  // Copies for storage: Executor's calls of the same names, which check what the cache trusts.
  size_t tail_bytes(int64_t num_tokens) const;
  size_t export_pages_bytes(int32_t sequence, int64_t first_page, int64_t last_page) const;
  size_t export_tail_bytes(int32_t sequence, int64_t num_tokens) const;
  int32_t begin_import(int64_t num_tokens);
  void import_pages(int32_t sequence, int64_t first_page, int64_t last_page, const uint8_t* pages, size_t num_bytes);
  void import_tail(int32_t sequence, const uint8_t* tail, size_t num_bytes);

 private:
  void add_states(const ExecutorOptions& options);
  void encode_layer(const AttendOp& attend, const ExecutorOptions& options);
  int32_t source_layer(int32_t state) const;
  // Any sequences whose lengths sum to max_kv_tokens fit: each may leave its last page nearly empty. Who reserves
  // before his steps is given only the pages that max_kv_tokens fill.
  int64_t num_spare_pages() const { return int64_t{max_sequences_} - 1; }

  const Program& program_;
  const int64_t max_tokens_, num_pages_;
  const int32_t max_sequences_;
  std::vector<KvLayerShape> shapes_;
  int32_t num_layers_ = 0;
  RecordShape records_;
  std::vector<KvCodec> codecs_;
  bool has_codes_ = false;
  std::unique_ptr<StateCache> cache_;
};

}  // namespace kamado
