// Sequences of the KV cache and the pages they hold (state.h). A page of exact layers is [layer][head]{K [k_dim][128],
// V [128][v_dim]}, a page of codes [layer][head]{K codes, V codes}, each block on its own cache line.
#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "kamado/refuse.h"
#include "state/impl.h"

namespace kamado {
namespace {

// Pages of one kind that do not stay: for every sequence, for a step's rows, and for reuse points; two points more are
// for the executor's own use.
int64_t transient_pages(int32_t reach, int64_t max_pages, int32_t max_sequences, int32_t max_step_rows,
                        int32_t num_reuse_points) {
  const int64_t a_point = reach == kReachRecent ? 2 : pages_for(reach - 1) + 1;
  // A sequence holds a point's pages; a step adds the page that it begins in and what its rows fill.
  const int64_t live = int64_t{max_sequences} * (a_point + 1) + max_step_rows / kPageTokens + 1;
  return std::min(max_pages, live + a_point * (int64_t{num_reuse_points} + 2));
}

void check_shape(const KvLayerShape& shape, KvType type) {
  if (shape.num_kv_heads < 0 || shape.k_dim < 1 || shape.v_dim < 1 || shape.window < 0) {
    refuse("a key-value layer needs positive dimensions");
  }
  if (shape.source_tokens < 0 ||
      (shape.source_tokens > 0 && (shape.window > 0 || shape.k_bits > 0 || shape.v_bits > 0)))
    refuse("a source is kept exactly and whole");
  if (shape.k_bits == 0 && shape.v_bits == 0) return;
  if (shape.window > 0) refuse("a layer with a window is not encoded");
  if (type != KvType::kF16) refuse("only an f16 key-value cache is encoded");
  require_valid_codec({shape.k_dim, shape.v_dim, shape.k_bits, shape.v_bits});
}

int32_t reach_of(const KvLayerShape& shape) {
  if (shape.k_bits > 0) return kReachRecent;
  return shape.window > 0 ? shape.window : kReachAll;
}

}  // namespace

void require_valid_codec(const KvCodec& codec, const std::string& which) {
  if (is_valid_codec(codec)) return;
  refuse(which, "heads of ", codec.head_dim, " and ", codec.v_dim, " values cannot be encoded with ", codec.k_bits,
         " and ", codec.v_bits, " bits");
}

StateCache::Impl::Impl(std::vector<KvLayerShape> layers, KvType kv_type, int64_t max_pages, int32_t max_sequences,
                       int32_t max_step_rows, int32_t num_reuse_points, const RecordShape& record_shape)
    : shapes(std::move(layers)),
      type(kv_type),
      element_bytes(kv_type == KvType::kF16 ? 2 : 4),
      codes(0, 0),
      sinks(0, 0),
      records(0, 0) {
  if (type != KvType::kF16 && type != KvType::kF32) refuse("unknown key-value type");
  if (max_pages < 1 || max_pages > std::numeric_limits<int32_t>::max()) {
    refuse("max_pages must be in [1, 2^31), got ", max_pages);
  }
  if (max_sequences < 1) refuse("max_sequences must be at least 1, got ", max_sequences);
  if (max_step_rows < 1 || num_reuse_points < 0) refuse("a negative number of rows or points");
  sequences.resize(static_cast<size_t>(max_sequences));
  lay_out_pages(max_pages, max_step_rows, num_reuse_points);
  lay_out_records(record_shape);
}

void StateCache::Impl::lay_out_pages(int64_t max_pages, int32_t max_step_rows, int32_t num_reuse_points) {
  const auto max_sequences = static_cast<int32_t>(sequences.size());
  std::vector<int32_t> reaches;
  std::vector<size_t> kind_bytes;
  size_t code_bytes = 0, sink_bytes = 0;
  for (const KvLayerShape& shape : shapes) {
    check_shape(shape, type);
    const auto heads = static_cast<size_t>(shape.num_kv_heads);
    const size_t row = kPageTokens * element_bytes;
    LayerPlace place{};
    place.k_bytes = align_up(checked_mul(row, static_cast<size_t>(shape.k_dim)));
    place.head_bytes = place.k_bytes + align_up(checked_mul(row, static_cast<size_t>(shape.v_dim)));
    const size_t page_bytes = checked_mul(place.head_bytes, heads);
    place.source = kNoPage;
    if (shape.source_tokens > 0) {
      place.source = static_cast<int32_t>(sources.size());
      const size_t bytes = checked_mul(page_bytes, static_cast<size_t>(pages_for(shape.source_tokens)));
      sources.push_back({static_cast<int32_t>(places.size()), PageArena(bytes, max_sequences),
                         std::vector<int64_t>(sequences.size())});
      places.push_back(place);
      continue;
    }
    const int32_t reach = reach_of(shape);
    const auto known = std::find(reaches.begin(), reaches.end(), reach);
    const auto kind = static_cast<size_t>(known - reaches.begin());
    if (known == reaches.end()) {
      reaches.push_back(reach);
      kind_bytes.push_back(0);
    }
    place.kind = kind;
    place.offset = kind_bytes[kind];
    kind_bytes[kind] = checked_add(kind_bytes[kind], page_bytes);
    if (reach == kReachRecent) {
      const KvCodec codec{shape.k_dim, shape.v_dim, shape.k_bits, shape.v_bits};
      place.is_coded = true;
      place.code_offset = code_bytes;
      place.code_k_bytes = encoded_k_page_bytes(shape.k_dim, shape.k_bits);
      place.code_head_bytes = place.code_k_bytes + encoded_v_page_bytes(shape.v_dim, shape.v_bits);
      place.sink_offset = sink_bytes;
      place.sink_bytes = align_up(encoded_sink_bytes(codec));
      code_bytes = checked_add(code_bytes, checked_mul(place.code_head_bytes, heads));
      sink_bytes = checked_add(sink_bytes, checked_mul(place.sink_bytes, heads));
    }
    places.push_back(place);
  }
  if (std::find(reaches.begin(), reaches.end(), kReachAll) == reaches.end()) {  // pages are counted, whatever is kept
    reaches.push_back(kReachAll);
    kind_bytes.push_back(0);
  }
  for (size_t kind = 0; kind < reaches.size(); ++kind) {
    const int64_t pages = reaches[kind] == kReachAll ? max_pages
                                                     : transient_pages(reaches[kind], max_pages, max_sequences,
                                                                       max_step_rows, num_reuse_points);
    kinds.push_back({reaches[kind], {}, PageArena(kind_bytes[kind], pages)});
    if (reaches[kind] == kReachRecent) recent_kind = kind;
    if (reaches[kind] == kReachAll) stay_kind = kind;
  }
  for (size_t layer = 0; layer < places.size(); ++layer) {
    if (places[layer].source == kNoPage) kinds[places[layer].kind].layers.push_back(static_cast<int32_t>(layer));
  }
  if (recent_kind != SIZE_MAX) {
    codes = PageArena(code_bytes, max_pages);
    sinks = PageArena(sink_bytes, int64_t{max_sequences});
    code_of.assign(static_cast<size_t>(kinds[recent_kind].arena.max_pages()), kNoPage);
    source_of.assign(static_cast<size_t>(max_pages), kNoPage);
    sinks_of.assign(static_cast<size_t>(max_pages), kNoPage);
  }
  wanted.resize(kinds.size());
}

bool StateCache::Impl::is_there(int32_t seq) const {
  return seq >= 0 && static_cast<size_t>(seq) < sequences.size() && sequences[static_cast<size_t>(seq)].is_live;
}

Sequence& StateCache::Impl::held(int32_t seq) {
  if (!is_there(seq)) refuse("sequence ", seq, " does not exist");
  return sequences[static_cast<size_t>(seq)];
}

Sequence& StateCache::Impl::live(int32_t seq) {
  Sequence& s = held(seq);
  if (s.is_importing) refuse("sequence ", seq, " is still being imported");
  return s;
}

int32_t StateCache::Impl::create() {
  for (size_t id = 0; id < sequences.size(); ++id) {
    Sequence& s = sequences[id];
    if (s.is_live) continue;
    s.exact.resize(kinds.size());
    s.low.assign(kinds.size(), 0);
    s.is_live = true;
    share_record(s, 0, zero_record);
    s.sources.assign(sources.size(), kNoPage);
    return static_cast<int32_t>(id);
  }
  refuse<std::length_error>("all ", sequences.size(), " sequences are in use");
}

void StateCache::Impl::refuse_full(const PageArena& arena, int64_t num_pages) {
  refuse<std::length_error>("the key-value cache is full: ", num_pages, " pages of ", kPageTokens, " tokens needed, ",
                            arena.num_free(), " of ", arena.max_pages(), " free");
}

void StateCache::Impl::make_room(size_t kind, int64_t num_pages) {
  const PageArena& arena = kinds[kind].arena;
  while (num_pages > arena.num_free()) {
    if (!give_up_point(kind)) refuse_full(arena, num_pages);
  }
}

void StateCache::Impl::forget_code(int32_t recent_page) {
  int32_t& code = code_of[static_cast<size_t>(recent_page)];
  if (code == kNoPage) return;
  source_of[static_cast<size_t>(code)] = kNoPage;
  code = kNoPage;
}

void StateCache::Impl::drop_exact(size_t kind, int32_t page) {
  if (kinds[kind].arena.drop(page) && kind == recent_kind) forget_code(page);
}

void StateCache::Impl::drop_code(int32_t code) {
  if (!codes.drop(code)) return;
  int32_t& source = source_of[static_cast<size_t>(code)];
  if (source != kNoPage) code_of[static_cast<size_t>(source)] = kNoPage;
  source = kNoPage;
  int32_t& sink = sinks_of[static_cast<size_t>(code)];
  if (sink != kNoPage) sinks.drop(sink);
  sink = kNoPage;
}

void StateCache::Impl::share_code(Sequence& s, int32_t code) {
  codes.share(code);
  s.codes.push_back(code);
}

// The exact page whose codes another sequence may have made already; kNoPage when its tokens are yet to be written.
int32_t StateCache::Impl::code_source(const Sequence& s, int64_t page) const {
  return page < s.length / kPageTokens ? s.exact[recent_kind][static_cast<size_t>(page)] : kNoPage;
}

// Copies the first num_tokens tokens of a page. K lies by dimension, so its whole block is copied; V only its rows.
void StateCache::Impl::copy(size_t kind, int32_t from, int32_t to, int64_t num_tokens) {
  const PageArena& arena = kinds[kind].arena;
  for (const int32_t layer : kinds[kind].layers) {
    const LayerPlace& place = places[static_cast<size_t>(layer)];
    const KvLayerShape& shape = shapes[static_cast<size_t>(layer)];
    const size_t v_bytes = static_cast<size_t>(num_tokens) * static_cast<size_t>(shape.v_dim) * element_bytes;
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      const size_t offset = place.offset + static_cast<size_t>(head) * place.head_bytes;
      std::memcpy(arena.at(to) + offset, arena.at(from) + offset, place.k_bytes);
      std::memcpy(arena.at(to) + offset + place.k_bytes, arena.at(from) + offset + place.k_bytes, v_bytes);
    }
  }
}

