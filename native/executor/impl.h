// The executor's insides. One step is one Pool::run: every thread walks the same list of nodes and takes its share.
#pragma once
#include <atomic>
#include <chrono>
#include <memory>
#include <vector>

#include "executor/ahead.h"
#include "executor/file.h"
#include "executor/plan.h"
#include "executor/weights.h"
#include "kamado/executor.h"
#include "kamado/experts.h"
#include "kamado/kv.h"
#include "kamado/pool.h"
#include "kamado/tables.h"

namespace kamado {

// Rows of one attention work item times their query heads: fills the kernel's registers and stays in L1.
constexpr int32_t kMaxQueries = 64;
// Rows of one product call over an expert's rows.
constexpr int32_t kExpertRowBlock = 256;
// Rows times picks whose intermediate results are held at once; more are done in waves.
constexpr int32_t kMaxAssignments = 1024;

// Rows of a step that a part of the program works on.
struct Segment {
  int32_t num_rows;
  bool is_one;
  const int32_t* source;  // [num_rows]: the step's row behind each
};

// --- attention work, by positions only (attend.cpp) ---

struct StoreUnit {  // keys and values of rows that lie in one page
  int32_t sequence, row_begin, num_rows;
  int64_t position;  // of row_begin
};
struct BlockUnit {  // neighbouring rows of one sequence; pages are walked in order
  int32_t sequence, row_begin, num_rows;
  int64_t position, total;  // total: tokens of the sequence after the step
};
struct SingleUnit {  // one row; its pages may be shared out
  int32_t sequence, row;
  int64_t position, total;
  bool stores;  // the item that has the last page stores the row's key and value first
  int32_t page_begin, page_end, num_items, partial, done;  // partial: first slot; done: its counter (-1: not split)
};
struct SingleItem {
  int32_t unit, page_begin, page_end;
};
struct EncodeUnit {  // a page that leaves the exact zone in this step
  int32_t sequence, page;
};
struct Units {
  std::vector<StoreUnit> stores;
  std::vector<EncodeUnit> encodes;
  std::vector<BlockUnit> blocks;
  std::vector<SingleUnit> singles;
  std::vector<SingleItem> items;
  bool reads_encodes = false;  // of this step
};

struct alignas(64) Counter {
  std::atomic<int32_t> value{0};
  int32_t take() { return value.fetch_add(1, std::memory_order_relaxed); }
  void reset() { value.store(0, std::memory_order_relaxed); }
};

// One thread's own memory.
struct Worker {
  Memory memory;
  uint8_t* values = nullptr;          // private values, one row each
  uint8_t* scratch = nullptr;         // of a kernel
  uint8_t* table_row = nullptr;       // stored bytes of an embedding
  const uint8_t** acts = nullptr;     // [rows]
  float** outs = nullptr;             // [rows]
  float** gate_outs = nullptr;        // [rows]
  float* gate_values = nullptr;       // second product of a fused gate
  AttendQuery* queries = nullptr;     // [kMaxQueries or the group]
  int32_t* query_ids = nullptr;       // [same]
  CodeQuery* code_queries = nullptr;  // [same]
  uint8_t* rotated = nullptr;         // [same][rotated_stride]
  float* partials = nullptr;          // [same][partial_stride]
  float* running = nullptr;           // [same][partial_stride]
  float* scores = nullptr;            // [3 * experts]: router
  int32_t* expert_begin = nullptr;    // [experts + 1]: where an expert's rows begin in `order`
  int32_t* order = nullptr;           // [rows * top_k]: row * top_k + pick, by expert
  int32_t* place = nullptr;           // [rows * top_k]: inverse of `order`
  int32_t* picked = nullptr;          // [experts]: those that any row picked, ascending
  int32_t num_picked = 0;
};

// What compute_experts does: pack items of the stream's batch, then the products of `experts`, of whose places those in
// [wave, wave_end) are meant.
struct ExpertWork {
  int32_t wave, wave_end;
  const int32_t* experts;
  int32_t num_experts, num_pack_items;
};

enum TimedKind { kTimeRows, kTimeLinear, kTimeAttend, kTimeExperts, kTimeHead, kNumTimed };

struct Executor::Impl {
  Impl(Program given, const ExecutorOptions& given_options, const Progress& progress);

  // --- executor.cpp ---
  int64_t length(int32_t sequence) const;
  void check_batch(const Batch& batch, bool is_scoring) const;
  const float* run_step(const Batch& batch, const Poll& poll);
  void run(const Batch& batch, const Poll& poll);
  void run_thread(int32_t thread);
  void run_nodes(const std::vector<Node>& nodes, const Segment& segment, int32_t thread);
  void reduce_scores(const Segment& segment, int32_t thread);
  void check_cancel(int32_t thread);

  uint8_t* at(const Operand& operand, int32_t row, const Worker& worker) const {
    return operand.is_private ? worker.values + operand.offset
                              : shared.data() + operand.offset + static_cast<size_t>(row) * operand.stride;
  }
  float* floats_at(const Operand& operand, int32_t row, const Worker& worker) const {
    return reinterpret_cast<float*>(at(operand, row, worker));
  }
  const float* vector(int32_t id) const { return id == -1 ? nullptr : weights.vectors[static_cast<size_t>(id)]; }

  // --- rows.cpp ---
  void run_row(const RowOp& op, int32_t row, const Segment& segment, Worker& worker);
  void route(const RouteOp& op, const float* logits, uint8_t* out, Worker& worker) const;
  void predict(const PredictOp& op, const float* logits, uint8_t* out);

