// The KV cache: fixed pages of 128 tokens, reference-counted, shared between sequences that were forked.
//
// What a layer keeps of a page:
//   exact layer            the page, as f16 or f32, for good
//   layer with a window    the page while a next query's window reaches it
//   encoded layer          the page (f16) while a next query reads it exactly, which is its own page and the one
//   before;
//                          from then on its codes (kv_codec.h), made once
// A sequence can therefore be cut or forked only where the exact pages still are: at its end's page, and at its reuse
// points, whose pages are kept beside the codes. A point is a promise about memory only: when exact pages run out, the
// points that were used longest ago are given up. One sequence has one page for a position, however many points use it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kamado/attention.h"
#include "kamado/kv_codec.h"
#include "kamado/page.h"

namespace kamado {

// Changes whenever stored pages mean something else.
constexpr int kKvFormatVersion = 1;

struct KvLayerShape {
  int32_t num_kv_heads;
  int32_t k_dim;
  int32_t v_dim;
  int32_t k_bits = 0, v_bits = 0;  // of codes; both 0: exact
  int32_t window = 0;              // tokens that a query sees, its own included; 0: all
  int32_t source_tokens = 0;       // most tokens of a source: made once, no step adds to it; 0: it is none
};

// What steps replace, beside the pages.
struct RecordShape {
  std::vector<size_t> bytes;  // of each record: float32 values
  int64_t max_records = 0;    // slots, each with all records at one length; at least 2 * num_rows for each sequence
  int32_t num_rows = 1;       // a step hands the records back after each of its last num_rows rows
};

// One head's block of an encoded page. sinks: nullptr but on page 0.
struct KvCodeBlock {
  uint8_t* k;
  uint8_t* v;
  uint8_t* sinks;
};

struct KvUsage {
  size_t bytes_exact, bytes_encoded, bytes_records;  // the last: of records and sources
  int64_t pages_shared, reuse_points, points_given_up;  // the last: since it was made, when room ran out
  int64_t records_used;                                 // of sequences, points and the step at hand
};

// How far an import has come: settled pages below next_page are filled.
struct KvImport {
  int64_t num_tokens, next_page;
};

// Whole pages before the exact zone of a sequence of that length; encoded layers have codes of exactly these.
constexpr int64_t settled_pages(int64_t num_tokens) {
  return num_tokens < 2 * kPageTokens ? 0 : num_tokens / kPageTokens - 1;
}

// Throws std::invalid_argument, `which` and then what is wrong, for a codec that is not valid.
void require_valid_codec(const KvCodec& codec, const std::string& which = {});

class StateCache {
 public:
  // Reserves address space for max_pages pages of tokens; no memory is used until tokens are written. Of exact pages
  // that do not stay there are as many as max_sequences sequences, a step of max_step_rows and num_reuse_points need.
  StateCache(std::vector<KvLayerShape> layers, KvType type, int64_t max_pages, int32_t max_sequences,
             int32_t max_step_rows = 512, int32_t num_reuse_points = 0, const RecordShape& records = {});
  ~StateCache();

  int32_t create();                               // new empty sequence id; throws std::length_error when none is free
  void free(int32_t seq);                         // throws std::invalid_argument for one that is not there (all do)
  int32_t fork(int32_t seq, int64_t num_tokens);  // shares full pages, copies the partial one; keeps the points before
  void truncate(int32_t seq, int64_t num_tokens);
  int64_t length(int32_t seq) const;              // tokens cached
  void reserve(int32_t seq, int64_t num_tokens);  // makes pages for positions < num_tokens; throws std::length_error if
                                                  // none left; copies a shared partial page before it is written
  void commit(int32_t seq, int64_t num_tokens);   // sets the length after a step succeeded; the encodes were done
  void undo(int32_t seq);                         // what reserve did, after a step failed
  // As reserve, for tokens that are written without a step: records stay what they are.
  void reserve_pages(int32_t seq, int64_t num_tokens);
  // Pages that this sequence has to encode between reserve and commit, ascending. Another sequence of the same step may
  // do it for pages that both share.
  const std::vector<int32_t>& encodes(int32_t seq) const;

