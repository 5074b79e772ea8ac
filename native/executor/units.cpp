// The step's attention work for each kind of layer. Longest first: blocks late in a chunk see the most keys.
#include "executor/units.h"

#include <algorithm>

namespace kamado {
namespace {

void clear(Units& list) {
  list.stores.clear();
  list.encodes.clear();
  list.reads_encodes = false;
  list.blocks.clear();
  list.singles.clear();
  list.splits.clear();
}

}  // namespace

UnitMaker::UnitMaker(const Plan& plan, const Sequences& sequences, const StepMemory& memory, const Step& step,
                     int32_t num_threads)
    : plan_(plan),
      cache_(sequences.cache()),
      has_codes_(sequences.has_codes()),
      step_(step),
      num_threads_(num_threads),
      num_partial_slots_(memory.attend().num_partial_slots),
      row_places_(memory.max_rows()),
      lists_(plan.unit_kinds.size()) {
  for (Units& list : lists_) {
    list.stores.reserve(memory.max_rows());
    list.encodes.reserve(has_codes_ ? memory.max_rows() : 0);
    list.blocks.reserve(memory.max_rows());
    list.singles.reserve(memory.max_rows());
    list.splits.reserve(static_cast<size_t>(memory.attend().max_pairs));
  }
}

void UnitMaker::begin_step() {
  if (plan_.has_tail_units) note_sequences();
  for (size_t i = 0; i < lists_.size(); ++i) {
    if (!plan_.unit_kinds[i].is_tail) make_units(plan_.unit_kinds[i], lists_[i]);
  }
}

void UnitMaker::begin_segment(const Segment& segment) {
  for (size_t i = 0; i < lists_.size(); ++i) {
    if (plan_.unit_kinds[i].is_tail) make_tail_units(segment, plan_.unit_kinds[i], lists_[i]);
  }
}

// Keys that a sequence of `total` tokens has for this kind of layer.
int64_t UnitMaker::tokens_seen(const UnitKind& kind, int32_t sequence, int64_t total) const {
  return kind.source == -1 ? total : cache_.source_tokens(sequence, kind.source);
}

void UnitMaker::make_units(const UnitKind& kind, Units& list) const {
  clear(list);
  const bool may_encode = has_codes_ && kind.stores && kind.window == 0 && kind.is_causal;
  const Executor::Batch& given = *step_.batch;
  int32_t row = 0;
  for (size_t s = 0; s < given.num_sequences; ++s) {
    const int32_t sequence = given.sequences[s], count = given.counts[s], end = row + count;
    const int64_t start = step_.positions[static_cast<size_t>(row)] - int64_t{row};  // position = start + row
    const int64_t total = start + end, seen = tokens_seen(kind, sequence, total);
    const auto wanted = [&](int32_t r) { return !kind.is_last || step_.is_wanted[static_cast<size_t>(r)] != 0; };
    const bool stores_itself = kind.stores && count == 1 && wanted(row) && kind.is_causal;
    if (may_encode) {
      for (const int32_t page : cache_.encodes(sequence)) list.encodes.push_back({sequence, page});
      list.reads_encodes = list.reads_encodes || code_pages(total - 1) > settled_pages(total - count);
    }
    if (kind.stores && !stores_itself) {
      for (int32_t r = row; r < end;) {
        const int64_t position = start + r;
        const auto rows = static_cast<int32_t>(std::min<int64_t>(end - r, kPageTokens - position % kPageTokens));
        list.stores.push_back({sequence, r, rows, position});
        r += rows;
      }
    }
    for (int32_t r = row; r < end;) {
      int32_t run = 0;
      while (r + run < end && wanted(r + run)) ++run;
      if (run > 0) add_rows(kind, {sequence, r, start + r, seen, stores_itself}, run, list);
      r += std::max(run, 1);
    }
    row = end;
  }
  split_singles(kind, list);
}

// Where each row's sequence stands in the batch.
void UnitMaker::note_sequences() {
  const Executor::Batch& given = *step_.batch;
  auto row = row_places_.begin();
  for (size_t s = 0; s < given.num_sequences; ++s) row = std::fill_n(row, given.counts[s], static_cast<int32_t>(s));
}

// Of a layer in the tail, which stores nothing: rows are those of the segment.
void UnitMaker::make_tail_units(const Segment& segment, const UnitKind& kind, Units& list) const {
  clear(list);
  const auto place = [&](int32_t r) { return row_places_[static_cast<size_t>(segment.source[r])]; };
  for (int32_t r = 0; r < segment.num_rows;) {
    int32_t run = 1;
    while (r + run < segment.num_rows && segment.source[r + run] == segment.source[r] + run &&
           place(r + run) == place(r))
      ++run;
    const auto s = static_cast<size_t>(place(r));
    const int32_t sequence = step_.batch->sequences[s];
    const int64_t total = cache_.length(sequence) + step_.batch->counts[s];
    const int64_t position = step_.positions[static_cast<size_t>(segment.source[r])];
    add_rows(kind, {sequence, r, position, tokens_seen(kind, sequence, total), false}, run, list);
    r += run;
  }
  split_singles(kind, list);
}

// Neighbouring rows of one sequence that attend; `first` says what is known of the first one.
void UnitMaker::add_rows(const UnitKind& kind, const SingleUnit& first, int32_t num_rows, Units& list) const {
  const int32_t block_rows = std::max(1, kMaxQueries / kind.group);
  const bool may_read_codes = has_codes_ && kind.window == 0 && kind.is_causal;
  for (int32_t done_rows = 0, rows; done_rows < num_rows; done_rows += rows) {
    const int64_t position = first.position + done_rows;
    rows = std::min(block_rows, num_rows - done_rows);
    // All rows of a block read the same pages as codes.
    if (may_read_codes) rows = static_cast<int32_t>(std::min<int64_t>(rows, kPageTokens - position % kPageTokens));
    if (rows > 1) {
      list.blocks.push_back({first.sequence, first.row + done_rows, rows, position, first.total});
    } else {
      const KeyRange keys = visible(position, first.total, kind.window, kind.is_causal);
      list.singles.push_back({first.sequence, first.row + done_rows, position, first.total, first.stores,
                              static_cast<int32_t>(keys.begin / kPageTokens),
                              static_cast<int32_t>((keys.end - 1) / kPageTokens) + 1});
    }
  }
}

// Puts the list in order; with few rows and heads, a row's pages are shared out too.
void UnitMaker::split_singles(const UnitKind& kind, Units& list) const {
  std::reverse(list.blocks.begin(), list.blocks.end());
  const auto num_whole = static_cast<int64_t>(list.singles.size()) * kind.num_kv_heads;
  const int64_t target = int64_t{kSplitItemsPerThread} * num_threads_;
  if (num_whole == 0 || num_whole >= target || !list.blocks.empty()) return;
  const int64_t split = std::min<int64_t>((target + num_whole - 1) / num_whole, kMaxSplitItems);
  int64_t num_slots = 0;
  int32_t num_items = 0;
  size_t num_kept = 0;
  for (SingleUnit unit : list.singles) {
    const int32_t pages = unit.page_end - unit.page_begin;
    if (pages < 2 * kMinItemPages || num_slots + pages > num_partial_slots_) {
      list.singles[num_kept++] = unit;
      continue;
    }
    unit.num_items = static_cast<int32_t>(std::min<int64_t>(split, pages / kMinItemPages));
    unit.slot = static_cast<int32_t>(num_slots);
    unit.first_item = num_items;
    num_slots += pages;
    num_items += unit.num_items;
    list.splits.push_back(unit);
  }
  list.singles.resize(num_kept);
}

}  // namespace kamado
