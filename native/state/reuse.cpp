// Reuse points: which lengths of a sequence can be gone back to, and what is given up when exact pages run out.
#include <algorithm>
#include <stdexcept>

#include "kamado/refuse.h"
#include "state/impl.h"

namespace kamado {
namespace {

// The first point that reaches past `num_tokens`.
template <class Points>
auto first_after(Points& points, int64_t num_tokens) {
  return std::upper_bound(points.begin(), points.end(), num_tokens,
                          [](int64_t n, const ReusePoint& point) { return n < point.num_tokens; });
}

}  // namespace

bool StateCache::Impl::is_point(const Sequence& s, int64_t num_tokens) const {
  const auto after = first_after(s.points, num_tokens);
  return after != s.points.begin() && std::prev(after)->num_tokens == num_tokens;
}

// Of the points that have the page, the nearest one reaches back furthest.
bool StateCache::Impl::is_kept(const Sequence& s, size_t kind, int64_t page) const {
  const auto point = first_after(s.points, page * kPageTokens);
  return point != s.points.end() && kinds[kind].first_needed(point->num_tokens) <= page;
}

// The last page that going on at num_tokens would read exactly and that is gone; -1: none.
int64_t StateCache::Impl::missing_page(const Sequence& s, int64_t num_tokens) const {
  int64_t missing = -1;
  for (size_t kind = 0; kind < kinds.size(); ++kind) {
    if (kinds[kind].reach == kReachAll) continue;
    for (int64_t page = pages_for(num_tokens); page-- > kinds[kind].first_needed(num_tokens);) {
      if (s.exact[kind][static_cast<size_t>(page)] != kNoPage) continue;
      missing = std::max(missing, page);
      break;
    }
  }
  return missing;
}

int64_t StateCache::Impl::last_reusable(const Sequence& s, int64_t num_tokens) const {
  num_tokens = std::clamp<int64_t>(num_tokens, 0, s.length);
  while (true) {
    if (has_records()) num_tokens = last_recorded(s, num_tokens);
    const int64_t missing = missing_page(s, num_tokens);
    if (missing == -1) return num_tokens;
    num_tokens = missing * kPageTokens;
  }
}

void StateCache::Impl::require_reusable(const Sequence& s, int64_t num_tokens, const char* verb) const {
  const std::string what = std::string("cannot ") + verb;
  if (num_tokens < 0 || num_tokens > s.length) {
    refuse(what, " at ", num_tokens, " tokens of a sequence of ", s.length);
  }
  const bool has_record = !has_records() || record_at(s, num_tokens) != kNoPage;
  if (has_record && missing_page(s, num_tokens) == -1) return;
  refuse(what, " at ", num_tokens, " tokens, where ", (has_record ? "the exact pages are gone" : "no record was kept"),
         ": the last reusable length before is ", last_reusable(s, num_tokens));
}

void StateCache::Impl::mark(Sequence& s, int64_t num_tokens) {
  if (num_tokens == 0) return;
  const auto after = first_after(s.points, num_tokens);
  if (after != s.points.begin() && std::prev(after)->num_tokens == num_tokens) {
    std::prev(after)->last_used = ++clock;
  } else {
    const int32_t record = has_records() ? record_at(s, num_tokens) : kNoPage;
    s.points.insert(after, ReusePoint{num_tokens, ++clock, record});
    if (record != kNoPage) records.share(record);
  }
}

void StateCache::Impl::drop_point(Sequence& s, size_t index) {
  const int64_t num_tokens = s.points[index].num_tokens;
  drop_record(s.points[index].record);
  s.points.erase(s.points.begin() + static_cast<int64_t>(index));
  for (size_t kind = 0; kind < kinds.size(); ++kind) {
    const int64_t end = std::min(pages_for(num_tokens), s.low[kind]);
    for (int64_t page = kinds[kind].first_needed(num_tokens); page < end; ++page) {
      int32_t& entry = s.exact[kind][static_cast<size_t>(page)];
      if (entry == kNoPage || is_kept(s, kind, page)) continue;
      drop_exact(kind, entry);
      entry = kNoPage;
    }
  }
}

// Drops the point that was used longest ago of those that keep a page of this kind; false when there is none.
bool StateCache::Impl::give_up_point(size_t kind) {
  Sequence* oldest = nullptr;
  size_t index = 0;
  for (Sequence& s : sequences) {
    for (size_t i = 0; i < s.points.size(); ++i) {
      const ReusePoint& point = s.points[i];
      if (oldest != nullptr && point.last_used >= oldest->points[index].last_used) continue;
      const int64_t end = std::min(pages_for(point.num_tokens), s.low[kind]);
      if (kinds[kind].first_needed(point.num_tokens) >= end) continue;
      oldest = &s;
      index = i;
    }
  }
  if (oldest == nullptr) return false;
  drop_point(*oldest, index);
  ++points_given_up;
  return true;
}

bool StateCache::can_reuse_anywhere() const {
  return !impl_->has_records() && std::all_of(impl_->kinds.begin(), impl_->kinds.end(),
                                              [](const ExactKind& kind) { return kind.reach == kReachAll; });
}

void StateCache::mark_reuse(int32_t seq) {
  Sequence& s = impl_->live(seq);
  impl_->mark(s, s.length);
}

void StateCache::unmark_reuse(int32_t seq, int64_t num_tokens) {
  Sequence& s = impl_->live(seq);
  if (!impl_->is_point(s, num_tokens)) {
    refuse(num_tokens, " tokens are no reuse point");
  }
  impl_->drop_point(s, static_cast<size_t>(first_after(s.points, num_tokens) - s.points.begin() - 1));
}

bool StateCache::is_reuse_point(int32_t seq, int64_t num_tokens) const {
  return impl_->is_point(impl_->live(seq), num_tokens);
}

std::vector<int64_t> StateCache::reuse_points(int32_t seq) const {
  std::vector<int64_t> result;
  for (const ReusePoint& point : impl_->live(seq).points) result.push_back(point.num_tokens);
  return result;
}

int64_t StateCache::last_reusable(int32_t seq, int64_t num_tokens) const {
  return impl_->last_reusable(impl_->live(seq), num_tokens);
}

}  // namespace kamado
