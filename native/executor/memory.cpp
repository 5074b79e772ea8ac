#include "executor/memory.h"

#include <algorithm>

#include "executor/records.h"
#include "kamado/align.h"
#include "kamado/refuse.h"

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

StepMemory::StepMemory(const Program& program, const Plan& plan, const ExecutorOptions& options,
                       const std::vector<KvCodec>& codecs, const VectorKernels& math)
    : math_(math), max_rows_(static_cast<size_t>(std::max(options.max_rows, options.max_logit_rows))) {
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
  kernel_scratch = std::max(kernel_scratch, record_scratch_bytes(program));
  const size_t max_queries = std::max<size_t>(kMaxQueries, max_group);
  if (max_heads > 0) {
    kernel_scratch =
        std::max(kernel_scratch, attention_scratch_bytes(static_cast<int32_t>(max_queries), head_dim, v_dim));
  }
  bool has_codes = false;
  for (const KvCodec& codec : codecs) {
    if (codec.k_bits == 0) continue;
    has_codes = true;
    kernel_scratch = std::max({kernel_scratch, encode_scratch_bytes(codec),
                               attend_codes_scratch_bytes(codec, static_cast<int32_t>(max_queries))});
    attend_.rotated_stride = std::max(attend_.rotated_stride, align_up(rotated_query_bytes(codec)));
  }
  attend_.partial_stride = align_up(static_cast<size_t>(v_dim) + 2, 16);
  attend_.partial_slot_floats = max_heads * attend_.partial_stride;
  attend_.num_partial_slots = plan.has_main ? (options.max_kv_tokens + kPageTokens - 1) / kPageTokens + 1 : 0;
  // A row is split when rows times heads are fewer than the items wanted (make_units), into as few as reach that
  // number.
  attend_.max_pairs = kSplitItemsPerThread * options.num_threads;
  attend_.max_split_items = 2 * attend_.max_pairs;
  attend_.split_running_floats = max_group * attend_.partial_stride;
  if (picks > 0) experts_.max_assignments = static_cast<int32_t>(std::min<size_t>(max_rows_ * picks, kMaxAssignments));
  experts_.hidden_stride = align_up(expert_width * sizeof(float));
  experts_.hidden_act_stride = align_up(expert_act);
  experts_.expert_out_stride = align_up(expert_out * sizeof(float));

  const auto lay_out_shared = [&](uint8_t* base) {
    Layout64 layout(base);
    uint8_t* values = base;
    layout.take(values, plan.shared_bytes);
    layout.take(attend_.partial_slots, static_cast<size_t>(attend_.num_partial_slots) * attend_.partial_slot_floats);
    layout.take(attend_.split_running,
                plan.has_main ? static_cast<size_t>(attend_.max_pairs) * attend_.split_running_floats : 0);
    const auto assignments = static_cast<size_t>(experts_.max_assignments);
    layout.take(experts_.hidden, assignments * experts_.hidden_stride);
    layout.take(experts_.hidden_acts, assignments * experts_.hidden_act_stride);
    layout.take(experts_.expert_outs, assignments * experts_.expert_out_stride);
    return layout.size();
  };
  shared_ = Memory(lay_out_shared(nullptr));
  lay_out_shared(shared_.data());
  bytes_ = shared_.size();

  const size_t gate_values = std::max<size_t>(
      std::max<size_t>(max_rows_, kExpertRowBlock) * kMaxManyChunkTiles * kTileRows, kMaxOneChunkTiles * kTileRows);
  workers_.resize(static_cast<size_t>(options.num_threads));
  for (Worker& worker : workers_) {
    const auto lay_out = [&](uint8_t* base) {
      Layout64 layout(base);
      layout.take(worker.values, plan.private_bytes);
      layout.take(worker.scratch, kernel_scratch);
      layout.take(worker.table_row, table_row);
      const size_t pointers = std::max<size_t>(max_rows_, kExpertRowBlock);
      layout.take(worker.acts, pointers);
      layout.take(worker.outs, pointers);
      layout.take(worker.gate_outs, pointers);
      layout.take(worker.gate_values, gate_values);
      layout.take(worker.queries, max_queries);
      layout.take(worker.query_ids, max_queries);
      layout.take(worker.code_queries, has_codes ? max_queries : 0);
      layout.take(worker.rotated, max_queries * attend_.rotated_stride);
      layout.take(worker.partials, max_queries * attend_.partial_stride);
      layout.take(worker.running, max_queries * attend_.partial_stride);
      layout.take(worker.scores, 3 * experts);
      layout.take(worker.expert_begin, experts + 1);
      layout.take(worker.order, max_rows_ * picks);
      layout.take(worker.place, max_rows_ * picks);
      layout.take(worker.picked, experts);
      return layout.size();
    };
    worker.memory = Memory(lay_out(nullptr));
    lay_out(worker.memory.data());
    bytes_ += worker.memory.size();
  }
}

void StepMemory::forget_damage() {
  for (Worker& worker : workers_) worker.damage = nullptr;
}

void StepMemory::refuse_damage() const {
  for (const Worker& worker : workers_) {
    if (worker.damage == nullptr) continue;
    throw NotFinite(std::string(worker.damage) +
                    " came out not finite: the model file is probably damaged (compare its checksum), or its weights "
                    "overflow float32");
  }
}

}  // namespace kamado