// Keeps what a sequence of num_tokens tokens has; those before must be no more than its length.
void StateCache::Impl::shrink(Sequence& s, int64_t num_tokens) {
  cut_records(s, num_tokens);
  while (!s.points.empty() && s.points.back().num_tokens > num_tokens) {
    drop_record(s.points.back().record);
    s.points.pop_back();
  }
  for (size_t kind = 0; kind < kinds.size(); ++kind) {
    auto& table = s.exact[kind];
    const int64_t kept_tokens = kind == stay_kind ? std::max(num_tokens, s.held_tokens) : num_tokens;
    while (static_cast<int64_t>(table.size()) > pages_for(kept_tokens)) {
      if (table.back() != kNoPage) drop_exact(kind, table.back());
      table.pop_back();
    }
    s.low[kind] = std::min(s.low[kind], kinds[kind].first_needed(num_tokens));
  }
  while (has_codes() && static_cast<int64_t>(s.codes.size()) > settled_pages(num_tokens)) {
    drop_code(s.codes.back());
    s.codes.pop_back();
  }
  s.encodes.clear();
  s.length = num_tokens;
}

void StateCache::Impl::clear(Sequence& s) {
  s.held_tokens = 0;
  shrink(s, 0);
  drop_records(s);
  drop_sources(s);
  s.is_live = s.is_importing = false;
}

