// Attention: which thread does which (rows, head, pages). Every query makes one partial a page, and partials are merged
// in ascending page order, so a row gets the same bits in a block of a prefill chunk, alone, or with its pages shared
// out.
#include <algorithm>
#include <cstring>
#include <limits>

#include "executor/impl.h"

namespace kamado {
namespace {

struct Range {
  int64_t begin, end;  // key positions
};

// The keys that a query at `position` sees, of `total` cached ones.
Range visible(int64_t position, int64_t total, int32_t window, bool is_causal) {
  const int64_t begin = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
  int64_t end = is_causal ? position + 1 : total;
  if (!is_causal && window > 0) end = std::min(end, position + window);
  return {begin, end};
}

void clear(float* running, int32_t v_dim) {
  running[0] = -std::numeric_limits<float>::infinity();
  std::memset(running + 1, 0, static_cast<size_t>(v_dim + 1) * sizeof(float));
}

}  // namespace

// Lists the step's attention work for each kind of layer. Longest first: blocks late in a chunk see the most keys.
void Executor::Impl::make_units(const Batch& given) {
  for (size_t k = 0; k < units.size(); ++k) {
    const UnitKind& kind = plan.unit_kinds[k];
    Units& list = units[k];
    list.stores.clear();
    list.blocks.clear();
    list.singles.clear();
    list.items.clear();
    const int32_t block_rows = std::max(1, kMaxQueries / kind.group);
    int32_t row = 0;
    for (size_t s = 0; s < given.num_sequences; ++s) {
      const int32_t sequence = given.sequences[s], count = given.counts[s], end = row + count;
      const int64_t start = positions[static_cast<size_t>(row)] - int64_t{row};  // position = start + row
      const int64_t total = start + end;
      const auto wanted = [&](int32_t r) { return !kind.is_last || is_wanted[static_cast<size_t>(r)] != 0; };
      const bool stores_itself = count == 1 && wanted(row) && kind.is_causal;
      if (!stores_itself) {
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
        if (run == 0) {
          ++r;
          continue;
        }
        for (int32_t done_rows = 0; done_rows < run; done_rows += block_rows) {
          const int32_t rows = std::min(block_rows, run - done_rows), first = r + done_rows;
          if (rows > 1) {
            list.blocks.push_back({sequence, first, rows, start + first, total});
          } else {
            const Range keys = visible(start + first, total, kind.window, kind.is_causal);
            list.singles.push_back({sequence, first, start + first, total, stores_itself,
                                    static_cast<int32_t>(keys.begin / kPageTokens),
                                    static_cast<int32_t>((keys.end - 1) / kPageTokens) + 1, 1, -1, -1});
          }
        }
        r += run;
      }
      row = end;
    }
    std::reverse(list.blocks.begin(), list.blocks.end());

    // With few rows and heads, a row's pages are shared out too: about 8 items a thread in all.
    const auto num_whole = static_cast<int64_t>(list.singles.size()) * kind.num_kv_heads;
    const int64_t target = int64_t{8} * pool.size();
    const int64_t split = num_whole > 0 && list.blocks.empty() ? (target + num_whole - 1) / num_whole : 1;
    int64_t partials = 0;
    int32_t num_split = 0;
    for (size_t u = 0; u < list.singles.size(); ++u) {
      SingleUnit& unit = list.singles[u];
      const int32_t pages = unit.page_end - unit.page_begin;
      if (split > 1 && pages > 1 && partials + pages <= num_partial_slots && num_split < max_singles_split) {
        unit.num_items = static_cast<int32_t>(std::min<int64_t>(split, pages));
        unit.partial = static_cast<int32_t>(partials);
        unit.done = num_split++;
        partials += pages;
      }
      for (int32_t i = 0; i < unit.num_items; ++i) {
        list.items.push_back({static_cast<int32_t>(u),
                              unit.page_begin + static_cast<int32_t>(int64_t{pages} * i / unit.num_items),
                              unit.page_begin + static_cast<int32_t>(int64_t{pages} * (i + 1) / unit.num_items)});
      }
    }
  }
}

void Executor::Impl::run_attend(const Node& node, int32_t thread) {
  const AttendNode& attend = node.attend;
  const AttendOp& op = *attend.op;
  const Units& list = units[static_cast<size_t>(attend.units)];
  Worker& worker = workers[static_cast<size_t>(thread)];
  const int32_t heads = op.num_kv_heads;
  if (!list.stores.empty()) {
    Counter& counter = counters[static_cast<size_t>(node.counter)];
    const auto num_items = static_cast<int32_t>(list.stores.size()) * heads;
    for (int32_t index; (index = counter.take()) < num_items;) {
      const StoreUnit& unit = list.stores[static_cast<size_t>(index / heads)];
      const int32_t head = index % heads;
      const int64_t page = unit.position / kPageTokens;
      void* k_block = kv->k_block(unit.sequence, page, op.layer, head);
      void* v_block = kv->v_block(unit.sequence, page, op.layer, head);
      for (int32_t i = 0; i < unit.num_rows; ++i) {
        const int32_t row = unit.row_begin + i;
        kernels.attention->store(kv->type(), k_block, v_block, op.head_dim, op.v_dim,
                                 static_cast<int32_t>(unit.position % kPageTokens) + i,
                                 floats_at(attend.k_at, row, worker) + head * op.head_dim,
                                 floats_at(attend.v_at, row, worker) + head * op.v_dim);
      }
    }
    pool.barrier();
  }
  Counter& counter = counters[static_cast<size_t>(node.counter) + 1];
  const auto num_blocks = static_cast<int32_t>(list.blocks.size()) * heads;
  const int32_t num_items = num_blocks + static_cast<int32_t>(list.items.size()) * heads;
  for (int32_t index; (index = counter.take()) < num_items;) {
    check_cancel(thread);
    if (index < num_blocks) {
      attend_block(attend, list.blocks[static_cast<size_t>(index / heads)], index % heads, worker);
    } else {
      index -= num_blocks;
      attend_single(attend, list, list.items[static_cast<size_t>(index / heads)], index % heads, worker);
    }
  }
}

void Executor::Impl::attend_block(const AttendNode& node, const BlockUnit& unit, int32_t head, Worker& worker) {
  const AttendOp& op = *node.op;
  const AttentionKernels& attention = *kernels.attention;
  const int32_t group = op.num_heads / op.num_kv_heads, num_queries = unit.num_rows * group;
  for (int32_t i = 0; i < num_queries; ++i) clear(worker.running + static_cast<size_t>(i) * partial_stride, op.v_dim);
  const Range first = visible(unit.position, unit.total, op.window, op.is_causal);
  const Range last = visible(unit.position + unit.num_rows - 1, unit.total, op.window, op.is_causal);
  for (int64_t page = first.begin / kPageTokens; page * kPageTokens < last.end; ++page) {
    const int64_t page_begin = page * kPageTokens;
    int32_t n = 0;
    for (int32_t i = 0; i < unit.num_rows; ++i) {
      const Range keys = visible(unit.position + i, unit.total, op.window, op.is_causal);
      const auto lo = static_cast<int32_t>(std::max<int64_t>(keys.begin - page_begin, 0));
      const auto hi = static_cast<int32_t>(std::min<int64_t>(keys.end - page_begin, kPageTokens));
      if (lo >= hi) continue;
      const float* q = floats_at(node.q_at, unit.row_begin + i, worker) + head * group * op.head_dim;
      for (int32_t g = 0; g < group; ++g, ++n) {
        worker.query_ids[n] = i * group + g;
        worker.queries[n] = {q + g * op.head_dim, lo, hi, worker.partials + static_cast<size_t>(n) * partial_stride};
      }
    }
    if (n == 0) continue;
    const bool has_next = (page + 1) * kPageTokens < last.end;
    attention.attend_page_then(kv->type(), kv->k_block(unit.sequence, page, op.layer, head),
                               kv->v_block(unit.sequence, page, op.layer, head), op.head_dim, op.v_dim, op.scale,
                               op.softcap, worker.queries, n, worker.scratch,
                               has_next ? kv->k_block(unit.sequence, page + 1, op.layer, head) : nullptr);
    for (int32_t i = 0; i < n; ++i) {
      attention.merge(worker.running + static_cast<size_t>(worker.query_ids[i]) * partial_stride,
                      worker.partials + static_cast<size_t>(i) * partial_stride, op.v_dim);
    }
  }
  for (int32_t i = 0; i < num_queries; ++i) {
    float* out = floats_at(node.out_at, unit.row_begin + i / group, worker) + (head * group + i % group) * op.v_dim;
    attention.finish(worker.running + static_cast<size_t>(i) * partial_stride, op.v_dim, out);
  }
}

void Executor::Impl::attend_single(const AttendNode& node, const Units& list, const SingleItem& item, int32_t head,
                                   Worker& worker) {
  const AttendOp& op = *node.op;
  const AttentionKernels& attention = *kernels.attention;
  const SingleUnit& unit = list.singles[static_cast<size_t>(item.unit)];
  const int32_t group = op.num_heads / op.num_kv_heads;
  const bool is_split = unit.done != -1;
  const Range keys = visible(unit.position, unit.total, op.window, op.is_causal);
  const float* q = floats_at(node.q_at, unit.row, worker) + head * group * op.head_dim;
  const auto slot_of = [&](int32_t page, int32_t g) {
    return partial_slots + static_cast<size_t>(unit.partial + page - unit.page_begin) * partial_slot_floats +
           static_cast<size_t>(head * group + g) * partial_stride;
  };
  if (unit.stores && item.page_end == unit.page_end) {
    const int64_t page = unit.position / kPageTokens;
    attention.store(kv->type(), kv->k_block(unit.sequence, page, op.layer, head),
                    kv->v_block(unit.sequence, page, op.layer, head), op.head_dim, op.v_dim,
                    static_cast<int32_t>(unit.position % kPageTokens),
                    floats_at(node.k_at, unit.row, worker) + head * op.head_dim,
                    floats_at(node.v_at, unit.row, worker) + head * op.v_dim);
  }
  if (!is_split) {
    for (int32_t g = 0; g < group; ++g) clear(worker.running + static_cast<size_t>(g) * partial_stride, op.v_dim);
  }
  for (int32_t page = item.page_begin; page < item.page_end; ++page) {
    const int64_t page_begin = int64_t{page} * kPageTokens;
    const auto lo = static_cast<int32_t>(std::max<int64_t>(keys.begin - page_begin, 0));
    const auto hi = static_cast<int32_t>(std::min<int64_t>(keys.end - page_begin, kPageTokens));
    for (int32_t g = 0; g < group; ++g) {
      float* partial = is_split ? slot_of(page, g) : worker.partials + static_cast<size_t>(g) * partial_stride;
      worker.queries[g] = {q + g * op.head_dim, lo, hi, partial};
    }
    attention.attend_page_then(
        kv->type(), kv->k_block(unit.sequence, page, op.layer, head), kv->v_block(unit.sequence, page, op.layer, head),
        op.head_dim, op.v_dim, op.scale, op.softcap, worker.queries, group, worker.scratch,
        page + 1 < item.page_end ? kv->k_block(unit.sequence, page + 1, op.layer, head) : nullptr);
    for (int32_t g = 0; g < group && !is_split; ++g) {
      attention.merge(worker.running + static_cast<size_t>(g) * partial_stride,
                      worker.partials + static_cast<size_t>(g) * partial_stride, op.v_dim);
    }
  }
  if (is_split) {
    // The thread that finishes a head's last item merges all of its pages.
    std::atomic<int32_t>& finished = done[static_cast<size_t>(unit.done * max_kv_heads + head)];
    if (finished.fetch_add(1, std::memory_order_acq_rel) + 1 < unit.num_items) return;
    finished.store(0, std::memory_order_relaxed);
    for (int32_t g = 0; g < group; ++g) {
      float* running = worker.running + static_cast<size_t>(g) * partial_stride;
      clear(running, op.v_dim);
      for (int32_t page = unit.page_begin; page < unit.page_end; ++page)
        attention.merge(running, slot_of(page, g), op.v_dim);
    }
  }
  for (int32_t g = 0; g < group; ++g) {
    attention.finish(worker.running + static_cast<size_t>(g) * partial_stride, op.v_dim,
                     floats_at(node.out_at, unit.row, worker) + (head * group + g) * op.v_dim);
  }
}

// Page by page: whole pages are copied from whole pages, what is left token by token.
void Executor::Impl::tile_kv(int32_t sequence, int64_t num_tokens) {
  const int64_t start = length(sequence);
  if (start == 0) throw std::invalid_argument("sequence " + std::to_string(sequence) + " is empty: nothing to repeat");
  if (num_tokens <= start) return;
  kv->reserve(sequence, num_tokens);
  const size_t element = kv->type() == KvType::kF16 ? sizeof(uint16_t) : sizeof(float);
  const int64_t whole = std::max<int64_t>(1, start / kPageTokens);  // a partial page 0 is filled first
  for (int64_t page = start / kPageTokens; page * kPageTokens < num_tokens; ++page) {
    const int64_t first = std::max<int64_t>(start - page * kPageTokens, 0);
    for (size_t layer = 0; layer < kv_shapes.size(); ++layer) {
      const KvLayerShape& shape = kv_shapes[layer];
      const size_t v_row = static_cast<size_t>(shape.v_dim) * element;
      for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
        const auto k_of = [&](int64_t p) {
          return static_cast<uint8_t*>(kv->k_block(sequence, p, static_cast<int32_t>(layer), head));
        };
        const auto v_of = [&](int64_t p) {
          return static_cast<uint8_t*>(kv->v_block(sequence, p, static_cast<int32_t>(layer), head));
        };
        if (first == 0) {
          std::memcpy(k_of(page), k_of(page % whole), static_cast<size_t>(shape.k_dim) * kPageTokens * element);
          std::memcpy(v_of(page), v_of(page % whole), kPageTokens * v_row);
          continue;
        }
        for (int64_t slot = first; slot < kPageTokens; ++slot) {
          const int64_t from = (page * kPageTokens + slot) % start, from_page = from / kPageTokens;
          const auto from_slot = static_cast<size_t>(from % kPageTokens), to_slot = static_cast<size_t>(slot);
          std::memcpy(v_of(page) + to_slot * v_row, v_of(from_page) + from_slot * v_row, v_row);
          for (size_t d = 0; d < static_cast<size_t>(shape.k_dim); ++d) {
            std::memcpy(k_of(page) + (d * kPageTokens + to_slot) * element,
                        k_of(from_page) + (d * kPageTokens + from_slot) * element, element);
          }
        }
      }
    }
  }
  kv->commit(sequence, num_tokens);
}

}  // namespace kamado