  // --- linear.cpp ---
  void run_linear(const Node& node, const Segment& segment, int32_t thread);

  // --- experts.cpp ---
  void run_experts(const Node& node, const Segment& segment, int32_t thread);
  void group_by_expert(const ExpertsNode& node, const Segment& segment, Worker& worker) const;
  void compute_experts(const Node& node, const Segment& segment, int32_t thread, const ExpertWork& work);
  void sum_experts(const ExpertsNode& node, const Segment& segment, int32_t thread, int32_t wave, int32_t wave_end);
  void record_picks(const ExpertsNode& node, const Segment& segment, const Worker& worker);
  const PackedMatrix& expert_matrix(const ExpertsNode& node, int32_t expert, int32_t part) const {
    if (stream != nullptr) return stream->matrix(node.layer, expert, part);
    const auto& list = part == 0 ? node.op->gate : part == 1 ? node.op->up : node.op->down;
    return weights.matrices[static_cast<size_t>(list[static_cast<size_t>(expert)])];
  }

  // --- attend.cpp ---
  void make_units(const Batch& batch);
  void run_attend(const Node& node, int32_t thread);
  void attend_block(const AttendNode& node, const BlockUnit& unit, int32_t head, Worker& worker);
  void attend_single(const AttendNode& node, const Units& units, const SingleItem& item, int32_t head, Worker& worker);
  void run_encodes(const Node& node, const Units& units, int32_t thread);
  void rotate_queries(const AttendNode& node, int32_t row, int32_t head, int32_t first, Worker& worker) const;
  void attend_code_page(const AttendNode& node, int32_t sequence, int64_t page, int32_t head, int32_t num_queries,
                        const void* next, Worker& worker) const;

  // --- tile.cpp ---
  void tile_kv(int32_t sequence, int64_t num_tokens);
  void tile_page(int32_t sequence, int64_t page, int64_t begin, int64_t end, int64_t source, int64_t period) const;
  void tile_codes(int32_t sequence, int64_t page, int64_t same_page);

  // --- probe.cpp ---
  void record_queries(int32_t stride);
  void reserve_queries(int32_t num_step_rows);
  bool is_recorded(int32_t row) const {
    return is_wanted[static_cast<size_t>(row)] != 0 && positions[static_cast<size_t>(row)] % query_stride == 0;
  }
  void keep_queries(const AttendNode& node, int32_t thread);
  void check_readable(int32_t layer, int32_t k_bits, int32_t v_bits) const;
  void read_kv(int32_t sequence, int32_t layer, int32_t k_bits, int32_t v_bits, float* k, float* v);

  void add_kv_layers();
  void allocate();

  const Program program;
  const ExecutorOptions options;
  const KernelTable& kernels;
  Pool pool;
  Weights weights;
  Plan plan;
  std::unique_ptr<ExpertStream> stream;  // nullptr: all experts are resident
  std::unique_ptr<KvCache> kv;
  std::vector<KvLayerShape> kv_shapes;
  std::vector<KvCodec> codecs;  // by layer; k_bits 0: exact
  bool has_codes = false;

  Memory shared;                   // values, then what is below
  float* partial_slots = nullptr;  // [num_partial_slots][num_heads][partial_stride]
  int64_t num_partial_slots = 0;
  size_t partial_stride = 0;  // floats: maximum, sum, vector
  size_t partial_slot_floats = 0;
  size_t rotated_stride = 0;       // bytes of a rotated query
  uint8_t* hidden = nullptr;       // [assignments][hidden_stride]: an expert's gated values
  uint8_t* hidden_acts = nullptr;  // [assignments][hidden_act_stride]
  uint8_t* expert_outs = nullptr;  // [assignments][expert_out_stride]
  size_t hidden_stride = 0, hidden_act_stride = 0, expert_out_stride = 0;
  int32_t max_assignments = 0;
  size_t scratch_bytes = 0;
  int32_t max_singles_split = 0;

  std::vector<Worker> workers;
  std::unique_ptr<Counter[]> counters;
  std::unique_ptr<std::atomic<int32_t>[]> done;  // finished items of a split row, by row and head
  int32_t max_kv_heads = 1;

  // The running step.
  std::vector<int32_t> identity;    // 0, 1, ...
  std::vector<int32_t> positions;   // [rows]
  std::vector<uint8_t> is_wanted;   // [rows]: logits are wanted
  std::vector<int32_t> score_rows;  // [rows]: rows with a target
  std::vector<Units> units;         // by Plan::unit_kinds
  const Batch* batch = nullptr;
  const int32_t* score_targets = nullptr;  // [rows]; nullptr: no scoring
  double* score_out = nullptr;             // [rows]
  const Poll* poll = nullptr;
  std::chrono::steady_clock::time_point last_poll, last_time;
  TimedKind timed = kTimeRows;
  std::atomic<bool> is_cancelled{false};

  const ExpertStream::Batch* expert_batch = nullptr;
  AheadControl ahead;
  bool looks_ahead = false;  // this step
  std::vector<LayerLedger> resident_ledger;
  bool records_routing = false;
  std::vector<int32_t> routing;  // rows of 3 + max_top_k
  int32_t max_top_k = 0;

  int32_t query_stride = 0;               // 0: queries are not recorded
  std::vector<RecordedQueries> recorded;  // by KV layer

  double seconds[kNumTimed] = {};
  double seconds_total = 0, seconds_encode = 0;
  int64_t num_steps = 0, num_rows = 0;
};

}  // namespace kamado