// Gives back the exact pages that neither the next query nor a reuse point reads.
void StateCache::Impl::release(Sequence& s) {
  for (size_t kind = 0; kind < kinds.size(); ++kind) {
    const int64_t end = kinds[kind].first_needed(s.length);
    for (int64_t page = s.low[kind]; page < end; ++page) {
      int32_t& entry = s.exact[kind][static_cast<size_t>(page)];
      if (entry == kNoPage || is_kept(s, kind, page)) continue;
      drop_exact(kind, entry);
      entry = kNoPage;
    }
    s.low[kind] = std::max(s.low[kind], end);
  }
}

uint8_t* StateCache::Impl::exact_block(int32_t seq, int64_t page, int32_t layer, int32_t head) const {
  const Sequence& s = live(seq);
  if (layer >= 0 && static_cast<size_t>(layer) < places.size() && page >= 0 && head >= 0 &&
      head < shapes[static_cast<size_t>(layer)].num_kv_heads) {
    const LayerPlace& place = places[static_cast<size_t>(layer)];
    if (place.source != kNoPage) return source_block(s, page, layer, head);
    const auto& table = s.exact[place.kind];
    const int32_t entry = static_cast<size_t>(page) < table.size() ? table[static_cast<size_t>(page)] : kNoPage;
    if (entry != kNoPage)
      return kinds[place.kind].arena.at(entry) + place.offset + static_cast<size_t>(head) * place.head_bytes;
  }
  refuse<std::out_of_range>("no key-value block for page ", page, ", layer ", layer, ", head ", head);
}