  // Records of one sequence: what a step begins from, and between reserve and commit where it leaves what it has after
  // its last row and num_next_records - 1 rows before. An empty sequence begins from zeros.
  const uint8_t* record(int32_t seq, int32_t record) const;
  int32_t num_next_records(int32_t seq) const;
  uint8_t* next_record(int32_t seq, int32_t record, int32_t rows_before_last) const;
  int64_t records_free() const;

  // Takes a source of so many tokens, zeros, for k_block and v_block to be filled; forks share it from then on. Throws
  // std::invalid_argument when it is set already, after the first step, or for a number that does not fit.
  void set_source(int32_t seq, int32_t layer, int64_t num_tokens);
  int64_t source_tokens(int32_t seq, int32_t layer) const;  // 0: not set

  bool can_reuse_anywhere() const;
  void mark_reuse(int32_t seq);
  void unmark_reuse(int32_t seq, int64_t num_tokens);  // throws std::invalid_argument when it is no point
  bool is_reuse_point(int32_t seq, int64_t num_tokens) const;
  std::vector<int64_t> reuse_points(int32_t seq) const;
  int64_t last_reusable(int32_t seq, int64_t num_tokens) const;

  // Copies for storage; sizes are the caller's to check, and that points are reusable.
  size_t stored_page_bytes() const;
  size_t stored_tail_bytes(int64_t num_tokens) const;
  void export_pages(int32_t seq, int64_t first_page, int64_t last_page, uint8_t* out) const;
  void export_tail(int32_t seq, int64_t num_tokens, uint8_t* out);
  // A sequence is imported piece by piece, so that little of it lies in memory twice: begin_import takes all its pages,
  // import_pages fills the next settled ones, import_tail the rest. Until then it is no sequence to any call but free.
  int32_t begin_import(int64_t num_tokens);
  KvImport importing(int32_t seq) const;  // throws std::invalid_argument when it is not being imported
  void import_pages(int32_t seq, const uint8_t* pages, int64_t num_pages);
  void import_tail(int32_t seq, const uint8_t* tail);  // std::invalid_argument while a settled page is missing
  std::string fingerprint() const;

  void* k_block(int32_t seq, int64_t page, int32_t layer, int32_t head) const;
  void* v_block(int32_t seq, int64_t page, int32_t layer, int32_t head) const;
  KvCodeBlock codes(int32_t seq, int64_t page, int32_t layer, int32_t head) const;

  // The book of pages. Every 128 tokens of a sequence count as one page, whatever is still kept of them; forks share.
  int64_t pages_used() const;
  int64_t pages_free() const;
  // Takes those of positions < num_tokens before a step comes, with the copy of a shared page that would be written.
  // False, and nothing has changed, when fewer than num_spared would then be free. They stay through steps, done and
  // undone, until give_back or truncate.
  bool hold(int32_t seq, int64_t num_tokens, int64_t num_spared = 0);
  void give_back(int32_t seq);                                  // what was taken beyond the length
  int64_t count_pages(const std::vector<int32_t>& seqs) const;  // distinct ones
  int64_t shared_pages(int32_t seq, int64_t first_page) const;  // from first_page on, that others have too

  KvType type() const;
  size_t page_bytes() const;  // all layers, one page of tokens that stays
  size_t bytes_used() const;
  KvUsage usage() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Makes a sequence's present length a reuse point while this lives, so that it can be gone back to.
class ReuseHere {
 public:
  ReuseHere(StateCache& kv, int32_t seq) : kv_(kv), seq_(seq), num_tokens_(kv.length(seq)) {
    was_point_ = num_tokens_ == 0 || kv.is_reuse_point(seq, num_tokens_);
    kv.mark_reuse(seq);
  }
  ~ReuseHere() {
    if (!was_point_ && kv_.is_reuse_point(seq_, num_tokens_)) kv_.unmark_reuse(seq_, num_tokens_);
  }
  ReuseHere(const ReuseHere&) = delete;
  ReuseHere& operator=(const ReuseHere&) = delete;

 private:
  StateCache& kv_;
  int32_t seq_;
  int64_t num_tokens_;
  bool was_point_;
};

}  // namespace kamado
