// The work of attention in a step, which depends on positions only: which keys a query sees, and what is done together.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "executor/memory.h"
#include "executor/plan.h"
#include "executor/sequences.h"
#include "executor/step.h"
#include "kamado/page.h"

namespace kamado {

// Pages of an item of a split row at least, and its items at most.
constexpr int32_t kMinItemPages = 1, kMaxSplitItems = 4095;

struct KeyRange {
  int64_t begin, end;  // key positions
};

// The keys that a query at `position` sees, of `total` cached ones.
inline KeyRange visible(int64_t position, int64_t total, int32_t window, bool is_causal) {
  const int64_t begin = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
  int64_t end = is_causal ? position + 1 : total;
  if (!is_causal && window > 0) end = std::min(end, position + window);
  return {begin, end};
}

// Pages below are read as codes by a query of an encoded layer.
inline int64_t code_pages(int64_t position) {
  return std::max<int64_t>(0, position / kPageTokens - 1);
}

struct StoreUnit {  // keys and values of rows that lie in one page
  int32_t sequence, row_begin, num_rows;
  int64_t position;  // of row_begin
};
struct BlockUnit {  // neighbouring rows of one sequence; pages are walked in order
  int32_t sequence, row_begin, num_rows;
  int64_t position, total;  // total: tokens of the sequence after the step
};
struct SingleUnit {  // one row; its pages may be shared out
  int32_t sequence = 0, row = 0;
  int64_t position = 0, total = 0;
  bool stores = false;  // whoever has the last page stores the row's key and value first
  int32_t page_begin = 0, page_end = 0;
  int32_t num_items = 1, slot = -1,
          first_item = -1;  // when split: its items, first slot of a partial, first item of all

  int32_t item_begin(int32_t item) const {  // a page
    return page_begin + static_cast<int32_t>(int64_t{page_end - page_begin} * item / num_items);
  }
};
struct EncodeUnit {  // a page that leaves the exact zone in this step
  int32_t sequence, page;
};
struct Units {
  std::vector<StoreUnit> stores;
  std::vector<EncodeUnit> encodes;
  std::vector<BlockUnit> blocks;
  std::vector<SingleUnit> singles, splits;  // a row by one thread; its pages shared out
  bool reads_encodes = false;               // of this step
};

// Makes the lists of a step, one for each kind of layer. Allocates nothing.
class UnitMaker {
 public:
  UnitMaker(const Plan& plan, const Sequences& sequences, const StepMemory& memory, const Step& step,
            int32_t num_threads);

  void begin_step();
  void begin_segment(const Segment& segment);  // of the tail
  const Units& list(int32_t kind) const { return lists_[static_cast<size_t>(kind)]; }

 private:
  void note_sequences();
  void make_units(const UnitKind& kind, Units& list) const;
  void make_tail_units(const Segment& segment, const UnitKind& kind, Units& list) const;
  void add_rows(const UnitKind& kind, const SingleUnit& first, int32_t num_rows, Units& list) const;
  void split_singles(const UnitKind& kind, Units& list) const;
  int64_t tokens_seen(const UnitKind& kind, int32_t sequence, int64_t total) const;

  const Plan& plan_;
  const StateCache& cache_;
  const bool has_codes_;
  const Step& step_;
  const int32_t num_threads_;
  const int64_t num_partial_slots_;
  std::vector<int32_t> row_places_;  // [rows]: index of each row's sequence in the batch; for the tail's attention
  std::vector<Units> lists_;         // by Plan::unit_kinds
};

}  // namespace kamado
