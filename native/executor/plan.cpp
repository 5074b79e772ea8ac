#include "executor/plan.h"

#include <algorithm>
#include <limits>

#include "executor/file.h"
#include "executor/fuse.h"

namespace kamado {
namespace {

// --- memory ---

struct Slot {
  size_t row_bytes = 0;
  int32_t free_at = 0;  // first node at which it may hold another value
  size_t offset = 0;    // in shared memory
  size_t private_offset = 0;
};

// Gives each value a slot. Slots are reused after a value's last use; all values of a slot have its stride, so that a
// row is the same memory whatever value lies there.
std::vector<Slot> place(Part& part, const std::vector<int32_t>& never_freed, int32_t logits) {
  for (size_t i = 0; i < part.nodes.size(); ++i) {
    const auto touch = [&part, i](int32_t id, const Operand&) {
      if (id == -1) return;
      Value& value = part.values[static_cast<size_t>(id)];
      if (value.first == -1) value.first = static_cast<int32_t>(i);
      value.last = static_cast<int32_t>(i);
    };
    for_each_output(part.nodes[i], touch);
    for_each_input(part.nodes[i], touch);
  }
  for (const int32_t id : never_freed)
    part.values[static_cast<size_t>(id)].last = static_cast<int32_t>(part.nodes.size());
  std::vector<size_t> order(part.values.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&part](size_t a, size_t b) { return part.values[a].first < part.values[b].first; });
  std::vector<Slot> slots;
  for (const size_t id : order) {
    Value& value = part.values[id];
    if (value.first == -1 || static_cast<int32_t>(id) == logits) continue;
    // The free slot whose size is nearest.
    const auto waste = [&value](const Slot& slot) {
      return slot.row_bytes > value.row_bytes ? slot.row_bytes - value.row_bytes : value.row_bytes - slot.row_bytes;
    };
    Slot* best = nullptr;
    for (Slot& slot : slots) {
      if (slot.free_at <= value.first && (best == nullptr || waste(slot) < waste(*best))) best = &slot;
    }
    if (best == nullptr) best = &slots.emplace_back();
    best->row_bytes = std::max(best->row_bytes, value.row_bytes);
    best->free_at = value.last + 1;
    value.slot = static_cast<int32_t>(best - slots.data());
  }
  return slots;
}

// --- barriers ---

enum class Share : int32_t { kRows = 1, kAny = 2 };  // who touches what: thread t its rows, or any thread anything

// Accesses to each slot since the last barrier.
class Hazards {
 public:
  explicit Hazards(size_t num_slots) : reads_(num_slots, 0), writes_(num_slots, 0) {}

  bool read_conflicts(size_t slot, Share share) const {
    return writes_[slot] != 0 && !(share == Share::kRows && writes_[slot] == static_cast<int32_t>(Share::kRows));
  }
  bool write_conflicts(size_t slot, Share share) const {
    const int32_t all = reads_[slot] | writes_[slot];
    return all != 0 && !(share == Share::kRows && all == static_cast<int32_t>(Share::kRows));
  }
  void read(size_t slot, Share share) { reads_[slot] |= static_cast<int32_t>(share); }
  void write(size_t slot, Share share) { writes_[slot] |= static_cast<int32_t>(share); }
  void clear() {
    std::fill(reads_.begin(), reads_.end(), 0);
    std::fill(writes_.begin(), writes_.end(), 0);
  }

 private:
  std::vector<int32_t> reads_, writes_;
};

// Resolves one part for one mode: places, barriers, groups of row-wise operations.
class Resolver {
 public:
  Resolver(const Part& part, const std::vector<Slot>& slots, bool is_one, int32_t logits, const Operand& logits_at)
      : part_(part),
        slots_(slots),
        is_one_(is_one),
        logits_(logits),
        logits_at_(logits_at),
        is_private_(part.values.size(), false),
        hazards_(slots.size() + kScratchSlots) {}

  Operand at(int32_t value) const {
    if (value == -1) return {};
    if (value == logits_) return logits_at_;
    const Slot& slot = slots_[static_cast<size_t>(part_.values[static_cast<size_t>(value)].slot)];
    const bool is_private = is_private_[static_cast<size_t>(value)];
    return {is_private ? slot.private_offset : slot.offset, slot.row_bytes, is_private};
  }

