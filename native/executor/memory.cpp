// The executor's memory: everything a step touches is laid out here, once.
#include <algorithm>
#include <numeric>

#include "executor/impl.h"

namespace kamado {
namespace {

// Hands out aligned pieces: first counted, then for real.
class Layout64 {
 public:
  explicit Layout64(uint8_t* base) : base_(base) {}
  template <class T>
  void take(T*& pointer, size_t count) {
    if (base_ != nullptr) pointer = reinterpret_cast<T*>(base_ + size_);
    size_ += align_up(count * sizeof(T));
  }
  size_t size() const { return size_; }

 private:
  uint8_t* base_;
  size_t size_ = 0;
};

}  // namespace

void Executor::Impl::allocate() {
  const auto cap_rows = static_cast<size_t>(std::max(options.max_rows, options.max_logit_rows));
  size_t kernel_scratch = linear_scratch_bytes(plan.max_cols, plan.max_row_block);
  size_t table_row = 0, max_group = 1, experts = 0, picks = 0, max_heads = 0;
  int32_t head_dim = 0, v_dim = 0;
  size_t expert_width = 0, expert_out = 0, expert_act = 0;
  for (const Op& op : program.ops) {
    if (const auto* embed = std::get_if<EmbedOp>(&op)) {
      const MatrixSpec& table = program.matrices[static_cast<size_t>(embed->table)];
      table_row = std::max(table_row, row_bytes(table.layout, table.cols));
    } else if (const auto* attend = std::get_if<AttendOp>(&op)) {
      max_group = std::max(max_group, static_cast<size_t>(attend->num_heads / attend->num_kv_heads));
      max_heads = std::max(max_heads, static_cast<size_t>(attend->num_heads));
      head_dim = std::max(head_dim, attend->head_dim);
      v_dim = std::max(v_dim, attend->v_dim);
    } else if (const auto* route_op = std::get_if<RouteOp>(&op)) {
      experts = std::max(experts, static_cast<size_t>(route_op->num_experts));
      picks = std::max(picks, static_cast<size_t>(route_op->top_k));
    } else if (const auto* experts_op = std::get_if<ExpertsOp>(&op)) {
      for (const int32_t id : experts_op->down) {
        const MatrixSpec& down = program.matrices[static_cast<size_t>(id)];
        expert_width = std::max(expert_width, static_cast<size_t>(down.cols));
        expert_out = std::max(expert_out, static_cast<size_t>(down.rows));
        const ActKind kind = act_kind(down.layout);
        if (kind != ActKind::kF32) expert_act = std::max(expert_act, act_bytes(kind, down.cols));
      }
    }
  }
  const size_t max_queries = std::max<size_t>(kMaxQueries, max_group);
  if (max_heads > 0) {
    kernel_scratch =
        std::max(kernel_scratch, attention_scratch_bytes(static_cast<int32_t>(max_queries), head_dim, v_dim));
  }
  for (const KvCodec& codec : codecs) {
    if (codec.k_bits == 0) continue;
    kernel_scratch = std::max({kernel_scratch, encode_scratch_bytes(codec),
                               attend_codes_scratch_bytes(codec, static_cast<int32_t>(max_queries))});
    rotated_stride = std::max(rotated_stride, align_up(rotated_query_bytes(codec)));
  }
  partial_stride = align_up(static_cast<size_t>(v_dim) + 2, 16);
  partial_slot_floats = max_heads * partial_stride;
  num_partial_slots = plan.has_main ? (options.max_kv_tokens + kPageTokens - 1) / kPageTokens + 1 : 0;
  // A row is split when rows times heads are fewer than the items wanted (make_units), into as few as reach that
  // number.
  const int32_t max_pairs = kSplitItemsPerThread * options.num_threads;
  max_split_items = 2 * max_pairs;
  split_running_floats = max_group * partial_stride;
  if (picks > 0) max_assignments = static_cast<int32_t>(std::min<size_t>(cap_rows * picks, kMaxAssignments));
  hidden_stride = align_up(expert_width * sizeof(float));
  hidden_act_stride = align_up(expert_act);
  expert_out_stride = align_up(expert_out * sizeof(float));

  const auto lay_out_shared = [&](uint8_t* base) {
    Layout64 layout(base);
    uint8_t* values = base;
    layout.take(values, plan.shared_bytes);
    layout.take(partial_slots, static_cast<size_t>(num_partial_slots) * partial_slot_floats);
    layout.take(split_running, plan.has_main ? static_cast<size_t>(max_pairs) * split_running_floats : 0);
    const auto assignments = static_cast<size_t>(max_assignments);
    layout.take(hidden, assignments * hidden_stride);
    layout.take(hidden_acts, assignments * hidden_act_stride);
    layout.take(expert_outs, assignments * expert_out_stride);
    return layout.size();
  };
  shared = Memory(lay_out_shared(nullptr));
  lay_out_shared(shared.data());
  scratch_bytes = shared.size();

  const size_t gate_values = std::max<size_t>(
      std::max<size_t>(cap_rows, kExpertRowBlock) * kMaxManyChunkTiles * kTileRows, kMaxOneChunkTiles * kTileRows);
  workers.resize(static_cast<size_t>(options.num_threads));
  for (Worker& worker : workers) {
    const auto lay_out = [&](uint8_t* base) {
      Layout64 layout(base);
      layout.take(worker.values, plan.private_bytes);
      layout.take(worker.scratch, kernel_scratch);
      layout.take(worker.table_row, table_row);
      const size_t pointers = std::max<size_t>(cap_rows, kExpertRowBlock);
      layout.take(worker.acts, pointers);
      layout.take(worker.outs, pointers);
      layout.take(worker.gate_outs, pointers);
      layout.take(worker.gate_values, gate_values);
      layout.take(worker.queries, max_queries);
      layout.take(worker.query_ids, max_queries);
      layout.take(worker.code_queries, has_codes ? max_queries : 0);
      layout.take(worker.rotated, max_queries * rotated_stride);
      layout.take(worker.partials, max_queries * partial_stride);
      layout.take(worker.running, max_queries * partial_stride);
      layout.take(worker.scores, 3 * experts);
      layout.take(worker.expert_begin, experts + 1);
      layout.take(worker.order, cap_rows * picks);
      layout.take(worker.place, cap_rows * picks);
      layout.take(worker.picked, experts);
      return layout.size();
    };
    worker.memory = Memory(lay_out(nullptr));
    lay_out(worker.memory.data());
    scratch_bytes += worker.memory.size();
  }

  counters = std::make_unique<Counter[]>(static_cast<size_t>(std::max(plan.num_counters, 1)));
  split_heads = std::make_unique<SplitHead[]>(static_cast<size_t>(max_pairs));
  split_ready = std::make_unique<std::atomic<uint64_t>[]>(static_cast<size_t>(max_split_items));
  identity.resize(cap_rows);
  std::iota(identity.begin(), identity.end(), 0);
  positions.resize(cap_rows);
  row_places.resize(cap_rows);
  is_wanted.resize(cap_rows);
  score_rows.reserve(cap_rows);
  units.resize(plan.unit_kinds.size());
  for (Units& list : units) {
    list.stores.reserve(cap_rows);
    list.encodes.reserve(has_codes ? cap_rows : 0);
    list.blocks.reserve(cap_rows);
    list.singles.reserve(cap_rows);
    list.splits.reserve(static_cast<size_t>(max_pairs));
  }
}

}  // namespace kamado