StateCache::StateCache(std::vector<KvLayerShape> layers, KvType type, int64_t max_pages, int32_t max_sequences,
                       int32_t max_step_rows, int32_t num_reuse_points, const RecordShape& records)
    : impl_(std::make_unique<Impl>(std::move(layers), type, max_pages, max_sequences, max_step_rows, num_reuse_points,
                                   records)) {}

StateCache::~StateCache() = default;

int32_t StateCache::create() {
  return impl_->create();
}

void StateCache::free(int32_t seq) {
  impl_->clear(impl_->held(seq));
}

int32_t StateCache::fork(int32_t seq, int64_t num_tokens) {
  Impl& impl = *impl_;
  Sequence& parent = impl.live(seq);
  impl.require_reusable(parent, num_tokens, "fork");
  const int64_t whole = num_tokens / kPageTokens, rest = num_tokens % kPageTokens;
  const int32_t id = create();
  Sequence& child = impl.sequences[static_cast<size_t>(id)];
  try {
    const auto last = std::upper_bound(parent.points.begin(), parent.points.end(), num_tokens,
                                       [](int64_t n, const ReusePoint& point) { return n < point.num_tokens; });
    for (auto point = parent.points.begin(); point != last; ++point) {
      child.points.push_back(*point);
      if (impl.has_records()) impl.records.share(point->record);
    }
    impl.drop_records(child);
    impl.share_record(child, num_tokens, impl.record_at(parent, num_tokens));
    for (size_t source = 0; source < impl.sources.size(); ++source) {
      child.sources[source] = parent.sources[source];
      if (child.sources[source] != kNoPage) impl.sources[source].arena.share(child.sources[source]);
    }
    if (impl.is_point(parent, num_tokens)) impl.mark(parent, num_tokens);
    impl.mark(child, num_tokens);
    child.length = num_tokens;
    for (size_t kind = 0; kind < impl.kinds.size(); ++kind) {
      const auto& from = parent.exact[kind];
      auto& table = child.exact[kind];
      table.reserve(static_cast<size_t>(pages_for(num_tokens)));
      child.low[kind] = impl.kinds[kind].first_needed(num_tokens);
      for (int64_t page = 0; page < pages_for(num_tokens); ++page) {
        int32_t entry = from[static_cast<size_t>(page)];
        if (page < child.low[kind] && !impl.is_kept(child, kind, page)) entry = kNoPage;
        if (entry != kNoPage) impl.kinds[kind].arena.share(entry);
        table.push_back(entry);
      }
    }
    if (impl.has_codes()) {
      child.codes.reserve(static_cast<size_t>(settled_pages(num_tokens)));
      for (int64_t page = 0; page < settled_pages(num_tokens); ++page)
        impl.share_code(child, parent.codes[static_cast<size_t>(page)]);
    }
    // Points may be given up for these copies, but what the child holds already stays.
    for (size_t kind = 0; rest > 0 && kind < impl.kinds.size(); ++kind) {
      impl.make_room(kind, 1);
      int32_t& entry = child.exact[kind][static_cast<size_t>(whole)];
      const int32_t own = impl.kinds[kind].arena.take();
      impl.copy(kind, entry, own, rest);
      impl.drop_exact(kind, entry);
      entry = own;
    }
  } catch (...) {
    impl.clear(child);
    throw;
  }
  return id;
}

void StateCache::truncate(int32_t seq, int64_t num_tokens) {
  Impl& impl = *impl_;
  Sequence& s = impl.live(seq);
  if (num_tokens != s.length) {
    impl.require_reusable(s, num_tokens, "truncate");
    if (impl.is_point(s, num_tokens)) impl.mark(s, num_tokens);
  }
  s.held_tokens = 0;
  impl.shrink(s, num_tokens);
}

