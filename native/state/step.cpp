// What a step takes and exchanges: pages and codes to write, records that take the place of those it read.
#include <algorithm>
#include <limits>
#include <stdexcept>

#include "kamado/refuse.h"
#include "state/impl.h"

namespace kamado {

// There must be room. Once it was taken the pages are there for the next step, so a second call changes nothing.
void StateCache::Impl::take_pages(Sequence& s, size_t kind, int64_t num_tokens) {
  auto& table = s.exact[kind];
  PageArena& arena = kinds[kind].arena;
  const auto partial = static_cast<size_t>(s.length / kPageTokens);
  if (is_partial_shared(s, kind)) {
    const int32_t own = arena.take();
    copy(kind, table[partial], own, s.length % kPageTokens);
    drop_exact(kind, table[partial]);
    table[partial] = own;
  } else if (kind == recent_kind && s.length % kPageTokens > 0) {
    forget_code(table[partial]);  // of what it held before a truncation
  }
  while (static_cast<int64_t>(table.size()) < pages_for(num_tokens)) table.push_back(arena.take());
}

void StateCache::reserve(int32_t seq, int64_t num_tokens) {
  impl_->reserve(impl_->live(seq), num_tokens, true);
}

void StateCache::reserve_pages(int32_t seq, int64_t num_tokens) {
  impl_->reserve(impl_->live(seq), num_tokens, false);
}

void StateCache::Impl::reserve(Sequence& s, int64_t num_tokens, bool with_records) {
  if (num_tokens < 0) refuse("cannot reserve ", num_tokens, " tokens");
  if (num_tokens <= s.length) return;
  if (num_tokens > int64_t{std::numeric_limits<int32_t>::max()}) {
    Impl::refuse_full(book(), std::numeric_limits<int64_t>::max());
  }
  const int64_t num_pages = pages_for(num_tokens);
  const auto made_already = [&](int64_t page) {
    const int32_t source = code_source(s, page);
    return source == kNoPage ? kNoPage : code_of[static_cast<size_t>(source)];
  };
  const int64_t code_begin = static_cast<int64_t>(s.codes.size());
  const int64_t code_end = has_codes() ? settled_pages(num_tokens) : 0;
  int64_t num_codes = 0;
  for (int64_t page = code_begin; page < code_end; ++page) num_codes += made_already(page) == kNoPage;
  if (num_codes > codes.num_free()) Impl::refuse_full(codes, num_codes);
  for (size_t kind = 0; kind < kinds.size(); ++kind) {
    const int64_t missing = num_pages - static_cast<int64_t>(s.exact[kind].size());
    wanted[kind] = std::max<int64_t>(missing, 0) + is_partial_shared(s, kind);
    // Those that stay first: no point is given up for a reservation that is refused anyway.
    if (kinds[kind].reach == kReachAll) make_room(kind, wanted[kind]);
  }
  for (size_t kind = 0; kind < kinds.size(); ++kind) make_room(kind, wanted[kind]);
  drop_next(s);
  if (with_records && has_records()) {
    make_record_room(std::min<int64_t>(record_rows, num_tokens - s.length));
    take_records(s, num_tokens);
  }
  for (auto& table : s.exact) table.reserve(static_cast<size_t>(num_pages));
  if (code_end > code_begin) {
    s.codes.reserve(static_cast<size_t>(code_end));
    s.encodes.reserve(static_cast<size_t>(code_end));
  }

  for (size_t kind = 0; kind < kinds.size(); ++kind) take_pages(s, kind, num_tokens);
  for (int64_t page = code_begin; page < code_end; ++page) {
    const int32_t made = made_already(page);
    if (made != kNoPage) {
      share_code(s, made);
      continue;
    }
    const int32_t code = codes.take(), source = code_source(s, page);
    s.codes.push_back(code);
    s.encodes.push_back(static_cast<int32_t>(page));
    if (page == 0) sinks_of[static_cast<size_t>(code)] = sinks.take();
    if (source == kNoPage) continue;
    code_of[static_cast<size_t>(source)] = code;
    source_of[static_cast<size_t>(code)] = source;
  }
}

void StateCache::commit(int32_t seq, int64_t num_tokens) {
  Impl& impl = *impl_;
  Sequence& s = impl.live(seq);
  int64_t num_reserved = std::numeric_limits<int64_t>::max();
  for (const auto& table : s.exact) num_reserved = std::min(num_reserved, static_cast<int64_t>(table.size()));
  if (num_tokens < s.length || pages_for(num_tokens) > num_reserved) {
    refuse("cannot commit ", num_tokens, " tokens: ", s.length, " are cached, ", num_reserved, " pages reserved");
  }
  if (impl.has_records() && num_tokens > s.length) {
    const auto num_next = static_cast<int64_t>(s.next_records.size());
    if (num_next > 0 && (num_tokens > s.next_end || num_tokens <= s.next_end - num_next)) {
      refuse("cannot commit ", num_tokens, " tokens: no record after them was handed back");
    }
    impl.exchange_records(s, num_tokens);
  }
  impl.shrink(s, num_tokens);
  impl.release(s);
}

void StateCache::undo(int32_t seq) {
  Sequence& s = impl_->live(seq);
  impl_->shrink(s, s.length);
}

bool StateCache::hold(int32_t seq, int64_t num_tokens, int64_t num_spared) {
  Impl& impl = *impl_;
  Sequence& s = impl.live(seq);
  if (num_tokens < 0) refuse("cannot hold pages for ", num_tokens, " tokens");
  if (num_tokens <= s.length) return true;
  const auto num_held = static_cast<int64_t>(s.exact[impl.stay_kind].size());
  const int64_t wanted = std::max<int64_t>(0, num_tokens / kPageTokens + (num_tokens % kPageTokens > 0) - num_held) +
                         impl.is_partial_shared(s, impl.stay_kind);
  if (wanted > 0 && wanted > impl.book().num_free() - num_spared) return false;
  impl.take_pages(s, impl.stay_kind, num_tokens);
  s.held_tokens = std::max(s.held_tokens, num_tokens);
  return true;
}

void StateCache::give_back(int32_t seq) {
  Sequence& s = impl_->live(seq);
  s.held_tokens = 0;
  impl_->shrink(s, s.length);
}

}  // namespace kamado