  // `source` resolves what Gather reads: the main part, after it was resolved.
  std::vector<Node> run(const Resolver* source) {
    std::vector<Node> result;
    for (const Node& flat : part_.nodes) {
      Node node = flat;
      const Share share = node.kind == NodeKind::kRow && !is_one_ ? Share::kRows : Share::kAny;
      // Inputs are where they were written; an output of row-wise work with one row is in each thread's own memory.
      for (RowOp& op : node.rows) {
        if (op.kind == RowKind::kGather) op.in_at[0] = source->at(op.in[0]);
      }
      bool has_conflict = false;
      std::vector<size_t> reads;  // shared slots
      for_each_input(node, [&](int32_t id, Operand& place) {
        place = at(id);
        if (!is_shared(id)) return;
        reads.push_back(slot_of(id));
        has_conflict = has_conflict || hazards_.read_conflicts(slot_of(id), share);
      });
      const bool writes_private = is_one_ && (node.kind == NodeKind::kRow || node.kind == NodeKind::kExperts);
      for_each_output(node, [&](int32_t id, const Operand&) {
        if (id != -1 && id != logits_) is_private_[static_cast<size_t>(id)] = writes_private;
        if (is_shared(id)) has_conflict = has_conflict || hazards_.write_conflicts(slot_of(id), share);
      });
      const bool has_scratch = node.kind == NodeKind::kAttend || node.kind == NodeKind::kExperts;
      const size_t scratch = slots_.size() + (node.kind == NodeKind::kExperts ? 1 : 0);
      if (has_scratch) has_conflict = has_conflict || hazards_.write_conflicts(scratch, Share::kAny);
      if (has_conflict) hazards_.clear();
      node.has_barrier = has_conflict;
      Share write_share = share;
      if (node.kind == NodeKind::kExperts) {
        // It has barriers inside; what follows the last is a sum by rows.
        hazards_.clear();
        write_share = Share::kRows;
        if (is_shared(node.experts.routing)) hazards_.read(slot_of(node.experts.routing), Share::kRows);
      } else {
        for (const size_t slot : reads) hazards_.read(slot, share);
      }
      for_each_output(node, [&](int32_t id, Operand& place) {
        place = at(id);
        if (is_shared(id)) hazards_.write(slot_of(id), write_share);
      });
      if (has_scratch) hazards_.write(scratch, Share::kAny);
      const bool can_join =
          node.kind == NodeKind::kRow && !node.has_barrier && !result.empty() && result.back().kind == NodeKind::kRow;
      if (can_join) {
        result.back().rows.push_back(node.rows.front());
      } else {
        result.push_back(std::move(node));
      }
    }
    return result;
  }

 private:
  static constexpr size_t kScratchSlots = 2;  // scratch memory of Attend, of Experts

  size_t slot_of(int32_t value) const { return static_cast<size_t>(part_.values[static_cast<size_t>(value)].slot); }
  bool is_shared(int32_t value) const {
    return value != -1 && value != logits_ && !is_private_[static_cast<size_t>(value)];
  }

  const Part& part_;
  const std::vector<Slot>& slots_;
  const bool is_one_;
  const int32_t logits_;
  const Operand logits_at_;
  std::vector<bool> is_private_;  // where each value lies now
  Hazards hazards_;
};

constexpr int32_t kNumCounters[] = {0, 1, 3, 2, 0};  // of work items that a node takes, by its kind

// --- work items ---

// Chunks get smaller towards the end, so that threads finish together: a share of what is left, at least `min_bytes`
// of weights (one row: an item should outweigh the cost of taking it), at most `max_tiles`.
void make_chunks(const Program& program, LinearNode& linear, bool is_one, int32_t num_threads) {
  const size_t min_bytes = is_one ? size_t{16} << 10 : 1;
  const int32_t max_tiles = is_one ? kMaxOneChunkTiles : kMaxManyChunkTiles;
  const auto tile_bytes = [&](size_t part) {
    const MatrixSpec& spec = program.matrices[static_cast<size_t>(linear.parts[part].matrix)];
    return packed_tile_bytes(spec.layout, spec.cols);
  };
  const auto num_tiles = [&](size_t part) {
    return (program.matrices[static_cast<size_t>(linear.parts[part].matrix)].rows + kTileRows - 1) / kTileRows;
  };
  const size_t fused = linear.is_gated && linear.has_gate_b ? 1 : 0;  // part 0 carries part 1 along
  size_t left = 0;
  for (size_t part = 0; part < linear.parts.size(); ++part)
    left += tile_bytes(part) * static_cast<size_t>(num_tiles(part));
  linear.chunks.clear();
  for (size_t part = 0; part < linear.parts.size(); ++part) {
    if (fused == 1 && part == 1) continue;
    const size_t bytes = tile_bytes(part) + (part == 0 && fused == 1 ? tile_bytes(1) : 0);
    for (int32_t begin = 0; begin < num_tiles(part);) {
      const size_t wanted = std::max(min_bytes, left / (2 * static_cast<size_t>(num_threads)));
      const auto tiles = static_cast<int32_t>(std::clamp<size_t>(wanted / bytes, 1, static_cast<size_t>(max_tiles)));
      const int32_t end = std::min(begin + tiles, num_tiles(part));
      linear.chunks.push_back({static_cast<int32_t>(part), begin, end});
      left -= bytes * static_cast<size_t>(end - begin);
      begin = end;
    }
  }
}

int32_t row_block_for(ActKind kind, int64_t cols, int32_t max_rows) {
  const auto rows = static_cast<int32_t>(kRowBlockBytes / act_bytes(kind, cols));
  return std::clamp(rows / 16 * 16, std::min(16, max_rows), max_rows);
}

void finish_nodes(const Program& program, std::vector<Node>& nodes, bool is_one, int32_t num_threads, int32_t max_rows,
                  int32_t counter, Plan& plan) {
  for (Node& node : nodes) {
    node.counter = counter;
    counter += kNumCounters[static_cast<size_t>(node.kind)];
    if (node.kind == NodeKind::kLinear) {
      make_chunks(program, node.linear, is_one, num_threads);
      node.linear.row_block = max_rows;
      for (const LinearPart& part : node.linear.parts) {
        const MatrixSpec& spec = program.matrices[static_cast<size_t>(part.matrix)];
        const int32_t rows = row_block_for(act_kind(spec.layout), spec.cols, max_rows);
        node.linear.row_block = std::min(node.linear.row_block, rows);
        plan.max_cols = std::max<int64_t>(plan.max_cols, spec.cols);
      }
      plan.max_row_block = std::max(plan.max_row_block, node.linear.row_block);
    }
    if (node.kind == NodeKind::kExperts) {
      for (const auto* list : {&node.experts.op->gate, &node.experts.op->down}) {
        for (const int32_t matrix : *list) {
          plan.max_cols = std::max<int64_t>(plan.max_cols, program.matrices[static_cast<size_t>(matrix)].cols);
        }
      }
      plan.max_row_block = std::max(plan.max_row_block, std::min(max_rows, 256));
    }
  }
  plan.num_counters = std::max(plan.num_counters, counter);
}

}  // namespace

