// The insides of the KV cache. Pages are of several kinds, each with an arena of its own: exact pages by how long they
// are needed, codes, and the sink tokens beside the codes of a page 0.
#pragma once
#include <string>
#include <vector>

#include "kamado/align.h"
#include "kamado/state.h"
#include "state/page_arena.h"

namespace kamado {

inline int64_t pages_for(int64_t num_tokens) {
  return (num_tokens + kPageTokens - 1) / kPageTokens;
}

constexpr int32_t kNoPage = -1;
// How far back a kind's exact pages are needed, unless it is a window's tokens.
constexpr int32_t kReachAll = 0, kReachRecent = -1;

struct ExactKind {
  int32_t reach;
  std::vector<int32_t> layers;
  PageArena arena;

  // The first page that a query at `position` reads exactly.
  int64_t first_needed(int64_t position) const {
    if (reach == kReachAll) return 0;
    if (reach == kReachRecent) return settled_pages(position);
    return position < reach ? 0 : (position - reach + 1) / kPageTokens;
  }
};

struct LayerPlace {  // where a layer's heads lie within the pages of its kinds
  size_t kind;       // of exact pages
  size_t offset, k_bytes, head_bytes;
  bool is_coded;
  size_t code_offset, code_k_bytes, code_head_bytes;
  size_t sink_offset, sink_bytes;
  int32_t source;  // index of its slots, which have pages as those of a kind; kNoPage: it is none
};

struct SourceKind {
  int32_t layer;
  PageArena arena;
  std::vector<int64_t> num_tokens;  // by slot
};

struct Recorded {
  int64_t num_tokens;
  int32_t record;
};

struct ReusePoint {
  int64_t num_tokens;
  uint64_t last_used;
  int32_t record;  // kNoPage: the program has none
};

struct Holders {  // of a record
  int32_t num_points = 0;
  uint64_t last_used = 0;
};

struct Sequence {
  bool is_live = false;
  bool is_importing = false;  // length is set already, pages from next_import on hold anything
  int64_t next_import = 0;
  int64_t length = 0;
  int64_t held_tokens = 0;                  // pages that stay were taken for so many, whether a step comes or not
  std::vector<std::vector<int32_t>> exact;  // [kind][page]; kNoPage: no longer there
  std::vector<int64_t> low;                 // [kind]: pages below are there for reuse points only
  std::vector<int32_t> codes;               // [page]
  std::vector<int32_t> encodes;             // pages to encode before the next commit
  std::vector<ReusePoint> points;           // ascending
  std::vector<Recorded> records;            // ascending; the last one at the present length
  std::vector<int32_t> next_records;        // of the step at hand, which ends at next_end
  int64_t next_end = 0;
  std::vector<int32_t> sources;  // kNoPage: not set
};

struct StateCache::Impl {
  Impl(std::vector<KvLayerShape> layers, KvType type, int64_t max_pages, int32_t max_sequences, int32_t max_step_rows,
       int32_t num_reuse_points, const RecordShape& record_shape);

  // --- cache.cpp ---
  void lay_out_pages(int64_t max_pages, int32_t max_step_rows, int32_t num_reuse_points);
  bool is_there(int32_t seq) const;
  Sequence& held(int32_t seq);  // live, or being imported
  Sequence& live(int32_t seq);
  const Sequence& live(int32_t seq) const { return const_cast<Impl*>(this)->live(seq); }
  int32_t create();
  void clear(Sequence& s);
  void shrink(Sequence& s, int64_t num_tokens);
  void release(Sequence& s);
  void copy(size_t kind, int32_t from, int32_t to, int64_t num_tokens);
  void drop_exact(size_t kind, int32_t page);
  void drop_code(int32_t code);
  void forget_code(int32_t recent_page);
  void share_code(Sequence& s, int32_t code);
  int32_t code_source(const Sequence& s, int64_t page) const;
  void make_room(size_t kind, int64_t num_pages);
  [[noreturn]] static void refuse_full(const PageArena& arena, int64_t num_pages);
  uint8_t* source_block(const Sequence& s, int64_t page, int32_t layer, int32_t head) const;
  uint8_t* exact_block(int32_t seq, int64_t page, int32_t layer, int32_t head) const;

