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
#include "kamado/pool.h"
#include "kamado/state.h"
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

// --- attention work, by positions only (units.cpp) ---

struct StoreUnit {  // keys and values of rows that lie in one page
  int32_t sequence, row_begin, num_rows;
  int64_t position;  // of row_begin
};
// Of a split row's pages: items wanted for each thread, so that all end at about the same time, and pages of an item.
constexpr int32_t kSplitItemsPerThread = 16, kMinItemPages = 1, kMaxSplitItems = 4095;

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

struct alignas(64) Counter {
  std::atomic<int32_t> value{0};
  int32_t take() { return value.fetch_add(1, std::memory_order_relaxed); }
  void reset() { value.store(0, std::memory_order_relaxed); }
};

// The items of a split row's head. Words begin with the epoch of the node that runs, so nothing is ever reset: a word
// of another epoch stands for 0.
struct alignas(64) SplitHead {
  std::atomic<uint64_t> taken{0};   // items taken from the front, and from the back
  std::atomic<uint64_t> merged{0};  // items merged, in order; whether a thread is merging
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
  const char* damage = nullptr;       // where this step first met a value that is not finite
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
  void check_batch(const Batch& batch, bool is_scoring) const;
  const float* run_step(const Batch& batch, const Poll& poll);
  void run(const Batch& batch, const Poll& poll);
  void run_thread(int32_t thread);
  void begin_segment(const Segment& segment, bool is_first);
  void run_nodes(const std::vector<Node>& nodes, const Segment& segment, int32_t thread);
  void reduce_scores(const Segment& segment, int32_t thread);
  void check_cancel(int32_t thread);
  // Every place where a NaN or an infinity could become an ordinary number asks first: what damaged weights make must
  // not look like an answer. A pass over values in L1; the step throws NotFinite at its end.
  void note_damage(const float* x, int32_t n, const char* what, Worker& worker) const {
    if (!kernels.vector->is_finite(x, n) && worker.damage == nullptr) worker.damage = what;
  }
  void refuse_damage() const;

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

  // --- records.cpp ---
  void run_record(const RecordNode& node, int32_t thread);
  int32_t source_layer(int32_t state) const;
  void set_source(int32_t sequence, int32_t state, const float* k, const float* v, int64_t num_tokens);

  // --- units.cpp ---
  void note_sequences(const Batch& batch);
  void make_units(const Batch& batch, const UnitKind& kind, Units& list) const;
  void make_tail_units(const Segment& segment, const UnitKind& kind, Units& list) const;
  void add_rows(const UnitKind& kind, const SingleUnit& first, int32_t num_rows, Units& list) const;
  void split_singles(const UnitKind& kind, Units& list) const;
  int64_t tokens_seen(const UnitKind& kind, int32_t sequence, int64_t total) const;

  // --- attend.cpp ---
  void run_attend(const Node& node, int32_t thread);
  void check_queries(const AttendNode& node, int32_t row, int32_t head, Worker& worker) const;
  void store_row(const AttendNode& node, void* k_block, void* v_block, int32_t slot, int32_t row, int32_t head,
                 Worker& worker) const;
  void attend_block(const AttendNode& node, const BlockUnit& unit, int32_t head, Worker& worker);
  void attend_single(const AttendNode& node, const SingleUnit& unit, int32_t head, Worker& worker);
  void attend_splits(const AttendNode& node, const Units& units, uint64_t epoch, int32_t thread);
  void attend_item(const AttendNode& node, const SingleUnit& unit, int32_t head, int32_t item, int32_t pair,
                   uint64_t epoch, Worker& worker);
  void attend_pages(const AttendNode& node, const SingleUnit& unit, int32_t head, int32_t page_begin, int32_t page_end,
                    float* slots, float* running, Worker& worker) const;
  void finish_row(const AttendNode& node, int32_t row, int32_t head, const float* running, Worker& worker) const;
  void merge_page(const AttendNode& node, int64_t position, int32_t page, float* running, const float* partials) const;
  void run_encodes(const Node& node, const Units& units, int32_t thread);
  void rotate_queries(const AttendNode& node, int32_t row, int32_t head, int32_t first, Worker& worker) const;
  void attend_code_page(const AttendNode& node, int32_t sequence, int64_t page, int32_t head, int32_t num_queries,
                        const void* next, Worker& worker) const;