Plan make_plan(const Program& program, int32_t num_threads, int32_t max_rows, int32_t max_logit_rows) {
  Flat flat = fuse(program);
  Plan plan;
  plan.unit_kinds = flat.unit_kinds;
  plan.has_main = flat.has_main;
  for (const UnitKind& kind : plan.unit_kinds) plan.has_tail_units = plan.has_tail_units || kind.is_tail;
  const auto* head = std::get_if<HeadOp>(&program.ops.back());
  if (head != nullptr) plan.vocab_size = program.matrices[static_cast<size_t>(head->weight)].rows;
  const int32_t last = head != nullptr ? head->x : std::get<PoolOp>(program.ops.back()).x;
  plan.hidden_width = program.buffers[static_cast<size_t>(last)].width;
  plan.num_tokens = plan.num_positions = std::numeric_limits<int32_t>::max();
  for (const Op& op : program.ops) {
    if (const auto* embed = std::get_if<EmbedOp>(&op)) {
      const int32_t rows = program.matrices[static_cast<size_t>(embed->table)].rows;
      if (embed->index == EmbedIndex::kToken) plan.num_tokens = std::min(plan.num_tokens, rows);
      if (embed->index == EmbedIndex::kPosition) plan.num_positions = std::min(plan.num_positions, rows);
    } else if (const auto* attend = std::get_if<AttendOp>(&op)) {
      const bool is_source = program.states[static_cast<size_t>(attend->state)].kind == StateKind::kSource;
      plan.is_causal = plan.is_causal && (attend->causal || is_source);
    }
  }
  std::vector<int32_t> gathered;
  for (const Node& node : flat.tail.nodes) {
    if (node.kind == NodeKind::kRow && node.rows.front().kind == RowKind::kGather)
      gathered.push_back(node.rows.front().in[0]);
  }
  std::vector<Slot> main_slots = place(flat.main, gathered, -1);
  std::vector<Slot> tail_slots = place(flat.tail, {}, flat.logits);
  const auto lay_out = [&plan](std::vector<Slot>& slots, int32_t rows) {
    for (Slot& slot : slots) {
      slot.offset = plan.shared_bytes;
      plan.shared_bytes += slot.row_bytes * static_cast<size_t>(rows);
      slot.private_offset = plan.private_bytes;
      plan.private_bytes += slot.row_bytes;
    }
  };
  lay_out(main_slots, max_rows);
  lay_out(tail_slots, max_logit_rows);
  plan.logits = {plan.shared_bytes, static_cast<size_t>(plan.vocab_size) * sizeof(float), false};
  plan.shared_bytes += align_up(plan.logits.stride * static_cast<size_t>(max_logit_rows));
  plan.hidden = {plan.shared_bytes, static_cast<size_t>(plan.hidden_width) * sizeof(float), false};
  plan.shared_bytes += align_up(plan.hidden.stride * static_cast<size_t>(max_logit_rows));

  int32_t main_counters = 0;
  for (const Node& node : flat.main.nodes) main_counters += kNumCounters[static_cast<size_t>(node.kind)];
  plan.tail_counters_begin = main_counters;
  for (const bool main_is_one : {false, true}) {
    Resolver main(flat.main, main_slots, main_is_one, -1, {});
    plan.main[main_is_one] = main.run(nullptr);
    finish_nodes(program, plan.main[main_is_one], main_is_one, num_threads, max_rows, 0, plan);
    for (const bool tail_is_one : {false, true}) {
      Resolver tail(flat.tail, tail_slots, tail_is_one, flat.logits, plan.logits);
      plan.tail[main_is_one][tail_is_one] = tail.run(&main);
      finish_nodes(program, plan.tail[main_is_one][tail_is_one], tail_is_one, num_threads, max_logit_rows,
                   main_counters, plan);
    }
  }
  return plan;
}

}  // namespace kamado