  // --- reuse.cpp ---
  bool is_point(const Sequence& s, int64_t num_tokens) const;
  bool is_kept(const Sequence& s, size_t kind, int64_t page) const;  // for a reuse point
  int64_t missing_page(const Sequence& s, int64_t num_tokens) const;
  int64_t last_reusable(const Sequence& s, int64_t num_tokens) const;
  void require_reusable(const Sequence& s, int64_t num_tokens, const char* verb) const;
  void mark(Sequence& s, int64_t num_tokens);
  void drop_point(Sequence& s, size_t index);
  bool give_up_point(size_t kind);

  // --- store.cpp ---
  template <class Visit>
  void for_each_tail_page(int64_t num_tokens, Visit visit) const;
  Sequence& importing(int32_t seq);
  void make_finite(uint8_t* bytes, size_t num_bytes) const;
  void clear_slots(size_t kind, uint8_t* page, int64_t first_slot) const;

  bool has_codes() const { return codes.payload_bytes() > 0; }
  PageArena& book() { return kinds[stay_kind].arena; }
  // Whether the step at hand writes to a page that another sequence has too.
  bool is_partial_shared(const Sequence& s, size_t kind) const {
    const auto partial = static_cast<size_t>(s.length / kPageTokens);
    return s.length % kPageTokens > 0 && kinds[kind].arena.references(s.exact[kind][partial]) > 1;
  }

  // --- step.cpp ---
  void take_pages(Sequence& s, size_t kind, int64_t num_tokens);
  void reserve(Sequence& s, int64_t num_tokens, bool with_records);

  // --- records.cpp ---
  void lay_out_records(const RecordShape& shape);
  bool has_records() const { return zero_record != kNoPage; }
  int32_t record_at(const Sequence& s, int64_t num_tokens) const;
  int64_t last_recorded(const Sequence& s, int64_t num_tokens) const;
  void share_record(Sequence& s, int64_t num_tokens, int32_t record);
  void drop_record(int32_t record);
  void drop_next(Sequence& s);
  void drop_records(Sequence& s);
  void cut_records(Sequence& s, int64_t num_tokens);
  void take_records(Sequence& s, int64_t num_tokens);
  void exchange_records(Sequence& s, int64_t num_tokens);
  bool give_up_record();
  void make_record_room(int64_t num_records);
  int32_t source_slot(const Sequence& s, int32_t layer) const;
  int32_t take_source(size_t source, int64_t num_tokens);
  void drop_sources(Sequence& s);

  std::vector<KvLayerShape> shapes;
  KvType type;
  size_t element_bytes;
  std::vector<LayerPlace> places;  // by layer
  std::vector<ExactKind> kinds;    // at least one
  size_t recent_kind = SIZE_MAX;   // index of kReachRecent
  size_t stay_kind = SIZE_MAX;     // index of kReachAll: every page of a sequence is counted there
  PageArena codes, sinks;
  // Sequences that share an exact page share its codes too, whoever encodes it.
  std::vector<int32_t> code_of;    // by page of the recent kind
  std::vector<int32_t> source_of;  // by code page: the inverse
  std::vector<int32_t> sinks_of;   // by code page: of a page 0
  std::vector<Sequence> sequences;
  std::vector<int64_t> wanted;  // [kind]: of the running reserve
  uint64_t clock = 0;
  PageArena records;                   // all records at one length in a slot
  std::vector<size_t> record_offsets;  // within a slot
  int32_t zero_record = kNoPage;       // of a sequence without tokens; kNoPage: there are no records
  int32_t record_rows = 1;
  int64_t points_given_up = 0;
  std::vector<Holders> holders;  // [records]: scratch of give_up_record
  std::vector<SourceKind> sources;
};

}  // namespace kamado