  // --- tile.cpp ---
  void tile_kv(int32_t sequence, int64_t num_tokens);
  void tile_page(int32_t sequence, int64_t page, int64_t begin, int64_t end, int64_t source, int64_t period) const;
  void tile_codes(int32_t sequence, int64_t page, int64_t same_page);

  // --- measure.cpp ---
  void record_queries(int32_t stride);
  void reserve_queries(int32_t num_step_rows);
  bool is_recorded(int32_t row) const {
    return is_wanted[static_cast<size_t>(row)] != 0 && positions[static_cast<size_t>(row)] % query_stride == 0;
  }
  void keep_queries(const AttendNode& node, int32_t thread);
  void check_readable(int32_t layer, int32_t k_bits, int32_t v_bits) const;
  void read_kv(int32_t sequence, int32_t layer, int32_t k_bits, int32_t v_bits, float* k, float* v);

  // Any sequences whose lengths sum to max_kv_tokens fit: each may leave its last page nearly empty. Who reserves
  // before his steps is given only the pages that max_kv_tokens fill.
  int64_t num_spare_pages() const { return int64_t{options.max_sequences} - 1; }
  void add_states();
  void encode_layer(const AttendOp& attend);
  void allocate();

  const Program program;
  const ExecutorOptions options;
  const KernelTable& kernels;
  Pool pool;
  Weights weights;
  Plan plan;
  std::unique_ptr<ExpertStream> stream;  // nullptr: all experts are resident
  std::unique_ptr<StateCache> kv;
  std::vector<KvLayerShape> kv_shapes;  // pages and windows, then sources
  int32_t num_kv_layers = 0;            // of them pages and windows
  RecordShape records;
  std::vector<KvCodec> codecs;  // by layer; k_bits 0: exact
  bool has_codes = false;

  Memory shared;                   // values, then what is below
  float* partial_slots = nullptr;  // [num_partial_slots][num_heads][partial_stride]
  int64_t num_partial_slots = 0;
  size_t partial_stride = 0;  // floats: maximum, sum, vector
  size_t partial_slot_floats = 0;
  float* split_running = nullptr;  // [pairs of split rows and heads][max_group][partial_stride]
  size_t split_running_floats = 0;
  size_t rotated_stride = 0;       // bytes of a rotated query
  uint8_t* hidden = nullptr;       // [assignments][hidden_stride]: an expert's gated values
  uint8_t* hidden_acts = nullptr;  // [assignments][hidden_act_stride]
  uint8_t* expert_outs = nullptr;  // [assignments][expert_out_stride]
  size_t hidden_stride = 0, hidden_act_stride = 0, expert_out_stride = 0;
  int32_t max_assignments = 0;
  size_t scratch_bytes = 0;
  int32_t max_split_items = 0;  // of all split rows and heads together

  std::vector<Worker> workers;
  std::unique_ptr<Counter[]> counters;
  std::unique_ptr<SplitHead[]> split_heads;              // by split row and head
  std::unique_ptr<std::atomic<uint64_t>[]> split_ready;  // by item and head: the epoch in which its slots were filled
  uint64_t step_epoch = 0;                               // plus a node's counter: the epoch of that node

  // The running step.
  std::vector<int32_t> identity;    // 0, 1, ...
  std::vector<int32_t> positions;   // [rows]
  std::vector<int32_t> row_places;  // [rows]: index of each row's sequence in the batch; for the tail's attention
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
