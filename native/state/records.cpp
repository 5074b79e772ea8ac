// Records: a fixed number of bytes that a step replaces. All records of a sequence at one length lie in one slot of the
// arena, which nothing writes to once its step was committed; whoever needs it again shares it. Sources: keys and
// values that are made once, a slot each, shared by all forks.
#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "kamado/refuse.h"
#include "state/impl.h"

namespace kamado {

// Sizes the arena: slots for what was asked, one for a mark of the executor's own, and the zeros that an empty sequence
// has, which are never written and so take no memory.
void StateCache::Impl::lay_out_records(const RecordShape& shape) {
  record_rows = shape.num_rows;
  size_t bytes = 0;
  for (const size_t one : shape.bytes) {
    if (one == 0 || one % sizeof(float) != 0) refuse("a record is a number of float32");
    record_offsets.push_back(bytes);
    bytes = checked_add(bytes, align_up(one));
  }
  if (shape.bytes.empty()) return;
  const int64_t least = 2 * int64_t{record_rows} * static_cast<int64_t>(sequences.size());
  if (record_rows < 1 || shape.max_records < least) {
    refuse("max_records must be at least ", least, ", got ", shape.max_records);
  }
  if (shape.max_records > std::numeric_limits<int32_t>::max() - 2) refuse("too many records");
  records = PageArena(bytes, shape.max_records + 2);
  zero_record = records.take();
  holders.resize(static_cast<size_t>(records.max_pages()));
}

// The slot of what the sequence kept at a length; kNoPage when it kept none there.
int32_t StateCache::Impl::record_at(const Sequence& s, int64_t num_tokens) const {
  if (num_tokens == 0) return zero_record;
  const auto is_there = [num_tokens](const auto& kept) { return kept.num_tokens == num_tokens; };
  const auto recent = std::find_if(s.records.begin(), s.records.end(), is_there);
  if (recent != s.records.end()) return recent->record;
  const auto point = std::find_if(s.points.begin(), s.points.end(), is_there);
  return point == s.points.end() ? kNoPage : point->record;
}

// The greatest length up to num_tokens that has a record.
int64_t StateCache::Impl::last_recorded(const Sequence& s, int64_t num_tokens) const {
  int64_t last = 0;
  const auto look_at = [&](const auto& kept) {
    if (kept.num_tokens <= num_tokens) last = std::max(last, kept.num_tokens);
  };
  std::for_each(s.records.begin(), s.records.end(), look_at);
  std::for_each(s.points.begin(), s.points.end(), look_at);
  return last;
}

void StateCache::Impl::share_record(Sequence& s, int64_t num_tokens, int32_t record) {
  if (!has_records()) return;
  records.share(record);
  s.records.push_back({num_tokens, record});
}

void StateCache::Impl::drop_record(int32_t record) {
  if (record != kNoPage) records.drop(record);
}

void StateCache::Impl::drop_next(Sequence& s) {
  for (const int32_t record : s.next_records) records.drop(record);
  s.next_records.clear();
}

// What a sequence of num_tokens tokens goes on from, which it kept.
void StateCache::Impl::cut_records(Sequence& s, int64_t num_tokens) {
  if (!has_records()) return;
  drop_next(s);
  const int32_t record = record_at(s, num_tokens);
  if (s.records.empty() || s.records.back().num_tokens != num_tokens) {
    records.share(record);
    while (!s.records.empty() && s.records.back().num_tokens >= num_tokens) {
      records.drop(s.records.back().record);
      s.records.pop_back();
    }
    s.records.push_back({num_tokens, record});
  }
}

void StateCache::Impl::drop_records(Sequence& s) {
  drop_next(s);
  for (const Recorded& kept : s.records) records.drop(kept.record);
  s.records.clear();
}

// Slots for a step that ends at num_tokens: after each of its last rows one.
void StateCache::Impl::take_records(Sequence& s, int64_t num_tokens) {
  const int64_t wanted = std::min<int64_t>(record_rows, num_tokens - s.length);
  while (static_cast<int64_t>(s.next_records.size()) < wanted) s.next_records.push_back(records.take());
  s.next_end = num_tokens;
}

// Puts what the step wrote in the place of what it read; without new records the old ones stand for the new length.
void StateCache::Impl::exchange_records(Sequence& s, int64_t num_tokens) {
  if (s.next_records.empty()) {
    if (!s.records.empty()) s.records.back().num_tokens = num_tokens;
    return;
  }
  int64_t length = s.next_end - static_cast<int64_t>(s.next_records.size());
  for (const int32_t record : s.next_records) {
    if (++length <= num_tokens) {
      s.records.push_back({length, record});
    } else {
      records.drop(record);
    }
  }
  s.next_records.clear();
  const auto is_old = [&](const Recorded& kept) {
    const bool old = kept.num_tokens <= num_tokens - record_rows;
    if (old) records.drop(kept.record);
    return old;
  };
  s.records.erase(std::remove_if(s.records.begin(), s.records.end(), is_old), s.records.end());
}

// Gives up the record that was used longest ago of those that only points hold, with all of its points.
bool StateCache::Impl::give_up_record() {
  std::fill(holders.begin(), holders.end(), Holders{});
  for (const Sequence& s : sequences) {
    for (const ReusePoint& point : s.points) {
      Holders& held = holders[static_cast<size_t>(point.record)];
      held.num_points += 1;
      held.last_used = std::max(held.last_used, point.last_used);
    }
  }
  int32_t oldest = kNoPage;
  for (size_t i = 0; i < holders.size(); ++i) {
    const auto record = static_cast<int32_t>(i);
    if (holders[i].num_points == 0 || holders[i].num_points != records.references(record)) continue;
    if (oldest == kNoPage || holders[i].last_used < holders[static_cast<size_t>(oldest)].last_used) oldest = record;
  }
  if (oldest == kNoPage) return false;
  ++points_given_up;
  for (Sequence& s : sequences) {
    for (size_t i = s.points.size(); i-- > 0;) {
      if (s.points[i].record == oldest) drop_point(s, i);
    }
  }
  return true;
}

void StateCache::Impl::make_record_room(int64_t num_records) {
  while (has_records() && records.num_free() < num_records) {
    if (give_up_record()) continue;
    refuse<std::length_error>("all ", records.max_pages() - 2, " records are in use");
  }
}

int32_t StateCache::Impl::source_slot(const Sequence& s, int32_t layer) const {
  const bool is_source =
      layer >= 0 && static_cast<size_t>(layer) < places.size() && places[static_cast<size_t>(layer)].source != kNoPage;
  if (!is_source) refuse<std::out_of_range>("layer ", layer, " is no source");
  return s.sources[static_cast<size_t>(places[static_cast<size_t>(layer)].source)];
}

uint8_t* StateCache::Impl::source_block(const Sequence& s, int64_t page, int32_t layer, int32_t head) const {
  const LayerPlace& place = places[static_cast<size_t>(layer)];
  const SourceKind& kind = sources[static_cast<size_t>(place.source)];
  const int32_t slot = source_slot(s, layer);
  if (slot == kNoPage || page >= pages_for(kind.num_tokens[static_cast<size_t>(slot)])) {
    refuse<std::out_of_range>("no page ", page, " of a source in layer ", layer);
  }
  const auto heads = static_cast<int64_t>(shapes[static_cast<size_t>(layer)].num_kv_heads);
  return kind.arena.at(slot) + static_cast<size_t>(page * heads + head) * place.head_bytes;
}

void StateCache::Impl::drop_sources(Sequence& s) {
  for (size_t i = 0; i < s.sources.size(); ++i) {
    if (s.sources[i] != kNoPage) sources[i].arena.drop(s.sources[i]);
  }
  s.sources.clear();
}

int32_t StateCache::Impl::take_source(size_t source, int64_t num_tokens) {
  SourceKind& kind = sources[source];
  const int32_t slot = kind.arena.take();  // there is one for each sequence
  std::memset(kind.arena.at(slot), 0, kind.arena.payload_bytes());
  kind.num_tokens[static_cast<size_t>(slot)] = num_tokens;
  return slot;
}

void StateCache::set_source(int32_t seq, int32_t layer, int64_t num_tokens) {
  Impl& impl = *impl_;
  Sequence& s = impl.live(seq);
  const int32_t slot = impl.source_slot(s, layer);
  const std::string which = "the source of sequence " + std::to_string(seq) + ' ';
  if (slot != kNoPage) refuse(which, "is set already");
  if (s.length > 0) refuse(which, "must be set before its first step");
  const auto most = int64_t{impl.shapes[static_cast<size_t>(layer)].source_tokens};
  if (num_tokens < 1 || num_tokens > most) {
    refuse(which, "has 1 to ", most, " tokens, got ", num_tokens);
  }
  const auto source = static_cast<size_t>(impl.places[static_cast<size_t>(layer)].source);
  s.sources[source] = impl.take_source(source, num_tokens);
}

int64_t StateCache::source_tokens(int32_t seq, int32_t layer) const {
  const int32_t slot = impl_->source_slot(impl_->live(seq), layer);
  if (slot == kNoPage) return 0;
  const auto source = static_cast<size_t>(impl_->places[static_cast<size_t>(layer)].source);
  return impl_->sources[source].num_tokens[static_cast<size_t>(slot)];
}

const uint8_t* StateCache::record(int32_t seq, int32_t record) const {
  return impl_->records.at(impl_->live(seq).records.back().record) +
         impl_->record_offsets.at(static_cast<size_t>(record));
}

int32_t StateCache::num_next_records(int32_t seq) const {
  return static_cast<int32_t>(impl_->live(seq).next_records.size());
}

uint8_t* StateCache::next_record(int32_t seq, int32_t record, int32_t rows_before_last) const {
  const auto& next = impl_->live(seq).next_records;
  const size_t from_back = static_cast<size_t>(rows_before_last) + 1;
  if (rows_before_last < 0 || from_back > next.size()) refuse<std::out_of_range>("no such record is handed back");
  return impl_->records.at(next[next.size() - from_back]) + impl_->record_offsets.at(static_cast<size_t>(record));
}

int64_t StateCache::records_free() const {
  return impl_->has_records() ? std::max<int64_t>(0, impl_->records.num_free() - 1) : 0;
}

}  // namespace kamado