int64_t StateCache::length(int32_t seq) const {
  return impl_->live(seq).length;
}

const std::vector<int32_t>& StateCache::encodes(int32_t seq) const {
  return impl_->live(seq).encodes;
}

void* StateCache::k_block(int32_t seq, int64_t page, int32_t layer, int32_t head) const {
  return impl_->exact_block(seq, page, layer, head);
}

void* StateCache::v_block(int32_t seq, int64_t page, int32_t layer, int32_t head) const {
  return impl_->exact_block(seq, page, layer, head) + impl_->places[static_cast<size_t>(layer)].k_bytes;
}

KvCodeBlock StateCache::codes(int32_t seq, int64_t page, int32_t layer, int32_t head) const {
  const Impl& impl = *impl_;
  const Sequence& s = impl.live(seq);
  if (layer < 0 || static_cast<size_t>(layer) >= impl.places.size() ||
      !impl.places[static_cast<size_t>(layer)].is_coded || page < 0 || page >= static_cast<int64_t>(s.codes.size()) ||
      head < 0 || head >= impl.shapes[static_cast<size_t>(layer)].num_kv_heads) {
    refuse<std::out_of_range>("no codes for page ", page, ", layer ", layer, ", head ", head);
  }
  const LayerPlace& place = impl.places[static_cast<size_t>(layer)];
  const int32_t code = s.codes[static_cast<size_t>(page)], sink = impl.sinks_of[static_cast<size_t>(code)];
  uint8_t* k = impl.codes.at(code) + place.code_offset + static_cast<size_t>(head) * place.code_head_bytes;
  uint8_t* sinks =
      page > 0 ? nullptr : impl.sinks.at(sink) + place.sink_offset + static_cast<size_t>(head) * place.sink_bytes;
  return {k, k + place.code_k_bytes, sinks};
}

KvType StateCache::type() const {
  return impl_->type;
}

size_t StateCache::page_bytes() const {
  size_t bytes = impl_->codes.page_bytes();
  for (const ExactKind& kind : impl_->kinds) bytes += kind.reach == kReachAll ? kind.arena.page_bytes() : 0;
  return bytes;
}

int64_t StateCache::pages_used() const {
  return impl_->book().num_used();
}

int64_t StateCache::pages_free() const {
  return impl_->book().num_free();
}

int64_t StateCache::count_pages(const std::vector<int32_t>& seqs) const {
  std::vector<bool> is_counted(static_cast<size_t>(impl_->book().max_pages()));
  int64_t count = 0;
  for (const int32_t seq : seqs) {
    for (const int32_t page : impl_->held(seq).exact[impl_->stay_kind]) {
      count += !is_counted[static_cast<size_t>(page)];
      is_counted[static_cast<size_t>(page)] = true;
    }
  }
  return count;
}

int64_t StateCache::shared_pages(int32_t seq, int64_t first_page) const {
  const auto& table = impl_->held(seq).exact[impl_->stay_kind];
  const auto begin =
      static_cast<int64_t>(std::min<uint64_t>(static_cast<uint64_t>(std::max<int64_t>(0, first_page)), table.size()));
  return std::count_if(table.begin() + begin, table.end(),
                       [this](int32_t page) { return impl_->book().references(page) > 1; });
}

size_t StateCache::bytes_used() const {
  const KvUsage now = usage();
  return now.bytes_exact + now.bytes_encoded;
}

KvUsage StateCache::usage() const {
  const Impl& impl = *impl_;
  KvUsage usage{0,
                impl.codes.bytes_used() + impl.sinks.bytes_used(),
                impl.records.bytes_used(),
                impl.codes.num_shared(),
                0,
                impl.points_given_up,
                0};
  if (impl.has_records()) {
    usage.bytes_records -= impl.records.page_bytes();  // the zeros
    usage.records_used = impl.records.num_used() - 1;
  }
  for (const SourceKind& source : impl.sources) usage.bytes_records += source.arena.bytes_used();
  for (const ExactKind& kind : impl.kinds) {
    usage.bytes_exact += kind.arena.bytes_used();
    if (kind.arena.payload_bytes() > 0) usage.pages_shared += kind.arena.num_shared();
  }
  for (const Sequence& s : impl.sequences) usage.reuse_points += static_cast<int64_t>(s.points.size());
  return usage;
}

}  // namespace kamado
