// Attention: which thread does which (rows, head, pages). Every query makes one partial a page, and partials are merged
// in ascending page order, so a row gets the same bits in a block of a prefill chunk, alone, or with its pages shared
// out (split.cpp).
//
// In an encoded layer a query reads its own page and the one before exactly and older ones as codes, whose partials are
// in the rotated space of values: after the last of them the running result is turned back, once (kv_codec.h).
#include "executor/attend.h"

#include <algorithm>
#include <limits>

namespace kamado {

AttendWork::AttendWork(const LoadedModel& model, const Plan& plan, const Sequences& sequences, StepMemory& memory,
                       Team& team, const Step& step, Measures& measures)
    : model_(model),
      kernels_(model.kernels()),
      cache_(sequences.cache()),
      codecs_(sequences.codecs()),
      memory_(memory),
      room_(memory.attend()),
      team_(team),
      times_(measures.times),
      queries_(measures.queries),
      units_(plan, sequences, memory, step, team.size()),
      split_heads_(std::make_unique<SplitHead[]>(static_cast<size_t>(room_.max_pairs))),
      split_ready_(std::make_unique<std::atomic<uint64_t>[]>(static_cast<size_t>(room_.max_split_items))),
      epochs_(static_cast<uint64_t>(plan.num_counters) + 1) {}

void AttendWork::begin_step() {
  epoch_ += epochs_;
  units_.begin_step();
}

void AttendWork::begin_segment(const Segment& segment, bool is_first) {
  if (!is_first) epoch_ += epochs_;
  units_.begin_segment(segment);
}

// `running`, [group][partial_stride], before the first page: nothing, or the head's sink, which is a score without a
// value.
void AttendWork::begin_row(const AttendNode& node, int32_t head, float* running) const {
  const AttendOp& op = *node.op;
  const int32_t group = op.num_heads / op.num_kv_heads;
  const float* sinks = model_.vector(op.sinks);
  for (int32_t g = 0; g < group; ++g, running += room_.partial_stride) {
    running[0] = sinks == nullptr ? -std::numeric_limits<float>::infinity() : sinks[head * group + g];
    running[1] = sinks == nullptr ? 0.0f : 1.0f;
    std::fill_n(running + 2, op.v_dim, 0.0f);
  }
}

// A row's keys and values of one head into the cache, which makes finite numbers of all that it is given.
void AttendWork::store_row(const AttendNode& node, void* k_block, void* v_block, int32_t slot, int32_t row,
                           int32_t head, Worker& worker) const {
  const AttendOp& op = *node.op;
  const float* k = memory_.floats_at(node.k_at, row, worker) + head * op.head_dim;
  const float* v = memory_.floats_at(node.v_at, row, worker) + head * op.v_dim;
  memory_.note_damage(k, op.head_dim, "a key of attention", worker);
  memory_.note_damage(v, op.v_dim, "a value of attention", worker);
  kernels_.attention->store(cache_.type(), k_block, v_block, op.head_dim, op.v_dim, slot, k, v);
}

// A soft cap makes an ordinary score of an infinite one.
void AttendWork::check_queries(const AttendNode& node, int32_t row, int32_t head, Worker& worker) const {
  const AttendOp& op = *node.op;
  const int32_t width = op.num_heads / op.num_kv_heads * op.head_dim;
  memory_.note_damage(memory_.floats_at(node.q_at, row, worker) + head * width, width, "a query of attention", worker);
}

void AttendWork::run(const Node& node, int32_t thread) {
  const AttendNode& attend = node.attend;
  const AttendOp& op = *attend.op;
  const Units& list = units_.list(attend.units);
  Worker& worker = memory_.worker(thread);
  const int32_t heads = op.num_kv_heads;
  if (queries_.is_on() && thread == 0 && op.stores) queries_.keep(attend, memory_, worker);
  if (const float* sinks = model_.vector(op.sinks); sinks != nullptr && thread == 0) {
    memory_.note_damage(sinks, op.num_heads, "a sink of attention", worker);  // -infinity would say nothing else
  }
  if (!list.stores.empty()) {
    Counter& counter = team_.counter(node.counter);
    const auto num_items = static_cast<int32_t>(list.stores.size()) * heads;
    for (int32_t index; (index = counter.take()) < num_items;) {
      const StoreUnit& unit = list.stores[static_cast<size_t>(index / heads)];
      const int32_t head = index % heads;
      const int64_t page = unit.position / kPageTokens;
      void* k_block = cache_.k_block(unit.sequence, page, node.attend.layer, head);
      void* v_block = cache_.v_block(unit.sequence, page, node.attend.layer, head);
      for (int32_t i = 0; i < unit.num_rows; ++i) {
        const int32_t row = unit.row_begin + i;
        store_row(attend, k_block, v_block, static_cast<int32_t>(unit.position % kPageTokens) + i, row, head, worker);
      }
    }
    team_.barrier();
  }
  if (!list.encodes.empty() && codecs_[static_cast<size_t>(node.attend.layer)].k_bits > 0)
    run_encodes(node, list, thread);
  Counter& counter = team_.counter(node.counter + 1);
  const auto num_blocks = static_cast<int32_t>(list.blocks.size()) * heads;
  const int32_t num_items = num_blocks + static_cast<int32_t>(list.singles.size()) * heads;
  for (int32_t index; (index = counter.take()) < num_items;) {
    team_.check_cancel(thread);
    if (index < num_blocks) {
      attend_block(attend, list.blocks[static_cast<size_t>(index / heads)], index % heads, worker);
    } else {
      index -= num_blocks;
      attend_single(attend, list.singles[static_cast<size_t>(index / heads)], index % heads, worker);
    }
  }
  if (!list.splits.empty()) attend_splits(attend, list, epoch_ + static_cast<uint64_t>(node.counter), thread);
}

// Encodes the pages that leave the exact zone, a head at a time.
void AttendWork::run_encodes(const Node& node, const Units& list, int32_t thread) {
  const StepTimes::Clock::time_point begin = StepTimes::Clock::now();
  const AttendOp& op = *node.attend.op;
  Worker& worker = memory_.worker(thread);
  Counter& counter = team_.counter(node.counter + 2);
  const int32_t heads = op.num_kv_heads, num_items = static_cast<int32_t>(list.encodes.size()) * heads;
  for (int32_t index; (index = counter.take()) < num_items;) {
    team_.check_cancel(thread);
    const auto [sequence, page] = list.encodes[static_cast<size_t>(index / heads)];
    const int32_t head = index % heads;
    const KvCodeBlock codes = cache_.codes(sequence, page, node.attend.layer, head);
    kernels_.kv_codec->encode_page(
        codecs_[static_cast<size_t>(node.attend.layer)],
        static_cast<const uint16_t*>(cache_.k_block(sequence, page, node.attend.layer, head)),
        static_cast<const uint16_t*>(cache_.v_block(sequence, page, node.attend.layer, head)), codes.k, codes.v,
        codes.sinks, worker.scratch);
  }
  if (list.reads_encodes) team_.barrier();
  if (thread == 0) times_.add_encode(StepTimes::between(begin, StepTimes::Clock::now()));
}

// The query heads of one row, for its encoded pages; places `first` and on.
void AttendWork::rotate_queries(const AttendNode& node, int32_t row, int32_t head, int32_t first,
                                Worker& worker) const {
  const AttendOp& op = *node.op;
  const int32_t group = op.num_heads / op.num_kv_heads;
  const float* q = memory_.floats_at(node.q_at, row, worker) + head * group * op.head_dim;
  for (int32_t g = 0; g < group; ++g) {
    uint8_t* rotated = worker.rotated + static_cast<size_t>(first + g) * room_.rotated_stride;
    kernels_.kv_codec->rotate_query(codecs_[static_cast<size_t>(node.layer)], q + g * op.head_dim, rotated);
    worker.code_queries[first + g] = {q + g * op.head_dim, rotated, 0, kPageTokens, nullptr};
  }
}

void AttendWork::attend_code_page(const AttendNode& node, int32_t sequence, int64_t page, int32_t head,
                                  int32_t num_queries, const void* next, Worker& worker) const {
  const AttendOp& op = *node.op;
  const KvCodeBlock codes = cache_.codes(sequence, page, node.layer, head);
  kernels_.kv_codec->attend_page(codecs_[static_cast<size_t>(node.layer)], codes.k, codes.v, codes.sinks, op.scale,
                                 op.softcap, worker.code_queries, num_queries, worker.scratch, next);
}

void AttendWork::attend_block(const AttendNode& node, const BlockUnit& unit, int32_t head, Worker& worker) {
  const AttendOp& op = *node.op;
  const AttentionKernels& attention = *kernels_.attention;
  const int32_t group = op.num_heads / op.num_kv_heads, num_queries = unit.num_rows * group;
  for (int32_t i = 0; i < unit.num_rows; ++i) {
    check_queries(node, unit.row_begin + i, head, worker);
    begin_row(node, head, worker.running + static_cast<size_t>(i * group) * room_.partial_stride);
  }
  const KeyRange first = visible(unit.position, unit.total, op.window, node.is_causal);
  const KeyRange last = visible(unit.position + unit.num_rows - 1, unit.total, op.window, node.is_causal);
  const KvCodec& codec = codecs_[static_cast<size_t>(node.layer)];
  const int64_t num_coded = codec.k_bits > 0 ? code_pages(unit.position) : 0;
  if (num_coded > 0) {
    for (int32_t i = 0; i < unit.num_rows; ++i) rotate_queries(node, unit.row_begin + i, head, i * group, worker);
    for (int32_t i = 0; i < num_queries; ++i)
      worker.code_queries[i].partial = worker.partials + static_cast<size_t>(i) * room_.partial_stride;
    for (int64_t page = 0; page < num_coded; ++page) {
      const void* next = page + 1 < num_coded ? cache_.codes(unit.sequence, page + 1, node.layer, head).k
                                              : cache_.k_block(unit.sequence, page + 1, node.layer, head);
      attend_code_page(node, unit.sequence, page, head, num_queries, next, worker);
      for (int32_t i = 0; i < num_queries; ++i) {
        attention.merge(worker.running + static_cast<size_t>(i) * room_.partial_stride,
                        worker.partials + static_cast<size_t>(i) * room_.partial_stride, op.v_dim);
      }
    }
    for (int32_t i = 0; i < num_queries; ++i)
      kernels_.kv_codec->unrotate(codec, worker.running + static_cast<size_t>(i) * room_.partial_stride);
  }
  for (int64_t page = std::max(num_coded, first.begin / kPageTokens); page * kPageTokens < last.end; ++page) {
    const int64_t page_begin = page * kPageTokens;
    int32_t n = 0;
    for (int32_t i = 0; i < unit.num_rows; ++i) {
      const KeyRange keys = visible(unit.position + i, unit.total, op.window, node.is_causal);
      const auto lo = static_cast<int32_t>(std::max<int64_t>(keys.begin - page_begin, 0));
      const auto hi = static_cast<int32_t>(std::min<int64_t>(keys.end - page_begin, kPageTokens));
      if (lo >= hi) continue;
      const float* q = memory_.floats_at(node.q_at, unit.row_begin + i, worker) + head * group * op.head_dim;
      for (int32_t g = 0; g < group; ++g, ++n) {
        worker.query_ids[n] = i * group + g;
        worker.queries[n] = {q + g * op.head_dim, lo, hi,
                             worker.partials + static_cast<size_t>(n) * room_.partial_stride};
      }
    }
    if (n == 0) continue;
    const bool has_next = (page + 1) * kPageTokens < last.end;
    attention.attend_page_then(cache_.type(), cache_.k_block(unit.sequence, page, node.layer, head),
                               cache_.v_block(unit.sequence, page, node.layer, head), op.head_dim, op.v_dim, op.scale,
                               op.softcap, worker.queries, n, worker.scratch,
                               has_next ? cache_.k_block(unit.sequence, page + 1, node.layer, head) : nullptr);
    for (int32_t i = 0; i < n; ++i) {
      attention.merge(worker.running + static_cast<size_t>(worker.query_ids[i]) * room_.partial_stride,
                      worker.partials + static_cast<size_t>(i) * room_.partial_stride, op.v_dim);
    }
  }
  for (int32_t i = 0; i < num_queries; ++i) {
    float* out =
        memory_.floats_at(node.out_at, unit.row_begin + i / group, worker) + (head * group + i % group) * op.v_dim;
    attention.finish(worker.running + static_cast<size_t>(i) * room_.partial_stride, op.v_dim, out);
  }
}

// A row's pages in [page_begin, page_end). Partials, [group][partial_stride], go to `slots`, a page's beside the one
// before; or are merged into `running` one by one, when it is given.
void AttendWork::attend_pages(const AttendNode& node, const SingleUnit& unit, int32_t head, int32_t page_begin,
                              int32_t page_end, float* slots, float* running, Worker& worker) const {
  const AttendOp& op = *node.op;
  const AttentionKernels& attention = *kernels_.attention;
  const int32_t group = op.num_heads / op.num_kv_heads;
  const KeyRange keys = visible(unit.position, unit.total, op.window, node.is_causal);
  const float* q = memory_.floats_at(node.q_at, unit.row, worker) + head * group * op.head_dim;
  if (page_begin == unit.page_begin) check_queries(node, unit.row, head, worker);
  if (unit.stores && page_end == unit.page_end) {
    const int64_t page = unit.position / kPageTokens;
    store_row(node, cache_.k_block(unit.sequence, page, node.layer, head),
              cache_.v_block(unit.sequence, page, node.layer, head), static_cast<int32_t>(unit.position % kPageTokens),
              unit.row, head, worker);
  }
  const bool is_coded = codecs_[static_cast<size_t>(node.layer)].k_bits > 0;
  const int32_t code_end = std::min(is_coded ? static_cast<int32_t>(code_pages(unit.position)) : 0, page_end);
  const auto partials_of = [&](int32_t page) {
    return running != nullptr ? worker.partials
                              : slots + static_cast<size_t>(page - page_begin) * room_.partial_slot_floats;
  };
  if (page_begin < code_end) rotate_queries(node, unit.row, head, 0, worker);
  for (int32_t page = page_begin; page < code_end; ++page) {
    float* partial = partials_of(page);
    for (int32_t g = 0; g < group; ++g)
      worker.code_queries[g].partial = partial + static_cast<size_t>(g) * room_.partial_stride;
    const void* next = page + 1 >= page_end  ? nullptr
                       : page + 1 < code_end ? cache_.codes(unit.sequence, page + 1, node.layer, head).k
                                             : cache_.k_block(unit.sequence, page + 1, node.layer, head);
    attend_code_page(node, unit.sequence, page, head, group, next, worker);
    if (running != nullptr) merge_page(node, unit.position, page, running, partial);
  }
  for (int32_t page = std::max(page_begin, code_end); page < page_end; ++page) {
    const int64_t page_first = int64_t{page} * kPageTokens;
    const auto lo = static_cast<int32_t>(std::max<int64_t>(keys.begin - page_first, 0));
    const auto hi = static_cast<int32_t>(std::min<int64_t>(keys.end - page_first, kPageTokens));
    float* partial = partials_of(page);
    for (int32_t g = 0; g < group; ++g) {
      worker.queries[g] = {q + g * op.head_dim, lo, hi, partial + static_cast<size_t>(g) * room_.partial_stride};
    }
    attention.attend_page_then(
        cache_.type(), cache_.k_block(unit.sequence, page, node.layer, head),
        cache_.v_block(unit.sequence, page, node.layer, head), op.head_dim, op.v_dim, op.scale, op.softcap,
        worker.queries, group, worker.scratch,
        page + 1 < page_end ? cache_.k_block(unit.sequence, page + 1, node.layer, head) : nullptr);
    if (running != nullptr) merge_page(node, unit.position, page, running, partial);
  }
}

// `running`, `partials`: [group][partial_stride]. After the last encoded page the result is turned back.
void AttendWork::merge_page(const AttendNode& node, int64_t position, int32_t page, float* running,
                            const float* partials) const {
  const AttendOp& op = *node.op;
  const KvCodec& codec = codecs_[static_cast<size_t>(node.layer)];
  const bool is_last_coded = codec.k_bits > 0 && page + 1 == code_pages(position);
  for (int32_t g = 0; g < op.num_heads / op.num_kv_heads;
       ++g, running += room_.partial_stride, partials += room_.partial_stride) {
    kernels_.attention->merge(running, partials, op.v_dim);
    if (is_last_coded) kernels_.kv_codec->unrotate(codec, running);
  }
}

void AttendWork::finish_row(const AttendNode& node, int32_t row, int32_t head, const float* running,
                            Worker& worker) const {
  const AttendOp& op = *node.op;
  const int32_t group = op.num_heads / op.num_kv_heads;
  float* out = memory_.floats_at(node.out_at, row, worker) + head * group * op.v_dim;
  for (int32_t g = 0; g < group; ++g, running += room_.partial_stride, out += op.v_dim)
    kernels_.attention->finish(running, op.v_dim, out);
}

void AttendWork::attend_single(const AttendNode& node, const SingleUnit& unit, int32_t head, Worker& worker) {
  begin_row(node, head, worker.running);
  attend_pages(node, unit, head, unit.page_begin, unit.page_end, nullptr, worker.running, worker);
  finish_row(node, unit.row, head, worker.running, worker);
}

}  // namespace kamado
