// A row whose pages are shared out over threads. Partials must be merged in ascending page order, whichever thread made
// them. The thread that adopts a head takes its items from the front and merges page by page as it goes, without
// storing partials; others help from the back and leave theirs in slots, which are merged when their turn in the order
// comes.
//
// Nothing is stored and read back but what helpers leave: at 32k tokens all partials are 1.6 MB a layer in the 1.5B.
#include <algorithm>

#include "executor/attend.h"

namespace kamado {
namespace {

constexpr int kItemBits = 12;
constexpr uint64_t kItemMask = (uint64_t{1} << kItemBits) - 1;
static_assert(kMaxSplitItems <= kItemMask);

constexpr uint64_t make_word(uint64_t epoch, uint64_t high, uint64_t low) {
  return epoch << (2 * kItemBits) | high << kItemBits | low;
}

// The word's low part in this epoch.
constexpr uint64_t in_epoch(uint64_t word, uint64_t epoch) {
  return word >> (2 * kItemBits) == (epoch & (~uint64_t{0} >> (2 * kItemBits))) ? word : make_word(epoch, 0, 0);
}

constexpr int32_t high_of(uint64_t word) {
  return static_cast<int32_t>(word >> kItemBits & kItemMask);
}
constexpr int32_t low_of(uint64_t word) {
  return static_cast<int32_t>(word & kItemMask);
}

enum class Take { kAdopt, kFront, kBack };

// An item of a head, -1 when there is none to be had so. kAdopt: only of a head that nobody has begun.
int32_t take_item(SplitHead& split, uint64_t epoch, int32_t num_items, Take how) {
  uint64_t seen = split.taken.load(std::memory_order_relaxed);
  while (true) {
    const uint64_t word = in_epoch(seen, epoch);
    const int32_t front = high_of(word), back = low_of(word);
    if (front + back >= num_items || (how == Take::kAdopt && front > 0)) return -1;
    const bool is_back = how == Take::kBack;
    const uint64_t next =
        make_word(epoch, static_cast<uint64_t>(front + !is_back), static_cast<uint64_t>(back + is_back));
    if (split.taken.compare_exchange_weak(seen, next, std::memory_order_relaxed))
      return is_back ? num_items - 1 - back : front;
  }
}

// Makes the calling thread the one that merges, if `item` is next and nobody is merging.
bool try_enter(SplitHead& split, uint64_t epoch, int32_t item) {
  uint64_t seen = split.merged.load(std::memory_order_seq_cst);
  const uint64_t free = make_word(epoch, static_cast<uint64_t>(item), 0);
  if (in_epoch(seen, epoch) != free) return false;
  return split.merged.compare_exchange_strong(seen, free | 1, std::memory_order_seq_cst);
}

}  // namespace

void AttendWork::attend_splits(const AttendNode& node, const Units& list, uint64_t epoch, int32_t thread) {
  Worker& worker = memory_.worker(thread);
  const int32_t heads = node.op->num_kv_heads, num_pairs = static_cast<int32_t>(list.splits.size()) * heads;
  const auto home = static_cast<int32_t>(int64_t{num_pairs} * thread / team_.size());
  const auto run = [&](int32_t pair, Take how) {
    const SingleUnit& unit = list.splits[static_cast<size_t>(pair / heads)];
    const int32_t item = take_item(split_heads_[static_cast<size_t>(pair)], epoch, unit.num_items, how);
    if (item == -1) return false;
    team_.check_cancel(thread);
    attend_item(node, unit, pair % heads, item, pair, epoch, worker);
    return true;
  };
  for (int32_t i = 0; i < num_pairs; ++i) {
    const int32_t pair = (home + i) % num_pairs;
    if (!run(pair, Take::kAdopt)) continue;
    while (run(pair, Take::kFront)) {
    }
  }
  for (int32_t i = 0; i < num_pairs; ++i) {
    while (run((home + i) % num_pairs, Take::kBack)) {
    }
  }
}

void AttendWork::attend_item(const AttendNode& node, const SingleUnit& unit, int32_t head, int32_t item, int32_t pair,
                             uint64_t epoch, Worker& worker) {
  const AttendOp& op = *node.op;
  const int32_t heads = op.num_kv_heads, group = op.num_heads / heads;
  SplitHead& split = split_heads_[static_cast<size_t>(pair)];
  float* running = room_.split_running + static_cast<size_t>(pair) * room_.split_running_floats;
  const auto slot_of = [&](int32_t page) {
    return room_.partial_slots + static_cast<size_t>(unit.slot + page - unit.page_begin) * room_.partial_slot_floats +
           static_cast<size_t>(head * group) * room_.partial_stride;
  };
  const auto ready_of = [&](int32_t i) -> std::atomic<uint64_t>& {
    return split_ready_[static_cast<size_t>((unit.first_item + i) * heads + head)];
  };
  const int32_t page_begin = unit.item_begin(item), page_end = unit.item_begin(item + 1);
  int32_t next;  // the first item that is not merged, once this thread is the one that merges
  if (try_enter(split, epoch, item)) {
    if (item == 0) begin_row(node, head, running);
    attend_pages(node, unit, head, page_begin, page_end, nullptr, running, worker);
    next = item + 1;
  } else {
    attend_pages(node, unit, head, page_begin, page_end, slot_of(page_begin), nullptr, worker);
    ready_of(item).store(epoch, std::memory_order_seq_cst);
    // Whoever merges looks for us after leaving, and we for him after saying that we are ready: one sees the other.
    if (!try_enter(split, epoch, item)) return;
    next = item;
  }
  do {
    while (next < unit.num_items && ready_of(next).load(std::memory_order_seq_cst) == epoch) {
      for (int32_t page = unit.item_begin(next); page < unit.item_begin(next + 1); ++page)
        merge_page(node, unit.position, page, running, slot_of(page));
      ++next;
    }
    if (next == unit.num_items) {
      finish_row(node, unit.row, head, running, worker);
      return;  // nobody else enters: no item is left
    }
    split.merged.store(make_word(epoch, static_cast<uint64_t>(next), 0), std::memory_order_seq_cst);
  } while (ready_of(next).load(std::memory_order_seq_cst) == epoch && try_enter(split, epoch, next));
}

}  // namespace kamado
