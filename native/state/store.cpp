// Pages as bytes, for storage. A settled page is stored as it is kept: exact layers, then codes. A point's tail is what
// only it needs: the sinks of page 0 when that is encoded, then the exact pages that the next query reads, by kind.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "kamado/refuse.h"
#include "state/impl.h"

namespace kamado {
namespace {

// Numbers that are none would stay in the codes made from them: a damaged file gives wrong numbers, not these.
template <class Bits>
void make_finite_as(uint8_t* bytes, size_t num_bytes, Bits exponent) {
  for (size_t at = 0; at + sizeof(Bits) <= num_bytes; at += sizeof(Bits)) {
    Bits value;
    std::memcpy(&value, bytes + at, sizeof(Bits));
    if ((value & exponent) == exponent) value = 0;
    std::memcpy(bytes + at, &value, sizeof(Bits));
  }
}

constexpr size_t kCountBytes = sizeof(int64_t);  // of a source's number of tokens

// Copies what is stored of a page and moves on to what follows.
void take_bytes(const PageArena& arena, int32_t page, const uint8_t*& from) {
  if (arena.payload_bytes() > 0) std::memcpy(arena.at(page), from, arena.payload_bytes());
  from += arena.payload_bytes();
}

// 64-bit FNV-1a.
uint64_t hash_of(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

}  // namespace

// visit(kind, page) for the exact pages of a tail.
template <class Visit>
void StateCache::Impl::for_each_tail_page(int64_t num_tokens, Visit visit) const {
  for (size_t kind = 0; kind < kinds.size(); ++kind) {
    const bool stays = kinds[kind].reach == kReachAll;
    const int64_t begin = stays ? settled_pages(num_tokens) : kinds[kind].first_needed(num_tokens);
    for (int64_t page = begin; page < pages_for(num_tokens); ++page) visit(kind, page);
  }
}

void StateCache::Impl::make_finite(uint8_t* bytes, size_t num_bytes) const {
  if (type == KvType::kF16) {
    make_finite_as<uint16_t>(bytes, num_bytes, 0x7c00);
  } else {
    make_finite_as<uint32_t>(bytes, num_bytes, 0x7f800000);
  }
}

// Zeroes the slots of a page that hold no token of the sequence: what an earlier one left there is not for a file.
void StateCache::Impl::clear_slots(size_t kind, uint8_t* page, int64_t first_slot) const {
  const size_t used = static_cast<size_t>(first_slot) * element_bytes, all = kPageTokens * element_bytes;
  for (const int32_t layer : kinds[kind].layers) {
    const LayerPlace& place = places[static_cast<size_t>(layer)];
    const KvLayerShape& shape = shapes[static_cast<size_t>(layer)];
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      uint8_t* k = page + place.offset + static_cast<size_t>(head) * place.head_bytes;
      for (int32_t d = 0; d < shape.k_dim; ++d) std::memset(k + static_cast<size_t>(d) * all + used, 0, all - used);
      const auto v_dim = static_cast<size_t>(shape.v_dim);
      std::memset(k + place.k_bytes + used * v_dim, 0, (all - used) * v_dim);
    }
  }
}

size_t StateCache::stored_page_bytes() const {
  size_t bytes = impl_->codes.payload_bytes();
  for (const ExactKind& kind : impl_->kinds) bytes += kind.reach == kReachAll ? kind.arena.payload_bytes() : 0;
  return bytes;
}

size_t StateCache::stored_tail_bytes(int64_t num_tokens) const {
  size_t bytes = settled_pages(num_tokens) > 0 ? impl_->sinks.payload_bytes() : 0;
  impl_->for_each_tail_page(num_tokens,
                            [&](size_t kind, int64_t) { bytes += impl_->kinds[kind].arena.payload_bytes(); });
  if (num_tokens > 0) bytes += impl_->records.payload_bytes();
  for (const SourceKind& source : impl_->sources) bytes += kCountBytes + source.arena.payload_bytes();
  return bytes;
}

void StateCache::export_pages(int32_t seq, int64_t first_page, int64_t last_page, uint8_t* out) const {
  const Impl& impl = *impl_;
  const Sequence& s = impl.live(seq);
  const auto put = [&out](const PageArena& arena, int32_t page) {
    if (arena.payload_bytes() > 0) std::memcpy(out, arena.at(page), arena.payload_bytes());
    out += arena.payload_bytes();
  };
  for (int64_t page = first_page; page < last_page; ++page) {
    for (size_t kind = 0; kind < impl.kinds.size(); ++kind) {
      if (impl.kinds[kind].reach == kReachAll) put(impl.kinds[kind].arena, s.exact[kind][static_cast<size_t>(page)]);
    }
    if (impl.has_codes()) put(impl.codes, s.codes[static_cast<size_t>(page)]);
  }
}

void StateCache::export_tail(int32_t seq, int64_t num_tokens, uint8_t* out) {
  Impl& impl = *impl_;
  Sequence& s = impl.live(seq);
  impl.require_reusable(s, num_tokens, "export");
  if (impl.is_point(s, num_tokens)) impl.mark(s, num_tokens);
  if (impl.has_codes() && settled_pages(num_tokens) > 0) {
    const int32_t sinks = impl.sinks_of[static_cast<size_t>(s.codes.front())];
    std::memcpy(out, impl.sinks.at(sinks), impl.sinks.payload_bytes());
    out += impl.sinks.payload_bytes();
  }
  impl.for_each_tail_page(num_tokens, [&](size_t kind, int64_t page) {
    const PageArena& arena = impl.kinds[kind].arena;
    if (arena.payload_bytes() == 0) return;
    std::memcpy(out, arena.at(s.exact[kind][static_cast<size_t>(page)]), arena.payload_bytes());
    if ((page + 1) * kPageTokens > num_tokens) impl.clear_slots(kind, out, num_tokens % kPageTokens);
    out += arena.payload_bytes();
  });
  if (impl.has_records() && num_tokens > 0) {
    std::memcpy(out, impl.records.at(impl.record_at(s, num_tokens)), impl.records.payload_bytes());
    out += impl.records.payload_bytes();
  }
  for (size_t i = 0; i < impl.sources.size(); ++i) {
    const SourceKind& source = impl.sources[i];
    const int32_t slot = s.sources[i];
    const int64_t count = slot == kNoPage ? 0 : source.num_tokens[static_cast<size_t>(slot)];
    std::memcpy(out, &count, kCountBytes);
    out += kCountBytes;
    if (slot == kNoPage) {
      std::memset(out, 0, source.arena.payload_bytes());
    } else {
      std::memcpy(out, source.arena.at(slot), source.arena.payload_bytes());
    }
    out += source.arena.payload_bytes();
  }
}

int32_t StateCache::begin_import(int64_t num_tokens) {
  Impl& impl = *impl_;
  const int64_t settled = settled_pages(num_tokens);
  const int32_t id = impl.create();
  Sequence& s = impl.sequences[static_cast<size_t>(id)];
  const int64_t num_codes = impl.has_codes() ? settled : 0;
  try {
    if (num_codes > impl.codes.num_free()) Impl::refuse_full(impl.codes, num_codes);
    for (size_t kind = 0; kind < impl.kinds.size(); ++kind) {
      const int64_t first = impl.kinds[kind].first_needed(num_tokens);
      impl.make_room(kind, pages_for(num_tokens) - first);
      s.exact[kind].reserve(static_cast<size_t>(pages_for(num_tokens)));
    }
    s.codes.reserve(static_cast<size_t>(num_codes));
    if (impl.has_records() && num_tokens > 0) {
      impl.make_record_room(1);
      impl.drop_records(s);
      s.records.push_back({num_tokens, impl.records.take()});
    }
    impl.mark(s, num_tokens);
  } catch (...) {
    impl.clear(s);
    throw;
  }
  s.length = num_tokens;
  s.is_importing = true;
  s.next_import = 0;
  for (size_t kind = 0; kind < impl.kinds.size(); ++kind) {
    s.low[kind] = impl.kinds[kind].first_needed(num_tokens);
    for (int64_t page = 0; page < pages_for(num_tokens); ++page)
      s.exact[kind].push_back(page < s.low[kind] ? kNoPage : impl.kinds[kind].arena.take());
  }
  for (int64_t page = 0; page < num_codes; ++page) s.codes.push_back(impl.codes.take());
  if (num_codes > 0) impl.sinks_of[static_cast<size_t>(s.codes.front())] = impl.sinks.take();
  return id;
}

Sequence& StateCache::Impl::importing(int32_t seq) {
  if (is_there(seq) && held(seq).is_importing) return held(seq);
  refuse("sequence ", seq, " is not being imported");
}

KvImport StateCache::importing(int32_t seq) const {
  const Sequence& s = impl_->importing(seq);
  return {s.length, s.next_import};
}

void StateCache::import_pages(int32_t seq, const uint8_t* pages, int64_t num_pages) {
  Impl& impl = *impl_;
  Sequence& s = impl.importing(seq);
  for (const int64_t end = s.next_import + num_pages; s.next_import < end; ++s.next_import) {
    const auto page = static_cast<size_t>(s.next_import);
    for (size_t kind = 0; kind < impl.kinds.size(); ++kind) {
      if (impl.kinds[kind].reach == kReachAll) take_bytes(impl.kinds[kind].arena, s.exact[kind][page], pages);
    }
    if (impl.has_codes()) take_bytes(impl.codes, s.codes[page], pages);
  }
}

void StateCache::import_tail(int32_t seq, const uint8_t* tail) {
  Impl& impl = *impl_;
  Sequence& s = impl.importing(seq);
  if (s.next_import < settled_pages(s.length)) {
    refuse("page ", s.next_import, " of ", settled_pages(s.length), " was not imported");
  }
  if (!s.codes.empty()) take_bytes(impl.sinks, impl.sinks_of[static_cast<size_t>(s.codes.front())], tail);
  impl.for_each_tail_page(s.length, [&](size_t kind, int64_t page) {
    const PageArena& arena = impl.kinds[kind].arena;
    const int32_t entry = s.exact[kind][static_cast<size_t>(page)];
    take_bytes(arena, entry, tail);
    if (arena.payload_bytes() == 0) return;
    impl.make_finite(arena.at(entry), arena.payload_bytes());
  });
  if (impl.has_records() && s.length > 0) {
    const int32_t record = s.records.back().record;
    take_bytes(impl.records, record, tail);
    make_finite_as<uint32_t>(impl.records.at(record), impl.records.payload_bytes(), 0x7f800000);
  }
  for (size_t i = 0; i < impl.sources.size(); ++i) {
    PageArena& arena = impl.sources[i].arena;
    int64_t count;
    std::memcpy(&count, tail, kCountBytes);
    tail += kCountBytes;
    const int64_t most = impl.shapes[static_cast<size_t>(impl.sources[i].layer)].source_tokens;
    if (count < 1 || count > most) {  // not set, or damaged
      tail += arena.payload_bytes();
      continue;
    }
    s.sources[i] = impl.take_source(i, count);
    take_bytes(arena, s.sources[i], tail);
    impl.make_finite(arena.at(s.sources[i]), arena.payload_bytes());
  }
  s.is_importing = false;
}

std::string StateCache::fingerprint() const {
  const Impl& impl = *impl_;
  std::string text = "format " + std::to_string(kKvFormatVersion) + (impl.type == KvType::kF16 ? " f16" : " f32");
  for (const KvLayerShape& shape : impl.shapes) {
    for (const int32_t value : {shape.num_kv_heads, shape.k_dim, shape.v_dim, shape.k_bits, shape.v_bits, shape.window})
      text += ' ' + std::to_string(value);
    if (shape.source_tokens > 0) text += " source " + std::to_string(shape.source_tokens);
    text += ';';
  }
  for (const size_t offset : impl.record_offsets) text += " record " + std::to_string(offset);
  if (impl.has_records()) text += " of " + std::to_string(impl.records.payload_bytes());
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string result = "kv" + std::to_string(kKvFormatVersion) + "-";
  const uint64_t hash = hash_of(text);
  for (int shift = 60; shift >= 0; shift -= 4) result += kDigits[(hash >> shift) & 15];
  return result;
}

}  // namespace kamado
